//! What a replica tells the store of an app and asks of it: plain data, and its words in the store's script.

use std::{sync::Arc, time::Duration};

use serde_json::json;

use super::{
    budget::{Amounts, Budget, Unit},
    calendar::Period,
    count::Count,
    count::Total,
};

/// One transaction, in Redis' Lua: all of it or nothing.
pub const SCRIPT: &str = include_str!("transaction.lua");

/// Doubles hold amounts up to here exactly: 9 million USD, for one. More is as good as this.
const LARGEST: u64 = 1 << 53;
/// A period's record is kept so much longer than the period: requests in flight at its end, and clocks that differ.
const KEPT: Duration = Duration::from_secs(86_400);
/// What a replica has reserved comes back when it has not been renewed for so long.
pub(super) const LEASE: Duration = Duration::from_secs(15);

/// What the store is told of one app, and asked for, in one step.
#[derive(Clone, Debug)]
pub(super) struct Transaction {
    pub(super) app: Arc<str>,
    pub(super) parts: Vec<Part>,
    pub(super) ask: Option<Ask>,
}

/// One period's part of a transaction.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) period: Period,
    pub(super) start: u64,
    /// What this process has used and reserved, in all.
    pub(super) told: Total,
    time_left: Duration,
}

impl Part {
    pub(super) fn new(period: Period, count: &Count, now: u64) -> Self {
        Self { period, start: count.start, told: count.mine, time_left: period.time_left(now) }
    }
}

/// A request that wants to reserve.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    pub(super) budgets: Box<[Budget]>,
    pub(super) estimate: Amounts,
    pub(super) now: u64,
}

impl Transaction {
    /// The transaction as the script reads it. `serial` grows from one to the next.
    pub(super) fn to_json(&self, replica: &str, serial: u64) -> String {
        let parts: Vec<_> = self.parts.iter().map(|part| self.part(part)).collect();
        let mut request = json!({ "replica": replica, "serial": serial, "lease": LEASE.as_millis() as u64, "parts": parts });
        if let Some(ask) = &self.ask {
            request["ask"] = json!(in_order(ask.estimate));
        }
        request.to_string()
    }

    fn part(&self, part: &Part) -> serde_json::Value {
        let budgets = self.ask.iter().flat_map(|ask| &ask.budgets).filter(|budget| budget.period == part.period);
        // A budget of nothing has no room either; a missing one is none.
        let limits = Unit::ALL.map(|unit| {
            budgets
                .clone()
                .filter(|budget| budget.unit == unit)
                .map(|budget| budget.limit.min(LARGEST) as i64)
                .min()
                .unwrap_or(-1)
        });
        let kept = (part.time_left + KEPT).as_millis() as u64;
        json!({ "used": in_order(part.told.used), "reserved": in_order(part.told.reserved), "limits": limits, "kept": kept })
    }
}

/// The store's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// Whether what was asked for is reserved.
    pub(super) granted: bool,
    /// Each part of the transaction, as everybody has used it.
    pub(super) parts: Vec<Heard>,
}

/// What everybody has used and reserved in a period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Heard {
    /// Grows with every change.
    pub(super) version: u64,
    pub(super) total: Total,
}

impl Answer {
    /// `None` for anything that the script does not say.
    pub(super) fn parse(words: &[String], parts: usize) -> Option<Self> {
        let (granted, heard) = words.split_first()?;
        let granted = matches!(granted.as_str(), "0" | "1").then_some(granted == "1")?;
        let heard: Vec<_> = heard.iter().map(|words| Heard::parse(words)).collect::<Option<_>>()?;
        (heard.len() == parts).then_some(Self { granted, parts: heard })
    }
}

impl Heard {
    /// A version, three amounts used, three reserved.
    pub(super) fn parse(words: &str) -> Option<Self> {
        let numbers: Vec<u64> = words.split(' ').map(|word| word.parse().ok()).collect::<Option<_>>()?;
        let &[version, a, b, c, d, e, f] = numbers.as_slice() else { return None };
        let amounts = |[requests, tokens, nano_usd]: [u64; 3]| Amounts { requests, tokens, nano_usd };
        Some(Self { version, total: Total { used: amounts([a, b, c]), reserved: amounts([d, e, f]) } })
    }
}

fn in_order(amounts: Amounts) -> [u64; 3] {
    Unit::ALL.map(|unit| amounts.of(unit).min(LARGEST))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_answer_has_a_total_for_each_part() {
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let answer = Answer::parse(&words(&["1", "7 1 2 3 4 5 6"]), 1).expect("an answer");
        let amounts = |requests, tokens, nano_usd| Amounts { requests, tokens, nano_usd };
        let total = Total { used: amounts(1, 2, 3), reserved: amounts(4, 5, 6) };
        assert_eq!(answer, Answer { granted: true, parts: vec![Heard { version: 7, total }] });
        for odd in [&[][..], &["2"], &["1"], &["1", "7 1 2 3 4 5"], &["1", "7 1 2 3 4 5 -6"], &["1", "a"], &["1", "", ""]] {
            assert_eq!(Answer::parse(&words(odd), 1), None, "{odd:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

        #[test]
        fn no_answer_is_too_odd(words in prop::collection::vec(".*", 0..4)) {
            if let Some(answer) = Answer::parse(&words, 2) {
                prop_assert_eq!(answer.parts.len(), 2);
            }
        }
    }
}
