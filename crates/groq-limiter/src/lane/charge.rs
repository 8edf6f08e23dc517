//! What does a granted request hold, and how does it end?

use std::time::Duration;

use super::{
    Again, Lane, SECOND, nanos,
    probe::{Knowledge, PROBE},
};
use crate::{
    Spent,
    books::{Amount, Taken},
    bucket::Ns,
    line::{AppId, Ticket, Waiter},
    types::{Observation, UpstreamRefusal},
};

/// However long a refusal without a figure says to wait, the lane looks again after so long.
const LONGEST_REST: Ns = 3600 * SECOND;

/// What a granted request holds.
#[derive(Clone, Debug)]
pub struct Charge {
    pub(super) taken: Taken,
    pub(super) app: AppId,
    size: u8,
    pub(super) probe: bool,
    pub(super) ceiling_given: bool,
    /// What an earlier refusal has said of it: prompt and assumed completion tokens.
    pub(super) requested: Option<u32>,
    /// Tokens in use as its answer's head has shown, itself included; of a request without a ceiling only.
    pub(super) shown_used: Option<u64>,
    /// Prompt tokens before the lane's own correction.
    pub(super) estimated: u32,
    /// Cost at the time of granting, and what settles it: the slot and the price of one unit.
    cost: f32,
    price: (u8, f32),
    ticket: Ticket,
    /// How long it waited, ns.
    pub waited: Ns,
    /// The slot that made it wait.
    pub bound: Option<u8>,
}

impl Charge {
    /// Whether it has been sent.
    pub fn is_sent(&self) -> bool {
        self.taken.position > 0
    }

    /// What it took.
    pub fn amount(&self) -> Amount {
        self.taken.amount
    }
}

impl Lane {
    /// Right before the first byte goes out.
    pub fn sent(&mut self, charge: &mut Charge, now: Ns) {
        let now = self.advance(now);
        if !charge.is_sent() {
            self.books.sent(&mut charge.taken, now);
            self.owe(now);
        }
    }

    /// The request has ended and this is the truth. The caller pumps.
    pub fn settle(&mut self, charge: Charge, spent: Spent, now: Ns) {
        let now = self.advance(now);
        self.learn_usage(&charge, spent, now);
        let used = used(&charge, spent);
        let priced = self.books.levels().get(usize::from(charge.price.0));
        let cost = match spent {
            Spent::Nothing => 0.0,
            _ => priced.map_or(charge.cost, |level| level.of(&used) as f32 * charge.price.1),
        };
        self.line.serve(charge.app, charge.size, f64::from(cost - charge.cost), now);
        self.line.running(charge.app, false);
        self.end_probe(&charge);
        self.in_flight = self.in_flight.saturating_sub(1);
        self.used_at = now;
        self.books.settle(charge.taken, used, now);
        self.owe(now);
    }

    /// An answer's head: its headers correct the levels. The caller pumps.
    pub fn observe(&mut self, charge: &mut Charge, state: &Observation, now: Ns) {
        let now = self.advance(now);
        self.calibration.head(now.saturating_sub(charge.taken.sent_at));
        self.knowledge = Knowledge::Known;
        self.pauses = 0;
        self.learn_headers(charge, state, true, now);
        self.owe(now);
    }

    /// Groq refused: the text (or the headers) corrects the levels and everything comes back. What to ask again
    /// with. The caller pumps.
    pub fn refused(
        &mut self,
        mut charge: Charge,
        text: Option<&UpstreamRefusal>,
        state: &Observation,
        retry_after: Option<Duration>,
        now: Ns,
    ) -> Again {
        let now = self.advance(now);
        self.refusals += 1;
        let asked = charge.amount();
        let least = text.and_then(|text| Some(asked.raised(self.named(text)?.unit, text.requested))).unwrap_or(asked);
        if !self.learn_refusal(&mut charge, text, state, now) {
            // Nothing said which level is low: the whole lane comes to rest.
            self.pauses = (self.pauses + 1).min(6);
            let rest = retry_after.map_or(0, nanos).max(SECOND << (self.pauses - 1)).min(LONGEST_REST);
            self.paused_until = self.paused_until.max(now + rest);
        }
        self.knowledge = Knowledge::Known;
        let requested = self.requested_in_all(&charge, text).or(charge.requested);
        let again = Again { ticket: charge.ticket, least, requested };
        self.settle(charge, Spent::Nothing, now);
        again
    }

    /// `taken`: the store has charged it.
    pub(super) fn grant(&mut self, waiter: Waiter, taken: Option<Taken>, bound: Option<usize>, now: Ns) -> Charge {
        let expected = waiter.amount.with_output(waiter.expected);
        let (slot, price) = self.price(&expected, now);
        let cost = self.books.levels().get(slot).map_or(0.0, |level| level.asked(&expected) as f32 * price);
        let taken = taken.unwrap_or_else(|| self.books.take(waiter.amount, now));
        self.line.serve(waiter.app, waiter.size, f64::from(cost), now);
        self.line.running(waiter.app, true);
        self.in_flight += 1;
        let probe = self.knowledge == Knowledge::Unknown;
        if probe {
            self.knowledge = Knowledge::Probing { until: self.probing_until.take().unwrap_or(now + PROBE) };
        }
        Charge {
            taken,
            app: waiter.app,
            size: waiter.size,
            probe,
            ceiling_given: waiter.ceiling_given,
            requested: waiter.requested,
            shown_used: None,
            estimated: waiter.estimated,
            cost,
            price: (slot as u8, price),
            ticket: waiter.ticket,
            waited: now.saturating_sub(waiter.since),
            bound: bound.map(|slot| slot as u8),
        }
    }

    /// The dimension in which this costs most, as a share of what is there and comes within a minute; one unit's price.
    fn price(&self, amount: &Amount, now: Ns) -> (usize, f32) {
        let mut dearest = (0, 0.0, 0.0);
        for (slot, level) in self.books.levels().iter().enumerate() {
            let Some(bucket) = level.bucket() else { continue };
            let price = 1.0 / (bucket.remaining(now).max(0.0) + 60.0 * bucket.rate());
            let cost = level.asked(amount) as f64 * price;
            if cost > dearest.1 {
                dearest = (slot, cost, price);
            }
        }
        (dearest.0, dearest.2 as f32)
    }
}

/// What a request used, by unit.
fn used(charge: &Charge, spent: Spent) -> Amount {
    let cut = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    let asked = charge.taken.amount;
    match spent {
        Spent::Nothing => Amount::default(),
        Spent::Request => Amount { requests: asked.requests, ..Amount::default() },
        // Audio is billed by the second, whatever the answer says of tokens.
        Spent::Tokens { .. } | Spent::Partial { .. } if asked.seconds > 0 => asked,
        Spent::Tokens { prompt, completion, .. } => Amount { input: cut(prompt), ..asked }.with_output(cut(completion)),
        Spent::Partial { completion } => asked.with_output(cut(completion)),
        Spent::Charge => asked,
    }
}
