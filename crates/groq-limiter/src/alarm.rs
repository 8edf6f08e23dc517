//! When must which lane be looked at again? One task sleeps until the earliest wake-up of all lanes.

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
    lanes::{Clock, SharedLane},
};

/// The wake-ups of all lanes. Each lane has at most one.
#[derive(Debug, Default)]
pub(super) struct Alarm {
    due: Mutex<BTreeMap<(Ns, u64), Weak<SharedLane>>>,
    earlier: Notify,
    driven: AtomicBool,
}

impl Alarm {
    /// Moves a lane's wake-up.
    pub(super) fn set(&self, lane: &Arc<SharedLane>, before: Option<Ns>, at: Option<Ns>) {
        let mut due = self.due();
        if let Some(before) = before {
            due.remove(&(before, lane.number));
        }
        if let Some(at) = at {
            let first = due.first_key_value().is_none_or(|(&(first, _), _)| at < first);
            due.insert((at, lane.number), Arc::downgrade(lane));
            if first {
                self.earlier.notify_one();
            }
        }
    }

    /// Starts the task on the current runtime unless there is one.
    pub(super) fn start(self: &Arc<Self>, clock: Clock) {
        if let Some(duty) = Duty::take(self) {
            tokio::spawn(duty.drive(clock));
        }
    }

    /// The lanes whose time has come; their wake-ups are taken off.
    fn take_due(&self, now: Ns) -> Vec<Arc<SharedLane>> {
        let mut due = self.due();
        let later = due.split_off(&(now + 1, 0));
        std::mem::replace(&mut *due, later).into_values().filter_map(|lane| lane.upgrade()).collect()
    }

    fn first(&self) -> Option<Ns> {
        self.due().first_key_value().map(|(&(at, _), _)| at)
    }

    fn due(&self) -> MutexGuard<'_, BTreeMap<(Ns, u64), Weak<SharedLane>>> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whoever holds it drives the alarm. Dropped with its runtime, it makes way for another.
#[derive(Debug)]
pub(super) struct Duty(Arc<Alarm>);

impl Duty {
    /// The duty, unless somebody has it.
    pub(super) fn take(alarm: &Arc<Alarm>) -> Option<Self> {
        (!alarm.driven.swap(true, Ordering::AcqRel)).then(|| Self(alarm.clone()))
    }

    /// Pumps every lane at its time, until nobody else knows the alarm.
    pub(super) async fn drive(self, clock: Clock) {
        let alarm = &self.0;
        loop {
            match alarm.first() {
                Some(at) => tokio::select! {
                    () = sleep_until(clock.instant(at)) => {}
                    () = alarm.earlier.notified() => {}
                },
                None => alarm.earlier.notified().await,
            }
            for lane in alarm.take_due(clock.now()) {
                lane.wake_up();
            }
            if Arc::strong_count(alarm) == 1 {
                return;
            }
        }
    }
}

impl Drop for Duty {
    fn drop(&mut self) {
        self.0.driven.store(false, Ordering::Release);
    }
}

impl Alarm {
    /// The lanes are gone: the task ends once it looks.
    pub(super) fn end(&self) {
        self.earlier.notify_one();
    }
}
