//! What a limiter and the shared store tell each other, as the JSON that `redis/transaction.lua` reads and writes.
//!
//! Spans and times are microseconds. Those of a transaction count from the moment it is made, those of a record from the record's
//! beginning: nobody compares clocks.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, de::IgnoredAny};

use crate::{
    estimate::expected_output::LargestAnswer,
    quota::send_history::SendSnapshot,
    types::{Ns, StatedLimit},
};

/// What a limiter tells the store, and asks of it, in one step.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Transaction {
    /// Tells its answer from that to another one.
    #[serde(skip)]
    pub serial: u64,
    /// Which incarnation of the limiter's record this limiter knows; empty: none.
    pub epoch: String,
    /// The newest position that this limiter knows.
    pub position: u64,
    /// Whether the head of the queue asks to go.
    pub asks: bool,
    /// How many wait, the head included.
    pub waiting: usize,
    /// What Groq has stated or shown and the store has not been told.
    pub learnt: SharedKnowledge,
    /// Every dimension that has a limit.
    pub cells: Vec<Cell>,
}

/// One dimension's part of a transaction.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Cell {
    /// The dimension's code.
    pub code: String,
    /// Time in which an empty one fills.
    pub whole: i64,
    /// When it is full again at the earliest, as far as this limiter knows: for a store that does not know it.
    pub known: i64,
    /// Settlements since the last transaction: given back below zero.
    pub settled: i64,
    /// What the newest header has shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed: Option<Observed>,
    /// What comes back should this replica fall silent: reservations that have not ended, without what Groq counts as
    /// soon as they are sent.
    pub outstanding: i64,
    /// What the head takes; 0: nothing.
    pub units: i64,
    /// What it must leave untouched.
    pub margin: i64,
}

/// What an answer's head said of a dimension.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Observed {
    /// When the quota would have been full again as it was sent, and the sum of all corrections then.
    tat: i64,
    corrections: i64,
    /// When Groq saw it.
    at: i64,
    /// When the quota would have been full again, then.
    truth: i64,
}

impl Observed {
    /// Of a `snapshot` as the request was sent, in the limiter's own time.
    pub(crate) fn new(snapshot: SendSnapshot, at: Ns, truth: Ns) -> Self {
        Self { tat: micros(snapshot.tat), corrections: snapshot.corrections / 1000, at: micros(at), truth: micros(truth) }
    }

    /// The same, counted from this time on.
    pub(crate) fn since(self, start: Ns) -> Self {
        let start = micros(start);
        Self { tat: self.tat - start, at: self.at - start, truth: self.truth - start, ..self }
    }
}

/// The store's answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Whether the head is charged, and goes.
    pub granted: bool,
    /// When it has room at the earliest, from the store's now.
    pub wait: i64,
    /// How everything stands after it.
    pub state: State,
}

/// A limiter's record in the store, read by serde. Its times are doubles, which is what the script calculates with.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct State {
    /// Which incarnation of the record.
    pub epoch: String,
    /// When it was written.
    pub now: f64,
    /// Counts its changes.
    pub version: u64,
    /// The newest position: the granted head's.
    pub position: u64,
    /// What Groq has stated or shown to any replica.
    learnt: SharedKnowledge,
    /// Every dimension, by code.
    pub quotas: BTreeMap<String, SharedQuota>,
    replicas: BTreeMap<String, Replica>,
    /// What the heads of other replicas take that wait before this one's, in millionths of the limit; `None`: it has no place
    /// among them.
    #[serde(skip)]
    pub ahead: Option<u64>,
}

/// How one dimension stands in the store.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub struct SharedQuota {
    /// When it is full again.
    pub tat: f64,
    /// Sum of what headers taught.
    pub corrections: f64,
}

/// What the record says of a replica.
#[derive(Clone, Debug, PartialEq, Deserialize)]
struct Replica {
    /// The version at which its head began to wait.
    since: Option<u64>,
    /// What its head takes, in millionths of the limit.
    #[serde(default)]
    share: u64,
    /// What it has reserved and not told the end of.
    #[serde(default)]
    held: BTreeMap<String, IgnoredAny>,
}

/// What replicas learn from each other.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SharedKnowledge {
    /// Limits that Groq has stated, by code: texts, in which the script rounds no number.
    limits: BTreeMap<String, String>,
    /// The largest answers, by key.
    answers: BTreeMap<u32, SharedAnswer>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct SharedAnswer {
    tokens: u32,
    ended: f64,
}

/// How one dimension stands in the store, in the limiter's own time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RemoteView {
    /// When it is full again.
    pub tat: Ns,
    /// Sum of what headers taught, ns.
    pub corrections: i64,
}

impl State {
    /// The record as this replica sees it.
    #[must_use]
    pub fn seen_by(mut self, replica: &str) -> Self {
        self.ahead = self.replicas.get(replica).and_then(|own| own.since).map(|place| {
            let before = self.replicas.values().filter(|other| other.since.is_some_and(|since| since < place));
            before.fold(0, |sum: u64, other| sum.saturating_add(other.share))
        });
        self
    }

    /// Whether any replica has something reserved that would come back if it fell silent.
    pub fn holds_reservations(&self) -> bool {
        self.replicas.values().any(|replica| !replica.held.is_empty())
    }

    /// Every dimension, if the record was written at `at`.
    pub fn views(&self, at: Ns) -> impl Iterator<Item = (&str, RemoteView)> {
        self.quotas.iter().map(move |(code, quota)| {
            let SharedQuota { tat, corrections } = *quota;
            (code.as_str(), RemoteView { tat: self.instant(tat, at), corrections: nanos(corrections) })
        })
    }

    /// Limits that Groq has stated to any replica.
    pub fn limits(&self) -> Vec<StatedLimit> {
        self.learnt.limits.values().filter_map(|text| serde_json::from_str(text).ok()).collect()
    }

    /// The largest answers that any replica had, if the record was written at `at`.
    pub fn answers(&self, at: Ns) -> impl Iterator<Item = LargestAnswer> {
        let answers = self.learnt.answers.iter();
        answers.map(move |(&key, &SharedAnswer { tokens, ended })| LargestAnswer { key, tokens, ended: self.instant(ended, at) })
    }

    fn instant(&self, time: f64, at: Ns) -> Ns {
        at.saturating_add_signed(nanos(time - self.now))
    }
}

impl SharedKnowledge {
    /// To be told at `now`.
    pub(crate) fn new(limits: &[StatedLimit], answers: &[LargestAnswer], now: Ns) -> Self {
        let limit = |limit: &StatedLimit| Some((limit.dimension.code.to_string(), serde_json::to_string(limit).ok()?));
        let answer = |&LargestAnswer { key, tokens, ended }: &LargestAnswer| {
            (key, SharedAnswer { tokens, ended: (micros(ended) - micros(now)) as f64 })
        };
        Self { limits: limits.iter().filter_map(limit).collect(), answers: answers.iter().map(answer).collect() }
    }
}

/// Rounded down.
pub(crate) fn micros(time: Ns) -> i64 {
    (time / 1000) as i64
}

/// A double that is too large, or none, becomes the nearest number.
fn nanos(micros: f64) -> i64 {
    (micros * 1000.0) as i64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::{Dimension, Source, Unit};

    const RECORD: &str = r#"{"epoch":"1700000000000000","now":5e6,"version":3,"position":2,"learnt":{"limits":{},"answers":{}},
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
        assert_eq!(views, [("TPM", RemoteView { tat: 1_003_000_000_000, corrections: -7000 })]);
        assert!(state.holds_reservations());
    }

    #[test]
    fn a_replica_waits_behind_those_that_came_before() {
        assert_eq!(["a", "b", "c", "d"].map(|name| record(RECORD).seen_by(name).ahead), [Some(0), Some(10), None, None]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

        /// Found by the fuzz target `redis`: sums of what a server may say overflowed.
        #[test]
        fn a_server_may_say_any_number(now in any::<f64>(), time in any::<f64>(), corrections in any::<f64>(),
                                       shares in any::<(u64, u64)>(), at in any::<Ns>()) {
            let quotas = [("TPM".to_owned(), SharedQuota { tat: time, corrections })].into();
            let waits = |since, share| Replica { since: Some(since), share, held: BTreeMap::new() };
            let replicas = [("a", waits(0, shares.0)), ("b", waits(1, shares.1)), ("c", waits(2, 0))];
            let replicas = replicas.map(|(name, replica)| (name.to_owned(), replica)).into();
            let learnt = SharedKnowledge { answers: [(1, SharedAnswer { tokens: 5, ended: time })].into(), ..Default::default() };
            let state = State { now, quotas, replicas, learnt, ..State::default() }.seen_by("c");
            prop_assert_eq!(state.ahead, Some(shares.0.saturating_add(shares.1)));
            prop_assert_eq!(state.views(at).count(), 1);
            prop_assert_eq!(state.answers(at).count(), 1);
        }
    }

    #[test]
    fn what_is_learnt_there_and_back_is_the_same() {
        let limit = |dimension, source| StatedLimit { dimension, limit: u64::MAX, source };
        let odd = Dimension { code: "R10S".into(), unit: Unit::Requests, period: std::time::Duration::from_secs(10) };
        let limits = vec![limit(Dimension::OTPM, Source::UpstreamRefusal), limit(odd, Source::Headers)];
        let answers = vec![LargestAnswer { key: 7, tokens: 1029, ended: 2_000_000 }];
        let state = State { learnt: SharedKnowledge::new(&limits, &answers, 5_000_000), ..State::default() };
        assert_eq!((state.limits(), state.answers(5_000_000).collect()), (limits, answers));
    }
}
