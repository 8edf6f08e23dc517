//! What a limiter and the shared store tell each other: plain data, in the limiter's own time.

use crate::{quota::send_history::SendSnapshot, types::Ns};

/// What a limiter tells the store, and asks of it, in one step.
#[derive(Clone, Debug, PartialEq)]
pub struct Transaction {
    /// Grows from one to the next. The store applies none below one it has seen.
    pub serial: u64,
    /// Which incarnation of the limiter's record this limiter knows; 0: none.
    pub epoch: i64,
    /// The newest position that this limiter knows.
    pub position: u64,
    /// Nothing is told and nothing asked: only how the quotas stand.
    pub hello: bool,
    /// The reservation that is given up, where one is: its position.
    pub gone: u64,
    /// How long the request at the head of the queue can wait; `None`: nobody asks.
    pub max_wait: Option<Ns>,
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
    /// When it is full again, as far as this limiter knows.
    pub known: Ns,
    /// It is so at the earliest, whatever the store knows: this limiter comes back from a time without it.
    pub claimed: bool,
    /// Settlements since the last transaction, ns: given back below zero.
    pub settled: i64,
    /// Reservations given up before their time came, ns, below zero.
    pub given_up: i64,
    /// The newest word of Groq's.
    pub observation: Option<SentObservation>,
    /// What comes back should this replica fall silent: reservations that have not ended, without what Groq counts as
    /// soon as they are sent, ns.
    pub outstanding: Ns,
    /// What the head takes, ns; 0: nothing.
    pub asked: Ns,
    /// What it must leave untouched, ns.
    pub margin: Ns,
}

/// A reservation's place in the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BookingOrder {
    /// In the order of reservations; 0: none.
    pub position: u64,
    /// The record's version that told of it.
    pub version: u64,
}

/// What an answer's head said of a dimension.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SentObservation {
    /// The request's place in the order of sending.
    pub position: u64,
    /// How the quotas stood when it was sent.
    pub snapshot: SendSnapshot,
    /// When Groq saw it.
    pub at: Ns,
    /// When the quota would have been full again, then.
    pub truth: Ns,
}

/// The store's answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The last transaction of this replica that was applied before this one, and whether it charged a head.
    pub before: (u64, bool),
    /// Whether the head is charged.
    pub granted: bool,
    /// When the head may go, from the store's now, ns; for one that is not charged: the earliest time.
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
    /// Every dimension, by code.
    pub views: Vec<(Box<str>, RemoteView)>,
}

/// How one dimension stands in the store.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RemoteView {
    /// When it is full again.
    pub tat: Ns,
    /// Sum of what headers taught, ns.
    pub corrections: i64,
    /// Sum of that and of settlements, ns: by so much later may a head go that was charged before.
    pub adjusted: i64,
    /// The newest position that has corrected it.
    pub newest: u64,
    /// What was taken and given back shortly before, ns, fading.
    pub recent: Ns,
    /// For a head that is charged: when the quota would be full again with it and what it leaves untouched.
    pub room: Ns,
    /// The last reservations that were given up before their time.
    pub gone: Vec<Released>,
    /// Reservations that were to wait and may not have gone yet.
    pub pending_bookings: Vec<PendingBooking>,
}

/// A reservation that waits for its turn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PendingBooking {
    /// The reservation's.
    pub position: u64,
    /// When it goes.
    pub due: Ns,
    /// What it has taken, ns.
    pub span: Ns,
}

/// A reservation that was given up: those that came after it gain its span.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Released {
    /// The record's version that told of it.
    pub version: u64,
    /// The reservation's.
    pub position: u64,
    /// What it had taken, ns.
    pub span: Ns,
}
