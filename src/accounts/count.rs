//! What an app has used and reserved in one calendar period, in this process and in others.

use serde::{Deserialize, Serialize};

use super::budget::{Amounts, Unit};

/// Number of periods of one kind that an account keeps: the running one, and the previous one for requests that were in flight
/// when it ended.
const REMEMBERED: usize = 2;

/// What has been used, and what requests in flight have reserved.
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

    /// The sum of used and reserved, in one unit.
    pub(super) fn of(self, unit: Unit) -> u64 {
        self.used.plus(self.reserved).of(unit)
    }
}

/// The count of one period.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Count {
    /// When the period began, Unix time in seconds.
    pub(super) start: u64,
    /// By this process.
    pub(super) mine: Total,
    /// By other replicas and earlier processes, as of the store's last reply or update.
    others: Total,
    /// The part of `others` that earlier processes of this replica used since the store's last reply.
    taken_before: Amounts,
    /// The part of `mine` that the store's last reply included.
    pub(super) reported: Total,
    /// Version of the store's record that `others` was computed from; 0 if `others` comes from a file, `None` if it is assumed.
    version: Option<u64>,
}

impl Count {
    /// By all processes.
    pub(super) fn total(&self) -> Total {
        self.others.plus(self.mine)
    }

    /// Whether the store lacks changes of this process, or holds a reservation that has to be renewed.
    pub(super) fn is_unreported(&self) -> bool {
        self.mine != self.reported || self.mine.reserved != Amounts::default()
    }

    /// Whether this process may reserve more while each of `replicas` processes may use an equal share of what was left at the
    /// last update from the store.
    ///
    /// If all replicas have received the same update, their shares add up to what was left.
    pub(super) fn has_room(&self, unit: Unit, limit: u64, replicas: u32) -> bool {
        let taken_before = i128::from(self.taken_before.of(unit));
        let known = i128::from(self.others.plus(self.reported).of(unit)) - taken_before;
        let left = i128::from(limit) - known;
        let taken_since = taken_before + i128::from(self.mine.of(unit)) - i128::from(self.reported.of(unit));
        // What is exceeded is not shared: each replica would admit more once its part of the excess has been returned.
        let share = if left < 0 { left } else { left / i128::from(replicas.max(1)) };
        taken_since < share
    }

    /// Applies the store's reply: `total` of all replicas, which includes `reported` from this one.
    pub(super) fn apply_reply(&mut self, reported: Total, version: u64, total: Total) {
        let others = total.minus(reported);
        // A store that has lost its data lacks the usage of processes that have ended, including those before this one.
        let known = self.version.map_or(Amounts::default(), |_| self.others.used);
        self.others = Total { used: known.max(others.used), reserved: others.reserved };
        (self.reported, self.version, self.taken_before) = (reported, Some(version), Amounts::default());
    }

    /// Applies an update that another replica caused. The caller makes sure that the store has acknowledged `reported`.
    pub(super) fn apply_update(&mut self, version: u64, total: Total) {
        if self.version.is_some_and(|known| known < version) {
            self.apply_reply(self.reported, version, total);
        }
    }
}

/// The counts of one app's days or of its months, most recently used first.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts(Vec<Count>);

/// A count in the saved file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SavedCount {
    start: u64,
    #[serde(flatten)]
    used: Amounts,
    /// The part of it that this replica has taken of its share since the store's last reply.
    #[serde(default)]
    taken: Amounts,
    /// Reserved by other replicas, as of that reply.
    #[serde(default)]
    reserved: Amounts,
}

impl Counts {
    /// The count of the period that began at `start`.
    ///
    /// If the wall clock was stepped, this is not necessarily the latest period. Each period has its own count, so stepping the
    /// clock forward and back neither grants a budget twice nor refuses requests until a distant day.
    pub(super) fn at(&mut self, start: u64) -> &mut Count {
        match self.0.iter().position(|count| count.start == start) {
            Some(at) => self.0[..=at].rotate_right(1),
            None => {
                // Earlier than every known period: its own count may have been dropped, so assume the usage of the earliest known
                // one.
                let earliest = self.0.iter().min_by_key(|count| count.start).filter(|count| count.start > start);
                let others = earliest.map_or_else(Total::default, |count| Total { used: count.total().used, ..Total::default() });
                self.0.truncate(REMEMBERED - 1);
                self.0.insert(0, Count { start, others, ..Count::default() });
            }
        }
        &mut self.0[0]
    }

    /// The count of a period, if it is kept.
    pub(super) fn find(&mut self, start: u64) -> Option<&mut Count> {
        self.0.iter_mut().find(|count| count.start == start)
    }

    /// What has been used and reserved in a period.
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

    /// The counts to save. What is in flight counts as used, because a restarted process cannot settle it.
    pub(super) fn saved(&self) -> Vec<SavedCount> {
        let saved = |count: &Count| {
            let sum = |total: Total| total.used.plus(total.reserved);
            let taken = sum(count.mine).plus(count.taken_before).minus(sum(count.reported));
            let used = count.total().used.plus(count.mine.reserved);
            SavedCount { start: count.start, used, taken, reserved: count.others.reserved }
        };
        self.0.iter().map(saved).collect()
    }

    /// The counts that an earlier process saved; `is_shared`: with other replicas.
    pub(super) fn restored(saved: Vec<SavedCount>, is_shared: bool) -> Self {
        let count = |SavedCount { start, used, taken, reserved }| {
            let others = Total { used, reserved: if is_shared { reserved } else { Amounts::default() } };
            Count { start, others, version: Some(0), taken_before: taken, ..Count::default() }
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
    fn a_replica_without_the_store_may_use_its_share_of_what_was_left() {
        let mut count = Count { mine: total(100, 50), ..Count::default() };
        count.apply_reply(count.mine, 1, total(500, 100));
        // 400 of 1000 are left for two replicas.
        let spend = |more: u64| Count { mine: total(100 + more, 50), ..count };
        assert!(spend(199).has_room(Unit::Tokens, 1000, 2));
        assert!(!spend(200).has_room(Unit::Tokens, 1000, 2));
        assert!(spend(399).has_room(Unit::Tokens, 1000, 1));
        // A reservation that it did not use is available to it again.
        let settled = Count { mine: total(100 + 200, 0), ..count };
        assert!(settled.has_room(Unit::Tokens, 1000, 2));
        assert!(!count.has_room(Unit::Tokens, 600, 2) && !count.has_room(Unit::Tokens, 601, 2), "less than a share is left");
    }

    #[test]
    fn a_replica_does_not_use_an_excess_as_if_it_were_shared() {
        let mut count = Count { mine: total(0, 300), ..Count::default() };
        count.apply_reply(count.mine, 1, total(500, 600));
        // 1100 of 1000 are used or reserved, and 60 of that were not needed.
        let settled = Count { mine: total(240, 0), ..count };
        assert!(!settled.has_room(Unit::Tokens, 1000, 2));
        assert!(Count { mine: total(199, 0), ..count }.has_room(Unit::Tokens, 1000, 2));
    }

    #[test]
    fn a_reply_counts_nothing_twice() {
        let mut count = Count { mine: total(300, 0), ..Count::default() };
        count.apply_reply(total(100, 0), 4, total(900, 40));
        assert_eq!(count.total(), total(800 + 300, 40), "200 are unreported");
        count.apply_reply(count.mine, 5, total(1100, 0));
        assert_eq!(count.total(), total(1100, 0));
    }

    #[test]
    fn outdated_updates_are_ignored() {
        let mut count = Count::default();
        count.apply_update(7, total(70, 0));
        assert_eq!(count.total(), total(0, 0), "before the first reply");
        count.apply_reply(total(0, 0), 8, total(80, 10));
        count.apply_update(7, total(70, 0));
        assert_eq!(count.total(), total(80, 10));
        count.apply_update(9, total(90, 0));
        assert_eq!(count.total(), total(90, 0));
    }

    #[test]
    fn usage_survives_a_store_that_lost_its_data() {
        let mut count =
            Counts::restored(vec![SavedCount { start: 5, used: tokens(400), taken: tokens(0), reserved: tokens(0) }], true).0[0];
        assert_eq!(count.total(), total(400, 0));
        count.apply_reply(total(0, 0), 3, total(350, 20));
        assert_eq!(count.total(), total(400, 20), "it was lost before this process started");
        count.apply_reply(total(0, 0), 4, total(450, 20));
        assert_eq!(count.total(), total(450, 20));
        count.apply_reply(total(0, 0), 1, total(10, 0));
        assert_eq!(count.total(), total(450, 0));
    }
}
