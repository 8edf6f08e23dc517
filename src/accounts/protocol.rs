//! The transactions that share budgets between replicas: their data, and their form in the arguments and replies of the Lua
//! script.

use std::{sync::Arc, time::Duration};

use serde_json::json;

use super::{
    budget::{Amounts, Budget, Unit},
    calendar::Period,
    count::Total,
};

/// The Lua script that applies one transaction atomically in Redis.
pub const SCRIPT: &str = include_str!("transaction.lua");

/// Largest amount that Lua's doubles hold exactly, 9 million USD. Larger amounts are clamped to it.
const LARGEST: u64 = 1 << 53;
/// How long a record is kept after its period, for requests in flight at its end and for clocks that differ.
const KEPT: Duration = Duration::from_secs(86_400);
/// Reservations of a replica are released when they have not been renewed for this long.
pub(super) const LEASE: Duration = Duration::from_secs(15);

/// Reports usage of one app to the store and optionally reserves, in one atomic step.
#[derive(Clone, Debug)]
pub(super) struct Transaction {
    pub(super) app: Arc<str>,
    /// The earlier process whose usage it reports; `None` for this process.
    pub(super) earlier: Option<String>,
    pub(super) parts: Vec<Part>,
    pub(super) reserve: Option<ReserveRequest>,
}

/// One period's part of a transaction.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) period: Period,
    pub(super) start: u64,
    /// What this process has used and reserved in this period so far.
    pub(super) reported: Total,
    time_left: Duration,
}

impl Part {
    pub(super) fn new(period: Period, start: u64, reported: Total, now: u64) -> Self {
        Self { period, start, reported, time_left: period.time_left(now) }
    }
}

/// What a request wants to reserve.
#[derive(Clone, Debug)]
pub(super) struct ReserveRequest {
    pub(super) budgets: Box<[Budget]>,
    pub(super) estimate: Amounts,
    pub(super) now: u64,
}

impl Transaction {
    /// The argument of the script. `serial` increases with each transaction of a replica.
    pub(super) fn to_json(&self, replica: &str, serial: u64) -> String {
        let parts: Vec<_> = self.parts.iter().map(|part| self.part(part)).collect();
        let mut request = json!({ "replica": replica, "serial": serial, "lease": LEASE.as_millis() as u64, "parts": parts });
        if self.earlier.is_some() {
            request["earlier"] = json!(true);
        }
        if let Some(reserve) = &self.reserve {
            request["reserve"] = json!(in_order(reserve.estimate));
        }
        request.to_string()
    }

    fn part(&self, part: &Part) -> serde_json::Value {
        let budgets = self.reserve.iter().flat_map(|reserve| &reserve.budgets).filter(|budget| budget.period == part.period);
        // -1 means no limit; a limit of 0 refuses everything.
        let limits = Unit::ALL.map(|unit| {
            budgets
                .clone()
                .filter(|budget| budget.unit == unit)
                .map(|budget| budget.limit.min(LARGEST) as i64)
                .min()
                .unwrap_or(-1)
        });
        let expires_in = (part.time_left + KEPT).as_millis() as u64;
        json!({ "used": in_order(part.reported.used), "reserved": in_order(part.reported.reserved), "limits": limits, "expires_in": expires_in })
    }
}

/// The store's reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    /// Whether the requested amount was reserved.
    pub(super) granted: bool,
    /// The totals of all replicas, one for each part of the transaction.
    pub(super) totals: Vec<SharedTotal>,
}

/// What all replicas have used and reserved in a period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SharedTotal {
    /// Increases with every change.
    pub(super) version: u64,
    pub(super) total: Total,
}

impl Reply {
    /// `None` if it is not a reply of the script.
    pub(super) fn parse(fields: &[String], parts: usize) -> Option<Self> {
        let (granted, totals) = fields.split_first()?;
        let granted = matches!(granted.as_str(), "0" | "1").then_some(granted == "1")?;
        let totals: Vec<_> = totals.iter().map(|text| SharedTotal::parse(text)).collect::<Option<_>>()?;
        (totals.len() == parts).then_some(Self { granted, totals })
    }
}

impl SharedTotal {
    /// Parses the version, the three used amounts and the three reserved ones.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let numbers: Vec<u64> = text.split(' ').map(|number| number.parse().ok()).collect::<Option<_>>()?;
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
    fn a_reply_has_a_total_for_each_part() {
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let reply = Reply::parse(&words(&["1", "7 1 2 3 4 5 6"]), 1).expect("a reply");
        let amounts = |requests, tokens, nano_usd| Amounts { requests, tokens, nano_usd };
        let total = Total { used: amounts(1, 2, 3), reserved: amounts(4, 5, 6) };
        assert_eq!(reply, Reply { granted: true, totals: vec![SharedTotal { version: 7, total }] });
        for odd in [&[][..], &["2"], &["1"], &["1", "7 1 2 3 4 5"], &["1", "7 1 2 3 4 5 -6"], &["1", "a"], &["1", "", ""]] {
            assert_eq!(Reply::parse(&words(odd), 1), None, "{odd:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

        #[test]
        fn any_reply_can_be_parsed(words in prop::collection::vec(".*", 0..4)) {
            if let Some(reply) = Reply::parse(&words, 2) {
                prop_assert_eq!(reply.totals.len(), 2);
            }
        }
    }
}
