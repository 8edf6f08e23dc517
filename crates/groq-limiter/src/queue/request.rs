//! A request in the queue, and the backlog of several requests.

use std::{ops::AddAssign, sync::Arc, task::Waker};

use crate::{
    request::Cost,
    types::{Ns, Priority, Unit},
};

/// A virtual start time: service divided by weight. One unit of service is 2³².
pub type Start = u64;
/// The place of a request in the order of arrival, which identifies it in the queue. A request that was refused is queued
/// again with the same ticket.
pub type Ticket = u64;

/// An app in one priority class.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AppKey {
    /// The priority class.
    pub class: Priority,
    /// The app's name.
    pub name: Arc<str>,
}

/// A request in the queue.
#[derive(Clone, Debug)]
pub struct QueuedRequest {
    /// The app that sent the request.
    pub app: Arc<AppKey>,
    /// The size class.
    pub size: u8,
    /// What the request will reserve.
    pub cost: Cost,
    /// The completion tokens that it will probably use, for forecasts.
    pub expected: u32,
    /// The place in the order of arrival.
    pub ticket: Ticket,
    /// The time of arrival.
    pub since: Ns,
    /// The end of the client's max wait.
    pub deadline: Ns,
    /// The time by which smaller requests that pass may still delay this one, ns. It is set when the request first blocks
    /// the queue, and [`Ns::MAX`] before; an `Option` would take 16 bytes more per queued request.
    pub bypass_budget: Ns,
    /// The estimated prompt tokens, before the limiter's correction of the estimate.
    pub estimated: u32,
    /// Whether the client stated `max_completion_tokens`.
    pub states_max: bool,
    /// The units that refusals of this request have stated; `None` if none did. Tokens are the sum of prompt and assumed output.
    pub requested: Option<(Unit, u32)>,
    /// Wakes the task that waits for the request to leave the queue.
    pub waker: Option<Waker>,
}

impl QueuedRequest {
    /// Returns the cost as the client states it: the estimated prompt, and `max_completion_tokens` if there is one.
    pub fn stated(&self) -> Cost {
        let output = if self.states_max { self.cost.output } else { 0 };
        Cost { input: self.estimated, ..self.cost.with_output(output) }
    }

    /// Whether the reserved completion tokens are an assumption.
    pub fn assumes_output(&self) -> bool {
        !self.states_max && !matches!(self.requested, Some((Unit::Tokens, _)))
    }

    /// Returns what the request will probably use.
    pub fn usage(&self) -> Cost {
        self.cost.with_output(self.expected)
    }
}

/// The sum of what several queued requests will probably use, by unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// The number of requests.
    pub count: u64,
    units: [u64; Unit::ALL.len()],
}

impl Backlog {
    /// Adds a request.
    pub(super) fn add(&mut self, usage: &Cost) {
        self.count += 1;
        Unit::ALL.iter().for_each(|&unit| self.units[unit as usize] += usage.of(unit));
    }

    /// Removes a request.
    pub(super) fn subtract(&mut self, usage: &Cost) {
        self.count -= 1;
        Unit::ALL.iter().for_each(|&unit| self.units[unit as usize] -= usage.of(unit));
    }

    /// Returns the sum for dimensions of this unit.
    pub fn of(&self, unit: Unit) -> u64 {
        self.units[unit as usize]
    }
}

impl AddAssign<&Self> for Backlog {
    fn add_assign(&mut self, other: &Self) {
        self.count += other.count;
        self.units.iter_mut().zip(other.units).for_each(|(sum, units)| *sum += units);
    }
}
