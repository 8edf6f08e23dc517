//! A limiter shared between connections, and the future of a queued request.

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

/// What all limiters share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) clock: Clock,
    pub(crate) timer: Timer<SharedLimiter>,
    pub(crate) occupancy: Mutex<Occupancy>,
    /// Whether a quota has changed since the last save.
    pub(crate) changed: AtomicBool,
    /// Where replicas share quotas.
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

/// How many requests wait in all limiters and what they hold, under one lock with the bounds: no two threads take the last place.
#[derive(Debug)]
pub(crate) struct Occupancy {
    pub(crate) waiting: usize,
    bytes: u64,
    pub(crate) bounds: QueueSettings,
}

impl Occupancy {
    /// Adds a request of this class that holds so many bytes, if there is room. The last quarter is not batch's.
    fn try_add(&mut self, class: Priority, bytes: u64) -> bool {
        let QueueSettings { max_waiting: mut count, max_bytes: mut most } = self.bounds;
        if class == Priority::Batch {
            (count, most) = (count - count / 4, most - most / 4);
        }
        let has_room = self.waiting < count && self.bytes.saturating_add(bytes) <= most;
        if has_room {
            self.add(bytes);
        }
        has_room
    }

    fn add(&mut self, bytes: u64) {
        self.waiting += 1;
        self.bytes += bytes;
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
    pub(crate) number: u64,
    pub(crate) common: Arc<Shared>,
    inside: Mutex<Inside>,
}

/// What a limiter's lock guards.
#[derive(Debug)]
struct Inside {
    limiter: Limiter,
    /// What came of queued requests, until their futures fetch it.
    outcomes: HashMap<Ticket, Result<Box<Grant>, AdmissionError>>,
    /// When the timer wakes it. Where this turns out to be too early, it is set again then: most moves are to a later time.
    armed: Option<Ns>,
}

/// A limiter's answer to a request.
pub(crate) enum Submitted {
    /// It goes.
    Now(Box<Grant>),
    /// It waits.
    Later(Waiting),
}

impl SharedLimiter {
    pub(crate) fn new(key: Scope, number: u64, common: Arc<Shared>, limiter: Limiter) -> Self {
        Self { key, number, common, inside: Mutex::new(Inside { limiter, outcomes: HashMap::default(), armed: None }) }
    }

    pub(crate) fn at(&self, now: Instant) -> Ns {
        self.common.clock.at(now)
    }

    /// Asks for a turn.
    pub(crate) fn submit(
        self: &Arc<Self>,
        request: &AdmissionRequest,
        deadline: Instant,
        requeue: Option<Requeue>,
    ) -> Result<Submitted, AdmissionError> {
        let common = &self.common;
        let deadline = common.clock.at(deadline);
        let mut counted = false;
        let has_room = || {
            // A request that was in the queue already and was refused by Groq is not one more.
            if requeue.is_none() {
                counted = lock(&common.occupancy).try_add(request.class, request.bytes);
            }
            requeue.is_some() || counted
        };
        let mut inside = lock(&self.inside);
        // Another limiter's place may be taken here.
        let place = requeue.filter(|requeue| !inside.outcomes.contains_key(&requeue.ticket));
        let now = common.clock.now();
        let submitted = match inside.limiter.submit(request, now, deadline, place, has_room)? {
            Admission::Granted(grant) => Submitted::Now(grant.into()),
            Admission::Queued(ticket) => {
                if !counted {
                    lock(&common.occupancy).add(request.bytes);
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

    /// Changes the limiter, then lets go whoever can.
    pub(crate) fn change<T>(self: &Arc<Self>, change: impl FnOnce(&mut Limiter, Ns) -> T) -> T {
        let mut inside = lock(&self.inside);
        let now = self.common.clock.now();
        let outcome = change(&mut inside.limiter, now);
        self.common.changed.store(true, Relaxed);
        if inside.limiter.waiting() > 0 || self.common.store.is_some() {
            self.dispatch(inside, now);
        }
        outcome
    }

    /// Reads the limiter, or changes what nobody waits for.
    pub(crate) fn with<T>(&self, read: impl FnOnce(&mut Limiter, Ns) -> T) -> T {
        read(&mut lock(&self.inside).limiter, self.common.clock.now())
    }

    /// The store's answer to this transaction. `None`: there is none in time.
    pub(crate) fn answered(self: &Arc<Self>, serial: u64, answer: Option<&Answer>) {
        let replicas = self.common.store.as_ref().map_or(1, |store| store.replicas());
        self.change(|limiter, now| match answer {
            Some(answer) => limiter.answered(serial, answer, now),
            None => limiter.unanswered(serial, replicas, now),
        });
    }

    /// Its time has come.
    fn wake_up(self: &Arc<Self>) {
        let mut inside = lock(&self.inside);
        inside.armed = None;
        let now = self.common.clock.now();
        self.dispatch(inside, now);
    }

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
        let transaction = inside.limiter.transaction(now);
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

/// A request in the queue. Dropping it leaves the queue.
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
            // Granted, and nobody there to take it.
            Some(Ok(grant)) => inside.limiter.settle(*grant, ActualUsage::Nothing, now),
            Some(Err(_)) => {}
            None => inside.limiter.cancel(self.ticket, now),
        }
        self.limiter.dispatch(inside, now);
    }
}
