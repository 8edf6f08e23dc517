//! All quotas of one limiter, reserved all or none.
//!
//! [`QuotaSet`] answers at once, from this process. Where replicas share quotas, the store charges ([`QuotaSet::reserved`] takes
//! note), and these quotas are a forecast: the store's last word and what it has not been told. Without the store they
//! decide alone, with every limit divided by the number of replicas.

use std::time::Duration;

use smallvec::{SmallVec, smallvec};

use super::{
    bucket::{Ns, Readiness},
    estimate::expected_output::ExpectedOutputs,
    quota::{Quota, SendSnapshot},
};
use crate::types::{Dimension, Unit};

mod remote;
mod sole_use;

pub use self::remote::Booking;
use self::sole_use::SoleUse;

/// Levels of one limiter at most: the eight dimensions that are known, a bound of the operator's beside each, and two that
/// refusals may teach.
pub const SLOTS: usize = 18;

/// What a request takes, by unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Requests: one, or none for what is not counted.
    pub requests: u32,
    /// Prompt tokens.
    pub input: u32,
    /// Completion tokens that the upstream reserves: the ceiling, or what it assumes without one.
    pub output: u32,
    /// Completion tokens that the answer may have: the ceiling, or what is usual without one.
    pub answer: u32,
    /// Completion tokens that a limit on output tests: the ceiling (`u32::MAX` without one), at most what is expected.
    pub expected: u32,
    /// Seconds of audio.
    pub seconds: u32,
    /// The API key whose answers tell what to expect of this one.
    pub key: u32,
}

impl Cost {
    /// Raised to what a refusal has said of the request. Its answer is as its ceiling and what is assumed have it now.
    pub fn at_least(self, other: Self) -> Self {
        Self {
            requests: self.requests.max(other.requests),
            input: self.input.max(other.input),
            seconds: self.seconds.max(other.seconds),
            ..self
        }
    }

    /// The same with so many completion tokens.
    pub fn with_output(self, tokens: u32) -> Self {
        Self { output: tokens, answer: tokens, expected: tokens, ..self }
    }

    /// The same, raised to so much of a unit.
    pub fn raised(mut self, unit: Unit, to: u64) -> Self {
        let to = u32::try_from(to).unwrap_or(u32::MAX);
        let (part, to) = match unit {
            Unit::Requests => (&mut self.requests, to),
            Unit::Tokens => (&mut self.input, to.saturating_sub(self.output)),
            Unit::InputTokens => (&mut self.input, to),
            // What is expected follows from the answers, and from what refusals say of them.
            Unit::OutputTokens => return self,
            Unit::AudioSeconds => (&mut self.seconds, to),
        };
        *part = to.max(*part);
        self
    }

    /// The part that a dimension of this unit counts.
    pub fn of(&self, unit: Unit) -> u64 {
        match unit {
            Unit::Requests => self.requests.into(),
            Unit::Tokens => u64::from(self.input) + u64::from(self.output),
            Unit::InputTokens => self.input.into(),
            Unit::OutputTokens => self.expected.into(),
            Unit::AudioSeconds => self.seconds.into(),
        }
    }
}

/// A snapshot for each of the slots, which are two in most limiters.
type SendSnapshots = SmallVec<[SendSnapshot; 2]>;

/// What was reserved from the quotas, to be settled once.
#[derive(Clone, Debug)]
pub struct Reserved {
    /// How much.
    pub cost: Cost,
    /// Its place in the limiter's order of sending; 0 before it is sent.
    pub position: u64,
    /// When it was sent.
    pub sent_at: Ns,
    /// The place that the store gave it; 0: reserved in this process alone.
    pub(super) order: BookingOrder,
    /// Which slots were charged, one bit each.
    slots: u32,
    /// How each slot stood that there was then.
    snapshots: SendSnapshots,
}

/// A reservation's place in the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BookingOrder {
    /// In the order of reservations.
    pub position: u64,
    /// The record's version that told of it.
    pub version: u64,
}

/// The quotas of one limiter, in this process.
#[derive(Debug, Default)]
pub struct QuotaSet {
    /// Headers show two of most models, which so need no place of their own.
    quotas: SmallVec<[Quota; 2]>,
    /// The newest send position.
    position: u64,
    /// What limits on output test.
    expected_output: ExpectedOutputs,
    sole_use: SoleUse,
    now: Ns,
    /// Between so many replicas quotas are shared.
    replicas: Option<u32>,
    /// The store is there.
    joined: bool,
    /// Positions up to here are of another record in the store, or of none.
    forgotten: u64,
}

impl QuotaSet {
    /// Every dimension. A slot, once reserved, stays that dimension's.
    pub fn all(&self) -> &[Quota] {
        &self.quotas
    }

    /// Every dimension, to be changed.
    pub fn all_mut(&mut self) -> &mut [Quota] {
        &mut self.quotas
    }

    /// The newest send position.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The slot of the dimension with this code.
    pub fn slot(&self, code: &str) -> Option<usize> {
        self.quotas.iter().position(|quota| !quota.is_bound() && quota.dimension.code == code)
    }

    /// The slot of the operator's own bound in the dimension with this code.
    pub fn bound_slot(&self, code: &str) -> Option<usize> {
        self.quotas.iter().position(|quota| quota.is_bound() && quota.dimension.code == code)
    }

    /// Adds a dimension; `None` when a limiter has as many as it can keep.
    pub fn add(&mut self, mut quota: Quota, now: Ns) -> Option<usize> {
        if let Some(replicas) = self.replicas {
            quota.link(replicas, now);
            if self.joined {
                quota.join(now);
            }
        }
        (self.quotas.len() < SLOTS).then(|| {
            // Levels are large, and limiters may be thousands: no room for more than there are.
            self.quotas.reserve_exact(1);
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

    /// What limits on output test.
    pub fn expected_output(&mut self) -> &mut ExpectedOutputs {
        &mut self.expected_output
    }

    /// Where so large an answer is expected that a limit on output cannot hold it: its slot, and the largest that fits.
    pub fn too_large_answer(&self, cost: &Cost) -> Option<(usize, u64)> {
        let expected = self.expect(*cost).expected;
        self.quotas.iter().enumerate().find_map(|(slot, quota)| {
            let limit = quota.limit().filter(|&limit| quota.counts_expected() && u64::from(expected) > limit)?;
            Some((slot, limit))
        })
    }

    /// When this quota has room.
    pub fn fit_level(&self, quota: &Quota, cost: &Cost, now: Ns) -> Readiness {
        let units = quota.units(&self.expect(*cost));
        let Some(limit) = quota.limit().filter(|_| quota.counts_expected()) else { return quota.peek(units, now) };
        // A limit in debt lets nobody pass, however little is expected of the answer.
        let fit = quota.peek(units.max(1), now);
        let falls = u32::try_from(limit).map_or(now, |limit| self.expected_output.falls_to(cost.key, limit, now));
        if falls > now && u64::from(cost.expected) > limit {
            return Readiness::At(falls);
        }
        match (fit, self.expected_output.next_fall(cost.key, now)) {
            // Less may be expected before there is room for so much, but not before the limit is out of debt.
            (Readiness::At(at), Some(fall)) => Readiness::At(at.min(fall.max(quota.peek(1, now).instant(now)))),
            (fit, _) => fit,
        }
    }

    /// When everything fits, and the slot that decides it.
    pub fn fit(&self, cost: &Cost, now: Ns) -> (Readiness, Option<usize>) {
        let mut worst = (Readiness::Now, None);
        for (slot, quota) in self.quotas.iter().enumerate() {
            let fit = self.fit_level(quota, cost, now);
            if fit > worst.0 {
                worst = (fit, Some(slot));
            }
        }
        worst
    }

    /// How much later `head` would fit if `other` went before it, ns.
    pub fn delay(&self, head: &Cost, other: &Cost, now: Ns) -> Ns {
        let (head, other) = (&self.expect(*head), &self.expect(*other));
        let (mut alone, mut after) = (0, 0);
        for quota in &self.quotas {
            let (units, before) = (quota.units(head), quota.units(other));
            alone = alone.max(quota.fits_at(units, 0, now));
            after = after.max(quota.fits_at(units, before, now));
        }
        after.saturating_sub(alone)
    }

    /// Takes it from every dimension. Only after [`QuotaSet::fit`] said so, under the same lock.
    pub fn take(&mut self, cost: Cost, now: Ns) -> Reserved {
        let cost = self.expect(cost);
        let mut slots = 0;
        for (slot, quota) in self.quotas.iter_mut().enumerate() {
            quota.charge(quota.units(&cost), now);
            slots |= 1 << slot;
        }
        Reserved {
            cost,
            position: 0,
            sent_at: now,
            order: BookingOrder::default(),
            slots,
            snapshots: smallvec![SendSnapshot::default(); self.quotas.len()],
        }
    }

    /// It goes out now: it gets its position, and every dimension's snapshot.
    pub fn sent(&mut self, reserved: &mut Reserved, now: Ns) {
        reserved.sent_at = now;
        reserved.position = if reserved.is_reserved() {
            reserved.order.position
        } else {
            self.position += 1;
            self.position
        };
        for (slot, quota) in self.quotas.iter_mut().enumerate().filter(|(slot, _)| reserved.slots & (1 << slot) != 0) {
            let units = quota.units(&reserved.cost);
            if !reserved.is_reserved() {
                quota.no_longer_unsent(units);
            }
            let snapshot = quota.sent(reserved.position, units, now);
            // The store's snapshot counts what all replicas had reserved before.
            if reserved.is_reserved() {
                quota.set_out(units, reserved.order, &mut reserved.snapshots[slot], now);
                quota.ended(units - reserved.outstanding(quota));
            } else {
                reserved.snapshots[slot] = snapshot;
            }
        }
    }

    /// Groq says what it had used of this slot when it saw `reserved`; `counted`: that request included. One way to Groq
    /// takes `delay`. The correction, ns, unless a newer position has been heard of.
    pub fn observe(&mut self, reserved: &mut Reserved, slot: usize, used: u64, counted: bool, delay: Ns, now: Ns) -> Option<i64> {
        // Positions of this process alone say nothing in the order that replicas share.
        if self.is_joined() && reserved.order.position <= self.forgotten {
            return None;
        }
        let at = reserved.sent_at.saturating_add(delay);
        let charged = reserved.slots & (1 << slot) != 0;
        let quota = &mut self.quotas[slot];
        let used = if charged && !counted { used.saturating_add(quota.units(&reserved.cost)) } else { used };
        // A dimension that is younger than the request: from now on it is charged there as well.
        let snapshot = reserved.snapshots.get(slot).filter(|_| charged).copied().unwrap_or_else(|| quota.snapshot());
        reserved.slots |= u32::from(counted) << slot;
        let error = quota.observe(reserved.position, snapshot, used, at, now)?;
        // A unit of a day's limit is more than others take in a minute.
        if quota.is_visible() && quota.dimension.period < Duration::from_secs(86_400) {
            let released = self.sole_use.header(quota.external(), now);
            // Replicas that share quotas see each other's use as their own.
            self.release_margin(if self.replicas.is_none() { released } else { 0.0 });
        }
        Some(error)
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

    /// Groq has reserved more for it than it was charged here. `corrected`: the slot whose header says so, and has corrected it.
    pub fn raise(&mut self, reserved: &mut Reserved, cost: Cost, corrected: usize, now: Ns) {
        let charged = |slot: &usize| reserved.slots & (1 << slot) != 0 && *slot != corrected;
        for (_, quota) in self.quotas.iter_mut().enumerate().filter(|(slot, _)| charged(slot)) {
            let (before, after) = (quota.units(&reserved.cost), quota.units(&cost));
            quota.settle(before, after, now);
        }
        reserved.cost = cost;
    }

    /// From now on a slot that is younger than this charge counts it, too; it has been charged there.
    pub fn cover(&self, reserved: &mut Reserved, slot: usize) {
        reserved.slots |= 1 << slot;
    }

    /// The truth replaces what was reserved, in every dimension that was charged.
    pub fn settle(&mut self, reserved: Reserved, used: Cost, now: Ns) {
        for (slot, quota) in self.quotas.iter_mut().enumerate() {
            if reserved.slots & (1 << slot) == 0 {
                // An answer is reserved when it ends, by a limit that was not known when its request was sent, too.
                if quota.counts_expected() {
                    quota.settle(0, quota.of(&used), now);
                }
                continue;
            }
            let units = quota.units(&reserved.cost);
            if reserved.position == 0 && !reserved.is_reserved() {
                quota.no_longer_unsent(units);
            }
            if reserved.is_reserved() {
                quota.ended(reserved.outstanding(quota));
            }
            quota.settle(units, quota.of(&used), now);
        }
    }

    /// The first dimension that can certainly never hold `cost`: its limit, and what would be requested of it.
    pub fn never(&self, cost: &Cost, now: Ns) -> Option<(&Dimension, u64, u64)> {
        // What is expected of an answer can fall.
        self.quotas.iter().filter(|quota| !quota.counts_expected()).find_map(|quota| {
            let units = quota.of(cost);
            let limit = quota.limit()?;
            (units > limit && quota.is_certain(now)).then_some((&*quota.dimension, limit, units))
        })
    }
}
