//! The shared side of a limiter's quotas.

use super::{BookingOrder, Cost, QuotaSet, Reserved, SLOTS, SendSnapshots};
use crate::{
    bucket::{Ns, Readiness},
    quota::Quota,
    store::protocol::{Cell, State},
};

/// What the store has charged for a head.
#[derive(Debug)]
pub struct Booking {
    pub(crate) reserved: Reserved,
    /// When each quota would be full again with it and what it leaves untouched.
    rooms: [Ns; SLOTS],
}

impl Reserved {
    /// Whether the store took it, and not this process alone.
    pub(super) fn is_reserved(&self) -> bool {
        self.order.position > 0
    }

    /// So much of it comes back should this replica fall silent: the prompt of what was sent is Groq's.
    pub(super) fn outstanding(&self, quota: &Quota) -> u64 {
        let sent = self.cost.with_output(0);
        quota.units(&self.cost) - if self.position > 0 { quota.units(&sent) } else { 0 }
    }
}

impl QuotaSet {
    /// From now on quotas are shared between so many replicas; alone until the store has answered.
    pub fn link(&mut self, replicas: u32, now: Ns) {
        self.replicas = Some(replicas);
        for quota in &mut self.quotas {
            quota.link(replicas, now);
        }
    }

    /// Whether the store decides.
    pub fn is_joined(&self) -> bool {
        self.joined
    }

    /// The store is lost.
    pub fn part(&mut self, replicas: u32, now: Ns) {
        (self.joined, self.replicas) = (false, Some(replicas));
        for quota in &mut self.quotas {
            quota.part(replicas, now);
        }
    }

    /// The store is back, or there for the first time, with this state.
    pub fn join(&mut self, state: &State, now: Ns) {
        for quota in &mut self.quotas {
            quota.join(now);
        }
        self.joined = true;
        self.forgotten = state.position;
    }

    /// The store's record has begun anew: positions up to this one belong to another.
    pub fn renew(&mut self, state: &State, position: u64) {
        self.forgotten = position;
        for (code, view) in &state.views {
            if let Some(slot) = self.stored_slot(code) {
                self.quotas[slot].renew(view);
            }
        }
    }

    /// The store's word, in answer to what it was told or as news.
    pub fn hear(&mut self, state: &State, mine: bool, now: Ns) {
        self.position = self.position.max(state.position);
        for (code, view) in &state.views {
            if let Some(slot) = self.stored_slot(code) {
                self.quotas[slot].hear(view, mine, now);
            }
        }
    }

    /// Every dimension's part of a transaction.
    pub fn cells(&mut self, hello: bool, head: Option<&Cost>) -> Vec<Cell> {
        let head = head.map(|cost| self.expect(*cost));
        self.quotas.iter_mut().filter_map(|quota| quota.cell(hello, head.as_ref())).collect()
    }

    /// The slot that the store knows by this code.
    fn stored_slot(&self, code: &str) -> Option<usize> {
        self.quotas.iter().position(|quota| quota.stored_code() == code)
    }

    /// This was taken without the store, which is to hear of it.
    pub fn tell_taken(&mut self, taken: &Reserved) {
        for quota in &mut self.quotas {
            quota.tell_taken(quota.units(&taken.cost));
        }
    }

    /// A lost transaction was never applied.
    pub fn retract(&mut self, cells: &[Cell]) {
        for cell in cells {
            if let Some(slot) = self.stored_slot(&cell.code) {
                self.quotas[slot].retract(cell);
            }
        }
    }

    /// Whether there is something to tell, and whether it changes what others may take.
    pub fn has_pending(&self) -> (bool, bool) {
        let each = self.quotas.iter().map(Quota::has_pending);
        each.fold((false, false), |(any, spans), quota| (any | quota.0, spans | quota.1))
    }

    /// The store has charged this; its record is at this version now.
    pub fn reserved(&mut self, cost: Cost, version: u64, now: Ns) -> Booking {
        let (mut slots, mut snapshots, mut rooms) = (0, SendSnapshots::new(), [0; SLOTS]);
        for (slot, quota) in self.quotas.iter_mut().enumerate() {
            let (snapshot, room) = quota.charged(quota.units(&cost), now);
            snapshots.push(snapshot);
            rooms[slot] = room;
            slots |= 1 << slot;
        }
        let order = BookingOrder { position: self.position, version };
        let reserved = Reserved { cost, position: 0, sent_at: now, order, slots, snapshots };
        Booking { reserved, rooms }
    }

    /// A booked head leaves before its time.
    pub fn cancel(&mut self, reserved: &Reserved) {
        for quota in &mut self.quotas {
            quota.ended(quota.units(&reserved.cost));
        }
        self.give_up(&reserved.cost);
    }

    /// The store has charged a head that has gone already.
    pub fn give_up(&mut self, cost: &Cost) {
        for quota in &mut self.quotas {
            quota.give_up(quota.units(cost));
        }
    }

    /// When a head that the store has charged may go, and the slot that makes it wait.
    pub fn due(&self, Booking { reserved, rooms }: &Booking) -> (Ns, Option<usize>) {
        let dues = self.quotas.iter().enumerate().filter(|(slot, _)| reserved.slots & (1 << slot) != 0);
        let dues = dues.map(|(slot, quota)| (quota.due(rooms[slot], reserved.order, &reserved.snapshots[slot]), Some(slot)));
        dues.max().unwrap_or_default()
    }

    /// When there is room in what the store knows nothing of.
    pub fn fit_own(&self, cost: &Cost, now: Ns) -> Readiness {
        let cost = &self.expect(*cost);
        self.quotas.iter().map(|quota| quota.peek_own(quota.units(cost), now)).max().unwrap_or(Readiness::Now)
    }
}
