//! All quotas of one limiter, taken all or none.
//!
//! [`QuotaSet`] answers at once, from this process. Where replicas share quotas, the store charges, and these quotas follow it
//! ([`QuotaSet::follow`]): a forecast by the store's last answer and by what it has not been told. Without the store they decide
//! alone, with every limit divided by the number of replicas.

use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

use self::sole_use::SoleUse;
use crate::{
    bucket::Readiness,
    estimate::expected_output::ExpectedOutputs,
    quota::{Quota, SendSnapshot},
    request::Cost,
    settings::{LimitSettings, Plan},
    store::protocol::{SharedKnowledge, State, Transaction},
    types::{Dimension, Ns, StatedLimit},
};

pub mod limits;
mod sole_use;

/// Quotas of one limiter at most: the eight dimensions that are known, a bound of the operator's beside each, and two that
/// refusals may teach.
const SLOTS: usize = 18;

/// The quotas of one limiter, in this process.
#[derive(Debug)]
pub struct QuotaSet {
    pub(crate) model: Arc<str>,
    settings: Arc<LimitSettings>,
    /// The plan whose table is in force; `None`: none fits what headers say.
    plan: Option<Plan>,
    /// Every dimension. A slot, once taken, stays that dimension's.
    pub(crate) quotas: Vec<Quota>,
    /// The newest send position.
    pub(crate) position: u64,
    /// What limits on output test.
    pub(crate) expected_output: ExpectedOutputs,
    sole_use: SoleUse,
    now: Ns,
    shared: Option<Shared>,
    /// Groq has stated something that other replicas have not been told.
    pub(crate) untold: bool,
}

/// Between replicas.
#[derive(Debug, Default)]
struct Shared {
    /// Without the store: among so many replicas.
    alone: Option<u32>,
    /// Which incarnation of the store's record these quotas follow; empty: none yet.
    epoch: String,
    /// Positions up to here are of another record, or of none.
    forgotten: u64,
}

/// What a request has taken from the quotas, to be settled once.
#[derive(Clone, Debug)]
pub struct Reserved {
    /// How much.
    pub(crate) cost: Cost,
    /// Its place in the limiter's order of sending; 0 before it is sent.
    position: u64,
    /// When it was sent.
    pub(crate) sent_at: Ns,
    /// The position that the store gave it; 0: taken in this process alone.
    booked: u64,
    /// Which slots were charged, one bit each.
    slots: u32,
    /// How each slot stood that there was then; two in most limiters.
    snapshots: SmallVec<[SendSnapshot; 2]>,
}

impl Reserved {
    fn new(cost: Cost, booked: u64, snapshots: SmallVec<[SendSnapshot; 2]>, now: Ns) -> Self {
        Self { cost, position: 0, sent_at: now, booked, slots: (1 << snapshots.len()) - 1, snapshots }
    }

    /// Whether it has been sent.
    pub fn is_sent(&self) -> bool {
        self.position > 0
    }

    /// Whether it was taken from this slot, too.
    fn covers(&self, slot: usize) -> bool {
        self.slots & (1 << slot) != 0
    }

    /// From now on it is taken from a slot that is younger, too.
    fn cover(&mut self, slot: usize) {
        self.slots |= 1 << slot;
    }
}

impl QuotaSet {
    /// By the operator's settings and the plan's table.
    pub fn new(model: Arc<str>, settings: Arc<LimitSettings>, now: Ns) -> Self {
        let plan = Some(settings.plan);
        let mut quotas = Self {
            model,
            settings,
            plan,
            quotas: Vec::new(),
            position: 0,
            expected_output: ExpectedOutputs::default(),
            sole_use: SoleUse::default(),
            now,
            shared: None,
            untold: false,
        };
        quotas.set_plan(plan, now);
        quotas
    }

    /// The slot of the quota with this code.
    pub fn slot(&self, code: &str) -> Option<usize> {
        self.quotas.iter().position(|quota| quota.code == code)
    }

    /// The quota with this code.
    pub fn find(&self, code: &str) -> Option<&Quota> {
        self.quotas.get(self.slot(code)?)
    }

    /// The limits that Groq has stated.
    pub fn stated(&self) -> Vec<StatedLimit> {
        let stated = self.quotas.iter().filter_map(|quota| {
            let (limit, source) = quota.statements.stated?;
            Some(StatedLimit { dimension: quota.dimension.clone(), limit, source })
        });
        stated.collect()
    }

    /// Adds a dimension; `None` when a limiter has as many as it can keep.
    pub fn add(&mut self, mut quota: Quota, now: Ns) -> Option<usize> {
        if let Some(shared) = &self.shared {
            quota.share(shared.alone, now);
        }
        (self.quotas.len() < SLOTS).then(|| {
            self.quotas.push(quota);
            self.quotas.len() - 1
        })
    }

    /// Lets time pass in every dimension.
    pub fn tick(&mut self, now: Ns) {
        self.now = now;
        for quota in &mut self.quotas {
            quota.tick(now);
        }
    }

    /// The cost as things stand: with what is expected of its answer.
    pub fn expect(&self, cost: Cost) -> Cost {
        Cost { expected: self.expected_output.of(cost.key, cost.expected, self.now), ..cost }
    }

    /// Where so large an answer is expected that a limit on output cannot hold it: its slot, and the largest that fits.
    pub fn too_large_answer(&self, cost: &Cost) -> Option<(usize, u64)> {
        let expected = self.expect(*cost).expected;
        self.quotas.iter().enumerate().find_map(|(slot, quota)| {
            let limit = quota.bucket().capacity();
            (quota.counts_expected() && u64::from(expected) > limit).then_some((slot, limit))
        })
    }

    /// When this quota has room.
    pub fn readiness_in(&self, quota: &Quota, cost: &Cost, now: Ns) -> Readiness {
        let units = quota.units(&self.expect(*cost));
        let Some(limit) = quota.limit().filter(|_| quota.counts_expected()) else { return quota.peek(units, 0, now) };
        // A limit in debt lets nobody pass, however little is expected of the answer.
        let ready = quota.peek(units.max(1), 0, now);
        let falls = u32::try_from(limit).map_or(now, |limit| self.expected_output.falls_to(cost.key, limit, now));
        if falls > now && u64::from(cost.expected) > limit {
            return Readiness::At(falls);
        }
        match (ready, self.expected_output.next_fall(cost.key, now)) {
            // Less may be expected before there is room for so much, but not before the limit is out of debt.
            (Readiness::At(at), Some(fall)) => Readiness::At(at.min(fall.max(quota.peek(1, 0, now).instant(now)))),
            (ready, _) => ready,
        }
    }

    /// When everything has room, and the slot that decides it.
    pub fn readiness(&self, cost: &Cost, now: Ns) -> (Readiness, Option<usize>) {
        let mut last = (Readiness::Now, None);
        for (slot, quota) in self.quotas.iter().enumerate() {
            let ready = self.readiness_in(quota, cost, now);
            if ready > last.0 {
                last = (ready, Some(slot));
            }
        }
        last
    }

    /// When everything has room for it after others that take so many millionths of every limit.
    pub fn readiness_after(&self, cost: &Cost, ahead: u64, now: Ns) -> Readiness {
        let cost = &self.expect(*cost);
        let each = self.quotas.iter().map(|quota| {
            let before = u128::from(ahead) * u128::from(quota.limit().unwrap_or(0)) / 1_000_000;
            quota.peek(quota.units(cost), u64::try_from(before).unwrap_or(u64::MAX), now)
        });
        each.max().unwrap_or(Readiness::Now)
    }

    /// How much later `head` would fit if `other` went before it, ns.
    pub fn delay(&self, head: &Cost, other: &Cost, now: Ns) -> Ns {
        let (head, other) = (&self.expect(*head), &self.expect(*other));
        let (mut alone, mut after) = (0, 0);
        for quota in &self.quotas {
            let (units, before) = (quota.units(head), quota.units(other));
            alone = alone.max(quota.peek(units, 0, now).instant(now));
            after = after.max(quota.peek(units, before, now).instant(now));
        }
        after.saturating_sub(alone)
    }

    /// Takes it from every dimension. Only after [`QuotaSet::readiness`] said so, under the same lock.
    pub fn reserve(&mut self, cost: Cost, now: Ns) -> Reserved {
        let cost = self.expect(cost);
        for quota in &mut self.quotas {
            quota.reserve(quota.units(&cost), now);
        }
        Reserved::new(cost, 0, smallvec![SendSnapshot::default(); self.quotas.len()], now)
    }

    /// It goes out now: it gets its position, and a snapshot of every dimension.
    pub fn sent(&mut self, reserved: &mut Reserved, now: Ns) {
        let is_booked = reserved.booked > 0;
        self.position += u64::from(!is_booked);
        (reserved.sent_at, reserved.position) = (now, if is_booked { reserved.booked } else { self.position });
        for (slot, quota) in self.quotas.iter_mut().enumerate() {
            if !reserved.covers(slot) {
                continue;
            }
            let snapshot = quota.sent(reserved.position, quota.units(&reserved.cost), is_booked, now);
            // The store's snapshot counts what all replicas had taken before.
            if is_booked {
                quota.ended(quota.units(&reserved.cost.with_output(0)));
            } else if let Some(before) = reserved.snapshots.get_mut(slot) {
                *before = snapshot;
            }
        }
    }

    /// Groq has answered this one: what was sent before it has arrived as well.
    pub fn answered(&mut self, reserved: &Reserved) {
        if reserved.is_sent() {
            self.quotas.iter_mut().for_each(|quota| quota.answered(reserved.sent_at));
        }
    }

    /// The upstream has refused a request that should have fit.
    pub fn refused(&mut self, now: Ns) {
        self.sole_use.refused(now);
        self.release_margin(0.0);
    }

    fn release_margin(&mut self, part: f64) {
        for quota in &mut self.quotas {
            quota.release_margin(part);
        }
    }

    /// The truth replaces what was reserved, in every dimension that was charged.
    pub fn settle(&mut self, reserved: Reserved, used: Cost, now: Ns) {
        for (slot, quota) in self.quotas.iter_mut().enumerate() {
            if !reserved.covers(slot) {
                // An answer is taken when it ends, by a limit that was not known when its request was sent, too.
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

    /// The first dimension that can certainly never hold `cost`, and its limit.
    pub fn never(&self, cost: &Cost, now: Ns) -> Option<(&Dimension, u64)> {
        // What is expected of an answer can fall.
        self.quotas.iter().filter(|quota| !quota.counts_expected()).find_map(|quota| {
            let limit = quota.limit()?;
            (quota.of(cost) > limit && quota.is_certain(now)).then_some((&quota.dimension, limit))
        })
    }
}

/// The quotas in a store that replicas share.
impl QuotaSet {
    /// Shared from now on: with the store, whose state is yet to be heard, or (`alone`) without it among so many replicas.
    pub fn share(&mut self, alone: Option<u32>, now: Ns) {
        let shared = self.shared.get_or_insert_default();
        shared.alone = alone;
        if alone.is_some() {
            shared.epoch.clear();
        }
        for quota in &mut self.quotas {
            quota.share(alone, now);
        }
    }

    /// With the store: the epoch of the record that these quotas follow; empty: none yet.
    pub fn epoch(&self) -> Option<&str> {
        self.shared.as_ref().filter(|shared| shared.alone.is_none()).map(|shared| shared.epoch.as_str())
    }

    /// Whether the store decides who goes.
    pub fn is_attached(&self) -> bool {
        self.epoch().is_some()
    }

    /// What the store is to be told now. `head`: who asks to go.
    pub fn transaction(&mut self, serial: u64, head: Option<&Cost>, waiting: usize, now: Ns) -> Transaction {
        let limits = if std::mem::take(&mut self.untold) { self.stated() } else { Vec::new() };
        let answers = self.expected_output.take_untold(now);
        Transaction {
            serial,
            epoch: self.epoch().unwrap_or_default().to_owned(),
            position: self.position,
            asks: head.is_some(),
            waiting,
            learnt: SharedKnowledge::new(&limits, &answers, now),
            cells: self.quotas.iter_mut().filter_map(|quota| quota.cell(head, now)).collect(),
        }
    }

    /// The store's state, which is that of `at`; the store has `charged` so much for a request of ours at its newest position.
    pub fn follow(&mut self, state: &State, charged: Option<Cost>, at: Ns, now: Ns) -> Option<Reserved> {
        let Some(shared) = &mut self.shared else { return None };
        if shared.epoch != state.epoch {
            shared.epoch.clone_from(&state.epoch);
            shared.forgotten = self.position;
            self.quotas.iter_mut().for_each(Quota::forget_observation);
        }
        self.position = self.position.max(state.position);
        for (code, view) in state.views(at) {
            if let Some(slot) = self.slot(code) {
                self.quotas[slot].follow(&view, now);
            }
        }
        let reserved = charged.map(|cost| {
            let snapshots = self.quotas.iter_mut().map(|quota| quota.booked(quota.units(&cost), now)).collect();
            Reserved::new(cost, self.position, snapshots, now)
        });
        self.adopt(&state.limits(), now);
        for answer in state.answers(at) {
            self.expected_output.heard(answer, now);
        }
        reserved
    }

    /// Whether the store has to be told of a settlement.
    pub fn has_settled(&self) -> bool {
        self.quotas.iter().any(Quota::has_settled)
    }

    /// When there is room in what the store knows nothing of.
    pub fn own_readiness(&self, cost: &Cost, now: Ns) -> Readiness {
        let cost = &self.expect(*cost);
        self.quotas.iter().map(|quota| quota.peek_share(quota.units(cost), now)).max().unwrap_or(Readiness::Now)
    }
}
