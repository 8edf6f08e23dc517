//! One task that wakes every limiter at its time.

use std::{
    collections::HashMap,
    future::poll_fn,
    sync::{Arc, Weak},
    task::{Context, Poll},
};

use tokio::{runtime::Handle, sync::Notify, time::Instant};
use tokio_util::time::{DelayQueue, delay_queue::Key};

use crate::sync::{
    Mutex,
    atomic::{AtomicBool, Ordering},
    lock,
};

/// The wake-ups of all limiters. Each limiter has at most one, under its number.
#[derive(Debug)]
pub(crate) struct Timer<L> {
    /// What a limiter does when its time has come.
    wake: fn(&Arc<L>),
    delays: Mutex<Delays<L>>,
    ended: Notify,
    driven: AtomicBool,
}

#[derive(Debug)]
struct Delays<L> {
    queue: DelayQueue<u64>,
    limiters: HashMap<u64, (Key, Weak<L>)>,
    /// Whose timers they are: a limiter may be changed by a thread without a runtime.
    runtime: Option<Handle>,
}

impl<L> Delays<L> {
    /// The timers are this runtime's from now on: those of an earlier one may have gone with it.
    fn enter(&mut self, runtime: Handle) {
        let mut queue = DelayQueue::new();
        for (number, (key, _)) in &mut self.limiters {
            *key = queue.insert_at(*number, self.queue.deadline(key));
        }
        (self.queue, self.runtime) = (queue, Some(runtime));
    }
}

impl<L: Send + Sync + 'static> Timer<L> {
    pub(crate) fn new(wake: fn(&Arc<L>)) -> Self {
        let delays = Delays { queue: DelayQueue::new(), limiters: HashMap::new(), runtime: None };
        Self { wake, delays: Mutex::new(delays), ended: Notify::new(), driven: AtomicBool::new(false) }
    }

    /// Moves a limiter's wake-up.
    pub(crate) fn set(&self, number: u64, limiter: &Arc<L>, at: Option<Instant>) {
        let Delays { queue, limiters, runtime } = &mut *lock(&self.delays);
        let _runtime = runtime.as_ref().map(Handle::enter);
        match (limiters.get(&number), at) {
            (Some((key, _)), Some(at)) => queue.reset_at(key, at),
            (None, Some(at)) => {
                limiters.insert(number, (queue.insert_at(number, at), Arc::downgrade(limiter)));
            }
            (Some((key, _)), None) => {
                queue.remove(key);
                limiters.remove(&number);
            }
            (None, None) => {}
        }
    }

    /// Starts the task on the current runtime unless there is one.
    pub(crate) fn start(self: &Arc<Self>) {
        if let Some(driver) = TimerDriver::take(self) {
            tokio::spawn(driver.drive());
        }
    }

    /// The limiters are gone: the task ends.
    pub(crate) fn end(&self) {
        self.ended.notify_one();
    }

    /// The next limiter whose time has come; its wake-up is taken off.
    fn poll_due(&self, context: &mut Context<'_>) -> Poll<Arc<L>> {
        let Delays { queue, limiters, .. } = &mut *lock(&self.delays);
        while let Poll::Ready(Some(due)) = queue.poll_expired(context) {
            if let Some(limiter) = limiters.remove(due.get_ref()).and_then(|(_, limiter)| limiter.upgrade()) {
                return Poll::Ready(limiter);
            }
        }
        Poll::Pending
    }
}

/// Whoever holds it drives the timer. Dropped with its runtime, it makes way for another.
#[derive(Debug)]
pub(crate) struct TimerDriver<L>(Arc<Timer<L>>);

impl<L: Send + Sync + 'static> TimerDriver<L> {
    /// The driver, unless somebody has it.
    pub(crate) fn take(timer: &Arc<Timer<L>>) -> Option<Self> {
        (!timer.driven.swap(true, Ordering::AcqRel)).then(|| Self(timer.clone()))
    }

    /// Dispatches every limiter at its time, until the limiters are gone.
    pub(crate) async fn drive(self) {
        lock(&self.0.delays).enter(Handle::current());
        loop {
            tokio::select! {
                limiter = poll_fn(|context| self.0.poll_due(context)) => (self.0.wake)(&limiter),
                () = self.0.ended.notified() => return,
            }
        }
    }
}

impl<L> Drop for TimerDriver<L> {
    fn drop(&mut self) {
        self.0.driven.store(false, Ordering::Release);
    }
}
