//! A limiter's session with the store that replicas share. One transaction at a time; the head of the queue is booked there,
//! at once or for later. When the store is lost, the limiter goes on alone and reports what it used when it is back.
//!
//! A head that must wait is *booked*: charged now, sent when its quota is there. Nobody passes it meanwhile, whatever
//! replica asks, and nobody asks again: what others settle is published, and moves the time of every booking.

use crate::{
    bucket::Readiness,
    queue::{FairQueue, Id, QueuedRequest, Ticket},
    quota_set::{Booking, QuotaSet, Reserved},
    request::Cost,
    store::protocol::{Answer, State, Transaction},
    types::Ns,
};

const MILLISECOND: Ns = 1_000_000;
const SECOND: Ns = 1000 * MILLISECOND;
/// Settlements ride on the next reservation, or go alone after so long.
const SETTLEMENT_DELAY: Ns = 50 * MILLISECOND;
/// What headers say of others waits for a settlement so long at most.
const OBSERVATION_DELAY: Ns = SECOND;
/// A head that the store would not book asks again after so long.
const RETRY_AFTER: Ns = 20 * MILLISECOND;
/// A position that none comes after: doubles hold it exactly.
const NO_POSITION: u64 = 1 << 53;

/// What is known of the store, and what is to be told or asked.
#[derive(Debug)]
pub(super) struct StoreSession {
    /// The store can be reached.
    up: bool,
    /// It has answered once.
    known: bool,
    serial: u64,
    epoch: i64,
    version: u64,
    under_way: Option<UnderWay>,
    /// Lost on the way there or back.
    uncertain: Option<UnderWay>,
    booked: Option<Booked>,
    /// The position of the reservation that is given up and not told of.
    released: u64,
    requested: Option<Id>,
    /// It cannot go in time, by the store's answer.
    denied: Option<Id>,
    request_from: Ns,
    /// When the store is to be told.
    flush_at: Option<Ns>,
}

#[derive(Debug)]
struct UnderWay {
    transaction: Transaction,
    /// Who asks.
    head: Option<(Id, Ticket, Cost)>,
}

/// The head of the queue, charged in the store.
#[derive(Debug)]
struct Booked {
    id: Id,
    booking: Booking,
    /// The store said at once.
    at_once: bool,
}

impl StoreSession {
    /// A new one. `up`: the store can be reached.
    pub(super) fn new(up: bool, now: Ns) -> Self {
        Self {
            up,
            known: false,
            // Above every serial of an earlier limiter of this name; microseconds, which the store's numbers hold exactly.
            serial: now / 1000,
            epoch: 0,
            version: 0,
            under_way: None,
            uncertain: None,
            booked: None,
            released: 0,
            requested: None,
            denied: None,
            request_from: 0,
            flush_at: None,
        }
    }

    /// Whether the store decides who goes; a limiter that is new to a store that can be reached waits for its answer.
    pub(super) fn decides(&self, quotas: &QuotaSet) -> bool {
        self.up && (quotas.is_attached() || !self.known)
    }

    /// What the store is to be told or asked now, if anything.
    pub(super) fn transaction(&mut self, quotas: &mut QuotaSet, queue: &FairQueue, now: Ns) -> Option<Transaction> {
        if !self.up || self.under_way.is_some() {
            return None;
        }
        let hello = !quotas.is_attached();
        let head = self.requested.take().filter(|_| !hello).and_then(|id| Some((id, queue.get(id)?)));
        if !hello && head.is_none() && self.flush_at.is_none_or(|at| at > now) {
            return None;
        }
        self.serial += 1;
        self.flush_at = self.flush_at.filter(|_| hello);
        let transaction = Transaction {
            serial: self.serial,
            epoch: self.epoch,
            position: quotas.position(),
            hello,
            gone: if hello { 0 } else { std::mem::take(&mut self.released) },
            max_wait: head.map(|(_, queued)| queued.deadline.saturating_sub(now)),
            cells: quotas.cells(hello, head.map(|(_, queued)| &queued.cost)),
        };
        let head = head.map(|(id, queued)| (id, queued.ticket, quotas.expect(queued.cost)));
        self.under_way = Some(UnderWay { transaction: transaction.clone(), head });
        Some(transaction)
    }

    /// The store's answer to the transaction under way; to another one it comes too late.
    pub(super) fn answered(&mut self, serial: u64, answer: &Answer, quotas: &mut QuotaSet, queue: &FairQueue, now: Ns) {
        let Some(under_way) = self.under_way.take_if(|under_way| under_way.transaction.serial == serial) else { return };
        let same = self.epoch == answer.state.epoch;
        (self.epoch, self.version, self.known) = (answer.state.epoch, answer.state.version, true);
        if !same {
            quotas.renew(&answer.state, answer.state.position.saturating_sub(u64::from(answer.granted)));
        }
        quotas.update(&answer.state, true, now);
        // What was done without the store is owed before what was lost on the way to it.
        if !quotas.is_attached() {
            quotas.attach(&answer.state, now);
            self.flush_within(0, now);
        }
        if let Some(lost) = self.uncertain.take() {
            self.resolve(lost, answer.before, quotas);
        }
        quotas.update(&answer.state, true, now);
        if let Some(head) = under_way.head {
            self.answered_head(head, answer, quotas, queue, now);
        }
    }

    /// What became of a transaction that was lost: `applied` is the last one that the store has applied, and whether it charged
    /// a head.
    fn resolve(&mut self, lost: UnderWay, applied: (u64, bool), quotas: &mut QuotaSet) {
        if applied.0 != lost.transaction.serial {
            quotas.retract(&lost.transaction.cells);
            self.release(lost.transaction.gone);
        } else if let Some((.., cost)) = lost.head.filter(|_| applied.1) {
            // It went on alone.
            quotas.give_up(&cost);
            self.release(NO_POSITION);
        }
    }

    fn answered_head(
        &mut self,
        (id, ticket, cost): (Id, Ticket, Cost),
        answer: &Answer,
        quotas: &mut QuotaSet,
        queue: &FairQueue,
        now: Ns,
    ) {
        let waits = queue.get(id).is_some_and(|queued| queued.ticket == ticket);
        match (answer.granted, waits) {
            (true, true) => {
                let booking = quotas.booked(cost, answer.state.version, now);
                self.booked = Some(Booked { id, booking, at_once: answer.wait == 0 });
            }
            (true, false) => {
                quotas.give_up(&cost);
                self.release(answer.state.position);
                self.flush_within(0, now);
            }
            (false, waits) => {
                self.request_from = now + RETRY_AFTER;
                self.denied = waits.then_some(id);
            }
        }
    }

    /// Another replica's doing, published by the store.
    pub(super) fn published(&mut self, state: &State, quotas: &mut QuotaSet, now: Ns) {
        // Its own answer will say more.
        let is_news = self.epoch == state.epoch && self.version < state.version;
        if self.under_way.is_none() && quotas.is_attached() && is_news {
            self.version = state.version;
            quotas.update(state, false, now);
        }
    }

    /// The store does not answer, or not in words that can be understood: alone, among so many replicas.
    pub(super) fn lost(&mut self, replicas: u32, quotas: &mut QuotaSet, now: Ns) {
        (self.up, self.known, self.requested) = (false, true, None);
        if let Some(under_way) = self.under_way.take().filter(|under_way| !under_way.transaction.hello) {
            self.uncertain = Some(under_way);
        }
        quotas.detach(replicas, now);
    }

    /// Whether this transaction is under way.
    pub(super) fn waits_for(&self, serial: u64) -> bool {
        self.under_way.as_ref().is_some_and(|under_way| under_way.transaction.serial == serial)
    }

    /// The store can be reached.
    pub(super) fn reached(&mut self) {
        self.up = true;
    }

    /// Whether the store knows everything, or cannot be told.
    pub(super) fn is_flushed(&self) -> bool {
        !self.up || (self.under_way.is_none() && self.flush_at.is_none())
    }

    /// Asks for this head of the queue, or says what makes it wait, and until when.
    pub(super) fn request(&mut self, id: Id, head: &QueuedRequest, quotas: &QuotaSet, now: Ns) -> Option<(Option<usize>, Ns)> {
        if self.under_way.is_some() {
            return None;
        }
        let instant = |ready: Readiness| if ready == Readiness::Never { now + SECOND } else { ready.instant(now) };
        let (ready, slot) = quotas.readiness(&head.cost, now);
        let earliest = instant(quotas.own_readiness(&head.cost, now)).max(self.request_from);
        if earliest > now {
            return Some((slot, earliest));
        }
        let at = instant(ready);
        if at > head.deadline {
            self.denied = Some(id);
            return Some((slot, at));
        }
        self.requested = Some(id);
        None
    }

    /// The head that the store has denied.
    pub(super) fn take_denied(&mut self) -> Option<Id> {
        self.denied.take()
    }

    /// The head that is booked.
    pub(super) fn booked(&self) -> Option<Id> {
        self.booked.as_ref().map(|booked| booked.id)
    }

    /// When a booked head may go, and what makes it wait.
    pub(super) fn due(&self, head: Id, quotas: &QuotaSet, now: Ns) -> Option<(Readiness, Option<usize>)> {
        let booked = self.booked.as_ref().filter(|booked| booked.id == head)?;
        if booked.at_once {
            return Some((Readiness::Now, None));
        }
        let (at, slot) = quotas.due(&booked.booking);
        Some((if at <= now { Readiness::Now } else { Readiness::At(at) }, slot))
    }

    /// What the store has charged for a head that goes now.
    pub(super) fn take_booking(&mut self, head: Id) -> Option<Reserved> {
        let booked = self.booked.take_if(|booked| booked.id == head)?;
        Some(booked.booking.reserved)
    }

    /// A queued request leaves before its turn: its booking, if it has one, is given up.
    pub(super) fn left(&mut self, id: Id, quotas: &mut QuotaSet, now: Ns) {
        if let Some(reserved) = self.take_booking(id) {
            quotas.cancel(&reserved);
            self.release(reserved.order.position);
            self.flush_within(0, now);
        }
    }

    /// There may be something to tell: after a settlement or an answer's head, or in a hurry.
    pub(super) fn flush_pending(&mut self, hurry: bool, quotas: &QuotaSet, now: Ns) {
        match quotas.has_pending() {
            (true, _) if hurry => self.flush_within(0, now),
            (_, true) => self.flush_within(SETTLEMENT_DELAY, now),
            (true, false) => self.flush_within(OBSERVATION_DELAY, now),
            _ => {}
        }
    }

    /// When the store is to be told something, if it listens.
    pub(super) fn flush_at(&self, quotas: &QuotaSet) -> Option<Ns> {
        self.flush_at.filter(|_| self.up && self.under_way.is_none() && quotas.is_attached())
    }

    /// Of several, those after the last gain.
    fn release(&mut self, position: u64) {
        self.released = self.released.max(position);
    }

    fn flush_within(&mut self, within: Ns, now: Ns) {
        let at = now + within;
        self.flush_at = Some(self.flush_at.map_or(at, |before| before.min(at)));
    }
}
