//! One pass over the queue: who goes, who cannot go any more, and when to look again.

use super::{core::Core, grant::Grant};
use crate::{
    bucket::Readiness,
    queue::{
        QueuedRequest, Ticket,
        backfill::{Backfill, backfill},
    },
    request::{AdmissionError, Cost},
    types::Ns,
};

const SECOND: Ns = 1_000_000_000;

/// What happened to a queued request.
#[derive(Debug)]
pub enum Event {
    /// Its turn has come.
    Granted(Ticket, Grant),
    /// It cannot go in time, or never.
    Rejected(Ticket, AdmissionError),
}

/// What came of one step of a dispatch.
enum Step {
    /// Somebody has left the queue: there is a new head.
    Again,
    /// The head waits for this slot, until then.
    Blocked(Option<usize>, Ns),
    /// Another event has to come first.
    Idle,
}

/// A pass at one instant.
pub(super) struct Pass<'a> {
    core: &'a mut Core,
    events: &'a mut Vec<Event>,
    now: Ns,
    /// The slot that those who go now have waited for.
    bound: Option<usize>,
    wake: Option<Ns>,
}

impl<'a> Pass<'a> {
    pub(super) fn new(core: &'a mut Core, events: &'a mut Vec<Event>, now: Ns) -> Self {
        Self { core, events, now, bound: None, wake: None }
    }

    /// Grants whatever can go, refuses whatever cannot any more, and finds out when to be called again.
    pub(super) fn run(mut self) -> Option<Ns> {
        let now = self.now;
        if std::mem::take(&mut self.core.releases) {
            self.core.tickets().into_iter().for_each(|ticket| self.go(ticket));
        }
        self.expire();
        if self.core.guessed && self.core.is_open(now) {
            self.core.guessed = false;
            self.reject_late();
        }
        // What makes the head wait is what those who go after it have waited for.
        self.bound = self.core.blocked.take().and_then(|(slot, _)| slot);
        while let Some(head) = self.core.granted().or_else(|| self.core.queue.head()) {
            match self.step(head) {
                Step::Again => {}
                Step::Blocked(slot, until) => {
                    self.core.blocked = Some((slot, until));
                    self.wake = Some(self.wake.map_or(until, |wake| wake.min(until)));
                    break;
                }
                Step::Idle => break,
            }
        }
        let deadline = self.core.queue.next_deadline().map(|(at, _)| at);
        let flush = self.core.store.as_ref().and_then(|store| store.flush_at());
        self.wake.into_iter().chain(deadline).chain(flush).min()
    }

    /// One step of a dispatch: the head of the queue, or who may pass it.
    fn step(&mut self, head: Ticket) -> Step {
        let now = self.now;
        if self.core.pause.until() > now {
            return Step::Blocked(None, self.core.pause.until());
        }
        if !self.core.is_open(now) {
            return self.core.cold_start.probing_until().map_or(Step::Idle, |until| Step::Blocked(None, until));
        }
        let Some(queued) = self.core.queue.get(head) else { return Step::Idle };
        if let Some(error) = self.core.too_large(queued, now) {
            self.core.leave(head, now);
            self.events.push(Event::Rejected(head, error));
            return Step::Again;
        }
        if self.core.granted() == Some(head) {
            self.go(head);
            return Step::Again;
        }
        if self.core.store_decides() {
            return self.ask_store(head);
        }
        let (ready, slot) = self.core.limits.quotas.readiness(&queued.cost, now);
        let until = match ready {
            Readiness::Now => {
                self.go(head);
                return Step::Again;
            }
            Readiness::At(at) => at,
            // Costs are cut to their limits, so a full bucket holds them.
            Readiness::Never => return Step::Blocked(slot, now + SECOND),
        };
        self.bound = slot;
        let trial = self.try_unpriced(head);
        if trial == Some(now) {
            self.go(head);
            return Step::Again;
        }
        match backfill(&mut self.core.queue, &self.core.limits.quotas, head, until, now) {
            Backfill::Pass(small) => {
                self.go(small);
                Step::Again
            }
            Backfill::Wait(wake) => {
                self.wake = trial.into_iter().chain([wake]).min();
                Step::Blocked(slot, until)
            }
        }
    }

    /// A head that does not fit by a guessed price is sent as if nothing were reserved for its answer, if it fits then and
    /// slow start lets it: `now`. Otherwise when slow start will.
    fn try_unpriced(&mut self, head: Ticket) -> Option<Ns> {
        let now = self.now;
        let queued = self.core.queue.get(head).filter(|queued| self.core.pricing.is_guess(queued))?;
        let cost = Cost { output: 0, ..queued.cost };
        if self.core.limits.quotas.readiness(&cost, now).0 != Readiness::Now {
            return None;
        }
        match self.core.pricing.estimates.assumed.try_now(now) {
            Ok(()) => {
                self.core.queue.reprice(head, cost);
                Some(now)
            }
            Err(at) => Some(at),
        }
    }

    /// Asks the store for the head. Who was denied by it and cannot make it is told at once: these quotas did not know when it
    /// came.
    fn ask_store(&mut self, head: Ticket) -> Step {
        let (Some(store), Some(queued)) = (&mut self.core.store, self.core.queue.get(head)) else { return Step::Idle };
        let blocked = store.request(queued, &self.core.limits.quotas, self.now);
        let denied = store.take_denied();
        if denied.is_some_and(|ticket| self.reject_if_late(ticket)) {
            return Step::Again;
        }
        let Some((slot, until)) = blocked else { return Step::Idle };
        self.bound = slot;
        Step::Blocked(slot, until)
    }

    fn go(&mut self, ticket: Ticket) {
        let reserved = self.core.store.as_mut().and_then(|store| store.take_granted(ticket));
        if let Some(queued) = self.core.queue.remove(ticket) {
            self.events.push(Event::Granted(ticket, self.core.grant(queued, reserved, self.bound, self.now)));
        }
    }

    /// Those whose max wait has ended.
    fn expire(&mut self) {
        let now = self.now;
        while let Some((_, ticket)) = self.core.queue.next_deadline().filter(|&(deadline, _)| deadline <= now) {
            // At its deadline a request may still go if it is its turn.
            if self.is_turn_of(ticket) {
                self.bound = self.core.blocked.and_then(|(slot, _)| slot);
                self.go(ticket);
            } else if let Some(queued) = self.core.leave(ticket, now) {
                let error = self.core.not_in_time(self.core.forecast(&queued, now), &queued);
                self.events.push(Event::Rejected(ticket, error));
            }
        }
    }

    fn is_turn_of(&mut self, ticket: Ticket) -> bool {
        let now = self.now;
        let ready = |queued: &QueuedRequest| self.core.limits.quotas.readiness(&queued.cost, now).0 == Readiness::Now;
        self.core.pause.until() <= now
            && !self.core.store_decides()
            && self.core.queue.head() == Some(ticket)
            && self.core.queue.get(ticket).is_some_and(ready)
            && self.core.is_open(now)
    }

    /// The limits are known now: whoever cannot make it is told at once, in the order of arrival.
    fn reject_late(&mut self) {
        for ticket in self.core.tickets() {
            self.reject_if_late(ticket);
        }
    }

    fn reject_if_late(&mut self, ticket: Ticket) -> bool {
        let now = self.now;
        let late = self.core.queue.get(ticket).and_then(|queued| {
            let forecast = self.core.forecast(queued, now);
            forecast.exceeds(queued.deadline.saturating_sub(now)).then(|| self.core.not_in_time(forecast, queued))
        });
        let Some(error) = late else { return false };
        self.core.leave(ticket, now);
        self.events.push(Event::Rejected(ticket, error));
        true
    }
}
