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
pub struct Grant {
    pub(super) reserved: Reserved,
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
    service: f32,
    price: (u8, f32),
    ticket: Ticket,
    /// How long it waited, ns.
    pub waited: Ns,
    /// The slot that made it wait.
    pub bound: Option<u8>,
}

impl Grant {
    /// Whether it has been sent.
    pub fn is_sent(&self) -> bool {
        self.reserved.position > 0
    }

    /// What it took.
    pub fn cost(&self) -> Cost {
        self.reserved.cost
    }
}

impl Limiter {
    /// Right before the first byte goes out.
    pub fn sent(&mut self, grant: &mut Grant, now: Ns) {
        let now = self.advance(now);
        if !grant.is_sent() {
            self.quotas.sent(&mut grant.reserved, now);
            self.add_pending(now);
        }
    }

    /// The request has ended and this is the truth. The caller dispatches.
    pub fn settle(&mut self, grant: Grant, usage: ActualUsage, now: Ns) {
        let now = self.advance(now);
        self.learn_usage(&grant, usage, now);
        let used = used(&grant, usage, self.estimates.completion.mean());
        let priced = self.quotas.all().get(usize::from(grant.price.0));
        let service = match usage {
            ActualUsage::Nothing => 0.0,
            _ => priced.map_or(grant.service, |quota| quota.of(&used) as f32 * grant.price.1),
        };
        self.queue.serve(grant.app, grant.size, f64::from(service - grant.service), now);
        self.queue.running(grant.app, false);
        self.end_probe(&grant);
        self.in_flight = self.in_flight.saturating_sub(1);
        self.used_at = now;
        self.quotas.settle(grant.reserved, used, now);
        self.add_pending(now);
    }

    /// An answer's head: its headers correct the quotas. The caller dispatches.
    pub fn observe(&mut self, grant: &mut Grant, state: &Observation, now: Ns) {
        let now = self.advance(now);
        self.estimates.head(now.saturating_sub(grant.reserved.sent_at));
        self.cold_start = ColdStart::Known;
        self.consecutive_pauses = 0;
        self.learn_headers(grant, state, true, now);
        self.add_pending(now);
    }

    /// Groq refused: the text (or the headers) corrects the quotas and everything comes back. What to request again
    /// with. The caller dispatches.
    pub fn refused(
        &mut self,
        mut grant: Grant,
        text: Option<&UpstreamRefusal>,
        state: &Observation,
        retry_after: Option<Duration>,
        now: Ns,
    ) -> Requeue {
        let now = self.advance(now);
        self.refusals += 1;
        self.quotas.refused(now);
        let units = grant.cost();
        let least = text.and_then(|text| Some(units.raised(self.named(text)?.unit, text.requested))).unwrap_or(units);
        if !self.learn_refusal(&mut grant, text, state, now) {
            // Nothing said which quota is low: the whole limiter comes to rest.
            self.consecutive_pauses = (self.consecutive_pauses + 1).min(6);
            let rest = retry_after.map_or(0, nanos).max(SECOND << (self.consecutive_pauses - 1)).min(LONGEST_REST);
            self.paused_until = self.paused_until.max(now + rest);
        }
        self.cold_start = ColdStart::Known;
        let requested = self.requested_in_all(&grant, text).or(grant.requested);
        let again = Requeue { ticket: grant.ticket, least, requested };
        self.settle(grant, ActualUsage::Nothing, now);
        again
    }

    /// `reserved`: the store has charged it.
    pub(super) fn grant(&mut self, waiter: QueuedRequest, reserved: Option<Reserved>, bound: Option<usize>, now: Ns) -> Grant {
        let expected = waiter.cost.with_output(waiter.expected);
        let (slot, price) = self.price(&expected, now);
        let service = self.quotas.all().get(slot).map_or(0.0, |quota| quota.units(&expected) as f32 * price);
        let reserved = reserved.unwrap_or_else(|| self.quotas.take(waiter.cost, now));
        self.queue.serve(waiter.app, waiter.size, f64::from(service), now);
        self.queue.running(waiter.app, true);
        self.in_flight += 1;
        let probe = self.cold_start == ColdStart::Unknown;
        if probe {
            self.cold_start = ColdStart::Probing { until: self.probing_until.take().unwrap_or(now + PROBE) };
        }
        Grant {
            reserved,
            app: waiter.app,
            size: waiter.size,
            probe,
            has_ceiling: waiter.has_ceiling,
            requested: waiter.requested,
            shown_used: None,
            estimated: waiter.estimated,
            service,
            price: (slot as u8, price),
            ticket: waiter.ticket,
            waited: now.saturating_sub(waiter.since),
            bound: bound.map(|slot| slot as u8),
        }
    }

    /// The dimension in which this costs most, as a share of what is there and comes within a minute; one unit's price.
    fn price(&self, cost: &Cost, now: Ns) -> (usize, f32) {
        let mut dearest = (0, 0.0, 0.0);
        for (slot, quota) in self.quotas.all().iter().enumerate() {
            let Some(bucket) = quota.bucket() else { continue };
            let price = 1.0 / (bucket.remaining(now).max(0.0) + 60.0 * bucket.rate());
            let share = quota.units(cost) as f64 * price;
            if share > dearest.1 {
                dearest = (slot, share, price);
            }
        }
        (dearest.0, dearest.2 as f32)
    }
}

/// What a request used, by unit. `usual`: completion tokens of an answer, in the mean.
fn used(grant: &Grant, usage: ActualUsage, usual: Option<f32>) -> Cost {
    let cut = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    let units = grant.reserved.cost;
    // A limit on output reserves nothing while no answer has been seen lately. An answer of unknown size has used some of it.
    let unseen = units.expected.max(usual.map_or(0, |usual| usual as u32).min(units.answer));
    match usage {
        ActualUsage::Nothing => Cost::default(),
        ActualUsage::Request => Cost { requests: units.requests, ..Cost::default() },
        // Audio is billed by the second, whatever the answer says of tokens.
        ActualUsage::Tokens { .. } | ActualUsage::Prompt { .. } | ActualUsage::Partial { .. } if units.seconds > 0 => units,
        ActualUsage::Tokens { prompt, completion, .. } => Cost { input: cut(prompt), ..units }.with_output(cut(completion)),
        ActualUsage::Partial { completion } => units.with_output(cut(completion)),
        ActualUsage::Prompt { prompt, .. } => Cost { input: cut(prompt), expected: unseen, ..units },
        ActualUsage::Unknown => Cost { expected: unseen, ..units },
    }
}
