//! The quota of one dimension of one limiter: a model of the bucket that the upstream keeps.
//!
//! A [`Quota`] combines the bucket with its safety margin, the estimate of external usage, and the corrections by headers
//! and refusals. A request is reserved, sent, and settled. When it is sent it gets a send position, its number in the
//! limiter's order of sending, and a [`BucketState`], with which the headers of its answer are compared. Where replicas
//! share the quota through a store, the reservation is made there: such a request is called booked.

use std::borrow::Cow;

use self::{
    external::ExternalUsage,
    margin::SafetyMargin,
    reconcile::{Reconciler, Refusals},
    remote::Remote,
    send_history::SendHistory,
    share::OwnShare,
};
pub use self::{reconcile::Reported, statements::Statements};
use crate::{
    ablation::Mechanism,
    bucket::{Bucket, BucketState},
    request::Cost,
    store::protocol::Cell,
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
    /// Whether it is the operator's bound.
    pub(crate) is_bound: bool,
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
            margin: SafetyMargin::new(1.0),
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
        Self { margin: SafetyMargin::new(0.0), ..self }
    }

    /// Returns the operator's bound in a dimension in which the upstream allows more. The upstream's bucket counts other
    /// clients' requests as well and fills faster, so its reports do not correct the bound.
    pub fn bound(dimension: Dimension, now: Ns) -> Self {
        let code = format!("{}:configured", dimension.code).into();
        Self { code, is_bound: true, ..Self::new(dimension, 0.0, now) }.without_margin()
    }

    /// Whether the quota counts the expected output of a request instead of its `max_completion_tokens`.
    pub fn counts_expected(&self) -> bool {
        self.dimension.unit == Unit::OutputTokens && !self.is_bound
    }

    /// Whether the limit is certain enough to refuse a larger request for good without asking Groq.
    pub fn is_certain(&self, now: Ns) -> bool {
        self.statements.is_certain(now.saturating_sub(self.confirmed))
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
            Unit::OutputTokens if self.is_bound => cost.output.into(),
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

    /// Returns the first time at which `units` fit in addition to the safety margin, if `before` units are taken first; `now`
    /// if they fit now.
    pub fn peek(&self, units: u64, before: u64, now: Ns) -> Ns {
        if units == 0 {
            return now;
        }
        self.bucket.peek(units, self.margin(units).saturating_add(before), now).max(self.share.peek(units, before, now))
    }

    /// Returns the first time at which `units` fit into our own share of the limit, which only this process enforces.
    pub fn peek_share(&self, units: u64, now: Ns) -> Ns {
        self.share.peek(units, 0, now)
    }

    /// Advances to `now`: charges external usage, and lets what was learnt decay.
    pub fn tick(&mut self, now: Ns) {
        let passed = now.saturating_sub(self.ticked_at);
        if passed < TICK {
            return;
        }
        let taken = self.external.tick(passed, self.statements.is_visible());
        // Where no header shows the dimension, requests that may not have arrived yet count as if they arrived now.
        let is_hidden = self.dimension.unit == Unit::Requests && !self.statements.is_visible() && self.margin.kept > 0.0;
        let least = if is_hidden { self.sends.full_at(now) } else { 0 };
        self.bucket.correct(taken as i64, self.ticked_at, now);
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
        // If there is a store, it has not charged this reservation.
        self.add_settled(self.bucket.signed_span(units));
    }

    /// Counts a reservation in everything except the bucket.
    fn count(&mut self, units: u64, now: Ns) {
        if units == 0 {
            return;
        }
        self.margin.learn(units);
        self.spending += units as f64;
        self.share.take(units, now);
        self.sends.reserved(self.bucket.span(units));
    }

    /// Notes that a request of `units` is sent at this send position; `booked` if it was reserved in the store. Returns the
    /// snapshot to compare its headers with.
    pub fn sent(&mut self, position: u64, units: u64, booked: bool, now: Ns) -> BucketState {
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
    pub fn send_snapshot(&self) -> BucketState {
        BucketState { tat: self.bucket.tat().saturating_sub(self.sends.unsent), corrections: self.reconciler.corrections }
    }

    /// Replaces the `units` that were reserved by the units that were `used`.
    pub fn settle(&mut self, units: u64, used: u64, now: Ns) {
        self.spending = (self.spending + used as f64 - units as f64).max(0.0);
        self.bucket.settle(units, used, now);
        self.sends.given_back(self.span(units.saturating_sub(used)), now);
        self.add_settled(self.bucket.signed_span(used).saturating_sub(self.bucket.signed_span(units)));
        self.share.settle(units, used, now);
    }

    /// Corrects the bucket by what Groq has reported in use. Returns the correction, ns; `None` if there is no limit or a
    /// report for a newer request has come before.
    pub fn observe(&mut self, reported: Reported, now: Ns) -> Option<i64> {
        let unordered = Reported { snapshot: self.send_snapshot(), at: now, ..reported };
        let reported = if Mechanism::SendPosition.is_on() { reported } else { unordered };
        let Reported { position, at, .. } = reported;
        let is_news = position > self.reconciler.newest || !Mechanism::SendPosition.is_on();
        if self.limit().is_none() || !is_news {
            return None;
        }
        let bucket = &mut self.bucket;
        if position <= self.reconciler.former {
            let more = self.reconciler.restore(bucket, reported.used, position, at, now);
            self.add_settled(more);
            return Some(more);
        }
        let uncertain = self.sends.take_uncertainty(position);
        let first = self.reconciler.newest == 0;
        let error = self.reconciler.correct(bucket, &reported, uncertain, now);
        let truth = bucket.tat_of(reported.used, at);
        if let Some(remote) = self.attached() {
            // A newer observation replaces an older one that is not reported yet.
            remote.observation = Some((reported.snapshot, at, truth));
        }
        // What was in use before our first request says nothing about the rate of external usage.
        if !first && self.statements.is_visible() {
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
            if !self.statements.is_visible() {
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
        self.reconciler.former = position;
        self.sends.requota(self.bucket.rescale(self.sends.unsent, unit));
        if let Some(remote) = &mut self.remote {
            remote.outstanding = self.bucket.rescale(remote.outstanding, unit);
        }
        (self.refusals.last, self.external) = (None, ExternalUsage::default());
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

/// Sharing the quota with other replicas.
impl Quota {
    /// Shares the quota from now on, through the store or, without the store, as limit ÷ `alone` replicas.
    pub fn share(&mut self, alone: Option<u32>, now: Ns) {
        let is_attached = self.attached().is_some();
        let own_share = self.share.bucket.as_deref().filter(|_| !self.statements.is_visible());
        match &mut self.remote {
            Some(_) if is_attached == alone.is_none() => return,
            Some(remote) if is_attached => remote.observation = None,
            Some(remote) => remote.rejoin(&self.bucket, own_share, now),
            None => self.remote = Some(Box::new(Remote::new(self.bucket.tat()))),
        }
        self.share.restart(&self.bucket, alone, now);
    }

    /// The state in the store; `None` if the quota does not follow the store at present.
    fn attached(&mut self) -> Option<&mut Remote> {
        self.remote.as_deref_mut().filter(|_| self.share.replicas.is_none())
    }

    /// Adds a settlement or external usage, ns, to what the next transaction reports.
    fn add_settled(&mut self, span: i64) {
        if let Some(remote) = self.attached() {
            remote.settled = remote.settled.saturating_add(span);
        }
    }

    /// Whether there is a settlement to report to the store.
    pub fn has_settled(&self) -> bool {
        self.remote.as_ref().is_some_and(|remote| remote.settled != 0)
    }

    /// Returns this dimension's part of a transaction that asks for a reservation for `head`, if there is one. `None` without
    /// a limit.
    pub fn cell(&mut self, head: Option<&Cost>, now: Ns) -> Option<Cell> {
        let units = head.map_or(0, |cost| self.units(cost));
        let margin = self.margin(units);
        self.remote.as_mut()?.cell(&self.code, &self.bucket, units, margin, now)
    }

    /// Takes over the store's state, and adds what has not been reported yet. What a header has shown is not reported to
    /// another record (`is_new`), because it is relative to the former one.
    pub fn follow(&mut self, state: BucketState, is_new: bool, now: Ns) {
        let Some(remote) = &mut self.remote else { return };
        remote.observation.take_if(|_| is_new);
        remote.tat = state.tat;
        self.bucket.set_tat(state.tat.saturating_add_signed(remote.settled), now);
        self.reconciler.corrections = state.corrections;
    }

    /// Counts `units` that the store has reserved. Returns the send snapshot that belongs to this reservation.
    pub fn booked(&mut self, units: u64, now: Ns) -> BucketState {
        self.count(units, now);
        let (span, corrections) = (self.span(units), self.reconciler.corrections);
        self.remote.as_mut().map_or_else(BucketState::default, |remote| {
            remote.outstanding = remote.outstanding.saturating_add(span);
            BucketState { tat: remote.tat, corrections }
        })
    }

    /// Removes `units` from what is outstanding, because the reservation has ended, or because Groq counts them from now on.
    pub fn ended(&mut self, units: u64) {
        let span = self.span(units);
        if let Some(remote) = &mut self.remote {
            remote.outstanding = remote.outstanding.saturating_sub(span);
        }
    }
}

#[cfg(test)]
mod tests;
