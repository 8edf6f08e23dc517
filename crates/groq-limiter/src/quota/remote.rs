//! The shared side of a quota: what it has to tell the store, and how it goes on without one.
//!
//! With the store the bucket is a forecast: the last word of the store and what this replica has to tell it. Without it
//! the quota goes on alone: the bucket with its observer as ever, beside a share of limit ÷ replicas that starts as full
//! as the bucket is. Back with the store, what the share has grown beyond its part of the old quota is owed.

use std::borrow::Cow;

use super::{
    Quota,
    send_snapshot::{JITTER, SendSnapshot},
};
use crate::{
    bucket::{Bucket, Ns, Readiness},
    quota_set::{BookingOrder, Cost},
    store::protocol::{Cell, RemoteView, SentObservation},
};

/// Replicas whose pending bookings are less apart go in any order: clocks differ, and news takes its time.
const ABREAST: Ns = 300_000_000;

/// The store's side of a quota.
#[derive(Debug, Default)]
pub(super) struct Remote {
    /// Settlements that the store has not been told, ns.
    settled: i64,
    /// The same of reservations given up.
    given_up: i64,
    /// What is being told now: settlements, and everything.
    told: (i64, i64),
    pub(super) observation: Option<SentObservation>,
    /// The store's last word.
    view: RemoteView,
    /// What its sums of settlements lack since its record began anew, ns.
    before: i64,
    /// Back with the store, which is to hear of it: when the quota is full again at the earliest, by Groq's headers.
    claim: Option<Ns>,
    /// Reserved in the store and not ended, without what Groq counts as soon as it is sent, ns.
    outstanding: Ns,
    /// Without the store: when the quota was full again as it was lost.
    parted: Option<Ns>,
    /// The limit is divided by so many meanwhile.
    replicas: u32,
}

impl Remote {
    /// By how much settlements, corrections and reservations given up have moved the quota for this place since it stood
    /// so, ns.
    fn since(&self, snapshot: &SendSnapshot, place: BookingOrder) -> i64 {
        let adjusted = self.view.adjusted.wrapping_add(self.before).wrapping_sub(snapshot.adjusted);
        let gone = self.view.gone.iter().filter(|gone| gone.version > place.version && gone.position < place.position);
        let gained: i64 = gone.map(|gone| gone.span as i64).sum();
        adjusted.saturating_add(self.settled).saturating_add(self.told.0).saturating_sub(gained)
    }

    /// What was taken before this place and goes hardly before it, or after it, ns: Groq may not have seen it yet.
    fn abreast(&self, place: BookingOrder, now: Ns) -> Ns {
        let pending_bookings =
            self.view.pending_bookings.iter().filter(|turn| turn.position < place.position && turn.due + ABREAST > now);
        pending_bookings.fold(0, |sum, turn| sum.saturating_add(turn.span))
    }
}

impl Quota {
    /// From now on it is shared; alone until the store has answered.
    pub fn link(&mut self, replicas: u32, now: Ns) {
        if self.remote.is_none() {
            self.remote = Some(Box::default());
            self.part(replicas, now);
        }
    }

    /// Whether it does without the store.
    pub(super) fn is_parted(&self) -> bool {
        self.remote.as_ref().is_some_and(|remote| remote.parted.is_some())
    }

    /// The part of the limit that others leave to this replica.
    pub(super) fn own_part(&self) -> f64 {
        match &self.remote {
            Some(remote) if remote.parted.is_some() => (1.0 - self.headroom) / f64::from(remote.replicas.max(1)),
            _ => 1.0 - self.headroom,
        }
    }

    /// A settlement or a stranger's use, ns.
    pub(super) fn add_pending(&mut self, span: i64) {
        if let Some(remote) = self.remote.as_mut().filter(|remote| remote.parted.is_none()) {
            remote.settled = remote.settled.saturating_add(span);
        }
    }

    /// So many units were taken without the store, which is to hear of it.
    pub fn tell_taken(&mut self, units: u64) {
        if let Some(bucket) = &self.bucket {
            self.add_pending(i64::try_from(bucket.span(units)).unwrap_or(i64::MAX));
        }
    }

    /// Groq's word, for the store.
    pub(super) fn report_observation(&mut self, observation: SentObservation) {
        if let Some(remote) = self.remote.as_mut().filter(|remote| remote.parted.is_none())
            && remote.observation.is_none_or(|before| before.position < observation.position)
        {
            // In the sums of the store's record.
            let adjusted = observation.snapshot.adjusted.wrapping_sub(remote.before);
            remote.observation =
                Some(SentObservation { snapshot: SendSnapshot { adjusted, ..observation.snapshot }, ..observation });
        }
    }

    /// Whether the store has to be told something; and whether that changes what others may take.
    pub fn has_pending(&self) -> (bool, bool) {
        self.remote.as_ref().map_or((false, false), |remote| {
            let spans = remote.settled != 0 || remote.given_up != 0;
            (spans || remote.claim.is_some() || remote.observation.is_some(), spans)
        })
    }

    /// Its name in the store.
    pub fn stored_code(&self) -> Cow<'static, str> {
        if self.is_bound() { format!("{}:configured", self.dimension.code).into() } else { self.dimension.code.clone() }
    }

    /// Its part of a transaction. `None` without a limit. A hello tells nothing.
    pub fn cell(&mut self, hello: bool, head: Option<&Cost>) -> Option<Cell> {
        let units = head.map_or(0, |cost| self.units(cost));
        let margin = self.margin(units);
        let code = self.stored_code().into();
        let (bucket, remote) = (self.bucket.as_ref()?, self.remote.as_mut()?);
        let owed = remote.settled.saturating_add(remote.given_up);
        let mut cell = Cell {
            code,
            whole: bucket.span(bucket.limit()),
            known: remote.parted.unwrap_or(bucket.tat()).saturating_add_signed(owed.saturating_neg()),
            settled: 0,
            given_up: 0,
            claimed: false,
            observation: None,
            outstanding: remote.outstanding,
            asked: bucket.span(units),
            margin: bucket.span(margin),
        };
        if !hello {
            if let Some(claim) = remote.claim.take() {
                (cell.known, cell.claimed) = (claim, true);
            }
            (cell.settled, cell.given_up, cell.observation) = (remote.settled, remote.given_up, remote.observation.take());
            remote.told = (remote.settled, owed);
            (remote.settled, remote.given_up) = (0, 0);
        }
        Some(cell)
    }

    /// A transaction that was lost was never applied: everything is owed again.
    pub fn retract(&mut self, cell: &Cell) {
        // What is claimed counts it already.
        if let Some(remote) = self.remote.as_mut().filter(|remote| remote.claim.is_none()) {
            remote.settled = remote.settled.saturating_add(cell.settled);
            remote.given_up = remote.given_up.saturating_add(cell.given_up);
        }
    }

    /// The store's record has begun anew, like this: what was booked under the old one keeps its time.
    pub fn renew(&mut self, view: &RemoteView) {
        if let Some(remote) = &mut self.remote {
            remote.before = remote.before.wrapping_add(remote.view.adjusted).wrapping_sub(view.adjusted);
            // Its snapshot is of the old record.
            remote.observation = None;
        }
    }

    /// The store's word. `mine`: an answer to what was told; else news of another replica's doing.
    pub fn hear(&mut self, view: &RemoteView, mine: bool, now: Ns) {
        let (Some(bucket), Some(remote)) = (&mut self.bucket, &mut self.remote) else { return };
        remote.view.clone_from(view);
        if mine {
            remote.told = (0, 0);
        }
        if remote.parted.is_none() {
            let owed = remote.settled.saturating_add(remote.given_up).saturating_add(remote.told.1);
            bucket.set_tat(view.tat.max(remote.claim.unwrap_or(0)).saturating_add_signed(owed), now);
            self.corrections = view.corrections;
            self.newest = view.newest;
        }
    }

    /// The store has charged `units`: how it stands, and when it would be full again with what is left untouched.
    pub fn charged(&mut self, units: u64, now: Ns) -> (SendSnapshot, Ns) {
        self.spend(units, now);
        if let (Some(bucket), Some(remote)) = (&self.bucket, &mut self.remote) {
            remote.outstanding = remote.outstanding.saturating_add(bucket.span(units));
        }
        self.remote.as_ref().map_or_else(Default::default, |remote| {
            let &RemoteView { tat, corrections, adjusted, recent, room, .. } = &remote.view;
            (SendSnapshot { tat, corrections, adjusted: adjusted.wrapping_add(remote.before), recent }, room)
        })
    }

    /// What the store has charged goes out now: Groq has seen what was given back since, and counts it from now. Where the
    /// quota had room before the others had, what has come back since it was charged is owed.
    pub fn set_out(&mut self, units: u64, place: BookingOrder, snapshot: &mut SendSnapshot, now: Ns) {
        if let Some(remote) = &self.remote {
            snapshot.tat = snapshot.tat.saturating_add_signed(remote.since(snapshot, place));
            snapshot.corrections = remote.view.corrections;
            snapshot.adjusted = remote.view.adjusted.wrapping_add(remote.before);
            snapshot.recent = snapshot.recent.max(remote.view.recent).saturating_add(remote.abreast(place, now));
        }
        let Some(bucket) = self.bucket.as_mut().filter(|_| units > 0) else { return };
        let drained = bucket.tat_of(units, now).saturating_sub(snapshot.tat);
        if drained > JITTER {
            let drained = drained.min(bucket.span(units));
            snapshot.tat = snapshot.tat.saturating_add(drained);
            snapshot.adjusted = snapshot.adjusted.saturating_add(drained as i64);
            bucket.drain(drained, now, now);
            self.add_pending(drained as i64);
        }
    }

    /// So much of what was reserved in the store has ended, or will not come back.
    pub fn ended(&mut self, units: u64) {
        if let (Some(bucket), Some(remote)) = (&self.bucket, &mut self.remote) {
            remote.outstanding = remote.outstanding.saturating_sub(bucket.span(units));
        }
    }

    /// The limit has changed: what `unit` was, ns, is another span now.
    pub(super) fn rescale_outstanding(&mut self, unit: Ns) {
        if let (Some(bucket), Some(remote)) = (&self.bucket, &mut self.remote) {
            remote.outstanding = bucket.rescale(remote.outstanding, unit);
        }
    }

    /// A reservation of the store's is not used: before its time, so nobody that came before gains from it.
    pub fn give_up(&mut self, units: u64) {
        let Some(bucket) = &mut self.bucket else { return };
        bucket.refund(units);
        if let Some(remote) = &mut self.remote {
            remote.given_up = remote.given_up.saturating_sub(i64::try_from(bucket.span(units)).unwrap_or(i64::MAX));
        }
    }

    /// When a head may go that the store has charged when the quota stood so, with its room until then.
    pub fn due(&self, room: Ns, place: BookingOrder, snapshot: &SendSnapshot) -> Ns {
        let (Some(bucket), Some(remote)) = (self.bucket.as_ref().filter(|_| room > 0), &self.remote) else { return 0 };
        bucket.out_of_debt(room.saturating_add_signed(remote.since(snapshot, place)))
    }

    /// When what the store does not know of has room: the part of our own.
    pub fn peek_own(&self, units: u64, now: Ns) -> Readiness {
        self.share.as_ref().map_or(Readiness::Now, |share| share.peek(units.min(share.limit()), 0, now))
    }

    /// The store is lost: limit ÷ replicas from here.
    pub fn part(&mut self, replicas: u32, now: Ns) {
        let Some(remote) = self.remote.as_mut().filter(|remote| remote.parted.is_none()) else { return };
        let tat = self.bucket.as_ref().map_or(now, Bucket::tat);
        (remote.parted, remote.claim, remote.replicas, remote.told, remote.observation) =
            (Some(tat), None, replicas, (0, 0), None);
        self.share = None;
        self.leave(self.headroom, now);
        if let Some(share) = &mut self.share {
            share.set_tat(tat, now);
        }
    }

    /// The store is back: what was used meanwhile is owed. Where Groq's headers have shown what all replicas used, the
    /// store hears of that; elsewhere every replica owes its own part.
    pub fn join(&mut self, now: Ns) {
        let visible = self.is_visible();
        let Some(remote) = self.remote.as_deref_mut() else { return };
        let Some(parted) = remote.parted.take() else { return };
        if let (Some(bucket), Some(share)) = (&self.bucket, &self.share) {
            if visible {
                remote.claim = Some(bucket.tat());
            } else {
                let left = |tat: Ns| tat.saturating_sub(now) as f64;
                let part = bucket.span(1) as f64 / share.span(1) as f64;
                remote.settled = remote.settled.saturating_add(((left(share.tat()) - left(parted)) * part) as i64);
            }
        }
        self.share = None;
        self.leave(self.headroom, now);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{quota::Statements, types::Dimension};

    const NOW: Ns = 1_000_000_000_000;

    fn statements(limit: u64) -> Statements {
        Statements { configured: Some(limit), ..Statements::default() }
    }

    /// A quota of 6000 a minute that two replicas share through the store.
    fn joined() -> Quota {
        let mut quota = Quota::new(Dimension::TPM, statements(6000), 0.0, NOW);
        quota.link(2, NOW);
        quota.join(NOW);
        quota
    }

    /// What would come back should this replica fall silent, units.
    fn outstanding(quota: &mut Quota) -> u64 {
        let unit = quota.bucket().expect("it has a limit").span(1);
        quota.cell(true, None).expect("it has a limit").outstanding / unit
    }

    /// In nanoseconds it would be another number of units under another limit, and the store would give back too much.
    #[test]
    fn what_is_lent_stays_the_same_number_of_units_under_another_limit() {
        let mut quota = joined();
        quota.charged(100, NOW);
        quota.charged(50, NOW);
        assert_eq!(outstanding(&mut quota), 150);
        for limit in [12_000, 250, 6000] {
            quota.agree(statements(limit), 0, NOW);
            assert_eq!(outstanding(&mut quota), 150, "limit {limit}");
        }
        quota.ended(100);
        assert_eq!(outstanding(&mut quota), 50);
    }

    #[test]
    fn without_a_limit_nothing_is_lent() {
        let mut quota = joined();
        quota.charged(100, NOW);
        quota.agree(Statements::default(), 0, NOW);
        assert!(quota.cell(true, None).is_none());
        // A limit that comes back knows nothing of what was reserved before it.
        quota.agree(statements(6000), 0, NOW + Duration::from_secs(1).as_nanos() as Ns);
        assert_eq!(outstanding(&mut quota), 0);
    }
}
