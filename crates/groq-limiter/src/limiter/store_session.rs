//! A limiter's session with the store that replicas share. One transaction at a time: it tells what has been settled and seen,
//! and asks for the head of the queue. When the store is lost, the limiter goes on alone and reports what it used when it is back.
//!
//! Replicas whose heads have to wait stand in a row in the store, one place each. Each asks when there is room for it and for
//! those before it, by its own forecast, which the store's updates keep. So nobody passes a large request, and a replica that
//! is granted one and has more goes to the end of the row.

use crate::{
    bucket::Readiness,
    queue::{FairQueue, QueuedRequest, Ticket},
    quota::Remote,
    quota_set::{QuotaSet, Reserved},
    request::Cost,
    store::protocol::{Answer, SharedKnowledge, State, Transaction},
    types::Ns,
};

const MILLISECOND: Ns = 1_000_000;
const SECOND: Ns = 1000 * MILLISECOND;
/// A replica that waits asks again at least this often, or the store lets others pass.
const TURN: Ns = 400 * MILLISECOND;
/// As long as any replica has something reserved, all tell the store at least this often that they are there.
const RENEWAL: Ns = 2 * SECOND;
/// Settlements ride on the next reservation, or go alone after so long.
const SETTLEMENT_DELAY: Ns = 50 * MILLISECOND;
/// What headers say of others waits for a settlement so long at most.
const OBSERVATION_DELAY: Ns = SECOND;

/// What is known of the store, and what is to be told or asked.
#[derive(Debug, Default)]
pub(super) struct StoreSession {
    /// The store can be reached.
    up: bool,
    serial: u64,
    /// Empty: it has not been heard of.
    epoch: String,
    version: u64,
    /// What others take that wait before this replica, in millionths of the limit; `None`: it has no place among those that wait.
    ahead: Option<u64>,
    under_way: Option<UnderWay>,
    /// Charged in the store, and not gone yet.
    granted: Option<(Ticket, Reserved)>,
    requested: Option<Ticket>,
    /// It was not granted and may be too late.
    denied: Option<Ticket>,
    /// When the store last answered for a head.
    asked_at: Ns,
    /// When there is room by the answer, if no update has come since.
    room_at: Ns,
    /// When the store is to be told.
    flush_at: Option<Ns>,
}

#[derive(Debug)]
struct UnderWay {
    serial: u64,
    since: Ns,
    /// Who asks.
    head: Option<(Ticket, Cost)>,
}

impl StoreSession {
    /// Whether the store decides who goes.
    pub(super) fn decides(&self) -> bool {
        self.up
    }

    /// What the store is to be told or asked now, if anything.
    pub(super) fn transaction(&mut self, quotas: &mut QuotaSet, queue: &FairQueue, now: Ns) -> Option<Transaction> {
        if !self.up || self.under_way.is_some() {
            return None;
        }
        let head = self.requested.take().and_then(|ticket| queue.get(ticket));
        let leaves = self.ahead.is_some() && queue.is_empty();
        if head.is_none() && !leaves && !self.epoch.is_empty() && self.flush_at.is_none_or(|at| at > now) {
            return None;
        }
        self.serial += 1;
        self.flush_at = None;
        let limits = if std::mem::take(&mut quotas.untold) { quotas.stated() } else { Vec::new() };
        let answers = quotas.expected_output.take_untold(now);
        let transaction = Transaction {
            serial: self.serial,
            epoch: self.epoch.clone(),
            position: quotas.position,
            asks: head.is_some(),
            waiting: queue.len(),
            learnt: SharedKnowledge::new(&limits, &answers, now),
            cells: quotas.cells(head.map(|queued| &queued.cost), now),
        };
        let head = head.map(|queued| (queued.ticket, quotas.expect(queued.cost)));
        self.under_way = Some(UnderWay { serial: self.serial, since: now, head });
        Some(transaction)
    }

    /// The store's answer to the transaction under way, and when it was given; to another one it comes too late.
    pub(super) fn answered(
        &mut self,
        serial: u64,
        answer: &Answer,
        quotas: &mut QuotaSet,
        queue: &FairQueue,
        now: Ns,
    ) -> Option<Ns> {
        let UnderWay { since, head, .. } = self.under_way.take_if(|under_way| under_way.serial == serial)?;
        // Half way between: an error of clocks would be counted as usage.
        let at = since.midpoint(now);
        if self.epoch != answer.state.epoch {
            quotas.renew(answer.state.position.saturating_sub(u64::from(answer.granted)));
        }
        self.heard(&answer.state, quotas, at, now);
        if let Some((ticket, cost)) = head {
            let waits = queue.get(ticket).is_some();
            if answer.granted {
                let reserved = quotas.booked(cost, now);
                if waits {
                    self.granted = Some((ticket, reserved));
                } else {
                    quotas.settle(reserved, Cost::default(), now);
                    self.flush_within(0, now);
                }
            } else {
                self.denied = waits.then_some(ticket);
            }
            let wait = Ns::try_from(answer.wait).unwrap_or(0).saturating_mul(1000);
            (self.asked_at, self.room_at) = (now, now.saturating_add(wait));
        }
        Some(at)
    }

    /// What another replica has changed. Whether it was not known.
    pub(super) fn updated(&mut self, state: &State, quotas: &mut QuotaSet, now: Ns) -> bool {
        // Its own answer will say more.
        let is_news = self.under_way.is_none() && self.up && self.epoch == state.epoch && self.version < state.version;
        if is_news {
            self.heard(state, quotas, now, now);
        }
        is_news
    }

    fn heard(&mut self, state: &State, quotas: &mut QuotaSet, at: Ns, now: Ns) {
        self.epoch.clone_from(&state.epoch);
        (self.version, self.ahead, self.room_at) = (state.version, state.ahead, 0);
        quotas.update(state, at, now);
        if state.holds_reservations() {
            self.flush_within(RENEWAL, now);
        }
    }

    /// The store does not answer, or not in words that can be understood: alone, among so many replicas.
    pub(super) fn lost(&mut self, replicas: u32, quotas: &mut QuotaSet, now: Ns) {
        (self.up, self.ahead, self.requested) = (false, None, None);
        if self.under_way.take().is_some() {
            quotas.remotes().for_each(Remote::retract);
        }
        quotas.detach(replicas, now);
    }

    /// Whether this transaction is under way.
    pub(super) fn waits_for(&self, serial: u64) -> bool {
        self.under_way.as_ref().is_some_and(|under_way| under_way.serial == serial)
    }

    /// The store can be reached.
    pub(super) fn reached(&mut self, quotas: &mut QuotaSet, now: Ns) {
        if !self.up {
            (self.up, self.epoch) = (true, String::new());
            quotas.attach(now);
        }
    }

    /// Whether the store knows everything, or cannot be told.
    pub(super) fn is_flushed(&self, quotas: &mut QuotaSet) -> bool {
        let is_told = !quotas.has_learnt() && quotas.remotes().all(|each| each.has_pending() == (false, false));
        !self.up || (self.under_way.is_none() && is_told)
    }

    /// Asks for this head of the queue, or says what makes it wait, and until when.
    pub(super) fn request(&mut self, head: &QueuedRequest, quotas: &QuotaSet, now: Ns) -> Option<(Option<usize>, Ns)> {
        if self.under_way.is_some() {
            return None;
        }
        let instant = |ready: Readiness| if ready == Readiness::Never { now + SECOND } else { ready.instant(now) };
        let (ready, slot) = quotas.readiness(&head.cost, now);
        let room = instant(ready);
        if room > head.deadline {
            self.denied = Some(head.ticket);
            return Some((slot, room));
        }
        // Without a place it asks at once, to have one.
        let turn = self.ahead.map_or(now, |ahead| {
            let room = instant(quotas.readiness_after(&head.cost, ahead, now));
            room.max(self.room_at).max(self.asked_at + MILLISECOND).min(self.asked_at + TURN)
        });
        let at = turn.max(instant(quotas.own_readiness(&head.cost, now)));
        if at > now {
            return Some((slot, at));
        }
        self.requested = Some(head.ticket);
        None
    }

    /// The head that the store has denied.
    pub(super) fn take_denied(&mut self) -> Option<Ticket> {
        self.denied.take()
    }

    /// The head that is charged, and goes.
    pub(super) fn granted(&self) -> Option<Ticket> {
        self.granted.as_ref().map(|&(ticket, _)| ticket)
    }

    /// What the store has charged for this one.
    pub(super) fn take_granted(&mut self, ticket: Ticket) -> Option<Reserved> {
        self.granted.take_if(|&mut (granted, _)| granted == ticket).map(|(_, reserved)| reserved)
    }

    /// There may be something to tell: after a settlement or an answer's head, or in a hurry.
    pub(super) fn flush_pending(&mut self, hurry: bool, quotas: &mut QuotaSet, now: Ns) {
        let (settled, observed) = quotas.remotes().fold((false, false), |any, each| {
            let (settled, observed) = each.has_pending();
            (any.0 | settled, any.1 | observed)
        });
        if quotas.has_learnt() || (hurry && (settled || observed)) {
            self.flush_within(0, now);
        } else if settled {
            self.flush_within(SETTLEMENT_DELAY, now);
        } else if observed {
            self.flush_within(OBSERVATION_DELAY, now);
        }
    }

    /// When the store is to be told something, if it listens.
    pub(super) fn flush_at(&self) -> Option<Ns> {
        self.flush_at.filter(|_| self.up && self.under_way.is_none())
    }

    pub(super) fn flush_within(&mut self, within: Ns, now: Ns) {
        let at = now + within;
        self.flush_at = Some(self.flush_at.map_or(at, |before| before.min(at)));
    }
}
