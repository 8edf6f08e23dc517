//! What an app has used and reserved in one period of the calendar, by this process and by others.

use serde::{Deserialize, Serialize};

use super::budget::{Amounts, Unit};

/// Periods of one kind that an account remembers: the running one, and the one before it, in which requests in flight at midnight
/// were reserved.
const REMEMBERED: usize = 2;

/// What was used, and what requests in flight have reserved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Total {
    /// Used.
    pub(super) used: Amounts,
    /// Reserved by requests in flight.
    pub(super) reserved: Amounts,
}

impl Total {
    pub(super) fn plus(self, other: Self) -> Self {
        Self { used: self.used.plus(other.used), reserved: self.reserved.plus(other.reserved) }
    }

    pub(super) fn minus(self, other: Self) -> Self {
        Self { used: self.used.minus(other.used), reserved: self.reserved.minus(other.reserved) }
    }

    /// Used and reserved together, in one unit.
    pub(super) fn of(self, unit: Unit) -> u64 {
        self.used.plus(self.reserved).of(unit)
    }
}

/// The count of one period.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Count {
    /// When the period began, Unix time in seconds.
    pub(super) start: u64,
    /// Of this process.
    pub(super) mine: Total,
    /// Of other replicas and earlier processes, as last heard.
    others: Total,
    /// `mine` as the store knew it when `others` was heard.
    pub(super) told: Total,
    /// The version of the store's record that was heard last; `None`: `others` is from a file.
    heard: Option<u64>,
}

impl Count {
    /// Of everybody.
    pub(super) fn total(&self) -> Total {
        self.others.plus(self.mine)
    }

    /// Whether something of this process is not in the store yet, or has to be renewed there.
    pub(super) fn is_untold(&self) -> bool {
        self.mine != self.told || self.mine.reserved != Amounts::default()
    }

    /// Whether this process may reserve more, which shares with so many others what was left when it last heard of them.
    ///
    /// As long as all of them have heard the same, their shares add up to what is left.
    pub(super) fn has_room(&self, unit: Unit, limit: u64, replicas: u32) -> bool {
        let known = self.others.plus(self.told).of(unit);
        let left = i128::from(limit) - i128::from(known);
        let taken_since = i128::from(self.mine.of(unit)) - i128::from(self.told.of(unit));
        taken_since < left.div_euclid(i128::from(replicas.max(1)))
    }

    /// The store's answer: it has been told `told`, and these are the totals with it.
    pub(super) fn answered(&mut self, told: Total, version: u64, total: Total) {
        let others = total.minus(told);
        // A store that has come back empty does not know what processes that have ended had used.
        let known = self.heard.map_or(Amounts::default(), |_| self.others.used);
        self.others = Total { used: known.max(others.used), reserved: others.reserved };
        (self.told, self.heard) = (told, Some(version));
    }

    /// News of what another replica has told the store. The caller knows that the store knows `told`.
    pub(super) fn hear(&mut self, version: u64, total: Total) {
        if self.heard.is_some_and(|heard| heard < version) {
            self.answered(self.told, version, total);
        }
    }
}

/// The counts of one app's days, or of its months; the last one used first.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts(Vec<Count>);

/// A count as it is saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SavedCount {
    start: u64,
    #[serde(flatten)]
    used: Amounts,
}

impl Counts {
    /// The count of the period that began at `start`.
    ///
    /// Where the clock has stepped, that need not be the latest one: each period keeps its own count, so that a step forward and
    /// back neither grants a budget twice nor refuses until a day that is far away.
    pub(super) fn at(&mut self, start: u64) -> &mut Count {
        match self.0.iter().position(|count| count.start == start) {
            Some(at) => self.0[..=at].rotate_right(1),
            None => {
                // Back to before everything that is known: what was used then may have been forgotten, so it is what was used since.
                let earliest = self.0.iter().min_by_key(|count| count.start).filter(|count| count.start > start);
                let others = earliest.map_or_else(Total::default, |count| Total { used: count.total().used, ..Total::default() });
                self.0.truncate(REMEMBERED - 1);
                self.0.insert(0, Count { start, others, ..Count::default() });
            }
        }
        &mut self.0[0]
    }

    /// The count of a period, if it is remembered.
    pub(super) fn find(&mut self, start: u64) -> Option<&mut Count> {
        self.0.iter_mut().find(|count| count.start == start)
    }

    /// What was used and reserved in a period.
    pub(super) fn total(&self, start: u64) -> Total {
        self.0.iter().find(|count| count.start == start).map_or_else(Total::default, Count::total)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Count> {
        self.0.iter()
    }

    /// Whether nothing was used since `start`, and nothing is in flight.
    pub(super) fn is_over(&self, start: u64) -> bool {
        self.0.iter().all(|count| count.start < start && count.mine.reserved == Amounts::default())
    }

    /// To be saved: what is in flight counts as used, since nobody will settle it.
    pub(super) fn saved(&self) -> Vec<SavedCount> {
        let used = |count: &Count| count.total().used.plus(count.mine.reserved);
        self.0.iter().map(|count| SavedCount { start: count.start, used: used(count) }).collect()
    }

    pub(super) fn restored(saved: Vec<SavedCount>) -> Self {
        let count = |SavedCount { start, used }| {
            let others = Total { used, ..Total::default() };
            Count { start, others, ..Count::default() }
        };
        Self(saved.into_iter().take(REMEMBERED).map(count).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(tokens: u64) -> Amounts {
        Amounts { tokens, ..Amounts::default() }
    }

    fn total(used: u64, reserved: u64) -> Total {
        Total { used: tokens(used), reserved: tokens(reserved) }
    }

    #[test]
    fn a_replica_without_the_store_has_its_share_of_what_was_left() {
        let mut count = Count { mine: total(100, 50), ..Count::default() };
        count.answered(count.mine, 1, total(500, 100));
        // 400 of 1000 are left, and two replicas.
        let spend = |more: u64| Count { mine: total(100 + more, 50), ..count };
        assert!(spend(199).has_room(Unit::Tokens, 1000, 2));
        assert!(!spend(200).has_room(Unit::Tokens, 1000, 2));
        assert!(spend(399).has_room(Unit::Tokens, 1000, 1));
        // What it had reserved and did not use is its own.
        let settled = Count { mine: total(100 + 200, 0), ..count };
        assert!(settled.has_room(Unit::Tokens, 1000, 2));
        assert!(!count.has_room(Unit::Tokens, 600, 2) && !count.has_room(Unit::Tokens, 601, 2), "less than a share is left");
    }

    #[test]
    fn an_answer_counts_nothing_twice() {
        let mut count = Count { mine: total(300, 0), ..Count::default() };
        count.answered(total(100, 0), 4, total(900, 40));
        assert_eq!(count.total(), total(800 + 300, 40), "200 are not told yet");
        count.answered(count.mine, 5, total(1100, 0));
        assert_eq!(count.total(), total(1100, 0));
    }

    #[test]
    fn news_count_unless_they_are_old() {
        let mut count = Count::default();
        count.hear(7, total(70, 0));
        assert_eq!(count.total(), total(0, 0), "before the first answer");
        count.answered(total(0, 0), 8, total(80, 10));
        count.hear(7, total(70, 0));
        assert_eq!(count.total(), total(80, 10));
        count.hear(9, total(90, 0));
        assert_eq!(count.total(), total(90, 0));
    }

    #[test]
    fn a_store_that_comes_back_empty_makes_nobody_forget_what_was_used() {
        let mut count = Counts::restored(vec![SavedCount { start: 5, used: tokens(400) }]).0[0];
        assert_eq!(count.total(), total(400, 0));
        count.answered(total(0, 0), 3, total(350, 20));
        assert_eq!(count.total(), total(350, 20), "the store knows better than the file");
        count.answered(total(0, 0), 1, total(10, 0));
        assert_eq!(count.total(), total(350, 0));
    }
}
