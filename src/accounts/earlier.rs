//! What earlier processes of this replica have used, by the state file, until the store has acknowledged it.
//!
//! Each report carries the id of the process that used it, and the store keeps what that process has reported before. So only
//! the part that the store lacks is added, however often it is reported.

use serde::{Deserialize, Serialize};

use super::{
    budget::Amounts,
    calendar::Period,
    count::{Count, Counts, Total},
    protocol::Part,
};

/// Maximum number of entries of one app and period. Without a store every restart adds one.
const MAX_ENTRIES: usize = 8;

/// What one process has used in one period.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// Id of the process.
    replica: String,
    period: Period,
    start: u64,
    #[serde(flatten)]
    used: Amounts,
}

/// The entries of one app, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Earlier(Vec<Entry>);

impl Earlier {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// These entries and those of the process `replica` with its `counts`. What it has in flight counts as used.
    pub(super) fn and(&self, replica: &str, period: Period, counts: &Counts) -> Self {
        let of_count = |count: &Count| {
            let used = count.mine.used.plus(count.mine.reserved);
            (used != Amounts::default()).then(|| Entry { replica: replica.to_owned(), period, start: count.start, used })
        };
        Self(self.0.iter().cloned().chain(counts.iter().filter_map(of_count)).collect())
    }

    /// Drops the entries of periods without a count, and adds up the oldest ones of a period with too many.
    pub(super) fn trimmed(self, days: &Counts, months: &Counts) -> Self {
        let mut kept: Vec<Entry> = Vec::new();
        for entry in self.0.into_iter().rev() {
            let counts = match entry.period {
                Period::Day => days,
                Period::Month => months,
            };
            if counts.iter().all(|count| count.start != entry.start) {
                continue;
            }
            let mut same = kept.iter_mut().filter(|other| (other.period, other.start) == (entry.period, entry.start));
            match same.nth(MAX_ENTRIES - 1) {
                Some(oldest) => oldest.used = oldest.used.plus(entry.used),
                None => kept.push(entry),
            }
        }
        kept.reverse();
        Self(kept)
    }

    /// The process whose entries are to be reported next, and the parts of that report.
    pub(super) fn next(&self, now: u64) -> Option<(String, Vec<Part>)> {
        let replica = &self.0.first()?.replica;
        let part = |entry: &Entry| {
            let used = Total { used: entry.used, ..Total::default() };
            Part::new(entry.period, entry.start, used, now)
        };
        Some((replica.clone(), self.0.iter().filter(|entry| entry.replica == *replica).map(part).collect()))
    }

    /// Drops the entries of a process, which the store has acknowledged.
    pub(super) fn acknowledge(&mut self, replica: &str) {
        self.0.retain(|entry| entry.replica != replica);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(replica: usize, start: u64, tokens: u64) -> Entry {
        Entry { replica: replica.to_string(), period: Period::Day, start, used: Amounts { tokens, ..Amounts::default() } }
    }

    #[test]
    fn many_restarts_without_a_store_keep_the_sum_in_a_bounded_list() {
        let (mut days, months) = (Counts::default(), Counts::default());
        days.at(5);
        let entries: Vec<Entry> = (0..50).map(|n| entry(n, 5, 1)).chain([entry(50, 4, 9)]).collect();
        let trimmed = Earlier(entries).trimmed(&days, &months);
        assert_eq!(trimmed.0.len(), MAX_ENTRIES);
        assert_eq!(trimmed.0.iter().map(|entry| entry.used.tokens).sum::<u64>(), 50, "and nothing of a period that is over");
    }
}
