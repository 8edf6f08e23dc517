//! The quota of one dimension of one limiter: a model of the bucket that the upstream keeps.
//!
//! A [`Quota`] combines the bucket with its safety margin, the estimate of external usage, and the corrections by headers
//! and refusals. A request is reserved, sent, and settled. When it is sent it gets a send position, its number in the
//! limiter's order of sending, and a [`SendSnapshot`], with which the headers of its answer are compared. Where replicas
//! share the quota through a store, the reservation is made there: such a request is called booked.

use std::borrow::Cow;

use self::{
    external::ExternalUsage,
    margin::SafetyMargin,
    reconcile::{Reconciler, Refusals},
    send_history::SendHistory,
    share::OwnShare,
};
pub use self::{reconcile::Reported, send_history::SendSnapshot, statements::Statements};
use crate::{
    ablation::Mechanism,
    bucket::{Bucket, Readiness},
    request::Cost,
    store::protocol::Observed,
    types::{Dimension, Ns, Unit},
};

mod external;
mod margin;
mod reconcile;
mod remote;
pub(crate) mod send_history;
mod share;
mod statements;

/// The time over which our own use is averaged, ns.
const MEMORY: f64 = 60e9;
/// The shortest interval between two ticks, ns; a tick that comes sooner does nothing.
const TICK: Ns = 1_000_000;

/// The quota of one dimension. It keeps its slot in the limiter for good; without a limit its bucket is unlimited.
#[derive(Debug)]
pub struct Quota {
    /// The dimension.
    pub dimension: Dimension,
    /// The name in the store and in the state file: the dimension's code, with a suffix for a bound.
    pub(crate) code: Cow<'static, str>,
    is_bound: bool,
    /// The statements about the limit.
    pub(crate) statements: Statements,
    /// The time at which Groq last stated the limit.
    pub(crate) confirmed: Ns,
    bucket: Bucket,
    share: OwnShare,
    margin: SafetyMargin,
    external: ExternalUsage,
    sends: SendHistory,
    reconciler: Reconciler,
    refusals: Refusals,
    /// Exponentially decaying sum of the units that we have taken, which is about those of the last minute.
    spending: f64,
    /// The state in the store; `None` unless replicas share the quota.
    remote: Option<Box<Remote>>,
    /// The time of the last tick.
    ticked_at: Ns,
}

/// The state of a quota in the store, and the changes that are not reported to the store yet.
#[derive(Debug)]
struct Remote {
    /// The time at which the quota is full again according to the store.
    tat: Ns,
    /// Sum of the changes to report, such as settlements, ns.
    settled: i64,
    /// What the newest header has shown, if that is not reported yet.
    observation: Option<Observed>,
    /// What this replica has reserved in the store for requests that have not ended, ns. A request leaves it when it is
    /// sent, except for its output, which Groq counts at the end.
    outstanding: Ns,
}

impl Quota {
    /// Returns a full quota. It has no limit yet, so it delays no request.
    pub fn new(dimension: Dimension, headroom: f64, now: Ns) -> Self {
        Self {
            code: dimension.code.clone(),
            is_bound: false,
            bucket: Bucket::new(None, dimension.period),
            dimension,
            statements: Statements::default(),
            confirmed: now,
            share: OwnShare::new(headroom),
            margin: SafetyMargin::default(),
            external: ExternalUsage::default(),
            sends: SendHistory::default(),
            reconciler: Reconciler::default(),
            refusals: Refusals::default(),
            spending: 0.0,
            remote: None,
            ticked_at: now,
        }
    }

    /// Returns the quota without a safety margin, for a limit of the operator's that counts nothing but this limiter's
    /// requests.
    pub fn without_margin(self) -> Self {
        Self { margin: SafetyMargin::none(), ..self }
    }

    /// Returns the operator's bound in a dimension in which the upstream allows more. The upstream's bucket counts other
    /// clients' requests as well and fills faster, so its reports do not correct the bound.
    pub fn bound(dimension: Dimension, now: Ns) -> Self {
        let code = format!("{}:configured", dimension.code).into();
        Self { code, is_bound: true, ..Self::new(dimension, 0.0, now) }.without_margin()
    }

    /// Whether it is the operator's bound.
    pub fn is_bound(&self) -> bool {
        self.is_bound
    }

    /// Whether the quota counts the expected output of a request instead of its `max_completion_tokens`.
    pub fn counts_expected(&self) -> bool {
        self.dimension.unit == Unit::OutputTokens && !self.is_bound()
    }

    /// Whether the limit is certain enough to refuse a larger request for good without asking Groq.
    pub fn is_certain(&self, now: Ns) -> bool {
        self.statements.is_certain(now.saturating_sub(self.confirmed))
    }

    /// Whether Groq's headers show this dimension.
    pub fn is_visible(&self) -> bool {
        self.statements.is_visible()
    }

    /// Returns the limit in force; `None` if there is none.
    pub fn limit(&self) -> Option<u64> {
        self.bucket.limit()
    }

    /// Returns the bucket, which is unlimited if there is no limit.
    pub fn bucket(&self) -> &Bucket {
        &self.bucket
    }

    /// Returns the units of `cost` that the limit counts, even if they are more than the limit.
    pub fn of(&self, cost: &Cost) -> u64 {
        match self.dimension.unit {
            // The operator's limit is for tokens that are used, not for the figure that the upstream tests.
            Unit::OutputTokens if self.is_bound() => cost.output.into(),
            unit => cost.of(unit),
        }
    }

    fn span(&self, units: u64) -> Ns {
        self.bucket.span(units)
    }

    /// Returns the units to take for `cost`, which are at most those of a full bucket.
    pub fn units(&self, cost: &Cost) -> u64 {
        self.of(cost).min(self.bucket.capacity())
    }

    /// Returns the external usage as a share of the limit's rate.
    pub fn external(&self) -> f64 {
        self.external.share
    }

    /// Returns the units that we take per second, averaged over a minute.
    pub fn spending(&self) -> f64 {
        self.spending * 1e9 / MEMORY
    }

    /// Returns the average number of units of a request.
    pub fn typical(&self) -> u64 {
        self.margin.typical as u64
    }

    /// Sets how much of the releasable part of the safety margin is released, from 0 to 1.
    pub fn release_margin(&mut self, part: f64) {
        self.margin.release(part);
    }

    /// Returns the safety margin for a request of `units`: the units that it must leave unused.
    pub fn margin(&self, units: u64) -> u64 {
        self.margin.units(&self.dimension, self.bucket.capacity(), units)
    }

    /// Returns when `units` fit in addition to the safety margin, if `before` units are taken first.
    pub fn peek(&self, units: u64, before: u64, now: Ns) -> Readiness {
        if units == 0 {
            return Readiness::Now;
        }
        self.bucket.peek(units, self.margin(units).saturating_add(before), now).max(self.share.peek(units, before, now))
    }

    /// Returns when `units` fit into our own share of the limit, which neither the upstream nor the store enforces.
    pub fn peek_share(&self, units: u64, now: Ns) -> Readiness {
        self.share.peek(units, 0, now)
    }

    /// Advances to `now`: charges external usage, and lets what was learnt decay.
    pub fn tick(&mut self, now: Ns) {
        let passed = now.saturating_sub(self.ticked_at);
        if passed < TICK {
            return;
        }
        let taken = self.external.tick(passed, self.is_visible());
        // Where no header shows the dimension, requests that may not have arrived yet count as if they arrived now.
        let is_hidden = self.dimension.unit == Unit::Requests && !self.is_visible() && !self.margin.is_none();
        let least = if is_hidden { self.sends.full_at(now) } else { 0 };
        if taken > 0 {
            self.bucket.drain(taken, self.ticked_at, now);
        }
        let late = least.saturating_sub(self.bucket.tat().max(now));
        self.bucket.set_tat(self.bucket.tat().max(least), now);
        self.add_settled(taken.saturating_add(late) as i64);
        self.margin.fade(passed);
        self.spending *= (-(passed as f64) / MEMORY).exp();
        self.ticked_at = now;
    }

    /// Notes that Groq has answered a request that was sent at `sent_at`.
    pub fn answered(&mut self, sent_at: Ns) {
        self.sends.answered(sent_at);
    }

    /// Takes `units`, which count as not sent yet. The caller has checked that they fit.
    pub fn reserve(&mut self, units: u64, now: Ns) {
        self.count(units, now);
        self.bucket.take_or_debit(units, now);
        let span = self.span(units);
        self.sends.reserved(span);
        // If there is a store, it has not charged this reservation.
        self.add_settled(i64::try_from(span).unwrap_or(i64::MAX));
    }

    /// Counts a reservation in everything except the bucket.
    fn count(&mut self, units: u64, now: Ns) {
        if units == 0 {
            return;
        }
        self.margin.learn(units);
        self.spending += units as f64;
        self.share.take(units, now);
    }

    /// Notes that a request of `units` is sent at this send position; `booked` if it was reserved in the store. Returns the
    /// snapshot to compare its headers with.
    pub fn sent(&mut self, position: u64, units: u64, booked: bool, now: Ns) -> SendSnapshot {
        let span = self.span(units);
        self.sends.no_longer_unsent(span);
        self.sends.sent(position, span, now);
        // Groq cannot have taken the units before now. While the connection opened, our bucket may have refilled, but Groq's
        // was full.
        let least = now.saturating_add(span).saturating_add(self.sends.unsent);
        if !booked {
            self.bucket.set_tat(self.bucket.tat().max(least), now);
        }
        self.send_snapshot()
    }

    /// Notes that `units` that were reserved will never be sent.
    pub fn not_sent(&mut self, units: u64) {
        self.sends.no_longer_unsent(self.span(units));
    }

    /// Returns the snapshot for a request that is sent now and already counted as sent.
    pub fn send_snapshot(&self) -> SendSnapshot {
        SendSnapshot { tat: self.bucket.tat().saturating_sub(self.sends.unsent), corrections: self.reconciler.corrections }
    }

    /// Replaces the `units` that were reserved by the units that were `used`.
    pub fn settle(&mut self, units: u64, used: u64, now: Ns) {
        self.spending = (self.spending + used as f64 - units as f64).max(0.0);
        self.bucket.settle(units, used, now);
        self.sends.given_back(self.span(units.saturating_sub(used)), now);
        self.add_settled(self.span(used) as i64 - self.span(units) as i64);
        self.share.settle(units, used, now);
    }

    /// Corrects the bucket by what Groq has reported in use. Returns the correction, ns; `None` if there is no limit or a
    /// report for a newer request has come before.
    pub fn observe(&mut self, reported: Reported, now: Ns) -> Option<i64> {
        let unordered = Reported { snapshot: self.send_snapshot(), at: now, ..reported };
        let reported = if Mechanism::SendPosition.is_on() { reported } else { unordered };
        let Reported { position, at, .. } = reported;
        if self.limit().is_none() || !self.reconciler.is_news(position) {
            return None;
        }
        let bucket = &mut self.bucket;
        if !self.reconciler.is_comparable(position) {
            let more = self.reconciler.restore(bucket, reported.used, position, at, now);
            self.add_settled(more);
            return Some(more);
        }
        let uncertain = self.sends.take_uncertainty(position);
        let first = !self.reconciler.has_corrected();
        let error = self.reconciler.correct(bucket, &reported, uncertain, now);
        let truth = bucket.tat_of(reported.used, at);
        self.report(Observed::new(reported.snapshot, at, truth));
        // What was in use before our first request says nothing about the rate of external usage.
        if !first && self.is_visible() {
            self.external.corrected(error);
        }
        Some(error)
    }

    /// Learns from a refusal of a request that should have fit. From the second refusal on the safety margin grows. If no
    /// header shows the dimension, external usage is estimated from `gap`, the correction by the refusal in ns, which is
    /// what was taken since the last refusal without our knowledge. `last_position` is the newest send position.
    pub fn refused(&mut self, position: u64, last_position: u64, gap: i64, now: Ns) {
        if let Some(since) = self.refusals.add(position, last_position, now) {
            self.margin.grow();
            if !self.is_visible() {
                self.external.refused(gap, since);
            }
        }
    }

    /// Replaces the statements about the limit. What is used stays used. Send positions up to `position` belong to the old
    /// limit.
    pub fn set_statements(&mut self, statements: Statements, position: u64, now: Ns) {
        self.statements = statements;
        let (before, unit) = (self.bucket.capacity(), self.span(1));
        self.bucket.requota(statements.limit().0, now);
        if self.bucket.capacity() == before {
            return;
        }
        self.reconciler.requota(position);
        self.sends.requota(self.bucket.rescale(self.sends.unsent, unit));
        if let Some(remote) = &mut self.remote {
            remote.outstanding = self.bucket.rescale(remote.outstanding, unit);
        }
        self.refusals.requota();
        self.external = ExternalUsage::default();
        self.set_headroom(self.share.headroom, now);
    }

    /// Sets the share of the limit that is left to other clients.
    pub fn set_headroom(&mut self, headroom: f64, now: Ns) {
        self.share.headroom = headroom;
        self.share.resize(&self.bucket, now);
    }

    /// Restores the used units that an earlier process saved.
    pub fn restore(&mut self, used: u64, now: Ns) {
        self.reconciler.restore(&mut self.bucket, used, 0, now, now);
    }
}

#[cfg(test)]
mod tests;
