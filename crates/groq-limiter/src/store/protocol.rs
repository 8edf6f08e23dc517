//! The messages between a limiter and the shared store, as the JSON that `redis/transaction.lua` reads and writes: a limiter
//! sends a [`Transaction`] and gets an [`Answer`], which contains the limiter's record in the store, a [`State`].
//!
//! Amounts are expressed as spans: the time in which a bucket regains them. `tat` (theoretical arrival time) is the time at
//! which a bucket is full again if nothing more is taken. A correction is the difference by which a header of Groq's has
//! moved `tat`.
//!
//! Spans and times are microseconds. Times in a transaction are relative to the moment at which it is made, times in a
//! record to the creation of the record, so that clocks of different machines are never compared.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, de::IgnoredAny};

use crate::{
    bucket::BucketState,
    types::{Ns, StatedLimit},
};

/// A limiter's message to the store: what it reports and, optionally, the reservation that it asks for. Applied in one step.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Transaction {
    /// Number of the transaction, to match its answer. Not sent to the store.
    #[serde(skip)]
    pub serial: u64,
    /// The epoch of the record that this limiter follows; empty if it follows none yet.
    pub epoch: String,
    /// The newest send position that this limiter knows: requests are numbered in the order in which they are sent.
    pub position: u64,
    /// Whether the limiter asks for a reservation for the head of its queue.
    pub asks: bool,
    /// Number of queued requests, including the head.
    pub waiting: usize,
    /// All limits that Groq has stated, if there is news; a JSON text, because the script would round large numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<String>,
    /// One for each dimension that has a limit.
    pub cells: Vec<Cell>,
}

/// One dimension's part of a transaction.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Cell {
    /// The dimension's code.
    pub code: String,
    /// The span in which an empty bucket fills.
    pub whole: i64,
    /// The earliest time at which the bucket is full again, as far as this limiter knows. The store uses it where its record
    /// is new or this limiter has not followed it.
    pub known: i64,
    /// Sum of the settlements since the last transaction; negative if more was given back than taken.
    pub settled: i64,
    /// What the newest header has shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed: Option<Observed>,
    /// What the store gives back if this replica goes silent: reservations that have not ended, without the part that Groq
    /// counts as soon as a request is sent.
    pub outstanding: i64,
    /// What the head takes; 0 without a request for a reservation.
    pub units: i64,
    /// The safety margin that must be left when the head has taken its part.
    pub margin: i64,
}

/// What the headers of a response showed of one dimension.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Observed {
    /// The expected `tat` of the bucket when the request was sent.
    tat: i64,
    /// Sum of all corrections when the request was sent.
    corrections: i64,
    /// When Groq saw the request.
    at: i64,
    /// The `tat` that the header shows, at that time.
    truth: i64,
}

impl Observed {
    /// What the headers of a request showed, in a transaction that is made at `now`. All times are on the limiter's clock.
    pub(crate) fn new(snapshot: BucketState, at: Ns, truth: Ns, now: Ns) -> Self {
        let since = |time: Ns| micros(time) - micros(now);
        Self { tat: since(snapshot.tat), corrections: snapshot.corrections / 1000, at: since(at), truth: since(truth) }
    }
}

/// The store's answer to a transaction.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Whether the reservation for the head was made, so that the request may be sent.
    pub granted: bool,
    /// How long it takes until there is room for the head at the earliest; 0 or less if there is room.
    pub wait: i64,
    /// The record after the transaction.
    pub state: State,
}

/// A limiter's record in the store, as written by the script. Its times are doubles, because Lua calculates with doubles.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct State {
    /// Identifies the record: a record that is lost and created again has another epoch.
    pub epoch: String,
    /// When it was written.
    pub now: f64,
    /// Number of changes since its creation.
    pub version: u64,
    /// The newest send position. If a reservation was granted, this is its position.
    pub position: u64,
    /// The limits that Groq has stated, by the last replica that had news.
    #[serde(default)]
    limits: String,
    /// The quota of each dimension, by code.
    pub quotas: BTreeMap<String, SharedQuota>,
    replicas: BTreeMap<String, Replica>,
    /// What is taken by the heads of other replicas that wait before the head of this one, in millionths of the limit.
    /// `None` if this replica has no place in the row of waiting replicas.
    #[serde(skip)]
    pub ahead: Option<u64>,
}

/// One dimension in the store.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub struct SharedQuota {
    /// When the bucket is full again.
    pub tat: f64,
    /// Sum of all corrections by headers.
    pub corrections: f64,
}

/// One replica's entry in the record.
#[derive(Clone, Debug, PartialEq, Deserialize)]
struct Replica {
    /// The record's version at which its head began to wait; `None` if no head waits.
    since: Option<u64>,
    /// What its head takes, in millionths of the limit.
    #[serde(default)]
    share: u64,
    /// Its outstanding reservations, by dimension. Only their presence matters here.
    #[serde(default)]
    held: BTreeMap<String, IgnoredAny>,
}

impl State {
    /// The record with [`Self::ahead`] set for `replica`.
    #[must_use]
    pub fn seen_by(mut self, replica: &str) -> Self {
        self.ahead = self.replicas.get(replica).and_then(|own| own.since).map(|place| {
            let before = self.replicas.values().filter(|other| other.since.is_some_and(|since| since < place));
            before.fold(0, |sum: u64, other| sum.saturating_add(other.share))
        });
        self
    }

    /// Whether any replica has outstanding reservations, which are released if it goes silent.
    pub fn holds_reservations(&self) -> bool {
        self.replicas.values().any(|replica| !replica.held.is_empty())
    }

    /// The code and the quota of every dimension. `at` is the time on the limiter's clock at which the record was written.
    pub fn views(&self, at: Ns) -> impl Iterator<Item = (&str, BucketState)> {
        self.quotas.iter().map(move |(code, quota)| {
            let SharedQuota { tat, corrections } = *quota;
            (code.as_str(), BucketState { tat: self.instant(tat, at), corrections: nanos(corrections) })
        })
    }

    /// The limits that Groq has stated.
    pub fn limits(&self) -> Vec<StatedLimit> {
        // A replica of another version may write entries that this one cannot read.
        let entries: Vec<serde_json::Value> = serde_json::from_str(&self.limits).unwrap_or_default();
        entries.into_iter().filter_map(|entry| serde_json::from_value(entry).ok()).collect()
    }

    fn instant(&self, time: f64, at: Ns) -> Ns {
        at.saturating_add_signed(nanos(time - self.now))
    }
}

/// Converts to microseconds, rounded down.
pub(crate) fn micros(time: Ns) -> i64 {
    (time / 1000) as i64
}

/// Converts to nanoseconds. A double out of range becomes the nearest number, and NaN becomes 0.
fn nanos(micros: f64) -> i64 {
    (micros * 1000.0) as i64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::{Dimension, Source, Unit};

    const RECORD: &str = r#"{"epoch":"1700000000000000","now":5e6,"version":3,"position":2,"limits":"",
        "quotas":{"TPM":{"tat":8e6,"corrections":-7}},
        "replicas":{"a":{"heard":5e6,"since":1,"share":10,"held":{"TPM":{"span":5,"corrections":0}}},
                    "b":{"heard":5e6,"since":2,"share":20,"held":{}},"c":{"heard":5e6,"held":{}}}}"#;

    fn record(text: &str) -> State {
        serde_json::from_str(text).expect("a record")
    }

    #[test]
    fn a_record_is_read_in_the_limiters_time() {
        let state = record(RECORD);
        let views: Vec<_> = state.views(1_000_000_000_000).collect();
        assert_eq!(views, [("TPM", BucketState { tat: 1_003_000_000_000, corrections: -7000 })]);
        assert!(state.holds_reservations());
    }

    #[test]
    fn a_replica_waits_behind_those_that_came_before() {
        assert_eq!(["a", "b", "c", "d"].map(|name| record(RECORD).seen_by(name).ahead), [Some(0), Some(10), None, None]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

        /// Found by the fuzz target `redis`: sums of numbers from the server overflowed.
        #[test]
        fn a_server_may_say_any_number(now in any::<f64>(), time in any::<f64>(), corrections in any::<f64>(),
                                       shares in any::<(u64, u64)>(), at in any::<Ns>()) {
            let quotas = [("TPM".to_owned(), SharedQuota { tat: time, corrections })].into();
            let waits = |since, share| Replica { since: Some(since), share, held: BTreeMap::new() };
            let replicas = [("a", waits(0, shares.0)), ("b", waits(1, shares.1)), ("c", waits(2, 0))];
            let replicas = replicas.map(|(name, replica)| (name.to_owned(), replica)).into();
            let state = State { now, quotas, replicas, ..State::default() }.seen_by("c");
            prop_assert_eq!(state.ahead, Some(shares.0.saturating_add(shares.1)));
            prop_assert_eq!(state.views(at).count(), 1);
        }
    }

    #[test]
    fn a_limit_of_any_size_passes_the_store_unchanged() {
        let limit = |dimension, source| StatedLimit { dimension, limit: u64::MAX, source };
        let odd = Dimension { code: "R10S".into(), unit: Unit::Requests, period: std::time::Duration::from_secs(10) };
        let limits = vec![limit(Dimension::OTPM, Source::UpstreamRefusal), limit(odd, Source::Headers)];
        let state = State { limits: serde_json::to_string(&limits).expect("JSON"), ..State::default() };
        assert_eq!(state.limits(), limits);
    }
}
