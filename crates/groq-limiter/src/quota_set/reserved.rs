//! What a request has taken from the quotas of one limiter.

use smallvec::SmallVec;

use crate::{quota::send_history::SendSnapshot, request::Cost, types::Ns};

/// Quotas of one limiter at most: the eight dimensions that are known, a bound of the operator's beside each, and two that
/// refusals may teach.
pub(super) const SLOTS: usize = 18;

/// What was taken from the quotas, to be settled once.
#[derive(Clone, Debug)]
pub struct Reserved {
    /// How much.
    pub cost: Cost,
    /// Its place in the limiter's order of sending; 0 before it is sent.
    pub position: u64,
    /// When it was sent.
    pub sent_at: Ns,
    /// The position that the store gave it; 0: taken in this process alone.
    pub(super) booked: u64,
    /// Which slots were charged, one bit each.
    slots: u32,
    /// How each slot stood that there was then; two in most limiters.
    snapshots: SmallVec<[SendSnapshot; 2]>,
}

impl Reserved {
    /// From these slots: how each stood.
    pub(super) fn new(cost: Cost, booked: u64, snapshots: SmallVec<[SendSnapshot; 2]>, now: Ns) -> Self {
        let slots = (1 << snapshots.len()) - 1;
        Self { cost, position: 0, sent_at: now, booked, slots, snapshots }
    }

    /// Whether it has been sent.
    pub fn is_sent(&self) -> bool {
        self.position > 0
    }

    /// Whether the store took it, and not this process alone.
    pub(super) fn is_booked(&self) -> bool {
        self.booked > 0
    }

    /// Whether it was taken from this slot, too.
    pub(super) fn covers(&self, slot: usize) -> bool {
        self.slots & (1 << slot) != 0
    }

    /// From now on it is taken from a slot that is younger, too.
    pub(crate) fn cover(&mut self, slot: usize) {
        self.slots |= 1 << slot;
    }

    /// How a slot stood; `None` for a younger one.
    pub(super) fn snapshot(&self, slot: usize) -> Option<SendSnapshot> {
        self.snapshots.get(slot).copied()
    }

    /// The same, to be changed.
    pub(super) fn snapshot_mut(&mut self, slot: usize) -> Option<&mut SendSnapshot> {
        self.snapshots.get_mut(slot)
    }

    /// So much of it comes back should this replica fall silent: what is sent is Groq's but for the answer's part.
    pub(super) fn outstanding(&self, units: impl Fn(&Cost) -> u64) -> u64 {
        units(&self.cost) - if self.is_sent() { units(&self.cost.with_output(0)) } else { 0 }
    }
}
