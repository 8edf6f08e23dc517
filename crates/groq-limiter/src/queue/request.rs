//! A request in the queue, and sums over what is queued.

use std::{ops::AddAssign, sync::Arc, task::Waker};

use crate::{
    request::Cost,
    types::{Ns, Priority, Unit},
};

/// Virtual time: service over weight; 2³² is one unit of service.
pub type Start = u64;
/// A request's place in the order of arrival, and its name while it waits. A refused one comes back with it.
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
    /// Whose.
    pub app: Arc<AppKey>,
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
    /// How much later than its own time it may go because smaller ones passed; set when it first blocks the queue. [`Ns::MAX`]
    /// until then: with an `Option` a waiting request takes 16 bytes more.
    pub bypass_budget: Ns,
    /// Prompt tokens before the limiter's own correction.
    pub estimated: u32,
    /// Whether its client stated `max_completion_tokens`.
    pub states_max: bool,
    /// What a refusal has said of it: prompt and assumed completion tokens.
    pub requested: Option<u32>,
    /// The task that waits for it to leave the queue.
    pub waker: Option<Waker>,
}

impl QueuedRequest {
    /// What it will probably use.
    pub fn usage(&self) -> Cost {
        self.cost.with_output(self.expected)
    }
}

/// Sums over queued requests, by unit, of what they will probably use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// How many.
    pub count: u64,
    units: [u64; Unit::ALL.len()],
}

impl Backlog {
    /// One more.
    pub(super) fn add(&mut self, usage: &Cost) {
        self.count += 1;
        Unit::ALL.iter().for_each(|&unit| self.units[unit as usize] += usage.of(unit));
    }

    /// One less.
    pub(super) fn subtract(&mut self, usage: &Cost) {
        self.count -= 1;
        Unit::ALL.iter().for_each(|&unit| self.units[unit as usize] -= usage.of(unit));
    }

    /// The sum that a dimension of this unit counts.
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
