//! All quotas of one limiter. A request is reserved in all of them or in none.
//!
//! A [`QuotaSet`] is local to this process and never waits. Where replicas share quotas, the store makes the reservations,
//! and the local quotas follow its state ([`QuotaSet::follow`]). Between two replies they are a forecast: the state of the
//! last reply and the local changes that are not reported yet. Without the store each replica decides alone, with every
//! limit divided by the number of replicas.
//!
//! Every dimension has a slot, its index in the set, which it keeps. A reservation that the store has made is called booked.

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

/// The largest number of quotas per limiter: the eight known dimensions, an operator's bound for each of them, and two
/// dimensions that are learnt from refusals.
const SLOTS: usize = 18;

/// The quotas of one limiter in this process.
#[derive(Debug)]
pub struct QuotaSet {
    pub(crate) model: Arc<str>,
    settings: Arc<LimitSettings>,
    /// The plan whose table is in force; `None` if no plan fits the headers.
    plan: Option<Plan>,
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
    pub(crate) untold: bool,
}

/// How replicas share the quotas.
#[derive(Debug, Default)]
struct Shared {
    /// The number of replicas that divide every limit while there is no store; `None` with the store.
    alone: Option<u32>,
    /// The epoch of the store's record that these quotas follow; empty before the first reply. A record that was lost gets a
    /// new epoch.
    epoch: String,
    /// The last send position that does not belong to the current record.
    forgotten: u64,
}

/// A reservation in the quotas, to be settled exactly once.
#[derive(Clone, Debug)]
pub struct Reserved {
    /// The reserved cost.
    pub(crate) cost: Cost,
    /// The send position; 0 before the request is sent.
    position: u64,
    /// The time at which it was sent; before that, the time of the reservation.
    pub(crate) sent_at: Ns,
    /// The send position that the store assigned; 0 if the reservation was made in this process alone.
    booked: u64,
    /// The slots that were charged, one bit each.
    slots: u32,
    /// The snapshot of each slot that existed at the time of the reservation; most limiters have two.
    snapshots: SmallVec<[SendSnapshot; 2]>,
}

impl Reserved {
    fn new(cost: Cost, booked: u64, snapshots: SmallVec<[SendSnapshot; 2]>, now: Ns) -> Self {
        Self { cost, position: 0, sent_at: now, booked, slots: (1 << snapshots.len()) - 1, snapshots }
    }

    /// Whether the request has been sent.
    pub fn is_sent(&self) -> bool {
        self.position > 0
    }

    /// Whether this slot was charged.
    fn covers(&self, slot: usize) -> bool {
        self.slots & (1 << slot) != 0
    }

    /// Marks a slot as charged that was added after the reservation.
    fn cover(&mut self, slot: usize) {
        self.slots |= 1 << slot;
    }
}

impl QuotaSet {
    /// Returns the quotas for the operator's settings and the table of the plan.
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

    /// Advances every quota to `now`.
    pub fn tick(&mut self, now: Ns) {
        self.now = now;
        for quota in &mut self.quotas {
            quota.tick(now);
        }
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

    /// Returns when `cost` fits into this quota.
    pub fn readiness_in(&self, quota: &Quota, cost: &Cost, now: Ns) -> Readiness {
        let units = quota.units(&self.expect(*cost));
        let Some(limit) = quota.limit().filter(|_| quota.counts_expected()) else { return quota.peek(units, 0, now) };
        // A limit on output that is in debt delays every request, even if no output is expected.
        let ready = quota.peek(units.max(1), 0, now);
        let falls = u32::try_from(limit).map_or(now, |limit| self.expected_output.falls_to(cost.key, limit, now));
        if falls > now && u64::from(cost.expected) > limit {
            return Readiness::At(falls);
        }
        match (ready, self.expected_output.next_fall(cost.key, now)) {
            // The expected output may fall before there is room for it, but the limit has to be out of debt in any case.
            (Readiness::At(at), Some(fall)) => Readiness::At(at.min(fall.max(quota.peek(1, 0, now).instant(now)))),
            (ready, _) => ready,
        }
    }

    /// Returns when `cost` fits into all quotas, and the slot that becomes ready last; `None` if all are ready now.
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

    /// Returns when `cost` fits into all quotas after other requests that take `ahead` millionths of every limit.
    pub fn readiness_after(&self, cost: &Cost, ahead: u64, now: Ns) -> Readiness {
        let cost = &self.expect(*cost);
        let each = self.quotas.iter().map(|quota| {
            let before = u128::from(ahead) * u128::from(quota.limit().unwrap_or(0)) / 1_000_000;
            quota.peek(quota.units(cost), u64::try_from(before).unwrap_or(u64::MAX), now)
        });
        each.max().unwrap_or(Readiness::Now)
    }

    /// Returns the time by which `head` would be delayed if `other` were sent before it, ns.
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

    /// Reserves `cost` in every quota. The caller has checked [`QuotaSet::readiness`] under the same lock.
    pub fn reserve(&mut self, cost: Cost, now: Ns) -> Reserved {
        let cost = self.expect(cost);
        for quota in &mut self.quotas {
            quota.reserve(quota.units(&cost), now);
        }
        Reserved::new(cost, 0, smallvec![SendSnapshot::default(); self.quotas.len()], now)
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

/// Sharing the quotas with other replicas.
impl QuotaSet {
    /// Shares the quotas from now on: through the store, or without it among `alone` replicas. The store's state is unknown
    /// until its first reply.
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

    /// Returns the epoch of the store's record that these quotas follow; empty before the first reply, `None` without the
    /// store.
    pub fn epoch(&self) -> Option<&str> {
        self.shared.as_ref().filter(|shared| shared.alone.is_none()).map(|shared| shared.epoch.as_str())
    }

    /// Whether the store decides which requests are sent.
    pub fn is_attached(&self) -> bool {
        self.epoch().is_some()
    }

    /// Returns the transaction that reports all changes to the store. `head` is the cost of the request to reserve, if any;
    /// `waiting` is the number of requests in the queue.
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

    /// Applies the state of the store as of the time `at`. If the store has `charged` a request of this replica, it did so
    /// at the newest position; returns the reservation of that request.
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

    /// Whether a settlement has to be reported to the store.
    pub fn has_settled(&self) -> bool {
        self.quotas.iter().any(Quota::has_settled)
    }

    /// Returns when `cost` fits into our own shares of the limits, which the store does not enforce.
    pub fn own_readiness(&self, cost: &Cost, now: Ns) -> Readiness {
        let cost = &self.expect(*cost);
        self.quotas.iter().map(|quota| quota.peek_share(quota.units(cost), now)).max().unwrap_or(Readiness::Now)
    }
}
