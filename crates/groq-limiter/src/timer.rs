//! [`Timer`]: one task that wakes every limiter at the time for which it has asked.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
};

use tokio::{
    sync::{
        Mutex, OwnedMutexGuard,
        mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    },
    time::{Instant, sleep_until},
};

/// The wake-ups of all limiters. Each limiter has at most one, which can only be moved to an earlier time until it fires.
#[derive(Debug)]
pub(crate) struct Timer<L> {
    wake: fn(&Arc<L>),
    changes: UnboundedSender<Change<L>>,
    /// The task holds this lock. If its runtime is shut down, the lock is released and the next task continues with this
    /// schedule.
    schedule: Arc<Mutex<Schedule<L>>>,
}

#[derive(Debug)]
struct Change<L> {
    number: u64,
    limiter: Weak<L>,
    /// The wake-up to be replaced; `None` if there is none.
    from: Option<Instant>,
    to: Instant,
}

#[derive(Debug)]
struct Schedule<L> {
    changes: UnboundedReceiver<Change<L>>,
    wake_ups: BTreeMap<(Instant, u64), Weak<L>>,
}

impl<L: Send + Sync + 'static> Timer<L> {
    /// A timer that calls `wake` with each limiter at its time.
    pub(crate) fn new(wake: fn(&Arc<L>)) -> Self {
        let (changes, receiver) = unbounded_channel();
        let schedule = Schedule { changes: receiver, wake_ups: BTreeMap::new() };
        Self { wake, changes, schedule: Arc::new(Mutex::new(schedule)) }
    }

    /// Sets the wake-up of a limiter to `to`, in place of that at `from`. Can be called outside a runtime.
    pub(crate) fn set(&self, number: u64, limiter: &Arc<L>, from: Option<Instant>, to: Instant) {
        // Cannot fail, because `schedule` owns the receiver.
        let _ = self.changes.send(Change { number, limiter: Arc::downgrade(limiter), from, to });
    }

    /// Spawns the task on the current runtime unless it is running.
    pub(crate) fn start(&self) {
        if let Some(task) = self.try_drive() {
            tokio::spawn(task);
        }
    }

    /// The task, which ends with the last limiter; `None` if it is running already.
    pub(crate) fn try_drive(&self) -> Option<impl Future<Output = ()> + use<L>> {
        let schedule = self.schedule.clone().try_lock_owned().ok()?;
        Some(drive(schedule, self.wake))
    }

    /// Waits until no other task is running, then runs the task until the last limiter is dropped.
    pub(crate) async fn drive(&self) {
        drive(self.schedule.clone().lock_owned().await, self.wake).await;
    }
}

async fn drive<L>(mut schedule: OwnedMutexGuard<Schedule<L>>, wake: fn(&Arc<L>)) {
    let Schedule { changes, wake_ups } = &mut *schedule;
    loop {
        let next = wake_ups.first_key_value().map(|(&(at, _), _)| at);
        tokio::select! {
            change = changes.recv() => {
                let Some(Change { number, limiter, from, to }) = change else { return };
                from.map(|from| wake_ups.remove(&(from, number)));
                wake_ups.insert((to, number), limiter);
            }
            () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                if let Some(limiter) = wake_ups.pop_first().and_then(|(_, limiter)| limiter.upgrade()) {
                    wake(&limiter);
                }
            }
        }
    }
}
