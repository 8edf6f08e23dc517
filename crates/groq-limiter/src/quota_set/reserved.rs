//! A reservation of one request in all quotas of a limiter.

use smallvec::SmallVec;

use crate::{bucket::BucketState, request::Cost, types::Ns};

/// A reservation in the quotas, to be settled exactly once.
#[derive(Clone, Debug)]
pub struct Reserved {
    /// The reserved cost.
    pub(crate) cost: Cost,
    /// The send position; 0 before the request is sent.
    pub(super) position: u64,
    /// The time at which it was sent; before that, the time of the reservation.
    pub(crate) sent_at: Ns,
    /// The send position that the store assigned; 0 if the reservation was made in this process alone.
    pub(super) booked: u64,
    /// Whether the request was granted whatever the limits say, so that a refusal of it says nothing about the quotas.
    pub(crate) is_forced: bool,
    /// The slots that were charged, one bit each.
    slots: u32,
    /// The snapshot of each slot that existed at the time of the reservation; most limiters have two.
    pub(super) snapshots: SmallVec<[BucketState; 2]>,
}

impl Reserved {
    pub(super) fn new(cost: Cost, booked: u64, snapshots: SmallVec<[BucketState; 2]>, now: Ns) -> Self {
        Self { cost, position: 0, sent_at: now, booked, is_forced: false, slots: (1 << snapshots.len()) - 1, snapshots }
    }

    /// Whether the request has been sent.
    pub fn is_sent(&self) -> bool {
        self.position > 0
    }

    /// Whether this slot was charged.
    pub(super) fn covers(&self, slot: usize) -> bool {
        self.slots & (1 << slot) != 0
    }

    /// Marks a slot as charged that was added after the reservation.
    pub(super) fn cover(&mut self, slot: usize) {
        self.slots |= 1 << slot;
    }
}
