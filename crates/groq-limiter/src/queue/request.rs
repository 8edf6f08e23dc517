//! A request in the queue, and sums over what is queued.

use crate::{
    request::Cost,
    types::{Ns, Unit},
};

/// Virtual time: service over weight; 2³² is one unit of service.
pub type Start = u64;
/// An app's number in its queue.
pub type AppId = u32;
/// A request's place in the order of arrival, and its name while it waits. A refused one comes back with it.
pub type Ticket = u64;

/// A request in the queue.
#[derive(Clone, Debug)]
pub struct QueuedRequest {
    /// Whose.
    pub app: AppId,
    /// Its size class.
    pub size: u8,
    /// What it takes.
    pub cost: Cost,
    /// Completion tokens that it will probably use, for forecasts.
    pub expected: u32,
    /// Arrival order.
    pub ticket: Ticket,
    /// When it came.
    pub since: Ns,
    /// Its client's max wait ends here.
    pub deadline: Ns,
    /// How much later than its own time it may go because smaller ones passed; set when it first blocks the queue.
    pub bypass_budget: Option<Ns>,
    /// Prompt tokens before the limiter's own correction.
    pub estimated: u32,
    /// Whether its client stated `max_completion_tokens`.
    pub states_max: bool,
    /// What a refusal has said of it: prompt and assumed completion tokens.
    pub requested: Option<u32>,
}

/// Sums over queued requests, by unit, in expected use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// How many.
    pub count: u32,
    requests: u64,
    input: u64,
    output: u64,
    seconds: u64,
}

impl Backlog {
    /// One more.
    pub(super) fn add(&mut self, queued: &QueuedRequest) {
        self.count += 1;
        self.requests += u64::from(queued.cost.requests);
        self.input += u64::from(queued.cost.input);
        self.output += u64::from(queued.expected);
        self.seconds += u64::from(queued.cost.seconds);
    }

    /// One less.
    pub(super) fn subtract(&mut self, queued: &QueuedRequest) {
        self.count -= 1;
        self.requests -= u64::from(queued.cost.requests);
        self.input -= u64::from(queued.cost.input);
        self.output -= u64::from(queued.expected);
        self.seconds -= u64::from(queued.cost.seconds);
    }

    /// The sum that a dimension of this unit counts.
    pub fn of(&self, unit: Unit) -> u64 {
        match unit {
            Unit::Requests => self.requests,
            Unit::Tokens => self.input + self.output,
            Unit::InputTokens => self.input,
            Unit::OutputTokens => self.output,
            Unit::AudioSeconds => self.seconds,
        }
    }
}
