//! All quotas of one limiter. A request is reserved in all of them or in none.
//!
//! A [`QuotaSet`] is local to this process and never waits. Where replicas share quotas, the store makes the reservations,
//! and the local quotas follow its state. Between two replies they are a forecast: the state of the last reply and the
//! local changes that are not reported yet. Without the store each replica decides alone, with every limit divided by the
//! number of replicas.
//!
//! Every dimension has a slot, its index in the set, which it keeps. A reservation that the store has made is called booked.

use std::sync::Arc;

use smallvec::smallvec;

pub use self::reserved::Reserved;
use self::{initial_limits::InitialLimits, sole_use::SoleUse};
use crate::{
    bucket::BucketState,
    estimate::expected_output::ExpectedOutputs,
    quota::{Quota, Statements},
    request::Cost,
    settings::LimitSettings,
    types::{Dimension, Ns, Source, StatedLimit},
};

pub mod corrections;
mod initial_limits;
mod reserved;
mod sole_use;

/// The largest number of quotas per limiter: the eight known dimensions, an operator's bound for each of them, and two
/// dimensions that are learnt from refusals.
const SLOTS: usize = 18;

/// The quotas of one limiter in this process.
#[derive(Debug)]
pub struct QuotaSet {
    pub(crate) initial: InitialLimits,
    /// The quotas by slot.
    pub(crate) quotas: Vec<Quota>,
    /// The newest send position.
    pub(crate) position: u64,
    /// The expected output of requests, which limits on output count.
    pub(crate) expected_output: ExpectedOutputs,
    sole_use: SoleUse,
    /// The time of the last tick.
    now: Ns,
    /// How replicas share these quotas; `None` if they do not.
    shared: Option<Shared>,
    /// Whether Groq has stated a limit that is not reported to the other replicas yet.
    pub(crate) unreported: bool,
}

/// How replicas share the quotas.
#[derive(Debug, Default)]
struct Shared {
    /// The number of replicas that divide every limit while there is no store; `None` with the store.
    alone: Option<u32>,
    /// The last send position that does not belong to the store's current record.
    forgotten: u64,
}

impl QuotaSet {
    /// Returns the quotas for the operator's settings and the table of the plan.
    pub fn new(model: Arc<str>, settings: Arc<LimitSettings>, now: Ns) -> Self {
        let mut quotas = Self {
            initial: InitialLimits::new(model, settings),
            quotas: Vec::new(),
            position: 0,
            expected_output: ExpectedOutputs::default(),
            sole_use: SoleUse::default(),
            now,
            shared: None,
            unreported: false,
        };
        quotas.apply_initial(now);
        quotas
    }

    /// Returns the slot of the quota with this code.
    pub fn slot(&self, code: &str) -> Option<usize> {
        self.quotas.iter().position(|quota| quota.code == code)
    }

    /// Returns the quota with this code.
    pub fn find(&self, code: &str) -> Option<&Quota> {
        self.quotas.get(self.slot(code)?)
    }

    /// Returns the limits that Groq has stated.
    pub fn stated(&self) -> Vec<StatedLimit> {
        let stated = self.quotas.iter().filter_map(|quota| {
            let (limit, source) = quota.statements.stated?;
            Some(StatedLimit { dimension: quota.dimension.clone(), limit, source })
        });
        stated.collect()
    }

    /// Adds a quota and returns its slot; `None` if all slots are taken.
    pub fn add(&mut self, mut quota: Quota, now: Ns) -> Option<usize> {
        if let Some(shared) = &self.shared {
            quota.share(shared.alone, now);
        }
        (self.quotas.len() < SLOTS).then(|| {
            self.quotas.push(quota);
            self.quotas.len() - 1
        })
    }

    /// Advances every quota to `now`, and returns the time, which never goes back.
    pub fn tick(&mut self, now: Ns) -> Ns {
        self.now = self.now.max(now);
        self.quotas.iter_mut().for_each(|quota| quota.tick(self.now));
        self.now
    }

    /// Returns the cost with the output that is currently expected.
    pub fn expect(&self, cost: Cost) -> Cost {
        Cost { expected: self.expected_output.of(cost.key, cost.expected, self.now), ..cost }
    }

    /// Returns the slot and the capacity of a limit on output that the expected output exceeds; `None` if there is none.
    pub fn too_large_answer(&self, cost: &Cost) -> Option<(usize, u64)> {
        let expected = self.expect(*cost).expected;
        self.quotas.iter().enumerate().find_map(|(slot, quota)| {
            let limit = quota.bucket().capacity();
            (quota.counts_expected() && u64::from(expected) > limit).then_some((slot, limit))
        })
    }

    /// Returns the first time at which `cost` fits into this quota; `now` if it fits now.
    pub fn ready_in(&self, quota: &Quota, cost: &Cost, now: Ns) -> Ns {
        let expected = self.expect(*cost);
        let units = quota.units(&expected);
        let Some(limit) = quota.limit().filter(|_| quota.counts_expected()) else { return quota.peek(units, 0, now) };
        // A limit on output that is in debt delays every request, even if no output is expected.
        let ready = quota.peek(units.max(1), 0, now);
        let falls = u32::try_from(limit).map_or(now, |limit| self.expected_output.falls_to(cost.key, limit, now));
        if falls > now && u64::from(cost.expected) > limit {
            return falls;
        }
        // Less may be expected before there is room, but the limit has to be out of debt in any case.
        let less = self.expected_output.falls_to(cost.key, expected.expected.saturating_sub(1), now);
        ready.min(less.max(quota.peek(1, 0, now)))
    }

    /// Returns the first time at which `cost` fits into all quotas, and the slot that becomes ready last; `now` and `None` if
    /// it fits now.
    pub fn ready(&self, cost: &Cost, now: Ns) -> (Ns, Option<usize>) {
        let mut last = (now, None);
        for (slot, quota) in self.quotas.iter().enumerate() {
            let ready = self.ready_in(quota, cost, now);
            if ready > last.0 {
                last = (ready, Some(slot));
            }
        }
        last
    }

    /// Reserves `cost` in every quota. The caller has checked [`QuotaSet::ready`] under the same lock.
    pub fn reserve(&mut self, cost: Cost, now: Ns) -> Reserved {
        let cost = self.expect(cost);
        for quota in &mut self.quotas {
            quota.reserve(quota.units(&cost), now);
        }
        Reserved::new(cost, 0, smallvec![BucketState::default(); self.quotas.len()], now)
    }

    /// Notes that the request is sent now. It gets its send position and a snapshot of every quota.
    pub fn sent(&mut self, reserved: &mut Reserved, now: Ns) {
        let is_booked = reserved.booked > 0;
        self.position += u64::from(!is_booked);
        (reserved.sent_at, reserved.position) = (now, if is_booked { reserved.booked } else { self.position });
        for (slot, quota) in self.quotas.iter_mut().enumerate() {
            if !reserved.covers(slot) {
                continue;
            }
            let snapshot = quota.sent(reserved.position, quota.units(&reserved.cost), is_booked, now);
            // A booked request keeps the store's snapshots, which include what all replicas had reserved before.
            if is_booked {
                quota.ended(quota.units(&reserved.cost.with_output(0)));
            } else if let Some(before) = reserved.snapshots.get_mut(slot) {
                *before = snapshot;
            }
        }
    }

    /// Notes that Groq has answered the request, so that everything sent before it has arrived as well.
    pub fn answered(&mut self, reserved: &Reserved) {
        if reserved.is_sent() {
            self.quotas.iter_mut().for_each(|quota| quota.answered(reserved.sent_at));
        }
    }

    /// Notes that headers show this external usage, as a share of a limit's rate: most of the safety margin is released after
    /// a while without any.
    fn headers_show(&mut self, external: f64, now: Ns) {
        let released = self.sole_use.header(external, now);
        // Among replicas the whole margin is kept, because each of them counts the others' use as its own.
        self.release_margin(if self.shared.is_none() { released } else { 0.0 });
    }

    /// Notes that the upstream has refused a request that should have fit: the whole safety margin is kept again.
    pub fn refused(&mut self, now: Ns) {
        self.sole_use.refused(now);
        self.release_margin(0.0);
    }

    fn release_margin(&mut self, part: f64) {
        for quota in &mut self.quotas {
            quota.release_margin(part);
        }
    }

    /// Replaces what was reserved by what was used, in every quota that was charged.
    pub fn settle(&mut self, reserved: Reserved, used: Cost, now: Ns) {
        for (slot, quota) in self.quotas.iter_mut().enumerate() {
            if !reserved.covers(slot) {
                // A limit on output counts a completion when it ends, even if the limit was unknown when the request was
                // sent.
                if quota.counts_expected() {
                    quota.settle(0, quota.of(&used), now);
                }
                continue;
            }
            let units = quota.units(&reserved.cost);
            let counted = if reserved.is_sent() { quota.units(&reserved.cost.with_output(0)) } else { 0 };
            if reserved.booked > 0 {
                quota.ended(units - counted);
            }
            if !reserved.is_sent() {
                quota.not_sent(units);
            }
            quota.settle(units, quota.of(&used), now);
        }
    }

    /// Returns the first dimension into which `cost` can certainly never fit, and its limit; `None` if there is none.
    pub fn never(&self, cost: &Cost, now: Ns) -> Option<(&Dimension, u64)> {
        // Limits on output are left out, because the expected output can fall.
        self.quotas.iter().filter(|quota| !quota.counts_expected()).find_map(|quota| {
            let limit = quota.limit()?;
            (quota.of(cost) > limit && quota.is_certain(now)).then_some((&quota.dimension, limit))
        })
    }
}

/// The limits: the operator's settings, the table of the plan, and what Groq has stated.
impl QuotaSet {
    /// Applies changed settings. What is used stays used.
    pub fn reconfigure(&mut self, settings: Arc<LimitSettings>, now: Ns) {
        for quota in self.quotas.iter_mut().filter(|quota| !quota.is_bound) {
            quota.set_headroom(settings.headroom, now);
        }
        self.initial.reconfigure(settings);
        self.apply_initial(now);
    }

    /// Applies what the settings and the plan state about limits.
    fn apply_initial(&mut self, now: Ns) {
        for (dimension, initial) in self.initial.statements() {
            if initial == Statements::default() && self.slot(&dimension.code).is_none() {
                continue;
            }
            let Some(slot) = self.slot_or_new(&dimension, now) else { continue };
            let before = self.quotas[slot].statements;
            // A refusal may have stated another limit before the operator changed this one.
            let is_current = before.is_visible() || before.configured == initial.configured;
            let stated = before.stated.filter(|_| is_current);
            self.set_statements(slot, Statements { stated, ..initial }, now);
        }
    }

    /// Returns the slot of the dimension, which is added if it is unknown; `None` if all slots are taken.
    fn slot_or_new(&mut self, dimension: &Dimension, now: Ns) -> Option<usize> {
        self.slot(&dimension.code).or_else(|| {
            let settings = &self.initial.settings;
            let quota = Quota::new(dimension.clone(), settings.headroom, now);
            self.add(if settings.exact { quota.without_margin() } else { quota }, now)
        })
    }

    /// Sets the statements about a dimension, and those of the operator's bound that belongs to it.
    fn set_statements(&mut self, slot: usize, statements: Statements, now: Ns) {
        let quota = &mut self.quotas[slot];
        if quota.statements == statements {
            return;
        }
        let mut bound = Quota::bound(quota.dimension.clone(), now);
        let used = quota.bucket().used(now) as u64;
        quota.set_statements(statements, self.position, now);
        let bounds = Statements { configured: statements.bound(), ..Statements::default() };
        if let Some(slot) = self.slot(&bound.code) {
            self.quotas[slot].set_statements(bounds, self.position, now);
        } else if bounds.configured.is_some() {
            bound.set_statements(bounds, self.position, now);
            bound.restore(used, now);
            self.add(bound, now);
        }
    }

    /// Applies a limit that Groq states. The dimension is added if it is unknown. Returns its slot and whether the limit has
    /// changed; `None` if all slots are taken.
    pub(super) fn state(&mut self, dimension: &Dimension, limit: u64, source: Source, now: Ns) -> Option<(usize, bool)> {
        let is_new = self.slot(&dimension.code).is_none();
        let slot = self.slot_or_new(dimension, now)?;
        let before = self.quotas[slot].statements;
        // If a refusal states the limit that headers show, the dimension stays visible.
        let source = match before.stated {
            Some((same, Source::Headers)) if same == limit => Source::Headers,
            _ => source,
        };
        let is_news = before.stated.map(|(limit, _)| limit) != Some(limit);
        self.unreported |= is_news;
        if is_news && before.is_visible() && source == Source::Headers {
            self.forget_refusals(now);
        }
        self.set_statements(slot, Statements { stated: Some((limit, source)), ..before }, now);
        let quota = &mut self.quotas[slot];
        quota.confirmed = now;
        if is_new && quota.counts_expected() {
            // The upstream counted completions before the limit was known. A refusal as too large does not state what is in
            // use.
            let rate = limit as f64 / dimension.period.as_secs_f64();
            quota.restore(self.expected_output.left_in_use(rate, now), now);
        }
        Some((slot, is_news))
    }

    /// Forgets the limits that refusals have stated: Groq has changed a limit that headers show, and perhaps others, which no
    /// header shows.
    fn forget_refusals(&mut self, now: Ns) {
        for slot in 0..self.quotas.len() {
            let statements = self.quotas[slot].statements;
            if !statements.is_visible() {
                self.set_statements(slot, Statements { stated: None, ..statements }, now);
            }
        }
    }

    /// Applies the limits that Groq has stated to another replica or to an earlier process. What is used stays used.
    pub fn adopt(&mut self, stated: &[StatedLimit], now: Ns) {
        let known = self.stated();
        let same = |a: &StatedLimit, b: &StatedLimit| a.dimension.code == b.dimension.code && a.limit == b.limit;
        let before = self.unreported;
        for news in stated.iter().filter(|stated| !known.iter().any(|known| same(known, stated))) {
            self.state(&news.dimension, news.limit, news.source, now);
            self.follow_plan(now);
        }
        let is_reported = |known: &StatedLimit| stated.iter().any(|stated| stated.dimension.code == known.dimension.code);
        self.unreported = before || !known.iter().all(is_reported);
    }

    /// With the plan `auto`: follows the plan that the headers show.
    pub(super) fn follow_plan(&mut self, now: Ns) {
        let shown = |dimension: &Dimension| {
            let statements = self.find(&dimension.code)?.statements;
            statements.stated.filter(|_| statements.is_visible()).map(|(limit, _)| limit)
        };
        let (tokens, requests) = (shown(&Dimension::TPM), shown(&Dimension::RPD));
        self.initial.follow_headers(tokens, requests);
        self.apply_initial(now);
    }
}

/// Sharing the quotas with other replicas.
impl QuotaSet {
    /// Shares the quotas from now on: through the store, or without it among `alone` replicas. The store's state is unknown
    /// until its first reply.
    pub fn share(&mut self, alone: Option<u32>, now: Ns) {
        self.shared.get_or_insert_default().alone = alone;
        for quota in &mut self.quotas {
            quota.share(alone, now);
        }
    }

    /// Whether the store decides which requests are sent.
    pub fn is_attached(&self) -> bool {
        self.shared.as_ref().is_some_and(|shared| shared.alone.is_none())
    }

    /// The store has a new record, which the send positions so far do not belong to.
    pub fn forget_positions(&mut self) {
        if let Some(shared) = &mut self.shared {
            shared.forgotten = self.position;
        }
    }

    /// Returns the reservation that the store has made for a request, at the newest send position.
    pub fn booked(&mut self, cost: Cost, now: Ns) -> Reserved {
        let snapshots = self.quotas.iter_mut().map(|quota| quota.booked(quota.units(&cost), now)).collect();
        Reserved::new(cost, self.position, snapshots, now)
    }

    /// Whether a settlement has to be reported to the store.
    pub fn has_settled(&self) -> bool {
        self.quotas.iter().any(Quota::has_settled)
    }
}
