//! What a limiter and the shared store tell each other: plain data, in the limiter's own time.

use crate::{
    estimate::expected_output::LargestAnswer,
    quota::send_history::SendSnapshot,
    types::{Ns, StatedLimit},
};

/// What a limiter tells the store, and asks of it, in one step.
#[derive(Clone, Debug, PartialEq)]
pub struct Transaction {
    /// Tells its answer from that to another one.
    pub serial: u64,
    /// Which incarnation of the limiter's record this limiter knows; 0: none.
    pub epoch: i64,
    /// The newest position that this limiter knows.
    pub position: u64,
    /// Whether the head of the queue asks to go.
    pub asks: bool,
    /// How many wait, the head included.
    pub waiting: usize,
    /// What Groq has stated or shown and the store has not been told.
    pub learnt: Learnt,
    /// Every dimension that has a limit.
    pub cells: Vec<Cell>,
}

/// One dimension's part of a transaction.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    /// The dimension's code.
    pub code: Box<str>,
    /// Time in which an empty one fills, ns.
    pub whole: Ns,
    /// When it is full again at the earliest, as far as this limiter knows: for a store that does not know it.
    pub known: Ns,
    /// Settlements since the last transaction, ns: given back below zero.
    pub settled: i64,
    /// What the newest header has shown.
    pub observation: Option<SentObservation>,
    /// What comes back should this replica fall silent: reservations that have not ended, without what Groq counts as
    /// soon as they are sent, ns.
    pub outstanding: Ns,
    /// What the head takes, ns; 0: nothing.
    pub units: Ns,
    /// What it must leave untouched, ns.
    pub margin: Ns,
}

/// What an answer's head said of a dimension.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SentObservation {
    /// The request's place in the order of sending.
    pub position: u64,
    /// How the quotas stood when it was sent.
    pub snapshot: SendSnapshot,
    /// By how much it may show too little, ns.
    pub uncertain: Ns,
    /// When Groq saw it.
    pub at: Ns,
    /// When the quota would have been full again, then.
    pub truth: Ns,
}

/// The store's answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Whether the head is charged, and goes.
    pub granted: bool,
    /// When it has room at the earliest, from the store's now, ns.
    pub wait: Ns,
    /// How everything stands after it.
    pub state: State,
}

/// How a limiter's quotas stand in the store.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// Which incarnation of the record.
    pub epoch: i64,
    /// Counts its changes.
    pub version: u64,
    /// The newest position: the granted head's.
    pub position: u64,
    /// What the heads of other replicas take that wait before this one's, in millionths of the limit.
    pub ahead: u64,
    /// What Groq has stated or shown to any replica.
    pub learnt: Learnt,
    /// Every dimension, by code.
    pub views: Vec<(Box<str>, RemoteView)>,
}

/// What replicas learn from each other.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Learnt {
    /// Limits that Groq has stated.
    pub limits: Vec<StatedLimit>,
    /// The largest answers, which limits on output test.
    pub answers: Vec<LargestAnswer>,
}

/// How one dimension stands in the store.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RemoteView {
    /// When it is full again.
    pub tat: Ns,
    /// Sum of what headers taught, ns.
    pub corrections: i64,
    /// The newest position that has corrected it.
    pub newest: u64,
}
