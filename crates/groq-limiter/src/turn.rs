//! How does a request wait? A lane shared between connections, and the future that ends when the lane says so.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::Relaxed},
    task::{Context, Poll, Waker},
};

use foldhash::{HashMap, HashMapExt as _};
use tokio::time::Instant;

#[cfg(feature = "redis")]
use super::exchange::{Answer, State};
use super::{
    Ask, Refusal,
    bucket::Ns,
    lane::{Again, Charge, Event, Lane, Verdict},
    lanes::{LaneKey, SharedLane},
    line::Id,
};

/// A lane's answer to a request.
pub(super) enum Turn {
    /// It goes.
    Now(Box<Charge>),
    /// It waits.
    Later(Waiting),
}

/// What a lane's lock guards.
#[derive(Debug)]
pub(super) struct Inside {
    lane: Lane,
    /// Who is to be woken, by number in line.
    sleepers: Vec<Option<Sleeper>>,
    /// Outcomes that their futures have not fetched yet, by serial.
    outcomes: HashMap<u64, Result<Charge, Refusal>>,
    serial: u64,
    armed: Option<Ns>,
}

#[derive(Debug)]
struct Sleeper {
    serial: u64,
    waker: Option<Waker>,
}

impl Inside {
    pub(super) fn new(lane: Lane) -> Self {
        Self { lane, sleepers: Vec::new(), outcomes: HashMap::new(), serial: 0, armed: None }
    }
}

impl SharedLane {
    pub(super) fn new(key: LaneKey, number: u64, common: Arc<super::lanes::Common>, lane: Lane) -> Arc<Self> {
        Arc::new(Self { key, number, common, inside: Mutex::new(Inside::new(lane)) })
    }

    /// Asks for a turn.
    pub(super) fn submit(self: &Arc<Self>, ask: &Ask, deadline: Instant, again: Option<Again>) -> Result<Turn, Refusal> {
        let common = &self.common;
        let deadline = common.clock.at(deadline);
        // Who was in line already and was refused by Groq is not one more.
        let room = again.is_some() || common.has_room(ask.class, ask.bytes);
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        let now = common.clock.now();
        let id = match inside.lane.submit(ask, now, deadline, again, room) {
            Verdict::Go(charge) => {
                common.changed.store(true, Relaxed);
                if inside.lane.is_linked() {
                    self.pump(inside, now);
                    common.alarm.start(common.clock);
                }
                return Ok(Turn::Now(charge));
            }
            Verdict::No(refusal) => return Err(refusal),
            Verdict::Wait(id) => id,
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
        inside.sleepers[slot] = Some(Sleeper { serial, waker: None });
        common.waiting.fetch_add(1, Relaxed);
        common.bytes.fetch_add(ask.bytes, Relaxed);
        let waiting = Waiting { lane: self.clone(), id, serial, bytes: ask.bytes, done: false };
        self.pump(inside, now);
        common.alarm.start(common.clock);
        Ok(Turn::Later(waiting))
    }

    /// Reads or changes the lane, then lets go whoever can.
    pub(super) fn change<T>(self: &Arc<Self>, change: impl FnOnce(&mut Lane) -> T) -> T {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = change(&mut inside.lane);
        self.common.changed.store(true, Relaxed);
        if inside.lane.has_waiters() || inside.lane.is_linked() {
            let now = self.common.clock.now();
            self.pump(inside, now);
        }
        outcome
    }

    /// Reads the lane, or changes what nobody waits for.
    pub(super) fn with<T>(&self, read: impl FnOnce(&mut Lane) -> T) -> T {
        read(&mut self.inside.lock().unwrap_or_else(PoisonError::into_inner).lane)
    }

    /// The same as of now.
    pub(super) fn now<T>(&self, read: impl FnOnce(&mut Lane, Ns) -> T) -> T {
        self.with(|lane| read(lane, self.common.clock.now()))
    }

    /// Its wake-up has come; the alarm has taken it off.
    pub(super) fn wake_up(self: &Arc<Self>) {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.common.clock.now();
        if inside.armed.is_some_and(|at| at <= now) {
            inside.armed = None;
        }
        self.pump(inside, now);
    }

    /// The store is lost.
    pub(super) fn lost(self: &Arc<Self>, replicas: u32) {
        self.change(|lane| lane.lost(replicas, self.common.clock.now()));
    }

    fn pump(self: &Arc<Self>, mut inside: std::sync::MutexGuard<'_, Inside>, now: Ns) {
        let (mut events, mut woken) = (Vec::new(), Vec::new());
        let Inside { lane, sleepers, outcomes, .. } = &mut *inside;
        lane.pump(now, &mut events);
        if !events.is_empty() {
            self.common.changed.store(true, Relaxed);
        }
        for event in events {
            let (id, outcome) = match event {
                Event::Go(id, charge) => (id, Ok(charge)),
                Event::No(id, refusal) => (id, Err(refusal)),
            };
            let sleeper = sleepers[id as usize].take().expect("every waiter has its sleeper");
            outcomes.insert(sleeper.serial, outcome);
            woken.extend(sleeper.waker);
        }
        let wake = inside.lane.wake();
        if wake != inside.armed {
            self.common.alarm.set(self, inside.armed, wake);
            inside.armed = wake;
        }
        let transaction = inside.lane.transaction(now);
        drop(inside);
        if let Some((store, transaction)) = self.common.store.as_ref().zip(transaction) {
            store.send(self, transaction);
        }
        woken.into_iter().for_each(Waker::wake);
    }
}

/// What the thread that talks to the store says.
#[cfg(feature = "redis")]
impl SharedLane {
    /// The store's answer to this transaction.
    pub(super) fn answered(self: &Arc<Self>, serial: u64, answer: &Answer) {
        self.change(|lane| lane.answered(serial, answer, self.common.clock.now()));
    }

    /// The store does not answer this transaction.
    pub(super) fn unanswered(self: &Arc<Self>, serial: u64, replicas: u32) {
        self.change(|lane| {
            if lane.waits_for(serial) {
                lane.lost(replicas, self.common.clock.now());
            }
        });
    }

    /// The store can be reached.
    pub(super) fn reached(self: &Arc<Self>) {
        self.change(Lane::reached);
    }

    /// News from the store.
    pub(super) fn hear(self: &Arc<Self>, state: &State) {
        self.change(|lane| lane.hear(state, self.common.clock.now()));
    }
}

/// A request in line. Dropping it leaves the line.
#[derive(Debug)]
pub(super) struct Waiting {
    lane: Arc<SharedLane>,
    id: Id,
    serial: u64,
    bytes: u64,
    done: bool,
}

impl Future for Waiting {
    type Output = Result<Charge, Refusal>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let outcome = {
            let mut inside = self.lane.inside.lock().unwrap_or_else(PoisonError::into_inner);
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
        let common = &self.lane.common;
        common.waiting.fetch_sub(1, Relaxed);
        common.bytes.fetch_sub(self.bytes, Relaxed);
        if self.done {
            return;
        }
        let now = common.clock.now();
        let mut inside = self.lane.inside.lock().unwrap_or_else(PoisonError::into_inner);
        match inside.outcomes.remove(&self.serial) {
            // Granted, and nobody there to take it.
            Some(Ok(charge)) => inside.lane.settle(charge, super::Spent::Nothing, now),
            Some(Err(_)) => {}
            None => {
                inside.sleepers[self.id as usize] = None;
                inside.lane.cancel(self.id, now);
            }
        }
        self.lane.pump(inside, now);
    }
}
