//! Who leaves the line without its turn, and can a request make it in time at all?

use std::{cmp::Reverse, time::Duration};

use super::{Event, Lane};
use crate::{
    Refusal,
    books::Amount,
    bucket::{Fit, Ns},
    forecast::{Asker, Forecast, forecast},
    line::{Id, Waiter},
    types::{Dimension, Priority},
};

/// Forecasts are taken for so much too short.
const CAUTION: f64 = 1.08;

impl Lane {
    /// Refused now if the forecast, taken with caution, ends after the deadline.
    pub(super) fn not_in_time(&self, forecast: Forecast, amount: &Amount, since: Ns, now: Ns, deadline: Ns) -> Option<Refusal> {
        let wait = forecast.wait.mul_f64(CAUTION);
        if wait.is_zero() || wait <= Duration::from_nanos(deadline.saturating_sub(now)) {
            return None;
        }
        Some(self.late(forecast, amount, since, deadline))
    }

    fn late(&self, forecast: Forecast, amount: &Amount, since: Ns, deadline: Ns) -> Refusal {
        let patience = Duration::from_nanos(deadline.saturating_sub(since));
        let over = forecast.wait.mul_f64(CAUTION).saturating_sub(patience).as_secs_f64().ceil();
        let slot = forecast.slot.or(self.blocked.and_then(|(slot, _)| slot)).unwrap_or(0);
        let dimension = self.books.levels().get(slot).map_or(Dimension::RPM, |level| Dimension::clone(&level.dimension));
        let fits = self.books.too_large_answer(amount).filter(|&(too_large, _)| too_large == slot).map(|(_, limit)| limit);
        Refusal::NotInTime { dimension, wait: forecast.wait, fits, retry_after: Duration::from_secs_f64(over.max(1.0)) }
    }

    pub(super) fn forecast(&self, asker: &Asker, now: Ns) -> Forecast {
        let mut forecast = forecast(&self.books, &self.line, asker, now);
        forecast.wait = forecast.wait.max(Duration::from_nanos(self.paused_until.saturating_sub(now)));
        forecast
    }

    pub(super) fn asker(&self, waiter: &Waiter) -> Asker {
        let class = self.line.app_of(waiter.app).map_or(Priority::Interactive, |app| app.class);
        Asker { app: waiter.app, class, size: waiter.size, amount: self.forecast_amount(waiter), ticket: Some(waiter.ticket) }
    }

    /// Out of the line, whatever the reason.
    pub(super) fn leave(&mut self, id: Id) -> Option<Waiter> {
        self.give_up(id);
        let waiter = self.line.remove(id)?;
        // Most never reach their deadlines: what they leave behind stays less than the line itself.
        if self.deadlines.len() > 2 * self.line.len() + 64 {
            let line = &self.line;
            self.deadlines.retain(|&Reverse((at, id))| line.get(id).is_some_and(|waiter| waiter.deadline == at));
        }
        while let Some(&Reverse((at, id))) = self.deadlines.peek()
            && self.line.get(id).is_none_or(|waiter| waiter.deadline != at)
        {
            self.deadlines.pop();
        }
        Some(waiter)
    }

    /// Those whose patience has ended.
    pub(super) fn expire(&mut self, now: Ns, events: &mut Vec<Event>) {
        while let Some(&Reverse((deadline, id))) = self.deadlines.peek()
            && deadline <= now
        {
            // At its deadline a request may still go if it is its turn.
            if self.paused_until <= now
                && !self.asks_store()
                && self.line.head() == Some(id)
                && self.line.get(id).is_some_and(|waiter| self.books.fit(&waiter.amount, now).0 == Fit::Now)
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
            let refusal = self.late(self.forecast(&self.asker(&waiter), now), &waiter.amount, waiter.since, deadline);
            events.push(Event::No(id, refusal));
        }
    }

    /// The limits are known now: whoever cannot make it is told at once, in the order of arrival.
    pub(super) fn turn_away(&mut self, now: Ns, events: &mut Vec<Event>) {
        let mut waiting: Vec<_> = self
            .deadlines
            .iter()
            .filter_map(|&Reverse((deadline, id))| Some((self.line.get(id)?.ticket, id, deadline)))
            .collect();
        waiting.sort_unstable_by_key(|&(ticket, ..)| ticket);
        for (_, id, deadline) in waiting {
            let late = self.line.get(id).and_then(|waiter| {
                let forecast = self.forecast(&self.asker(waiter), now);
                self.not_in_time(forecast, &waiter.amount, waiter.since, now, deadline)
            });
            if let Some(refusal) = late {
                self.leave(id);
                events.push(Event::No(id, refusal));
            }
        }
    }
}
