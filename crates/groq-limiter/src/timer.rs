//! One task that sleeps until the earliest wake-up of all limiters.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::{sync::Notify, time::sleep_until};

use super::{
    bucket::Ns,
    registry::{Clock, SharedLimiter},
};

/// The wake-ups of all limiters. Each limiter has at most one.
#[derive(Debug, Default)]
pub(super) struct Timer {
    due: Mutex<BTreeMap<(Ns, u64), Weak<SharedLimiter>>>,
    earlier: Notify,
    driven: AtomicBool,
}

impl Timer {
    /// Moves a limiter's wake-up.
    pub(super) fn set(&self, limiter: &Arc<SharedLimiter>, before: Option<Ns>, at: Option<Ns>) {
        let mut due = self.due();
        if let Some(before) = before {
            due.remove(&(before, limiter.number));
        }
        if let Some(at) = at {
            let first = due.first_key_value().is_none_or(|(&(first, _), _)| at < first);
            due.insert((at, limiter.number), Arc::downgrade(limiter));
            if first {
                self.earlier.notify_one();
            }
        }
    }

    /// Starts the task on the current runtime unless there is one.
    pub(super) fn start(self: &Arc<Self>, clock: Clock) {
        if let Some(driver) = TimerDriver::take(self) {
            tokio::spawn(driver.drive(clock));
        }
    }

    /// The limiters whose time has come; their wake-ups are taken off.
    fn take_due(&self, now: Ns) -> Vec<Arc<SharedLimiter>> {
        let mut due = self.due();
        let later = due.split_off(&(now + 1, 0));
        std::mem::replace(&mut *due, later).into_values().filter_map(|limiter| limiter.upgrade()).collect()
    }

    fn first(&self) -> Option<Ns> {
        self.due().first_key_value().map(|(&(at, _), _)| at)
    }

    fn due(&self) -> MutexGuard<'_, BTreeMap<(Ns, u64), Weak<SharedLimiter>>> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whoever holds it drives the timer. Dropped with its runtime, it makes way for another.
#[derive(Debug)]
pub(super) struct TimerDriver(Arc<Timer>);

impl TimerDriver {
    /// The driver, unless somebody has it.
    pub(super) fn take(timer: &Arc<Timer>) -> Option<Self> {
        (!timer.driven.swap(true, Ordering::AcqRel)).then(|| Self(timer.clone()))
    }

    /// Pumps every limiter at its time, until nobody else knows the timer.
    pub(super) async fn drive(self, clock: Clock) {
        let timer = &self.0;
        loop {
            match timer.first() {
                Some(at) => tokio::select! {
                    () = sleep_until(clock.instant(at)) => {}
                    () = timer.earlier.notified() => {}
                },
                None => timer.earlier.notified().await,
            }
            for limiter in timer.take_due(clock.now()) {
                limiter.wake_up();
            }
            if Arc::strong_count(timer) == 1 {
                return;
            }
        }
    }
}

impl Drop for TimerDriver {
    fn drop(&mut self) {
        self.0.driven.store(false, Ordering::Release);
    }
}

impl Timer {
    /// The limiters are gone: the task ends once it looks.
    pub(super) fn end(&self) {
        self.earlier.notify_one();
    }
}
