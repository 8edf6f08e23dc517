//! Dispatch: grants the requests that may be sent now, refuses those that cannot be sent in time, and sets the time of the next
//! dispatch.

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

/// The result of one step of a dispatch.
enum Step {
    /// A request has left the queue, so there may be a new head.
    Again,
    /// The head is blocked until this time, by this slot if it is a dimension.
    Blocked(Option<usize>, Ns),
    /// Nothing can be granted before another event, for example the store's reply.
    Idle,
}

/// A dispatch at one instant.
struct Dispatch<'a> {
    limiter: &'a mut Limiter,
    events: &'a mut Vec<Event>,
    now: Ns,
    /// The slot that has blocked the queue, which is what requests granted now have waited for.
    bound: Option<usize>,
    /// When a smaller request may be able to overtake the blocked head.
    wake: Option<Ns>,
}

impl Limiter {
    /// Grants every request that may be sent now, and refuses those that cannot be sent in time. The outcomes are added to
    /// `events`. [`Self::wake`] returns when to call it again.
    pub fn dispatch(&mut self, now: Ns, events: &mut Vec<Event>) {
        let now = self.advance(now);
        // A request that is granted now has waited for the slot that blocked the head until now.
        let bound = self.blocked.and_then(|(slot, _)| slot);
        let wake = Dispatch { limiter: self, events, now, bound, wake: None }.run();
        let blocked = self.blocked.map(|(_, until)| until);
        let deadline = self.queue.next_deadline().map(|(at, _)| at);
        let flush = self.flush_at();
        self.wake = wake.into_iter().chain(blocked).chain(deadline).chain(flush).min();
    }

    /// When to dispatch again at the latest; `None` if no time is set, for example with an empty queue.
    pub fn wake(&self) -> Option<Ns> {
        self.wake
    }

    /// Waiting requests in the order of arrival.
    fn tickets(&self) -> Vec<Ticket> {
        let mut tickets: Vec<_> = self.queue.iter().map(|queued| queued.ticket).collect();
        tickets.sort_unstable();
        tickets
    }

    /// The request that the store has charged and that can be granted; `None` if there is none.
    fn charged(&self) -> Option<Ticket> {
        self.store.as_ref()?.granted()
    }
}

impl Dispatch<'_> {
    /// Runs the dispatch. Returns when a smaller request may be able to overtake the blocked head.
    fn run(mut self) -> Option<Ns> {
        if std::mem::take(&mut self.limiter.releases_all) {
            self.limiter.tickets().into_iter().for_each(|ticket| self.grant_queued(ticket));
        }
        // The limits are known now, so requests that cannot be sent in time are refused at once, in the order of arrival.
        if self.limiter.needs_recheck && self.is_open() {
            self.limiter.needs_recheck = false;
            for ticket in self.limiter.tickets() {
                self.reject_if_late(ticket);
            }
        }
        // Grants come first, because a request may still be granted at its deadline. An expired request may have blocked the
        // queue, so grants are tried again after it is removed.
        loop {
            self.grant();
            if !self.expire() {
                return self.wake;
            }
        }
    }

    /// Grants requests until the head of the queue is blocked.
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

    /// Grants or refuses the head of the queue, or grants a smaller request that may overtake it.
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
            self.grant_queued(head);
            return Step::Again;
        }
        if self.limiter.quotas.is_attached() {
            return self.ask_store(head);
        }
        let (ready, slot) = self.limiter.quotas.readiness(&queued.cost, now);
        let until = match ready {
            Readiness::Now => {
                self.grant_queued(head);
                return Step::Again;
            }
            Readiness::At(at) => at,
            // Not expected, because costs are capped at the limit. Try again in a second.
            Readiness::Never => return Step::Blocked(slot, now + SECOND),
        };
        self.bound = slot;
        match backfill(&mut self.limiter.queue, &self.limiter.quotas, head, until, now) {
            Backfill::Pass(small) => {
                self.grant_queued(small);
                Step::Again
            }
            Backfill::Wait(wake) => {
                self.wake = Some(wake);
                Step::Blocked(slot, until)
            }
        }
    }

    /// Whether the cold start lets requests pass.
    fn is_open(&mut self) -> bool {
        self.limiter.cold_start.is_open(self.limiter.in_flight, self.now)
    }

    /// Asks the store to charge the head. A request that the store has just denied is tested again for its deadline, because the
    /// quotas of this process were not up to date when the request arrived.
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

    /// Grants a queued request.
    fn grant_queued(&mut self, ticket: Ticket) {
        let reserved = self.limiter.store.as_mut().and_then(|store| store.take_granted(ticket));
        if let Some(queued) = self.limiter.queue.remove(ticket) {
            self.events.push((ticket, Ok(self.limiter.grant(queued, reserved, self.bound, self.now))));
        }
    }

    /// Refuses the requests whose deadline has passed. Returns whether there were any.
    fn expire(&mut self) -> bool {
        let (now, before) = (self.now, self.limiter.queue.len());
        while let Some((_, ticket)) = self.limiter.queue.next_deadline().filter(|&(deadline, _)| deadline <= now) {
            let Some(queued) = self.limiter.leave(ticket, now) else { break };
            let error = self.limiter.not_in_time(self.limiter.forecast(&queued, now), &queued);
            self.events.push((ticket, Err(error)));
        }
        self.limiter.queue.len() < before
    }

    /// Refuses a request if its forecast exceeds its deadline. Returns whether it does.
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
