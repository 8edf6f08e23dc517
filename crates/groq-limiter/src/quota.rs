//! One dimension of one limiter, as the upstream sees it: a bucket, the safety margin, external usage, and what corrects them.

use std::{
    collections::VecDeque,
    sync::{Arc, LazyLock},
    time::Duration,
};

use self::reconcile::FormerLimit;
pub use self::{send_snapshot::SendSnapshot, statements::Statements};
use super::{
    bucket::{Bucket, Ns, Readiness},
    quota_set::Cost,
};
use crate::ablation::Mechanism;
use crate::types::{Dimension, Unit};

mod reconcile;
mod remote;
mod send_snapshot;
mod statements;

const SECOND: f64 = 1e9;
/// The margin growth after an own refusal halves in this time.
const BOOST_HALF: f64 = 1800.0 * SECOND;
/// The others' share that refusals taught halves in this time.
const DRIFT_HALF: f64 = 900.0 * SECOND;
/// What headers show of others, and our own spending, are averaged over this time.
const MEMORY: f64 = 60.0 * SECOND;
/// So much of the margin is given back where nobody else uses the limits. Down to 1 % of the limit, large requests on small limits
/// were refused: 0.5 of 1000 on S.
const RELEASED: f64 = 0.6;
/// Weight of the newest request in the typical cost.
const TYPICAL_GAIN: f64 = 0.02;

/// For every quota of every limiter: so many copies would be in no cache.
static KNOWN: LazyLock<[Arc<Dimension>; 8]> = LazyLock::new(|| Dimension::KNOWN.map(Arc::new));

/// One dimension of a limiter. Its slot in the limiter never moves; a limit that is dropped leaves it without a bucket.
#[derive(Debug)]
pub struct Quota {
    /// Which.
    pub dimension: Arc<Dimension>,
    statements: Statements,
    /// The operator's own bound beside a higher limit of the upstream's, which counts other requests as well and fills faster.
    bound: bool,
    bucket: Option<Bucket>,
    /// What others are always left: our own use alone, against the rest of the limit.
    share: Option<Box<Bucket>>,
    /// The store's side, where replicas share the quota.
    remote: Option<Box<remote::Remote>>,
    /// Charged and not on its way yet, ns: not part of what Groq can have seen.
    unsent: Ns,
    /// What went out of late: position, time, ns.
    recent: VecDeque<(u64, Ns, Ns)>,
    /// Sum of it, ns.
    on_its_way: Ns,
    /// What headers from the first position to the second may not show yet, or no longer, ns; the newest first.
    uncertainties: VecDeque<(u64, u64, Ns)>,
    /// Sum of all corrections, ns; wraps, only differences count.
    corrections: i64,
    /// The newest send position that has corrected it.
    newest: u64,
    confirmed: Ns,
    typical: f64,
    margin_growth: f64,
    /// The part of the margin that is given back, 0 to 1.
    margin_release: f64,
    learnt_external: f64,
    external: f64,
    /// Units taken, fading: ours per minute.
    spending: f64,
    then: Ns,
    /// SendSnapshots from before the last change of the limit are in its units.
    before: FormerLimit,
    /// Positions up to here are older than the last refusal that was learnt from.
    refused_until: u64,
    last_refusal: Option<Ns>,
    headroom: f64,
}

impl Quota {
    /// A full one. Without a limit it holds nobody back.
    pub fn new(dimension: Dimension, statements: Statements, headroom: f64, now: Ns) -> Self {
        let known = KNOWN.iter().find(|known| ***known == dimension).cloned();
        let mut quota = Self {
            dimension: known.unwrap_or_else(|| Arc::new(dimension)),
            statements: Statements::default(),
            bound: false,
            bucket: None,
            share: None,
            headroom,
            remote: None,
            confirmed: now,
            corrections: 0,
            unsent: 0,
            // Lanes may be many: no room for more than one request at once needs.
            recent: VecDeque::with_capacity(1),
            on_its_way: 0,
            uncertainties: VecDeque::with_capacity(1),
            before: FormerLimit::default(),
            newest: 0,
            refused_until: 0,
            last_refusal: None,
            typical: 0.0,
            margin_growth: 0.0,
            margin_release: 0.0,
            learnt_external: 0.0,
            external: 0.0,
            spending: 0.0,
            then: now,
        };
        quota.agree(statements, 0, now);
        quota
    }

    /// The operator's bound in a dimension whose upstream allows more. `used` units of it are taken.
    pub fn bound(dimension: Dimension, limit: u64, used: u64, now: Ns) -> Self {
        let statements = Statements { configured: Some(limit), ..Statements::default() };
        let mut quota = Self { bound: true, ..Self::new(dimension, statements, 0.0, now) };
        quota.restore(used, now);
        quota
    }

    /// Whether it tests what is expected of an answer, not its ceiling.
    pub fn counts_expected(&self) -> bool {
        self.dimension.unit == Unit::OutputTokens && !self.bound
    }

    /// Whether it is the operator's bound: nothing that the upstream says corrects it.
    pub fn is_bound(&self) -> bool {
        self.bound
    }

    /// The limit in force.
    pub fn limit(&self) -> Option<u64> {
        self.bucket.as_ref().map(Bucket::limit)
    }

    /// The bucket, where there is a limit.
    pub fn bucket(&self) -> Option<&Bucket> {
        self.bucket.as_ref()
    }

    /// What the limit counts of an cost.
    pub fn of(&self, cost: &Cost) -> u64 {
        // The operator means what is used, not what the upstream reserves.
        let cost = if self.bound { &cost.with_output(cost.answer) } else { cost };
        cost.of(self.dimension.unit)
    }

    /// What it takes of an cost: never more than it can hold.
    pub fn units(&self, cost: &Cost) -> u64 {
        let units = self.of(cost);
        self.limit().map_or(units, |limit| units.min(limit))
    }

    /// Time passes: the others' share is charged, boosts fade.
    pub fn tick(&mut self, now: Ns) {
        let Some(passed) = now.checked_sub(self.then).filter(|&ns| ns >= 1_000_000) else { return };
        if self.learnt_external > 0.0
            && let Some(bucket) = &mut self.bucket
        {
            let taken = (self.learnt_external * passed as f64) as Ns;
            bucket.drain(taken, self.then, now);
            self.learnt_external = vanish(self.learnt_external * fade(passed, DRIFT_HALF));
            self.add_pending(taken as i64);
        }
        if self.margin_growth > 0.0 {
            self.margin_growth = vanish(self.margin_growth * fade(passed, BOOST_HALF));
        }
        if self.external > 0.0 || self.spending > 0.0 {
            let faded = (-(passed as f64) / MEMORY).exp();
            self.external = vanish(self.external * faded);
            self.spending = vanish(self.spending * faded);
        }
        self.then = now;
    }

    /// From now on this part of the margin is given back, 0 to 1.
    pub fn release_margin(&mut self, part: f64) {
        self.margin_release = part;
    }

    /// What a request of `units` must leave untouched. A legal request always fits a full bucket.
    pub fn margin(&self, units: u64) -> u64 {
        let Some(limit) = self.limit().filter(|_| !self.bound) else { return 0 };
        if !Mechanism::SafetyMargin.is_on() {
            return 0;
        }
        let whole = limit as f64;
        let a_day = self.dimension.period >= Duration::from_secs(86_400);
        let view = match (self.dimension.unit, a_day) {
            // Seven minutes of a day: who finds it used up would wait for a twentieth for more than an hour.
            (Unit::Requests, true) => (0.005 * whole).max(2.0),
            (Unit::Requests, false) => (0.05 * whole).max(2.0),
            // The upstream takes an answer when it ends, which is before this limiter knows of it.
            (Unit::OutputTokens, _) => 0.0,
            (_, true) => units as f64,
            (_, false) => (6.0 * self.typical).clamp(0.05 * whole, 0.30 * whole),
        };
        let view = if a_day { view } else { view * (1.0 - RELEASED * self.margin_release) };
        ((view + self.margin_growth).min(0.40 * whole) as u64).min(limit.saturating_sub(units))
    }

    /// Whether `units` fits beside the margin.
    pub fn peek(&self, units: u64, now: Ns) -> Readiness {
        let Some(bucket) = self.bucket.as_ref().filter(|_| units > 0) else { return Readiness::Now };
        let fit = bucket.peek(units, self.margin(units), now);
        match &self.share {
            Some(share) => fit.max(share.peek(units.min(share.limit()), 0, now)),
            None => fit,
        }
    }

    /// The earliest instant at which `units` fits once `before` units more were taken.
    pub fn fits_at(&self, units: u64, before: u64, now: Ns) -> Ns {
        let Some(bucket) = self.bucket.as_ref().filter(|_| units > 0) else { return now };
        let fit = bucket.peek(units, self.margin(units) + before, now);
        let share = self.share.as_ref().map(|share| share.peek(units.min(share.limit()), before, now));
        share.map_or(fit, |share| share.max(fit)).instant(now)
    }

    /// Takes `units`; it counts as not sent yet.
    pub fn charge(&mut self, units: u64, now: Ns) {
        self.spend(units, now);
        if let Some(bucket) = &mut self.bucket {
            charge(bucket, units, now);
            self.unsent = self.unsent.saturating_add(bucket.span(units));
        }
    }

    /// Everything about a charge but the bucket itself.
    fn spend(&mut self, units: u64, now: Ns) {
        if units == 0 {
            return;
        }
        self.typical += if self.typical == 0.0 { 1.0 } else { TYPICAL_GAIN } * (units as f64 - self.typical);
        self.spending += units as f64;
        if let Some(share) = &mut self.share {
            charge(share, units, now);
        }
    }

    /// The truth replaces what was reserved.
    pub fn settle(&mut self, units: u64, used: u64, now: Ns) {
        self.spending = (self.spending + used as f64 - units as f64).max(0.0);
        if let Some(bucket) = &self.bucket {
            self.add_pending(bucket.span(used) as i64 - bucket.span(units) as i64);
        }
        self.forget_sent(now);
        if let (Some(bucket), Some(&(first, ..)), Some(&(last, ..))) = (&self.bucket, self.recent.front(), self.recent.back()) {
            // Groq gave it back before the answer came, perhaps before these arrived.
            self.add_uncertainty(first, last, bucket.span(units.saturating_sub(used)));
        }
        for bucket in self.bucket.iter_mut().chain(self.share.as_deref_mut()) {
            match used.checked_sub(units) {
                Some(0) => {}
                Some(more) => bucket.debit(more, now),
                None => bucket.refund(units - used),
            }
        }
    }

    /// Puts the quota where it was, as saved by an earlier process.
    pub fn restore(&mut self, used: u64, now: Ns) {
        if let Some(bucket) = &mut self.bucket {
            let tat = bucket.tat_of(used, now).max(bucket.tat());
            bucket.set_tat(tat, now);
        }
    }

    /// The share of the limit's rate that others take.
    pub fn external(&self) -> f64 {
        self.learnt_external.max(self.external)
    }

    /// Units that we take each second, averaged over a minute.
    pub fn spending(&self) -> f64 {
        self.spending * SECOND / MEMORY
    }

    /// What a request usually asks for.
    pub fn typical(&self) -> u64 {
        self.typical as u64
    }

    /// Whether headers or refusals have said how full it is.
    pub fn is_observed(&self) -> bool {
        self.newest > 0
    }

    /// Nothing is used of it.
    pub fn is_full(&self, now: Ns) -> bool {
        self.bucket.as_ref().is_none_or(|bucket| bucket.tat() <= now)
    }
}

/// Takes what has been found to fit; what goes without it makes a debt.
fn charge(bucket: &mut Bucket, cost: u64, now: Ns) {
    if bucket.take(cost, now) != Readiness::Now {
        bucket.debit(cost, now);
    }
}

fn vanish(x: f64) -> f64 {
    if x < 1e-4 { 0.0 } else { x }
}

fn fade(passed: Ns, half: f64) -> f64 {
    (-(passed as f64) / half).exp2()
}
