//! One dispatch: who goes, who cannot go any more, and when to look again.

use super::{Event, Limiter};
use crate::{
    bucket::Readiness,
    queue::{
        Ticket,
        backfill::{Backfill, backfill},
    },
    types::Ns,
};

const SECOND: Ns = 1_000_000_000;

/// What came of one step of a dispatch.
enum Step {
    /// Somebody has left the queue: there is a new head.
    Again,
    /// The head waits for this slot, until then.
    Blocked(Option<usize>, Ns),
    /// Another event has to come first.
    Idle,
}

/// A dispatch at one instant.
struct Dispatch<'a> {
    limiter: &'a mut Limiter,
    events: &'a mut Vec<Event>,
    now: Ns,
    /// The slot that those who go now have waited for.
    bound: Option<usize>,
    /// When somebody may pass the head.
    wake: Option<Ns>,
}

impl Limiter {
    /// Grants whatever can go, refuses whatever cannot any more, and finds out when to be called again.
    pub fn dispatch(&mut self, now: Ns, events: &mut Vec<Event>) {
        let now = self.advance(now);
        // What makes the head wait is what those who go after it have waited for.
        let bound = self.blocked.and_then(|(slot, _)| slot);
        let wake = Dispatch { limiter: self, events, now, bound, wake: None }.run();
        let blocked = self.blocked.map(|(_, until)| until);
        let deadline = self.queue.next_deadline().map(|(at, _)| at);
        let flush = self.flush_at();
        self.wake = wake.into_iter().chain(blocked).chain(deadline).chain(flush).min();
    }

    /// When to dispatch again at the latest. `None`: nobody waits.
    pub fn wake(&self) -> Option<Ns> {
        self.wake
    }

    /// Those that wait, in the order of arrival.
    fn tickets(&self) -> Vec<Ticket> {
        let mut tickets: Vec<_> = self.queue.iter().map(|queued| queued.ticket).collect();
        tickets.sort_unstable();
        tickets
    }

    /// The head that the store has charged, and that goes.
    fn charged(&self) -> Option<Ticket> {
        self.store.as_ref()?.granted()
    }
}

impl Dispatch<'_> {
    /// When somebody may pass the head.
    fn run(mut self) -> Option<Ns> {
        if std::mem::take(&mut self.limiter.releases) {
            self.limiter.tickets().into_iter().for_each(|ticket| self.go(ticket));
        }
        // The limits are known now: whoever cannot make it is told at once, in the order of arrival.
        if self.limiter.guessed && self.is_open() {
            self.limiter.guessed = false;
            for ticket in self.limiter.tickets() {
                self.reject_if_late(ticket);
            }
        }
        // At its deadline a request may still go if it is its turn, and those behind it are looked at when it has left.
        loop {
            self.grant();
            if !self.expire() {
                return self.wake;
            }
        }
    }

    /// Grants what can go, until the head of the queue cannot.
    fn grant(&mut self) {
        (self.limiter.blocked, self.wake) = (None, None);
        while let Some(head) = self.limiter.charged().or_else(|| self.limiter.queue.head()) {
            match self.step(head) {
                Step::Again => {}
                Step::Blocked(slot, until) => {
                    self.limiter.blocked = Some((slot, until));
                    break;
                }
                Step::Idle => break,
            }
        }
    }

    /// The head of the queue, or who may pass it.
    fn step(&mut self, head: Ticket) -> Step {
        let now = self.now;
        if self.limiter.pause.until > now {
            return Step::Blocked(None, self.limiter.pause.until);
        }
        if !self.is_open() {
            return self.limiter.cold_start.probing_until().map_or(Step::Idle, |until| Step::Blocked(None, until));
        }
        let Some(queued) = self.limiter.queue.get(head) else { return Step::Idle };
        if let Some(error) = self.limiter.too_large(queued, now) {
            self.limiter.leave(head, now);
            self.events.push((head, Err(error)));
            return Step::Again;
        }
        if self.limiter.charged() == Some(head) {
            self.go(head);
            return Step::Again;
        }
        if self.limiter.quotas.is_attached() {
            return self.ask_store(head);
        }
        let (ready, slot) = self.limiter.quotas.readiness(&queued.cost, now);
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
        match backfill(&mut self.limiter.queue, &self.limiter.quotas, head, until, now) {
            Backfill::Pass(small) => {
                self.go(small);
                Step::Again
            }
            Backfill::Wait(wake) => {
                self.wake = Some(wake);
                Step::Blocked(slot, until)
            }
        }
    }

    fn is_open(&mut self) -> bool {
        self.limiter.cold_start.is_open(self.limiter.in_flight, self.now)
    }

    /// Asks the store for the head. Who was denied by it and cannot make it is told at once: these quotas did not know when it
    /// came.
    fn ask_store(&mut self, head: Ticket) -> Step {
        let denied = self.limiter.store.as_mut().and_then(|session| session.take_denied());
        if denied.is_some_and(|ticket| self.reject_if_late(ticket)) {
            return Step::Again;
        }
        let (Some(session), Some(queued)) = (&mut self.limiter.store, self.limiter.queue.get(head)) else { return Step::Idle };
        let Some((slot, until)) = session.request(queued, &self.limiter.quotas, self.now) else { return Step::Idle };
        self.bound = slot;
        Step::Blocked(slot, until)
    }

    fn go(&mut self, ticket: Ticket) {
        let reserved = self.limiter.store.as_mut().and_then(|store| store.take_granted(ticket));
        if let Some(queued) = self.limiter.queue.remove(ticket) {
            self.events.push((ticket, Ok(self.limiter.grant(queued, reserved, self.bound, self.now))));
        }
    }

    /// Refuses those whose max wait has ended; whether there were any.
    fn expire(&mut self) -> bool {
        let (now, before) = (self.now, self.limiter.queue.len());
        while let Some((_, ticket)) = self.limiter.queue.next_deadline().filter(|&(deadline, _)| deadline <= now) {
            let Some(queued) = self.limiter.leave(ticket, now) else { break };
            let error = self.limiter.not_in_time(self.limiter.forecast(&queued, now), &queued);
            self.events.push((ticket, Err(error)));
        }
        self.limiter.queue.len() < before
    }

    fn reject_if_late(&mut self, ticket: Ticket) -> bool {
        let Some(queued) = self.limiter.queue.get(ticket) else { return false };
        let forecast = self.limiter.forecast(queued, self.now);
        if !forecast.exceeds(queued.deadline.saturating_sub(self.now)) {
            return false;
        }
        let error = self.limiter.not_in_time(forecast, queued);
        self.limiter.leave(ticket, self.now);
        self.events.push((ticket, Err(error)));
        true
    }
}
