//! One task that wakes every limiter at its time.

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

/// The wake-ups of all limiters. Each limiter has one, which only moves forward until it comes.
#[derive(Debug)]
pub(crate) struct Timer<L> {
    wake: fn(&Arc<L>),
    changes: UnboundedSender<Change<L>>,
    /// Whoever holds the lock is the task. If it goes with its runtime, the next one goes on from here.
    schedule: Arc<Mutex<Schedule<L>>>,
}

#[derive(Debug)]
struct Change<L> {
    number: u64,
    limiter: Weak<L>,
    from: Option<Instant>,
    to: Instant,
}

#[derive(Debug)]
struct Schedule<L> {
    changes: UnboundedReceiver<Change<L>>,
    wake_ups: BTreeMap<(Instant, u64), Weak<L>>,
}

impl<L: Send + Sync + 'static> Timer<L> {
    /// `wake`: what a limiter does at its time.
    pub(crate) fn new(wake: fn(&Arc<L>)) -> Self {
        let (changes, receiver) = unbounded_channel();
        let schedule = Schedule { changes: receiver, wake_ups: BTreeMap::new() };
        Self { wake, changes, schedule: Arc::new(Mutex::new(schedule)) }
    }

    /// Moves a limiter's wake-up. Any thread may do so, whether it has a runtime or not.
    pub(crate) fn set(&self, number: u64, limiter: &Arc<L>, from: Option<Instant>, to: Instant) {
        // The receiver is in `schedule`.
        let _ = self.changes.send(Change { number, limiter: Arc::downgrade(limiter), from, to });
    }

    /// Starts the task on the current runtime unless there is one.
    pub(crate) fn start(&self) {
        if let Some(task) = self.try_drive() {
            tokio::spawn(task);
        }
    }

    /// Is the task until the limiters are gone, unless there is one.
    pub(crate) fn try_drive(&self) -> Option<impl Future<Output = ()> + use<L>> {
        let schedule = self.schedule.clone().try_lock_owned().ok()?;
        Some(drive(schedule, self.wake))
    }

    /// Is the task until the limiters are gone, as soon as there is none.
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
