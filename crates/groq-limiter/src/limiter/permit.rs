//! What an admitted request holds, and how it ends.

use std::time::Duration;

use super::{
    Limiter, Requeue, SECOND,
    cold_start::{ColdStart, PROBE},
    nanos,
};
use crate::{
    ActualUsage,
    bucket::Ns,
    queue::{AppId, QueuedRequest, Ticket},
    quota_set::{Cost, Reserved},
    types::{Observation, UpstreamRefusal},
};

/// However long a refusal without a figure says to wait, the limiter looks again after so long.
const LONGEST_REST: Ns = 3600 * SECOND;

/// What a granted request holds.
#[derive(Clone, Debug)]
pub struct Permit {
    pub(super) taken: Reserved,
    pub(super) app: AppId,
    size: u8,
    pub(super) probe: bool,
    pub(super) has_ceiling: bool,
    /// What an earlier refusal has said of it: prompt and assumed completion tokens.
    pub(super) requested: Option<u32>,
    /// Tokens in use as its answer's head has shown, itself included; of a request without a ceiling only.
    pub(super) shown_used: Option<u64>,
    /// Prompt tokens before the limiter's own correction.
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

impl Permit {
    /// Whether it has been sent.
    pub fn is_sent(&self) -> bool {
        self.taken.position > 0
    }

    /// What it took.
    pub fn amount(&self) -> Cost {
        self.taken.amount
    }
}

impl Limiter {
    /// Right before the first byte goes out.
    pub fn sent(&mut self, charge: &mut Permit, now: Ns) {
        let now = self.advance(now);
        if !charge.is_sent() {
            self.quotas.sent(&mut charge.taken, now);
            self.add_pending(now);
        }
    }

    /// The request has ended and this is the truth. The caller dispatches.
    pub fn settle(&mut self, charge: Permit, spent: ActualUsage, now: Ns) {
        let now = self.advance(now);
        self.learn_usage(&charge, spent, now);
        let used = used(&charge, spent);
        let priced = self.quotas.all().get(usize::from(charge.price.0));
        let cost = match spent {
            ActualUsage::Nothing => 0.0,
            _ => priced.map_or(charge.cost, |quota| quota.of(&used) as f32 * charge.price.1),
        };
        self.queue.serve(charge.app, charge.size, f64::from(cost - charge.cost), now);
        self.queue.running(charge.app, false);
        self.end_probe(&charge);
        self.in_flight = self.in_flight.saturating_sub(1);
        self.used_at = now;
        self.quotas.settle(charge.taken, used, now);
        self.add_pending(now);
    }

    /// An answer's head: its headers correct the quotas. The caller dispatches.
    pub fn observe(&mut self, charge: &mut Permit, state: &Observation, now: Ns) {
        let now = self.advance(now);
        self.calibration.head(now.saturating_sub(charge.taken.sent_at));
        self.knowledge = ColdStart::Known;
        self.pauses = 0;
        self.learn_headers(charge, state, true, now);
        self.add_pending(now);
    }

    /// Groq refused: the text (or the headers) corrects the quotas and everything comes back. What to ask again
    /// with. The caller dispatches.
    pub fn refused(
        &mut self,
        mut charge: Permit,
        text: Option<&UpstreamRefusal>,
        state: &Observation,
        retry_after: Option<Duration>,
        now: Ns,
    ) -> Requeue {
        let now = self.advance(now);
        self.refusals += 1;
        let asked = charge.amount();
        let least = text.and_then(|text| Some(asked.raised(self.named(text)?.unit, text.requested))).unwrap_or(asked);
        if !self.learn_refusal(&mut charge, text, state, now) {
            // Nothing said which quota is low: the whole limiter comes to rest.
            self.pauses = (self.pauses + 1).min(6);
            let rest = retry_after.map_or(0, nanos).max(SECOND << (self.pauses - 1)).min(LONGEST_REST);
            self.paused_until = self.paused_until.max(now + rest);
        }
        self.knowledge = ColdStart::Known;
        let requested = self.requested_in_all(&charge, text).or(charge.requested);
        let again = Requeue { ticket: charge.ticket, least, requested };
        self.settle(charge, ActualUsage::Nothing, now);
        again
    }

    /// `taken`: the store has charged it.
    pub(super) fn grant(&mut self, waiter: QueuedRequest, taken: Option<Reserved>, bound: Option<usize>, now: Ns) -> Permit {
        let expected = waiter.amount.with_output(waiter.expected);
        let (slot, price) = self.price(&expected, now);
        let cost = self.quotas.all().get(slot).map_or(0.0, |quota| quota.asked(&expected) as f32 * price);
        let taken = taken.unwrap_or_else(|| self.quotas.take(waiter.amount, now));
        self.queue.serve(waiter.app, waiter.size, f64::from(cost), now);
        self.queue.running(waiter.app, true);
        self.in_flight += 1;
        let probe = self.knowledge == ColdStart::Unknown;
        if probe {
            self.knowledge = ColdStart::Probing { until: self.probing_until.take().unwrap_or(now + PROBE) };
        }
        Permit {
            taken,
            app: waiter.app,
            size: waiter.size,
            probe,
            has_ceiling: waiter.has_ceiling,
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
    fn price(&self, amount: &Cost, now: Ns) -> (usize, f32) {
        let mut dearest = (0, 0.0, 0.0);
        for (slot, quota) in self.quotas.all().iter().enumerate() {
            let Some(bucket) = quota.bucket() else { continue };
            let price = 1.0 / (bucket.remaining(now).max(0.0) + 60.0 * bucket.rate());
            let cost = quota.asked(amount) as f64 * price;
            if cost > dearest.1 {
                dearest = (slot, cost, price);
            }
        }
        (dearest.0, dearest.2 as f32)
    }
}

/// What a request used, by unit.
fn used(charge: &Permit, spent: ActualUsage) -> Cost {
    let cut = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    let asked = charge.taken.amount;
    match spent {
        ActualUsage::Nothing => Cost::default(),
        ActualUsage::Request => Cost { requests: asked.requests, ..Cost::default() },
        // Audio is billed by the second, whatever the answer says of tokens.
        ActualUsage::Tokens { .. } | ActualUsage::Partial { .. } if asked.seconds > 0 => asked,
        ActualUsage::Tokens { prompt, completion, .. } => Cost { input: cut(prompt), ..asked }.with_output(cut(completion)),
        ActualUsage::Partial { completion } => asked.with_output(cut(completion)),
        ActualUsage::Unknown => asked,
    }
}
