//! One dimension of one limiter, as the upstream sees it: a bucket, its safety margin, external usage, and what corrects them.

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

/// Our own use is averaged over this time, ns.
const MEMORY: f64 = 60e9;
/// Shorter spans are left for the next tick, ns.
const TICK: Ns = 1_000_000;

/// One dimension of a limiter. Its slot in the limiter never moves; a limit that is dropped leaves it with an unlimited bucket.
#[derive(Debug)]
pub struct Quota {
    /// Which.
    pub dimension: Dimension,
    /// Its name in the store and in the state file: the dimension's code, but for a bound.
    pub(crate) code: Cow<'static, str>,
    is_bound: bool,
    /// Who says what about the limit.
    pub(crate) statements: Statements,
    /// When Groq stated the limit last.
    pub(crate) confirmed: Ns,
    bucket: Bucket,
    share: OwnShare,
    margin: SafetyMargin,
    external: ExternalUsage,
    sends: SendHistory,
    reconciler: Reconciler,
    refusals: Refusals,
    /// Units taken, fading: ours per minute.
    spending: f64,
    /// The store's side, where replicas share the quota.
    remote: Option<Box<Remote>>,
    ticked_at: Ns,
}

/// What the store does not know of a quota, and what it does.
#[derive(Debug)]
struct Remote {
    /// When the quota is full again by the store.
    tat: Ns,
    /// Settlements that the store has not been told, ns.
    settled: i64,
    /// What the newest header has shown, if the store has not been told.
    observation: Option<Observed>,
    /// Reserved in the store and not ended, without what Groq counts as soon as it is sent, ns.
    outstanding: Ns,
}

impl Quota {
    /// A full one. Without a limit it holds nobody back.
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

    /// The same without a safety margin: the limit is the operator's own, and nobody but this limiter counts.
    pub fn without_margin(self) -> Self {
        Self { margin: SafetyMargin::none(), ..self }
    }

    /// The operator's bound in a dimension whose upstream allows more, which counts other requests as well and fills faster:
    /// nothing that the upstream says corrects it.
    pub fn bound(dimension: Dimension, now: Ns) -> Self {
        let code = format!("{}:configured", dimension.code).into();
        Self { code, is_bound: true, ..Self::new(dimension, 0.0, now) }.without_margin()
    }

    /// Whether it is the operator's bound.
    pub fn is_bound(&self) -> bool {
        self.is_bound
    }

    /// Whether it tests what is expected of an answer, not its `max_completion_tokens`.
    pub fn counts_expected(&self) -> bool {
        self.dimension.unit == Unit::OutputTokens && !self.is_bound()
    }

    /// Whether more than the limit can be refused for good on our own word.
    pub fn is_certain(&self, now: Ns) -> bool {
        self.statements.is_certain(now.saturating_sub(self.confirmed))
    }

    /// Whether headers show this dimension.
    pub fn is_visible(&self) -> bool {
        self.statements.is_visible()
    }

    /// The limit in force.
    pub fn limit(&self) -> Option<u64> {
        self.bucket.limit()
    }

    /// The bucket: unlimited without a limit.
    pub fn bucket(&self) -> &Bucket {
        &self.bucket
    }

    /// What the limit counts of a cost.
    pub fn of(&self, cost: &Cost) -> u64 {
        match self.dimension.unit {
            // The operator means what is used, not what the upstream tests.
            Unit::OutputTokens if self.is_bound() => cost.output.into(),
            unit => cost.of(unit),
        }
    }

    fn span(&self, units: u64) -> Ns {
        self.bucket.span(units)
    }

    /// What it takes of a cost: never more than it can hold.
    pub fn units(&self, cost: &Cost) -> u64 {
        self.of(cost).min(self.bucket.capacity())
    }

    /// The share of the limit's rate that others take.
    pub fn external(&self) -> f64 {
        self.external.share
    }

    /// Units that we take each second, averaged over a minute.
    pub fn spending(&self) -> f64 {
        self.spending * 1e9 / MEMORY
    }

    /// What a request usually takes.
    pub fn typical(&self) -> u64 {
        self.margin.typical as u64
    }

    /// From now on this part of the margin is given back, 0 to 1.
    pub fn release_margin(&mut self, part: f64) {
        self.margin.release(part);
    }

    /// What a request of `units` must leave untouched.
    pub fn margin(&self, units: u64) -> u64 {
        self.margin.units(&self.dimension, self.bucket.capacity(), units)
    }

    /// Whether `units` fit beside the margin once `before` units more were taken.
    pub fn peek(&self, units: u64, before: u64, now: Ns) -> Readiness {
        if units == 0 {
            return Readiness::Now;
        }
        self.bucket.peek(units, self.margin(units).saturating_add(before), now).max(self.share.peek(units, before, now))
    }

    /// Whether `units` fit into our part of the limit, of which the upstream and the store know nothing.
    pub fn peek_share(&self, units: u64, now: Ns) -> Readiness {
        self.share.peek(units, 0, now)
    }

    /// Time passes: what others take is charged, what was learnt fades.
    pub fn tick(&mut self, now: Ns) {
        let passed = now.saturating_sub(self.ticked_at);
        if passed < TICK {
            return;
        }
        let taken = self.external.tick(passed, self.is_visible());
        // No header shows when a request arrived.
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

    /// Groq has answered a request that was sent at this time.
    pub fn answered(&mut self, sent_at: Ns) {
        self.sends.answered(sent_at);
    }

    /// Takes `units`, which have been found to fit; they count as not sent yet.
    pub fn reserve(&mut self, units: u64, now: Ns) {
        self.count(units, now);
        self.bucket.take_or_debit(units, now);
        let span = self.span(units);
        self.sends.reserved(span);
        // A store that is there has not charged it.
        self.add_settled(i64::try_from(span).unwrap_or(i64::MAX));
    }

    /// Everything about a reservation but the bucket itself.
    fn count(&mut self, units: u64, now: Ns) {
        if units == 0 {
            return;
        }
        self.margin.learn(units);
        self.spending += units as f64;
        self.share.take(units, now);
    }

    /// A request of `units` goes out at this position, `booked` by the store or not; how the quota stands then.
    pub fn sent(&mut self, position: u64, units: u64, booked: bool, now: Ns) -> SendSnapshot {
        let span = self.span(units);
        self.sends.no_longer_unsent(span);
        self.sends.sent(position, span, now);
        // Groq cannot have taken it before now, and a bucket that was full gains nothing while a connection opens.
        let least = now.saturating_add(span).saturating_add(self.sends.unsent);
        if !booked {
            self.bucket.set_tat(self.bucket.tat().max(least), now);
        }
        self.send_snapshot()
    }

    /// `units` will never be sent.
    pub fn not_sent(&mut self, units: u64) {
        self.sends.no_longer_unsent(self.span(units));
    }

    /// How the quota stands for a request that is sent now and counted in it.
    pub fn send_snapshot(&self) -> SendSnapshot {
        SendSnapshot { tat: self.bucket.tat().saturating_sub(self.sends.unsent), corrections: self.reconciler.corrections }
    }

    /// The truth replaces what was reserved.
    pub fn settle(&mut self, units: u64, used: u64, now: Ns) {
        self.spending = (self.spending + used as f64 - units as f64).max(0.0);
        self.bucket.settle(units, used, now);
        self.sends.given_back(self.span(units.saturating_sub(used)), now);
        self.add_settled(self.span(used) as i64 - self.span(units) as i64);
        self.share.settle(units, used, now);
    }

    /// Groq has said what was in use. The correction, ns, unless the report of a newer request has come before.
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
        // What was taken before our first request does not say how fast others take.
        if !first && self.is_visible() {
            self.external.corrected(error);
        }
        Some(error)
    }

    /// A refusal of our own request: from the second one on more is kept back, and where no header shows this dimension, external
    /// usage is learnt from what grew beyond our quota since the last one. `gap` is the refusal's correction, ns.
    pub fn refused(&mut self, position: u64, last_position: u64, gap: i64, now: Ns) {
        if let Some(since) = self.refusals.add(position, last_position, now) {
            self.margin.grow();
            if !self.is_visible() {
                self.external.refused(gap, since);
            }
        }
    }

    /// Another statement of the limit; what was used stays used. Positions up to `position` were counted under the old one.
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

    /// Leaves this share of the limit to others.
    pub fn set_headroom(&mut self, headroom: f64, now: Ns) {
        self.share.headroom = headroom;
        self.share.resize(&self.bucket, now);
    }

    /// Puts the quota where it was, as saved by an earlier process.
    pub fn restore(&mut self, used: u64, now: Ns) {
        self.reconciler.restore(&mut self.bucket, used, 0, now, now);
    }
}

#[cfg(test)]
mod tests;
