//! Requests that leave the queue without their turn, and those that cannot make it in time.

use std::{cmp::Reverse, time::Duration};

use super::{Event, Limiter};
use crate::{
    AdmissionError,
    bucket::{Ns, Readiness},
    queue::forecast::{Arrival, Forecast, forecast},
    queue::{Id, QueuedRequest},
    quota_set::Cost,
    types::{Dimension, Priority},
};

/// Forecasts are taken for so much too short.
const CAUTION: f64 = 1.08;

impl Limiter {
    /// Refused now if the forecast, taken with caution, ends after the deadline.
    pub(super) fn not_in_time(
        &self,
        forecast: Forecast,
        cost: &Cost,
        since: Ns,
        now: Ns,
        deadline: Ns,
    ) -> Option<AdmissionError> {
        let wait = forecast.wait.mul_f64(CAUTION);
        if wait.is_zero() || wait <= Duration::from_nanos(deadline.saturating_sub(now)) {
            return None;
        }
        Some(self.late(forecast, cost, since, deadline))
    }

    fn late(&self, forecast: Forecast, cost: &Cost, since: Ns, deadline: Ns) -> AdmissionError {
        let max_wait = Duration::from_nanos(deadline.saturating_sub(since));
        let over = forecast.wait.mul_f64(CAUTION).saturating_sub(max_wait).as_secs_f64().ceil();
        let slot = forecast.slot.or(self.blocked.and_then(|(slot, _)| slot)).unwrap_or(0);
        let dimension = self.quotas.all().get(slot).map_or(Dimension::RPM, |quota| Dimension::clone(&quota.dimension));
        let fits = self.quotas.too_large_answer(cost).filter(|&(too_large, _)| too_large == slot).map(|(_, limit)| limit);
        AdmissionError::NotInTime {
            dimension,
            wait: forecast.wait,
            fitting_max_completion_tokens: fits,
            retry_after: Duration::from_secs_f64(over.max(1.0)),
        }
    }

    pub(super) fn forecast(&self, arrival: &Arrival, now: Ns) -> Forecast {
        let mut forecast = forecast(&self.quotas, &self.queue, arrival, now);
        forecast.wait = forecast.wait.max(Duration::from_nanos(self.paused_until.saturating_sub(now)));
        forecast
    }

    pub(super) fn arrival(&self, waiter: &QueuedRequest) -> Arrival {
        let class = self.queue.app_of(waiter.app).map_or(Priority::Interactive, |app| app.class);
        Arrival { app: waiter.app, class, size: waiter.size, cost: self.forecast_cost(waiter), ticket: Some(waiter.ticket) }
    }

    /// Out of the queue, whatever the reason.
    pub(super) fn leave(&mut self, id: Id) -> Option<QueuedRequest> {
        self.give_up(id);
        let waiter = self.queue.remove(id)?;
        // Most never reach their deadlines: what they leave behind stays less than the queue itself.
        if self.deadlines.len() > 2 * self.queue.len() + 64 {
            let queue = &self.queue;
            self.deadlines.retain(|&Reverse((at, id))| queue.get(id).is_some_and(|waiter| waiter.deadline == at));
        }
        while let Some(&Reverse((at, id))) = self.deadlines.peek()
            && self.queue.get(id).is_none_or(|waiter| waiter.deadline != at)
        {
            self.deadlines.pop();
        }
        Some(waiter)
    }

    /// Those whose max wait has ended.
    pub(super) fn expire(&mut self, now: Ns, events: &mut Vec<Event>) {
        while let Some(&Reverse((deadline, id))) = self.deadlines.peek()
            && deadline <= now
        {
            // At its deadline a request may still go if it is its turn.
            if self.paused_until <= now
                && !self.store_decides()
                && self.queue.head() == Some(id)
                && self.queue.get(id).is_some_and(|waiter| self.quotas.fit(&waiter.cost, now).0 == Readiness::Now)
                && self.is_open(now)
            {
                let bound = self.blocked.and_then(|(slot, _)| slot);
                self.go(id, bound, now, events);
                continue;
            }
            let Some(waiter) = self.leave(id) else {
                self.deadlines.pop();
                continue;
            };
            let refusal = self.late(self.forecast(&self.arrival(&waiter), now), &waiter.cost, waiter.since, deadline);
            events.push(Event::Rejected(id, refusal));
        }
    }

    /// The limits are known now: whoever cannot make it is told at once, in the order of arrival.
    pub(super) fn turn_away(&mut self, now: Ns, events: &mut Vec<Event>) {
        let mut waiting: Vec<_> = self
            .deadlines
            .iter()
            .filter_map(|&Reverse((deadline, id))| Some((self.queue.get(id)?.ticket, id, deadline)))
            .collect();
        waiting.sort_unstable_by_key(|&(ticket, ..)| ticket);
        for (_, id, deadline) in waiting {
            let late = self.queue.get(id).and_then(|waiter| {
                let forecast = self.forecast(&self.arrival(waiter), now);
                self.not_in_time(forecast, &waiter.cost, waiter.since, now, deadline)
            });
            if let Some(refusal) = late {
                self.leave(id);
                events.push(Event::Rejected(id, refusal));
            }
        }
    }
}
