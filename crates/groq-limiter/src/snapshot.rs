//! The state of limiters and of the shared store, for people.

use std::{sync::Arc, time::Duration};

use crate::types::{Dimension, Priority, Source};

/// One dimension of a limiter, for people.
#[derive(Clone, Debug)]
pub struct DimensionSnapshot {
    /// Which.
    pub dimension: Dimension,
    /// The limit.
    pub limit: u64,
    /// What is left now; below zero in debt.
    pub remaining: f64,
    /// Never usage below this.
    pub margin: u64,
    /// Where the limit's number comes from.
    pub source: Source,
    /// The operator's bound, where there is one.
    pub configured: Option<u64>,
    /// What Groq states, where it has.
    pub stated: Option<u64>,
    /// Share of the limit's rate that others take.
    pub external: f64,
    /// Time until exhausted at the present rate of use, `None` if it is not heading there.
    pub exhausted_in: Option<Duration>,
    /// Time until full if nothing more is sent.
    pub full_in: Duration,
}

/// The store that replicas share, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreSnapshot {
    /// It is out of reach: every limit is divided by `replicas`.
    pub degraded: bool,
    /// Why, as last heard.
    pub why: Option<Arc<str>>,
    /// How many replicas there are, as last heard.
    pub replicas: u32,
    /// Transactions sent since the start.
    pub calls: u64,
}

/// The requests that wait in a limiter, per app and class.
#[derive(Clone, Debug)]
pub struct WaitingSnapshot {
    /// The app.
    pub app: Arc<str>,
    /// Its class.
    pub class: Priority,
    /// How many.
    pub count: usize,
    /// The longest wait so far.
    pub oldest: Duration,
}

/// One limiter, for people.
#[derive(Clone, Debug)]
pub struct LimiterSnapshot {
    /// Whose.
    pub organization: Arc<str>,
    /// Which model.
    pub model: Arc<str>,
    /// Which tier.
    pub tier: Arc<str>,
    /// Its dimensions.
    pub dimensions: Vec<DimensionSnapshot>,
    /// Its queue.
    pub waiting: Vec<WaitingSnapshot>,
    /// The dimension that blocks the head of the queue, and for how long.
    pub blocked_by: Option<(Dimension, Duration)>,
    /// Wait that a typical new request would see.
    pub forecast: Duration,
    /// Sent and not settled.
    pub in_flight: usize,
    /// Groq's refusals so far.
    pub refusals: u64,
}
