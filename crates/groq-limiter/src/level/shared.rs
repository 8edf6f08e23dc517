//! What does a level that replicas share owe the store, and how does it stand without one?
//!
//! With the store the bucket is a forecast: the last word of the store and what this replica has to tell it. Without it
//! the level goes on alone: the bucket with its observer as ever, beside a share of limit ÷ replicas that starts as full
//! as the bucket is. Back with the store, what the share has grown beyond its part of the old level is owed.

use std::borrow::Cow;

use super::{
    Level,
    sent::{JITTER, Mark},
};
use crate::{
    books::{Amount, Place},
    bucket::{Bucket, Fit, Ns},
    exchange::{Cell, Sighting, Standing},
};

/// Replicas whose turns are less apart go in any order: clocks differ, and news takes its time.
const ABREAST: Ns = 300_000_000;

/// The store's side of a level.
#[derive(Debug, Default)]
pub(super) struct Far {
    /// Settlements that the store has not been told, ns.
    settled: i64,
    /// The same of reservations given up.
    given_up: i64,
    /// What is being told now: settlements, and everything.
    told: (i64, i64),
    pub(super) sighting: Option<Sighting>,
    /// The store's last word.
    standing: Standing,
    /// What its sums of settlements lack since its record began anew, ns.
    before: i64,
    /// Back with the store, which is to hear of it: when the level is full again at the earliest, by Groq's headers.
    claim: Option<Ns>,
    /// Reserved in the store and not ended, without what Groq counts as soon as it is sent, ns.
    lent: Ns,
    /// Without the store: when the level was full again as it was lost.
    parted: Option<Ns>,
    /// The limit is divided by so many meanwhile.
    replicas: u32,
}

impl Far {
    /// By how much settlements, corrections and reservations given up have moved the level for this place since it stood
    /// so, ns.
    fn since(&self, mark: &Mark, place: Place) -> i64 {
        let adjusted = self.standing.adjusted.wrapping_add(self.before).wrapping_sub(mark.adjusted);
        let gone = self.standing.gone.iter().filter(|gone| gone.version > place.version && gone.position < place.position);
        let gained: i64 = gone.map(|gone| gone.span as i64).sum();
        adjusted.saturating_add(self.settled).saturating_add(self.told.0).saturating_sub(gained)
    }

    /// What was taken before this place and goes hardly before it, or after it, ns: Groq may not have seen it yet.
    fn abreast(&self, place: Place, now: Ns) -> Ns {
        let turns = self.standing.turns.iter().filter(|turn| turn.position < place.position && turn.due + ABREAST > now);
        turns.fold(0, |sum, turn| sum.saturating_add(turn.span))
    }
}

impl Level {
    /// From now on it is shared; alone until the store has answered.
    pub fn link(&mut self, replicas: u32, now: Ns) {
        if self.far.is_none() {
            self.far = Some(Box::default());
            self.part(replicas, now);
        }
    }

    /// Whether it does without the store.
    pub(super) fn is_parted(&self) -> bool {
        self.far.as_ref().is_some_and(|far| far.parted.is_some())
    }

    /// The part of the limit that others leave to this replica.
    pub(super) fn own_part(&self) -> f64 {
        match &self.far {
            Some(far) if far.parted.is_some() => (1.0 - self.headroom) / f64::from(far.replicas.max(1)),
            _ => 1.0 - self.headroom,
        }
    }

    /// A settlement or a stranger's use, ns.
    pub(super) fn owe(&mut self, span: i64) {
        if let Some(far) = self.far.as_mut().filter(|far| far.parted.is_none()) {
            far.settled = far.settled.saturating_add(span);
        }
    }

    /// Groq's word, for the store.
    pub(super) fn sight(&mut self, sighting: Sighting) {
        if let Some(far) = self.far.as_mut().filter(|far| far.parted.is_none())
            && far.sighting.is_none_or(|before| before.position < sighting.position)
        {
            // In the sums of the store's record.
            let adjusted = sighting.mark.adjusted.wrapping_sub(far.before);
            far.sighting = Some(Sighting { mark: Mark { adjusted, ..sighting.mark }, ..sighting });
        }
    }

    /// Whether the store has to be told something; and whether that changes what others may take.
    pub fn owes(&self) -> (bool, bool) {
        self.far.as_ref().map_or((false, false), |far| {
            let spans = far.settled != 0 || far.given_up != 0;
            (spans || far.claim.is_some() || far.sighting.is_some(), spans)
        })
    }

    /// Its name in the store.
    pub fn stored_code(&self) -> Cow<'static, str> {
        if self.is_bound() { format!("{}:configured", self.dimension.code).into() } else { self.dimension.code.clone() }
    }

    /// Its part of a transaction. `None` without a limit. A hello tells nothing.
    pub fn cell(&mut self, hello: bool, head: Option<&Amount>) -> Option<Cell> {
        let asked = head.map_or(0, |amount| self.asked(amount));
        let reserve = self.reserve(asked);
        let code = self.stored_code().into();
        let (bucket, far) = (self.bucket.as_ref()?, self.far.as_mut()?);
        let owed = far.settled.saturating_add(far.given_up);
        let mut cell = Cell {
            code,
            whole: bucket.span(bucket.limit()),
            known: far.parted.unwrap_or(bucket.tat()).saturating_add_signed(owed.saturating_neg()),
            settled: 0,
            given_up: 0,
            claimed: false,
            sighting: None,
            lent: far.lent,
            asked: bucket.span(asked),
            reserve: bucket.span(reserve),
        };
        if !hello {
            if let Some(claim) = far.claim.take() {
                (cell.known, cell.claimed) = (claim, true);
            }
            (cell.settled, cell.given_up, cell.sighting) = (far.settled, far.given_up, far.sighting.take());
            far.told = (far.settled, owed);
            (far.settled, far.given_up) = (0, 0);
        }
        Some(cell)
    }

    /// A transaction that was lost was never applied: everything is owed again.
    pub fn untold(&mut self, cell: &Cell) {
        // What is claimed counts it already.
        if let Some(far) = self.far.as_mut().filter(|far| far.claim.is_none()) {
            far.settled = far.settled.saturating_add(cell.settled);
            far.given_up = far.given_up.saturating_add(cell.given_up);
        }
    }

    /// The store's record has begun anew, like this: what was booked under the old one keeps its time.
    pub fn renew(&mut self, standing: &Standing) {
        if let Some(far) = &mut self.far {
            far.before = far.before.wrapping_add(far.standing.adjusted).wrapping_sub(standing.adjusted);
            // Its mark is of the old record.
            far.sighting = None;
        }
    }

    /// The store's word. `mine`: an answer to what was told; else news of another replica's doing.
    pub fn hear(&mut self, standing: &Standing, mine: bool, now: Ns) {
        let (Some(bucket), Some(far)) = (&mut self.bucket, &mut self.far) else { return };
        far.standing.clone_from(standing);
        if mine {
            far.told = (0, 0);
        }
        if far.parted.is_none() {
            let owed = far.settled.saturating_add(far.given_up).saturating_add(far.told.1);
            bucket.set_tat(standing.tat.max(far.claim.unwrap_or(0)).saturating_add_signed(owed), now);
            self.corrections = standing.corrections;
            self.newest = standing.newest;
        }
    }

    /// The store has charged `asked`: how it stands, and when it would be full again with what is left untouched.
    pub fn charged(&mut self, asked: u64, now: Ns) -> (Mark, Ns) {
        self.spend(asked, now);
        if let (Some(bucket), Some(far)) = (&self.bucket, &mut self.far) {
            far.lent = far.lent.saturating_add(bucket.span(asked));
        }
        self.far.as_ref().map_or_else(Default::default, |far| {
            let &Standing { tat, corrections, adjusted, recent, room, .. } = &far.standing;
            (Mark { tat, corrections, adjusted: adjusted.wrapping_add(far.before), recent }, room)
        })
    }

    /// What the store has charged goes out now: Groq has seen what was given back since, and counts it from now. Where the
    /// level had room before the others had, what has come back since it was charged is owed.
    pub fn set_out(&mut self, asked: u64, place: Place, mark: &mut Mark, now: Ns) {
        if let Some(far) = &self.far {
            mark.tat = mark.tat.saturating_add_signed(far.since(mark, place));
            mark.corrections = far.standing.corrections;
            mark.adjusted = far.standing.adjusted.wrapping_add(far.before);
            mark.recent = mark.recent.max(far.standing.recent).saturating_add(far.abreast(place, now));
        }
        let Some(bucket) = self.bucket.as_mut().filter(|_| asked > 0) else { return };
        let drained = bucket.tat_of(asked, now).saturating_sub(mark.tat);
        if drained > JITTER {
            let drained = drained.min(bucket.span(asked));
            mark.tat = mark.tat.saturating_add(drained);
            mark.adjusted = mark.adjusted.saturating_add(drained as i64);
            bucket.drain(drained, now, now);
            self.owe(drained as i64);
        }
    }

    /// So much of what was reserved in the store has ended, or will not come back.
    pub fn ended(&mut self, units: u64) {
        if let (Some(bucket), Some(far)) = (&self.bucket, &mut self.far) {
            far.lent = far.lent.saturating_sub(bucket.span(units));
        }
    }

    /// The limit has changed: what `unit` was, ns, is another span now.
    pub(super) fn rescale_lent(&mut self, unit: Ns) {
        if let (Some(bucket), Some(far)) = (&self.bucket, &mut self.far) {
            far.lent = bucket.rescale(far.lent, unit);
        }
    }

    /// A reservation of the store's is not used: before its time, so nobody that came before gains from it.
    pub fn give_up(&mut self, asked: u64) {
        let Some(bucket) = &mut self.bucket else { return };
        bucket.refund(asked);
        if let Some(far) = &mut self.far {
            far.given_up = far.given_up.saturating_sub(i64::try_from(bucket.span(asked)).unwrap_or(i64::MAX));
        }
    }

    /// When a head may go that the store has charged when the level stood so, with its room until then.
    pub fn due(&self, room: Ns, place: Place, mark: &Mark) -> Ns {
        let (Some(bucket), Some(far)) = (self.bucket.as_ref().filter(|_| room > 0), &self.far) else { return 0 };
        bucket.out_of_debt(room.saturating_add_signed(far.since(mark, place)))
    }

    /// When what the store does not know of has room: the part of our own.
    pub fn peek_own(&self, asked: u64, now: Ns) -> Fit {
        self.share.as_ref().map_or(Fit::Now, |share| share.peek(asked.min(share.limit()), 0, now))
    }

    /// The store is lost: limit ÷ replicas from here.
    pub fn part(&mut self, replicas: u32, now: Ns) {
        let Some(far) = self.far.as_mut().filter(|far| far.parted.is_none()) else { return };
        let tat = self.bucket.as_ref().map_or(now, Bucket::tat);
        (far.parted, far.claim, far.replicas, far.told, far.sighting) = (Some(tat), None, replicas, (0, 0), None);
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
        let Some(far) = self.far.as_deref_mut() else { return };
        let Some(parted) = far.parted.take() else { return };
        if let (Some(bucket), Some(share)) = (&self.bucket, &self.share) {
            if visible {
                far.claim = Some(bucket.tat());
            } else {
                let left = |tat: Ns| tat.saturating_sub(now) as f64;
                let part = bucket.span(1) as f64 / share.span(1) as f64;
                far.settled = far.settled.saturating_add(((left(share.tat()) - left(parted)) * part) as i64);
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
    use crate::{level::Terms, types::Dimension};

    const NOW: Ns = 1_000_000_000_000;

    fn terms(limit: u64) -> Terms {
        Terms { configured: Some(limit), ..Terms::default() }
    }

    /// A level of 6000 a minute that two replicas share through the store.
    fn joined() -> Level {
        let mut level = Level::new(Dimension::TPM, terms(6000), 0.0, NOW);
        level.link(2, NOW);
        level.join(NOW);
        level
    }

    /// What would come back should this replica fall silent, units.
    fn lent(level: &mut Level) -> u64 {
        let unit = level.bucket().expect("it has a limit").span(1);
        level.cell(true, None).expect("it has a limit").lent / unit
    }

    /// In nanoseconds it would be another number of units under another limit, and the store would give back too much.
    #[test]
    fn what_is_lent_stays_the_same_number_of_units_under_another_limit() {
        let mut level = joined();
        level.charged(100, NOW);
        level.charged(50, NOW);
        assert_eq!(lent(&mut level), 150);
        for limit in [12_000, 250, 6000] {
            level.agree(terms(limit), 0, NOW);
            assert_eq!(lent(&mut level), 150, "limit {limit}");
        }
        level.ended(100);
        assert_eq!(lent(&mut level), 50);
    }

    #[test]
    fn without_a_limit_nothing_is_lent() {
        let mut level = joined();
        level.charged(100, NOW);
        level.agree(Terms::default(), 0, NOW);
        assert!(level.cell(true, None).is_none());
        // A limit that comes back knows nothing of what was reserved before it.
        level.agree(terms(6000), 0, NOW + Duration::from_secs(1).as_nanos() as Ns);
        assert_eq!(lent(&mut level), 0);
    }
}
