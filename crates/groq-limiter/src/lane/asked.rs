//! What does a request ask of the levels, and can it ever fit?

use super::Lane;
use crate::ablation::Mechanism;
use crate::{
    Ask, Pool, Refusal,
    books::Amount,
    bucket::Ns,
    forecast::Asker,
    line::{AppId, Ticket, Waiter},
    types::Unit,
};

/// Estimates are taken for so much too high before a request is called impossible, until answers have taught better.
const LEAST: f32 = 0.8;

/// A request that Groq has refused asks again.
#[derive(Clone, Copy, Debug)]
pub struct Again {
    /// Where it stood in line.
    pub ticket: Ticket,
    /// What Groq has said that it asks: a lower estimate would go before Groq lets it.
    pub least: Amount,
    /// `Requested`, where it is the sum of its prompt and of what Groq reserves for a request without a ceiling.
    pub requested: Option<u32>,
}

impl Lane {
    /// The ceiling that a request's own would have to be lowered to, where its ceiling alone is what can never fit.
    pub fn fitting_ceiling(&self, ask: &Ask, now: Ns) -> Option<u64> {
        let (amount, _, given) = self.amount(ask.pool);
        if let (Pool::Tokens { .. }, Some((slot, limit))) = (ask.pool, self.books.too_large_answer(&amount)) {
            // The whole limit would have to be free for itself; half of it is sooner.
            let left = self.books.levels()[slot].bucket().map_or(0.0, |bucket| bucket.remaining(now));
            return Some((limit / 2).max(left.max(0.0) as u64).max(1));
        }
        if !given {
            return None;
        }
        let room = self
            .books
            .levels()
            .iter()
            .filter(|level| level.is_certain(now))
            .filter_map(|level| match level.dimension.unit {
                Unit::Tokens => Some(level.limit()?.saturating_sub(amount.input.into())),
                _ => None,
            })
            .min()?;
        (room > 0 && room < amount.output.into()).then_some(room)
    }

    /// What a request asks, as a waiter would hold it.
    pub(super) fn read(&mut self, ask: &Ask, app: AppId, now: Ns, deadline: Ns, again: Option<Again>) -> (Waiter, Asker) {
        let (amount, estimated, ceiling_given) = self.amount(ask.pool);
        let amount = match again {
            // The refusal gave the sum of both parts.
            Some(Again { requested: Some(requested), .. }) if !ceiling_given => {
                Amount { output: requested.saturating_sub(amount.input), ..amount }
            }
            Some(again) => amount.at_least(again.least),
            None => amount,
        };
        let ticket = again.map(|again| again.ticket);
        let size = self.size(&amount);
        let usual = self.line.app_of(app).and_then(|app| app.completion.mean()).or(self.calibration.completion.mean());
        let expected = self.expected(usual, amount.output, ceiling_given);
        let waiter = Waiter {
            app,
            size,
            amount,
            expected,
            estimated,
            ceiling_given,
            requested: again.and_then(|again| again.requested),
            ticket: ticket.unwrap_or_else(|| self.line.ticket()),
            since: now,
            deadline,
            slack: None,
        };
        let asker = Asker { app, class: ask.class, size, amount: self.forecast_amount(&waiter), ticket };
        (waiter, asker)
    }

    /// What a pool means in units: pessimistic for the prompt, the whole ceiling for the completion.
    fn amount(&self, pool: Pool) -> (Amount, u32, bool) {
        let cut = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        match pool {
            Pool::Tokens { prompt, ceiling } => {
                let input = if prompt == 0 { 0 } else { (prompt as f32 * self.calibration.prompt.high()).ceil() as u64 + 4 };
                let amount = Amount { requests: 1, input: cut(input), ..Amount::default() };
                let amount = ceiling.map_or_else(|| self.unbounded(amount), |ceiling| amount.with_output(cut(ceiling)));
                (amount, cut(prompt), ceiling.is_some())
            }
            Pool::Audio { seconds } => (Amount { requests: 1, seconds: cut(seconds), ..Amount::default() }, 0, true),
            Pool::Free => (Amount::default(), 0, true),
        }
    }

    /// Size class: by the share of the tightest limit it asks for.
    fn size(&self, amount: &Amount) -> u8 {
        if !Mechanism::SizeClasses.is_on() {
            return 0;
        }
        let amount = &self.books.expect(*amount);
        let share = self
            .books
            .levels()
            .iter()
            .filter(|level| level.dimension.unit != Unit::Requests)
            .filter_map(|level| Some(level.asked(amount) as f64 / level.limit()? as f64))
            .fold(0.0, f64::max);
        [1.0 / 32.0, 1.0 / 8.0, 0.5].iter().filter(|&&bound| share > bound).count() as u8
    }

    /// Its certain sum is over a certain limit.
    pub(super) fn never(&self, waiter: &Waiter, now: Ns) -> Option<Refusal> {
        let least = self.calibration.prompt.low().min(LEAST);
        let input = (waiter.estimated as f32 * least) as u32;
        let output = if waiter.ceiling_given { waiter.amount.output } else { 0 };
        let (dimension, limit, _) = self.books.never(&Amount { input, ..waiter.amount }.with_output(output), now)?;
        // What people are told is the estimate itself, not its lower bound.
        let prompt = if input == 0 { 0 } else { u64::from(waiter.estimated) };
        let told = Amount { input: waiter.estimated, ..waiter.amount }.with_output(output);
        let parts = (dimension.unit == Unit::Tokens).then_some((prompt, u64::from(output)));
        Some(Refusal::Never { dimension: dimension.clone(), limit, asked: told.of(dimension.unit).max(limit + 1), parts })
    }
}
