//! What do a lane's books tell the store that replicas share, and take from it?

use super::{Amount, Books, Marks, Place, SLOTS, Taken};
use crate::{
    bucket::{Fit, Ns},
    exchange::{Cell, State},
    level::Level,
};

/// What the store has charged for a head.
#[derive(Debug)]
pub struct Booking {
    pub(crate) taken: Taken,
    /// When each level would be full again with it and what it leaves untouched.
    rooms: [Ns; SLOTS],
}

impl Taken {
    /// Whether the store took it, and not this process alone.
    pub(super) fn is_reserved(&self) -> bool {
        self.reserved.position > 0
    }

    /// So much of it comes back should this replica fall silent: the prompt of what was sent is Groq's.
    pub(super) fn lent(&self, level: &Level) -> u64 {
        let sent = self.amount.with_output(0);
        level.asked(&self.amount) - if self.position > 0 { level.asked(&sent) } else { 0 }
    }
}

impl Books {
    /// From now on levels are shared between so many replicas; alone until the store has answered.
    pub fn link(&mut self, replicas: u32, now: Ns) {
        self.replicas = Some(replicas);
        for level in &mut self.levels {
            level.link(replicas, now);
        }
    }

    /// Whether the store decides.
    pub fn is_joined(&self) -> bool {
        self.joined
    }

    /// The store is lost.
    pub fn part(&mut self, replicas: u32, now: Ns) {
        (self.joined, self.replicas) = (false, Some(replicas));
        for level in &mut self.levels {
            level.part(replicas, now);
        }
    }

    /// The store is back, or there for the first time, with this state.
    pub fn join(&mut self, state: &State, now: Ns) {
        for level in &mut self.levels {
            level.join(now);
        }
        self.joined = true;
        self.forgotten = state.position;
    }

    /// The store's record has begun anew: positions up to this one belong to another.
    pub fn renew(&mut self, state: &State, position: u64) {
        self.forgotten = position;
        for (code, standing) in &state.standings {
            if let Some(slot) = self.stored_slot(code) {
                self.levels[slot].renew(standing);
            }
        }
    }

    /// The store's word, in answer to what it was told or as news.
    pub fn hear(&mut self, state: &State, mine: bool, now: Ns) {
        self.position = self.position.max(state.position);
        for (code, standing) in &state.standings {
            if let Some(slot) = self.stored_slot(code) {
                self.levels[slot].hear(standing, mine, now);
            }
        }
    }

    /// Every dimension's part of a transaction.
    pub fn cells(&mut self, hello: bool, head: Option<&Amount>) -> Vec<Cell> {
        let head = head.map(|amount| self.expect(*amount));
        self.levels.iter_mut().filter_map(|level| level.cell(hello, head.as_ref())).collect()
    }

    /// The slot that the store knows by this code.
    fn stored_slot(&self, code: &str) -> Option<usize> {
        self.levels.iter().position(|level| level.stored_code() == code)
    }

    /// A lost transaction was never applied.
    pub fn untold(&mut self, cells: &[Cell]) {
        for cell in cells {
            if let Some(slot) = self.stored_slot(&cell.code) {
                self.levels[slot].untold(cell);
            }
        }
    }

    /// Whether there is something to tell, and whether it changes what others may take.
    pub fn owes(&self) -> (bool, bool) {
        let each = self.levels.iter().map(Level::owes);
        each.fold((false, false), |(any, spans), level| (any | level.0, spans | level.1))
    }

    /// The store has charged this; its record is at this version now.
    pub fn reserved(&mut self, amount: Amount, version: u64, now: Ns) -> Booking {
        let (mut slots, mut marks, mut rooms) = (0, Marks::new(), [0; SLOTS]);
        for (slot, level) in self.levels.iter_mut().enumerate() {
            let (mark, room) = level.charged(level.asked(&amount), now);
            marks.push(mark);
            rooms[slot] = room;
            slots |= 1 << slot;
        }
        let reserved = Place { position: self.position, version };
        let taken = Taken { amount, position: 0, sent_at: now, reserved, slots, marks };
        Booking { taken, rooms }
    }

    /// A booked head leaves before its time.
    pub fn cancel(&mut self, taken: &Taken) {
        for level in &mut self.levels {
            level.ended(level.asked(&taken.amount));
        }
        self.give_up(&taken.amount);
    }

    /// The store has charged a head that has gone already.
    pub fn give_up(&mut self, amount: &Amount) {
        for level in &mut self.levels {
            level.give_up(level.asked(amount));
        }
    }

    /// When a head that the store has charged may go, and the slot that makes it wait.
    pub fn due(&self, Booking { taken, rooms }: &Booking) -> (Ns, Option<usize>) {
        let dues = self.levels.iter().enumerate().filter(|(slot, _)| taken.slots & (1 << slot) != 0);
        let dues = dues.map(|(slot, level)| (level.due(rooms[slot], taken.reserved, &taken.marks[slot]), Some(slot)));
        dues.max().unwrap_or_default()
    }

    /// When there is room in what the store knows nothing of.
    pub fn fit_own(&self, amount: &Amount, now: Ns) -> Fit {
        let amount = &self.expect(*amount);
        self.levels.iter().map(|level| level.peek_own(level.asked(amount), now)).max().unwrap_or(Fit::Now)
    }
}
