//! [`SharedLimiter`]: a limiter behind a lock, which the connections share, and [`Waiting`]: the future of a queued request.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use tokio::time::Instant;

use crate::{
    clock::Clock,
    limiter::{Admission, Grant, Limiter, Requeue},
    queue::Ticket,
    request::{ActualUsage, AdmissionError, AdmissionRequest, Scope},
    settings::QueueSettings,
    store::{StoreHandle, protocol::Answer},
    sync::{
        HashMap, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering::Relaxed},
        lock,
    },
    timer::Timer,
    types::{Ns, Priority},
};

/// State that all limiters of a process share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) clock: Clock,
    pub(crate) timer: Timer<SharedLimiter>,
    pub(crate) occupancy: Mutex<Occupancy>,
    /// Whether a quota has changed since the last save.
    pub(crate) changed: AtomicBool,
    /// The store; `None` if quotas are not shared between replicas.
    pub(crate) store: Option<StoreHandle>,
}

impl Shared {
    pub(crate) fn new(bounds: QueueSettings, store: Option<StoreHandle>) -> Self {
        Self {
            clock: Clock::start(),
            timer: Timer::new(SharedLimiter::wake_up),
            occupancy: Mutex::new(Occupancy { waiting: 0, bytes: 0, bounds }),
            changed: AtomicBool::new(false),
            store,
        }
    }
}

/// Number and bytes of the waiting requests in all limiters. They are under one lock with their bounds, so that two threads
/// cannot both take the last place.
#[derive(Debug)]
pub(crate) struct Occupancy {
    pub(crate) waiting: usize,
    bytes: u64,
    pub(crate) bounds: QueueSettings,
}

impl Occupancy {
    /// Adds a request if there is room, or if it may `exceed` the bounds, and returns whether it was added. Batch requests
    /// cannot use the last quarter of either bound.
    fn add(&mut self, request: &AdmissionRequest, exceed: bool) -> bool {
        let QueueSettings { mut max_waiting, mut max_bytes } = self.bounds;
        if request.class == Priority::Batch {
            (max_waiting, max_bytes) = (max_waiting - max_waiting / 4, max_bytes - max_bytes / 4);
        }
        let has_room = self.waiting < max_waiting && self.bytes.saturating_add(request.bytes) <= max_bytes;
        if has_room || exceed {
            self.waiting += 1;
            self.bytes += request.bytes;
        }
        has_room || exceed
    }

    fn remove(&mut self, bytes: u64) {
        self.waiting -= 1;
        self.bytes -= bytes;
    }
}

/// One limiter, shared by the connections that use it.
#[derive(Debug)]
pub(crate) struct SharedLimiter {
    pub(crate) key: Scope,
    /// The limiter's number in the timer.
    pub(crate) number: u64,
    pub(crate) common: Arc<Shared>,
    inside: Mutex<Inside>,
}

/// What a limiter's lock guards.
#[derive(Debug)]
struct Inside {
    limiter: Limiter,
    /// Outcomes of queued requests, until their futures take them.
    outcomes: HashMap<Ticket, Result<Box<Grant>, AdmissionError>>,
    /// When the timer wakes the limiter; `None` if the timer is not set. Usually the time only moves to later, so the timer
    /// is reset when it fires instead of at every move.
    armed: Option<Ns>,
}

/// The result of submitting a request.
pub(crate) enum Submitted {
    /// Granted at once.
    Now(Box<Grant>),
    /// Queued. The future resolves to the outcome.
    Later(Waiting),
}

impl SharedLimiter {
    pub(crate) fn new(key: Scope, number: u64, common: Arc<Shared>, limiter: Limiter) -> Self {
        Self { key, number, common, inside: Mutex::new(Inside { limiter, outcomes: HashMap::default(), armed: None }) }
    }

    /// The time on the limiter's clock.
    pub(crate) fn now(&self) -> Ns {
        self.common.clock.now()
    }

    /// An instant on the limiter's clock.
    pub(crate) fn at(&self, now: Instant) -> Ns {
        self.common.clock.at(now)
    }

    /// Grants or queues a request, like [`Limiter::submit`].
    pub(crate) fn submit(
        self: &Arc<Self>,
        request: &AdmissionRequest,
        deadline: Instant,
        requeue: Option<Requeue>,
    ) -> Result<Submitted, AdmissionError> {
        let common = &self.common;
        let deadline = common.clock.at(deadline);
        let mut added = false;
        let has_room = || {
            // A request that comes back after a refusal had room when it was first queued, so it is never turned away.
            added = lock(&common.occupancy).add(request, requeue.is_some());
            added
        };
        let mut inside = lock(&self.inside);
        // The ticket may be from another limiter and in use in this one. The request gets a new ticket then.
        let place = requeue.filter(|requeue| !inside.outcomes.contains_key(&requeue.ticket));
        let now = common.clock.now();
        let submitted = match inside.limiter.submit(request, now, deadline, place, has_room)? {
            Admission::Granted(grant) => Submitted::Now(grant.into()),
            Admission::Queued(ticket) => {
                if !added {
                    lock(&common.occupancy).add(request, true);
                }
                Submitted::Later(Waiting { limiter: self.clone(), ticket, bytes: request.bytes, done: false })
            }
        };
        common.changed.store(true, Relaxed);
        if inside.limiter.waiting() > 0 || common.store.is_some() {
            self.dispatch(inside, now);
            common.timer.start();
        }
        Ok(submitted)
    }

    /// Changes the limiter as of `now`, then dispatches.
    pub(crate) fn change<T>(self: &Arc<Self>, now: Ns, change: impl FnOnce(&mut Limiter, Ns) -> T) -> T {
        let mut inside = lock(&self.inside);
        let outcome = change(&mut inside.limiter, now);
        self.common.changed.store(true, Relaxed);
        if inside.limiter.waiting() > 0 || self.common.store.is_some() {
            self.dispatch(inside, now);
        }
        outcome
    }

    /// Reads the limiter, or makes a change that no queued request depends on: there is no dispatch.
    pub(crate) fn with<T>(&self, read: impl FnOnce(&mut Limiter) -> T) -> T {
        read(&mut lock(&self.inside).limiter)
    }

    /// Takes the store's reply to the transaction with this serial number; `None` if there was none in time.
    pub(crate) fn answered(self: &Arc<Self>, serial: u64, answer: Option<&Answer>) {
        let replicas = self.common.store.as_ref().map_or(1, |store| store.replicas());
        self.change(self.now(), |limiter, now| match (limiter.sharing(now), answer) {
            (Some(sharing), Some(answer)) => sharing.answered(serial, answer),
            (Some(sharing), None) => sharing.unanswered(serial, replicas),
            (None, _) => {}
        });
    }

    /// Dispatches when the timer fires.
    fn wake_up(self: &Arc<Self>) {
        let mut inside = lock(&self.inside);
        inside.armed = None;
        let now = self.common.clock.now();
        self.dispatch(inside, now);
    }

    /// Dispatches, resets the timer, and releases the lock. Then sends the pending transaction to the store and wakes the
    /// tasks of requests that have left the queue.
    fn dispatch(self: &Arc<Self>, mut inside: MutexGuard<'_, Inside>, now: Ns) {
        let Shared { clock, timer, changed, store, .. } = &*self.common;
        let mut events = Vec::new();
        inside.limiter.dispatch(now, &mut events);
        if !events.is_empty() {
            changed.store(true, Relaxed);
        }
        inside.outcomes.extend(events.into_iter().map(|(ticket, outcome)| (ticket, outcome.map(Box::new))));
        if let Some(wake) = inside.limiter.wake()
            && inside.armed.is_none_or(|armed| wake < armed)
        {
            timer.set(self.number, self, inside.armed.map(|at| clock.instant(at)), clock.instant(wake));
            inside.armed = Some(wake);
        }
        let woken = inside.limiter.take_woken();
        let transaction = inside.limiter.sharing(now).and_then(|sharing| sharing.transaction());
        drop(inside);
        if let Some((store, transaction)) = store.as_ref().zip(transaction) {
            let serial = transaction.serial;
            if !store.transact(&self.key, transaction) {
                self.answered(serial, None);
            }
        }
        woken.into_iter().for_each(Waker::wake);
    }
}

/// The future of a queued request. Dropping it removes the request from the queue.
#[derive(Debug)]
pub(crate) struct Waiting {
    limiter: Arc<SharedLimiter>,
    ticket: Ticket,
    bytes: u64,
    done: bool,
}

impl Future for Waiting {
    type Output = Result<Box<Grant>, AdmissionError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut inside = lock(&self.limiter.inside);
        let Some(outcome) = inside.outcomes.remove(&self.ticket) else {
            inside.limiter.set_waker(self.ticket, context.waker());
            return Poll::Pending;
        };
        drop(inside);
        self.done = true;
        Poll::Ready(outcome)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let common = &self.limiter.common;
        lock(&common.occupancy).remove(self.bytes);
        if self.done {
            return;
        }
        let now = common.clock.now();
        let mut inside = lock(&self.limiter.inside);
        match inside.outcomes.remove(&self.ticket) {
            // Granted, but the future was dropped before it took the grant.
            Some(Ok(grant)) => inside.limiter.settle(*grant, ActualUsage::Nothing, now),
            Some(Err(_)) => {}
            None => inside.limiter.cancel(self.ticket, now),
        }
        self.limiter.dispatch(inside, now);
    }
}
