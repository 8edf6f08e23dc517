//! A limiter's session with the store that replicas share. One transaction at a time; the head of the queue is booked there,
//! at once or for later. When the store is lost, the limiter goes on alone and reports what it used when it is back.
//!
//! A head that must wait is *booked*: charged now, sent when its quota is there. Nobody passes it meanwhile, whatever
//! replica asks, and nobody asks again: what others settle is published, and moves the time of every booking.

use super::{Event, Limiter, MILLISECOND, SECOND};
use crate::{
    bucket::{Ns, Readiness},
    queue::{Id, Ticket},
    quota_set::{Booking, Cost},
    store::protocol::{Answer, State, Transaction},
};

/// Settlements ride on the next reservation, or go alone after so long.
const RIDE: Ns = 50 * MILLISECOND;
/// What headers say of others waits for a settlement so long at most.
const WORD: Ns = SECOND;
/// A head that the store would not book asks again after so long.
const AGAIN: Ns = 20 * MILLISECOND;

/// A position that none comes after: doubles hold it exactly.
const NO_PLACE: u64 = 1 << 53;

/// A limiter's link to the store.
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
    pub(super) booked: Option<Booked>,
    /// The reservation that is given up and not told of.
    gone: u64,
    wanted: Option<Id>,
    /// It cannot go in time, by the store's word.
    denied: Option<Id>,
    ask_from: Ns,
    /// When the store is to be told.
    tell_at: Option<Ns>,
}

#[derive(Debug)]
struct UnderWay {
    transaction: Transaction,
    /// Who asks.
    head: Option<(Id, Ticket, Cost)>,
}

/// The head of the queue, charged in the store.
#[derive(Debug)]
pub(super) struct Booked {
    pub(super) id: Id,
    pub(super) booking: Booking,
    /// The store said at once.
    at_once: bool,
}

impl Limiter {
    /// Shares its quotas between so many replicas from now on. `up`: the store can be reached.
    pub fn link(&mut self, up: bool, replicas: u32, now: Ns) {
        self.quotas.link(replicas, now);
        // Above every serial of an earlier limiter of this name; microseconds, which the store's numbers hold exactly.
        let (serial, epoch, version) = (now / 1000, 0, 0);
        self.link = Some(Box::new(StoreSession {
            up,
            known: false,
            serial,
            epoch,
            version,
            under_way: None,
            uncertain: None,
            booked: None,
            gone: 0,
            wanted: None,
            denied: None,
            ask_from: 0,
            tell_at: None,
        }));
    }

    /// Whether its quotas are shared.
    pub fn is_linked(&self) -> bool {
        self.link.is_some()
    }

    /// Whether the store decides who goes; a limiter that is new to a store that can be reached waits for its answer.
    pub(super) fn store_decides(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.up && (self.quotas.is_joined() || !link.known))
    }

    /// What the store is to be told or units now, if anything. One at a time: its end is [`Limiter::answered`] or
    /// [`Limiter::lost`].
    pub fn transaction(&mut self, now: Ns) -> Option<Transaction> {
        let now = self.advance(now);
        let link = self.link.as_mut().filter(|link| link.up && link.under_way.is_none())?;
        let hello = !self.quotas.is_joined();
        let queue = &self.queue;
        let head = link.wanted.take().filter(|_| !hello).and_then(|id| Some((id, queue.get(id)?)));
        if !hello && head.is_none() && link.tell_at.is_none_or(|at| at > now) {
            return None;
        }
        link.serial += 1;
        link.tell_at = link.tell_at.filter(|_| hello);
        let transaction = Transaction {
            serial: link.serial,
            epoch: link.epoch,
            position: self.quotas.position(),
            hello,
            gone: if hello { 0 } else { std::mem::take(&mut link.gone) },
            max_wait: head.map(|(_, waiter)| waiter.deadline.saturating_sub(now)),
            cells: self.quotas.cells(hello, head.map(|(_, waiter)| &waiter.cost)),
        };
        let head = head.map(|(id, waiter)| (id, waiter.ticket, self.quotas.expect(waiter.cost)));
        link.under_way = Some(UnderWay { transaction: transaction.clone(), head });
        Some(transaction)
    }

    /// The store's answer to the transaction under way; to another one it comes too late. The caller dispatches.
    pub fn answered(&mut self, serial: u64, answer: &Answer, now: Ns) {
        let now = self.advance(now);
        let Some(link) = &mut self.link else { return };
        let Some(under_way) = link.under_way.take_if(|under_way| under_way.transaction.serial == serial) else { return };
        let same = link.epoch == answer.state.epoch;
        (link.epoch, link.version, link.known) = (answer.state.epoch, answer.state.version, true);
        let lost = link.uncertain.take();
        if !same {
            self.quotas.renew(&answer.state, answer.state.position.saturating_sub(u64::from(answer.granted)));
        }
        self.quotas.hear(&answer.state, true, now);
        // What was done without the store is owed before what was lost on the way to it.
        if !self.quotas.is_joined() {
            self.quotas.join(&answer.state, now);
            self.tell(0, now);
        }
        if let Some(lost) = lost {
            match lost.head {
                _ if answer.before.0 != lost.transaction.serial => {
                    self.quotas.retract(&lost.transaction.cells);
                    self.gone(lost.transaction.gone);
                }
                // It went on alone.
                Some((.., cost)) if answer.before.1 => {
                    self.quotas.give_up(&cost);
                    self.gone(NO_PLACE);
                }
                _ => {}
            }
        }
        self.quotas.hear(&answer.state, true, now);
        if let Some((id, ticket, cost)) = under_way.head {
            let waits = self.queue.get(id).is_some_and(|waiter| waiter.ticket == ticket);
            match (answer.granted, waits, &mut self.link) {
                (true, true, Some(link)) => {
                    let booking = self.quotas.reserved(cost, answer.state.version, now);
                    link.booked = Some(Booked { id, booking, at_once: answer.wait == 0 });
                }
                (true, false, _) => {
                    self.quotas.give_up(&cost);
                    self.gone(answer.state.position);
                    self.tell(0, now);
                }
                (false, waits, Some(link)) => {
                    link.ask_from = now + AGAIN;
                    link.denied = Some(id).filter(|_| waits);
                }
                _ => {}
            }
        }
    }

    /// Another replica's doing, published by the store. The caller dispatches.
    pub fn hear(&mut self, state: &State, now: Ns) {
        let now = self.advance(now);
        let Some(link) = &mut self.link else { return };
        // Its own answer will say more.
        if link.under_way.is_none() && self.quotas.is_joined() && link.epoch == state.epoch && link.version < state.version {
            link.version = state.version;
            self.quotas.hear(state, false, now);
        }
    }

    /// The store does not answer, or not in words that can be understood: alone, among so many replicas. The caller dispatches.
    pub fn lost(&mut self, replicas: u32, now: Ns) {
        let now = self.advance(now);
        let Some(link) = &mut self.link else { return };
        (link.up, link.known, link.wanted) = (false, true, None);
        if let Some(under_way) = link.under_way.take().filter(|under_way| !under_way.transaction.hello) {
            link.uncertain = Some(under_way);
        }
        self.quotas.part(replicas, now);
    }

    /// Whether this transaction is under way.
    pub fn waits_for(&self, serial: u64) -> bool {
        let under_way = self.link.as_ref().and_then(|link| link.under_way.as_ref());
        under_way.is_some_and(|under_way| under_way.transaction.serial == serial)
    }

    /// The store can be reached. The caller dispatches.
    pub fn reached(&mut self) {
        if let Some(link) = &mut self.link {
            link.up = true;
        }
    }

    /// What there is to tell is told now. The caller dispatches.
    pub fn hurry(&mut self, now: Ns) {
        if self.quotas.has_pending().0 {
            self.tell(0, now);
        }
    }

    /// Whether the store knows everything, or cannot be told.
    pub fn is_told(&self) -> bool {
        self.link.as_ref().is_none_or(|link| !link.up || (link.under_way.is_none() && link.tell_at.is_none()))
    }

    /// Asks for the head of the queue, or finds out why not yet.
    pub(super) fn book(&mut self, head: Id, now: Ns) {
        let Some(waiter) = self.queue.get(head) else { return };
        let (cost, deadline) = (waiter.cost, waiter.deadline);
        let (fit, slot) = self.quotas.fit(&cost, now);
        let at = match fit {
            Readiness::Now => now,
            Readiness::At(at) => at,
            Readiness::Never => now + SECOND,
        };
        let own = match self.quotas.fit_own(&cost, now) {
            Readiness::Now => now,
            Readiness::At(at) => at,
            Readiness::Never => now + SECOND,
        };
        let Some(link) = self.link.as_mut().filter(|link| link.under_way.is_none()) else { return };
        let earliest = own.max(link.ask_from);
        if earliest > now {
            self.block(slot, earliest);
        } else if at > deadline {
            link.denied = Some(head);
            self.block(slot, at);
        } else {
            link.wanted = Some(head);
        }
    }

    /// Who was denied by the store and cannot make it is told at once: these quotas did not know when it came.
    pub(super) fn turn_denied_away(&mut self, now: Ns, events: &mut Vec<Event>) -> bool {
        let Some(id) = self.link.as_mut().and_then(|link| link.denied.take()) else { return false };
        let late = self.queue.get(id).and_then(|waiter| {
            let forecast = self.forecast(&self.arrival(waiter), now);
            self.not_in_time(forecast, &waiter.cost, waiter.since, now, waiter.deadline)
        });
        late.is_some_and(|refusal| {
            self.leave(id);
            events.push(Event::Rejected(id, refusal));
            true
        })
    }

    /// When a booked head may go, and what makes it wait.
    pub(super) fn due(&self, head: Id) -> Option<(Readiness, Option<usize>)> {
        let booked = self.link.as_ref()?.booked.as_ref().filter(|booked| booked.id == head)?;
        if booked.at_once {
            return Some((Readiness::Now, None));
        }
        let (at, slot) = self.quotas.due(&booked.booking);
        Some(if at <= self.clock { (Readiness::Now, slot) } else { (Readiness::At(at), slot) })
    }

    /// The head that is booked.
    pub(super) fn booked(&self) -> Option<Id> {
        Some(self.link.as_ref()?.booked.as_ref()?.id)
    }

    /// Its booking, now that it goes.
    pub(super) fn take_booking(&mut self, head: Id) -> Option<Booked> {
        self.link.as_mut()?.booked.take_if(|booked| booked.id == head)
    }

    /// It leaves the queue: its booking is given up.
    pub(super) fn give_up(&mut self, head: Id) {
        if let Some(booked) = self.take_booking(head) {
            self.quotas.cancel(&booked.booking.reserved);
            self.gone(booked.booking.reserved.order.position);
            self.tell(0, self.clock);
        }
    }

    /// Of several, those after the last gain.
    fn gone(&mut self, position: u64) {
        if let Some(link) = &mut self.link {
            link.gone = link.gone.max(position);
        }
    }

    /// Something is to be told within so long.
    fn tell(&mut self, within: Ns, now: Ns) {
        if let Some(link) = &mut self.link {
            let at = now + within;
            link.tell_at = Some(link.tell_at.map_or(at, |before| before.min(at)));
        }
    }

    /// After a settlement or an answer's head.
    pub(super) fn add_pending(&mut self, now: Ns) {
        match self.quotas.has_pending() {
            (_, true) => self.tell(RIDE, now),
            (true, false) => self.tell(WORD, now),
            _ => {}
        }
    }

    /// When the store is to be told something, if it listens.
    pub(super) fn tell_at(&self) -> Option<Ns> {
        let link = self.link.as_ref().filter(|link| link.up && link.under_way.is_none() && self.quotas.is_joined())?;
        link.tell_at
    }
}
