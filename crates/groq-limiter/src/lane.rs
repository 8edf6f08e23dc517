//! May a request of this organization × model × tier go now, later or never? The books and the line together, as a
//! pure state machine: `now` is an argument, nothing waits, nothing is spawned.
//!
//! Whoever drives it calls [`Lane::submit`], then [`Lane::pump`] after every change, takes the [`Event`]s, and calls
//! `pump` again at [`Lane::wake`] at the latest. A granted request holds a [`Charge`] that ends in exactly one of
//! [`Lane::settle`] and [`Lane::refused`].

use std::{cmp::Reverse, collections::BinaryHeap, sync::Arc, time::Duration};

use self::probe::Knowledge;
pub use self::{asked::Again, charge::Charge};
use super::{
    Ask, Refusal,
    books::Books,
    bucket::{Fit, Ns},
    calibrate::Calibration,
    line::{Id, Line},
};
use crate::settings::{LimitSettings, Plan};

mod asked;
mod charge;
mod learn;
mod leaving;
mod passing;
mod probe;
mod shared;
mod unbounded;
mod view;

const MILLISECOND: Ns = 1_000_000;
const SECOND: Ns = 1_000_000_000;

/// What becomes of a request that asks.
#[derive(Debug)]
pub enum Verdict {
    /// It goes.
    Go(Box<Charge>),
    /// It waits under this number; an [`Event`] will tell.
    Wait(Id),
    /// It does not.
    No(Refusal),
}

/// What happened to a waiter.
#[derive(Debug)]
pub enum Event {
    /// Its turn has come.
    Go(Id, Charge),
    /// It cannot go in time, or never.
    No(Id, Refusal),
}

/// One organization × model × tier.
///
/// Of a hundred thousand lanes the next one to be asked has left the caches: what every request looks at stands together,
/// in one allocation with its levels and its first app.
#[derive(Debug)]
#[repr(C)]
pub struct Lane {
    clock: Ns,
    used_at: Ns,
    paused_until: Ns,
    knowledge: Knowledge,
    in_flight: u32,
    pauses: u32,
    /// To the store, where replicas share levels.
    link: Option<Box<shared::Link>>,
    books: Books,
    line: Line,
    calibration: Calibration,
    model: Arc<str>,
    tables: Arc<LimitSettings>,
    /// The plan whose table is in force; `None`: none fits what headers say.
    plan: Option<Plan>,
    /// Until when those in line wait for probes, where the first of these failed.
    probing_until: Option<Ns>,
    /// Somebody waits against a forecast made by guess.
    guessed: bool,
    /// Who leaves when, the earliest on top; some have left before.
    deadlines: BinaryHeap<Reverse<(Ns, Id)>>,
    blocked: Option<(Option<usize>, Ns)>,
    wake: Option<Ns>,
    refusals: u64,
}

impl Lane {
    /// An unused lane: full by its tables, nothing known of the upstream.
    pub fn new(model: Arc<str>, tables: Arc<LimitSettings>, now: Ns) -> Self {
        let mut lane = Self {
            books: Books::default(),
            link: None,
            line: Line::default(),
            calibration: Calibration::default(),
            knowledge: Knowledge::Unknown,
            probing_until: None,
            guessed: false,
            deadlines: BinaryHeap::new(),
            paused_until: 0,
            pauses: 0,
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
        lane.reconfigure(tables, now);
        lane
    }

    /// Asks for a turn. `again`: it was here before. `room`: whether the line may grow.
    ///
    /// After [`Verdict::Wait`] the caller pumps.
    pub fn submit(&mut self, ask: &Ask, now: Ns, deadline: Ns, again: Option<Again>, room: bool) -> Verdict {
        let now = self.advance(now);
        self.used_at = now;
        let app = self.line.app(&ask.app, ask.class, ask.weight, now);
        let (waiter, asker) = self.read(ask, app, now, deadline, again);
        if let Some(refusal) = self.never(&waiter, now) {
            return Verdict::No(refusal);
        }
        let open = self.line.is_empty() && self.paused_until <= now && self.is_open(now);
        let fits = open && self.books.fit(&waiter.amount, now).0 == Fit::Now;
        if fits && !self.asks_store() {
            return Verdict::Go(Box::new(self.grant(waiter, None, None, now)));
        }
        let forecast = self.forecast(&asker, now);
        if let Some(refusal) = self.not_in_time(forecast, &waiter.amount, now, now, deadline) {
            // Until the probe's head is here the limits are a guess, and nobody is refused by a guess.
            if !matches!(self.knowledge, Knowledge::Probing { .. }) {
                return Verdict::No(refusal);
            }
            self.guessed = true;
        }
        // Asking the store is not waiting yet.
        if !room && !fits {
            return Verdict::No(Refusal::Full { retry_after: forecast.wait.max(Duration::from_secs(1)) });
        }
        let id = self.line.push(waiter);
        self.deadlines.push(Reverse((deadline, id)));
        Verdict::Wait(id)
    }

    /// Grants whatever can go, refuses whatever cannot any more, and finds out when to be called again.
    pub fn pump(&mut self, now: Ns, events: &mut Vec<Event>) {
        let now = self.advance(now);
        self.expire(now, events);
        if self.guessed && self.is_open(now) {
            self.guessed = false;
            self.turn_away(now, events);
        }
        let mut bound = self.blocked.take().and_then(|(slot, _)| slot);
        self.wake = None;
        while let Some(head) = self.booked().or_else(|| self.line.head()) {
            if self.paused_until > now {
                self.block(None, self.paused_until);
                break;
            }
            if !self.is_open(now) {
                if let Knowledge::Probing { until } = self.knowledge {
                    self.block(None, until);
                }
                break;
            }
            let Some(waiter) = self.line.get(head) else { break };
            if let Some(refusal) = self.never(waiter, now) {
                self.leave(head);
                events.push(Event::No(head, refusal));
                continue;
            }
            let booked = self.due(head);
            if booked.is_none() && self.asks_store() {
                self.ask(head, now);
                if self.turn_denied_away(now, events) {
                    continue;
                }
                break;
            }
            match booked.unwrap_or_else(|| self.books.fit(&waiter.amount, now)) {
                (Fit::Now, _) => self.go(head, bound, now, events),
                (Fit::At(at), slot) => {
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
                    match self.passing(head, at, now) {
                        Some(small) => self.go(small, bound, now, events),
                        None => break,
                    }
                }
                // Amounts are cut to their limits, so a full bucket holds them.
                (Fit::Never, slot) => {
                    self.block(slot, now + SECOND);
                    break;
                }
            }
        }
        let deadline = self.deadlines.peek().map(|&Reverse((at, _))| at);
        self.wake = self.wake.into_iter().chain(deadline).chain(self.tell_at()).min();
    }

    /// When to pump again at the latest. `None`: nobody waits.
    pub fn wake(&self) -> Option<Ns> {
        self.wake
    }

    /// A waiter's client has left. The caller pumps.
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
            let taken = booking.map(|booked| booked.booking.taken);
            events.push(Event::Go(id, self.grant(waiter, taken, bound, now)));
        }
    }

    /// The lane's clock never goes back.
    fn advance(&mut self, now: Ns) -> Ns {
        self.clock = self.clock.max(now);
        self.books.tick(self.clock);
        self.clock
    }
}

fn nanos(duration: Duration) -> Ns {
    Ns::try_from(duration.as_nanos()).unwrap_or(Ns::MAX)
}
