//! One organization × model × tier: its quotas and its queue as a pure state machine. `now` is an argument, nothing waits,
//! nothing is spawned.
//!
//! Whoever drives it calls [`Limiter::submit`], then [`Limiter::dispatch`] after every change, takes the [`Event`]s, and calls
//! `dispatch` again at [`Limiter::wake`] at the latest. A granted request holds a [`Grant`] that ends in exactly one of
//! [`Limiter::settle`] and [`Limiter::refused`].

use std::{cmp::Reverse, collections::BinaryHeap, sync::Arc, time::Duration};

use self::cold_start::ColdStart;
pub use self::{grant::Grant, pricing::Requeue};
use super::{
    AdmissionError, AdmissionRequest,
    bucket::{Ns, Readiness},
    estimate::Estimates,
    queue::{FairQueue, Id},
    quota_set::QuotaSet,
};
use crate::settings::{LimitSettings, Plan};

mod backfill;
mod cold_start;
mod expiry;
mod grant;
mod learn;
mod pricing;
mod snapshot;
mod store_session;
mod unbounded;
mod unqueued;

const MILLISECOND: Ns = 1_000_000;
const SECOND: Ns = 1_000_000_000;

/// What becomes of a request that asks.
#[derive(Debug)]
pub enum Admission {
    /// It goes.
    Granted(Box<Grant>),
    /// It waits under this number; an [`Event`] will tell.
    Queued(Id),
    /// It does not.
    Rejected(AdmissionError),
}

/// What happened to a waiter.
#[derive(Debug)]
pub enum Event {
    /// Its turn has come.
    Granted(Id, Grant),
    /// It cannot go in time, or never.
    Rejected(Id, AdmissionError),
}

/// One organization × model × tier.
#[derive(Debug)]
pub struct Limiter {
    clock: Ns,
    used_at: Ns,
    paused_until: Ns,
    cold_start: ColdStart,
    in_flight: u32,
    consecutive_pauses: u32,
    /// To the store, where replicas share quotas.
    link: Option<Box<store_session::StoreSession>>,
    quotas: QuotaSet,
    queue: FairQueue,
    estimates: Estimates,
    model: Arc<str>,
    tables: Arc<LimitSettings>,
    /// The plan whose table is in force; `None`: none fits what headers say.
    plan: Option<Plan>,
    /// Until when those in the queue wait for probes, where the first of these failed.
    probing_until: Option<Ns>,
    /// Somebody waits against a forecast made by guess.
    guessed: bool,
    /// Who leaves when, the earliest on top; some have left before.
    deadlines: BinaryHeap<Reverse<(Ns, Id)>>,
    blocked: Option<(Option<usize>, Ns)>,
    wake: Option<Ns>,
    refusals: u64,
}

impl Limiter {
    /// An unused limiter: full by its tables, nothing known of the upstream.
    pub fn new(model: Arc<str>, tables: Arc<LimitSettings>, now: Ns) -> Self {
        let mut limiter = Self {
            quotas: QuotaSet::default(),
            link: None,
            queue: FairQueue::default(),
            estimates: Estimates::default(),
            cold_start: ColdStart::Unknown,
            probing_until: None,
            guessed: false,
            deadlines: BinaryHeap::new(),
            paused_until: 0,
            consecutive_pauses: 0,
            blocked: None,
            wake: None,
            clock: now,
            in_flight: 0,
            refusals: 0,
            used_at: now,
            model,
            plan: Some(tables.plan),
            tables: tables.clone(),
        };
        limiter.reconfigure(tables, now);
        limiter
    }

    /// Asks for a turn. `again`: it was here before. `room`: whether the queue may grow.
    ///
    /// After [`Admission::Queued`] the caller dispatches.
    pub fn submit(
        &mut self,
        request: &AdmissionRequest,
        now: Ns,
        deadline: Ns,
        requeue: Option<Requeue>,
        room: bool,
    ) -> Admission {
        let now = self.advance(now);
        self.used_at = now;
        let app = self.queue.app(&request.app, request.class, request.weight, now);
        let (waiter, arrival) = self.read(request, app, now, deadline, requeue);
        if let Some(refusal) = self.never(&waiter, now) {
            return Admission::Rejected(refusal);
        }
        let open = self.queue.is_empty() && self.paused_until <= now && self.is_open(now);
        let fits = open && self.quotas.fit(&waiter.cost, now).0 == Readiness::Now;
        if fits && !self.store_decides() {
            return Admission::Granted(Box::new(self.grant(waiter, None, None, now)));
        }
        let forecast = self.forecast(&arrival, now);
        if let Some(refusal) = self.not_in_time(forecast, &waiter.cost, now, now, deadline) {
            // Until the probe's head is here the limits are a guess, and nobody is refused by a guess.
            if !matches!(self.cold_start, ColdStart::Probing { .. }) {
                return Admission::Rejected(refusal);
            }
            self.guessed = true;
        }
        // Asking the store is not waiting yet.
        if !room && !fits {
            return Admission::Rejected(AdmissionError::QueueFull { retry_after: forecast.wait.max(Duration::from_secs(1)) });
        }
        let id = self.queue.push(waiter);
        self.deadlines.push(Reverse((deadline, id)));
        Admission::Queued(id)
    }

    /// Grants whatever can go, refuses whatever cannot any more, and finds out when to be called again.
    pub fn dispatch(&mut self, now: Ns, events: &mut Vec<Event>) {
        let now = self.advance(now);
        self.expire(now, events);
        if self.guessed && self.is_open(now) {
            self.guessed = false;
            self.turn_away(now, events);
        }
        let mut bound = self.blocked.take().and_then(|(slot, _)| slot);
        self.wake = None;
        while let Some(head) = self.booked().or_else(|| self.queue.head()) {
            if self.paused_until > now {
                self.block(None, self.paused_until);
                break;
            }
            if !self.is_open(now) {
                if let ColdStart::Probing { until } = self.cold_start {
                    self.block(None, until);
                }
                break;
            }
            let Some(waiter) = self.queue.get(head) else { break };
            if let Some(refusal) = self.never(waiter, now) {
                self.leave(head);
                events.push(Event::Rejected(head, refusal));
                continue;
            }
            let booked = self.due(head);
            if booked.is_none() && self.store_decides() {
                self.book(head, now);
                if self.turn_denied_away(now, events) {
                    continue;
                }
                break;
            }
            match booked.unwrap_or_else(|| self.quotas.fit(&waiter.cost, now)) {
                (Readiness::Now, _) => self.go(head, bound, now, events),
                (Readiness::At(at), slot) => {
                    self.block(slot, at);
                    bound = slot;
                    // What is left belongs to the one that is booked.
                    if booked.is_some() {
                        break;
                    }
                    if self.try_unpriced(head, now) {
                        self.go(head, bound, now, events);
                        continue;
                    }
                    match self.backfill(head, at, now) {
                        Some(small) => self.go(small, bound, now, events),
                        None => break,
                    }
                }
                // Amounts are cut to their limits, so a full bucket holds them.
                (Readiness::Never, slot) => {
                    self.block(slot, now + SECOND);
                    break;
                }
            }
        }
        let deadline = self.deadlines.peek().map(|&Reverse((at, _))| at);
        self.wake = self.wake.into_iter().chain(deadline).chain(self.tell_at()).min();
    }

    /// When to dispatch again at the latest. `None`: nobody waits.
    pub fn wake(&self) -> Option<Ns> {
        self.wake
    }

    /// A waiter's client has left. The caller dispatches.
    pub fn cancel(&mut self, id: Id, now: Ns) {
        self.advance(now);
        self.leave(id);
    }

    fn block(&mut self, slot: Option<usize>, until: Ns) {
        self.blocked = Some((slot, until));
        self.wake = Some(until);
    }

    fn go(&mut self, id: Id, bound: Option<usize>, now: Ns, events: &mut Vec<Event>) {
        let booking = self.take_booking(id);
        if let Some(waiter) = self.leave(id) {
            let reserved = booking.map(|booked| booked.booking.reserved);
            events.push(Event::Granted(id, self.grant(waiter, reserved, bound, now)));
        }
    }

    /// The limiter's clock never goes back.
    fn advance(&mut self, now: Ns) -> Ns {
        self.clock = self.clock.max(now);
        self.quotas.tick(self.clock);
        self.clock
    }
}

fn nanos(duration: Duration) -> Ns {
    Ns::try_from(duration.as_nanos()).unwrap_or(Ns::MAX)
}
