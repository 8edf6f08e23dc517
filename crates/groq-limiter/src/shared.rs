//! A limiter shared between connections, and the future of a queued request.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::Relaxed},
    task::{Context, Poll, Waker},
};

use foldhash::{HashMap, HashMapExt as _};
use tokio::time::Instant;

#[cfg(feature = "redis")]
use super::store::protocol::{Answer, State};
use super::{
    AdmissionError, AdmissionRequest,
    bucket::Ns,
    limiter::{Admission, Event, Grant, Limiter, Requeue},
    queue::Id,
    registry::{Scope, SharedLimiter},
};

/// A limiter's answer to a request.
pub(super) enum Submitted {
    /// It goes.
    Now(Box<Grant>),
    /// It waits.
    Later(Waiting),
}

/// What a limiter's lock guards.
#[derive(Debug)]
pub(super) struct Locked {
    limiter: Limiter,
    /// Who is to be woken, by number in the queue.
    sleepers: Vec<Option<Sleeping>>,
    /// Outcomes that their futures have not fetched yet, by serial.
    outcomes: HashMap<u64, Result<Grant, AdmissionError>>,
    serial: u64,
    armed: Option<Ns>,
}

#[derive(Debug)]
struct Sleeping {
    serial: u64,
    waker: Option<Waker>,
}

impl Locked {
    pub(super) fn new(limiter: Limiter) -> Self {
        Self { limiter, sleepers: Vec::new(), outcomes: HashMap::new(), serial: 0, armed: None }
    }
}

impl SharedLimiter {
    pub(super) fn new(key: Scope, number: u64, common: Arc<super::registry::Shared>, limiter: Limiter) -> Arc<Self> {
        Arc::new(Self { key, number, common, inside: Mutex::new(Locked::new(limiter)) })
    }

    /// Asks for a turn.
    pub(super) fn submit(
        self: &Arc<Self>,
        request: &AdmissionRequest,
        deadline: Instant,
        requeue: Option<Requeue>,
    ) -> Result<Submitted, AdmissionError> {
        let common = &self.common;
        let deadline = common.clock.at(deadline);
        // Who was in the queue already and was refused by Groq is not one more.
        let room = requeue.is_some() || common.has_room(request.class, request.bytes);
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        let now = common.clock.now();
        let id = match inside.limiter.submit(request, now, deadline, requeue, room) {
            Admission::Granted(grant) => {
                common.changed.store(true, Relaxed);
                if inside.limiter.is_linked() {
                    self.dispatch(inside, now);
                    common.timer.start(common.clock);
                }
                return Ok(Submitted::Now(grant));
            }
            Admission::Rejected(refusal) => return Err(refusal),
            Admission::Queued(id) => id,
        };
        inside.serial += 1;
        let serial = inside.serial;
        let slot = id as usize;
        if inside.sleepers.len() <= slot {
            // Grows by a quarter: ten thousand waiters must not cost twenty thousand places.
            let missing = slot + 1 - inside.sleepers.len();
            if inside.sleepers.capacity() <= slot {
                inside.sleepers.reserve_exact(missing + slot / 4 + 16);
            }
            inside.sleepers.resize_with(slot + 1, || None);
        }
        inside.sleepers[slot] = Some(Sleeping { serial, waker: None });
        common.waiting.fetch_add(1, Relaxed);
        common.bytes.fetch_add(request.bytes, Relaxed);
        let waiting = Waiting { limiter: self.clone(), id, serial, bytes: request.bytes, done: false };
        self.dispatch(inside, now);
        common.timer.start(common.clock);
        Ok(Submitted::Later(waiting))
    }

    /// Reads or changes the limiter, then lets go whoever can.
    pub(super) fn change<T>(self: &Arc<Self>, change: impl FnOnce(&mut Limiter) -> T) -> T {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = change(&mut inside.limiter);
        self.common.changed.store(true, Relaxed);
        if inside.limiter.has_waiters() || inside.limiter.is_linked() {
            let now = self.common.clock.now();
            self.dispatch(inside, now);
        }
        outcome
    }

    /// The same as of now.
    pub(super) fn change_now<T>(self: &Arc<Self>, change: impl FnOnce(&mut Limiter, Ns) -> T) -> T {
        self.change(|limiter| change(limiter, self.common.clock.now()))
    }

    /// Reads the limiter, or changes what nobody waits for.
    pub(super) fn with<T>(&self, read: impl FnOnce(&mut Limiter) -> T) -> T {
        read(&mut self.inside.lock().unwrap_or_else(PoisonError::into_inner).limiter)
    }

    /// The same as of now.
    pub(super) fn now<T>(&self, read: impl FnOnce(&mut Limiter, Ns) -> T) -> T {
        self.with(|limiter| read(limiter, self.common.clock.now()))
    }

    /// Its wake-up has come; the timer has taken it off.
    pub(super) fn wake_up(self: &Arc<Self>) {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.common.clock.now();
        if inside.armed.is_some_and(|at| at <= now) {
            inside.armed = None;
        }
        self.dispatch(inside, now);
    }

    /// The store is lost.
    pub(super) fn lost(self: &Arc<Self>, replicas: u32) {
        self.change(|limiter| limiter.lost(replicas, self.common.clock.now()));
    }

    fn dispatch(self: &Arc<Self>, mut inside: std::sync::MutexGuard<'_, Locked>, now: Ns) {
        let (mut events, mut woken) = (Vec::new(), Vec::new());
        let Locked { limiter, sleepers, outcomes, .. } = &mut *inside;
        limiter.dispatch(now, &mut events);
        if !events.is_empty() {
            self.common.changed.store(true, Relaxed);
        }
        for event in events {
            let (id, outcome) = match event {
                Event::Granted(id, grant) => (id, Ok(grant)),
                Event::Rejected(id, refusal) => (id, Err(refusal)),
            };
            let sleeper = sleepers[id as usize].take().expect("every waiter has its sleeper");
            outcomes.insert(sleeper.serial, outcome);
            woken.extend(sleeper.waker);
        }
        let wake = inside.limiter.wake();
        if wake != inside.armed {
            self.common.timer.set(self, inside.armed, wake);
            inside.armed = wake;
        }
        let transaction = inside.limiter.transaction(now);
        drop(inside);
        if let Some((store, transaction)) = self.common.store.as_ref().zip(transaction) {
            store.send(self, transaction);
        }
        woken.into_iter().for_each(Waker::wake);
    }
}

/// What the thread that talks to the store says.
#[cfg(feature = "redis")]
impl SharedLimiter {
    /// The store's answer to this transaction.
    pub(super) fn answered(self: &Arc<Self>, serial: u64, answer: &Answer) {
        self.change(|limiter| limiter.answered(serial, answer, self.common.clock.now()));
    }

    /// The store does not answer this transaction.
    pub(super) fn unanswered(self: &Arc<Self>, serial: u64, replicas: u32) {
        self.change(|limiter| {
            if limiter.waits_for(serial) {
                limiter.lost(replicas, self.common.clock.now());
            }
        });
    }

    /// The store can be reached.
    pub(super) fn reached(self: &Arc<Self>) {
        self.change(Limiter::reached);
    }

    /// News from the store.
    pub(super) fn hear(self: &Arc<Self>, state: &State) {
        self.change(|limiter| limiter.hear(state, self.common.clock.now()));
    }
}

/// A request in the queue. Dropping it leaves the queue.
#[derive(Debug)]
pub(super) struct Waiting {
    limiter: Arc<SharedLimiter>,
    id: Id,
    serial: u64,
    bytes: u64,
    done: bool,
}

impl Future for Waiting {
    type Output = Result<Grant, AdmissionError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let outcome = {
            let mut inside = self.limiter.inside.lock().unwrap_or_else(PoisonError::into_inner);
            let outcome = inside.outcomes.remove(&self.serial);
            if outcome.is_none()
                && let Some(Some(sleeper)) = inside.sleepers.get_mut(self.id as usize)
            {
                match &mut sleeper.waker {
                    Some(waker) => waker.clone_from(context.waker()),
                    none => *none = Some(context.waker().clone()),
                }
            }
            outcome
        };
        match outcome {
            Some(outcome) => {
                self.done = true;
                Poll::Ready(outcome)
            }
            None => Poll::Pending,
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let common = &self.limiter.common;
        common.waiting.fetch_sub(1, Relaxed);
        common.bytes.fetch_sub(self.bytes, Relaxed);
        if self.done {
            return;
        }
        let now = common.clock.now();
        let mut inside = self.limiter.inside.lock().unwrap_or_else(PoisonError::into_inner);
        match inside.outcomes.remove(&self.serial) {
            // Granted, and nobody there to take it.
            Some(Ok(grant)) => inside.limiter.settle(grant, super::ActualUsage::Nothing, now),
            Some(Err(_)) => {}
            None => {
                inside.sleepers[self.id as usize] = None;
                inside.limiter.cancel(self.id, now);
            }
        }
        self.limiter.dispatch(inside, now);
    }
}
