//! One app in the queue: what it has queued, by size class, and what it was served.

use std::{collections::BTreeSet, sync::Arc};

use super::request::{Backlog, QueuedRequest, Start, Ticket};
use crate::{
    estimate::running_mean::RunningMean,
    types::{Ns, Priority},
};

/// Size classes per app.
const SIZES: usize = 4;
/// Measured rates forget with this time constant, seconds.
const RATE_MEMORY: f64 = 30.0;
/// One unit of service, in virtual time.
const ONE: f64 = 4_294_967_296.0;

/// One app in one priority class.
#[derive(Debug)]
pub struct App {
    /// Its name.
    pub name: Arc<str>,
    /// Its priority class.
    pub class: Priority,
    /// Its weight.
    pub weight: f64,
    /// Completion tokens of its requests.
    pub completion: RunningMean,
    pub(super) start: Start,
    sizes: [SizeClass; SIZES],
    backlog: Backlog,
    served: f64,
    served_at: Ns,
    /// Granted and not settled: its number must not be used again.
    in_flight: u32,
}

/// One size class of one app.
#[derive(Debug, Default)]
struct SizeClass {
    start: Start,
    fifo: BTreeSet<Ticket>,
    backlog: Backlog,
}

impl App {
    pub(super) fn new(name: Arc<str>, class: Priority, weight: f64, now: Ns) -> Self {
        Self {
            name,
            class,
            weight,
            completion: RunningMean::default(),
            start: 0,
            sizes: Default::default(),
            backlog: Backlog::default(),
            served: 0.0,
            served_at: now,
            in_flight: 0,
        }
    }

    /// Service per second of late.
    pub fn rate(&self, now: Ns) -> f64 {
        self.served * self.fade(now) / RATE_MEMORY
    }

    /// What it has in the queue.
    pub fn backlog(&self) -> &Backlog {
        &self.backlog
    }

    /// How many of its size class wait before this ticket.
    pub fn before(&self, size: u8, ticket: Ticket) -> usize {
        let fifo = &self.size(size).fifo;
        // Whoever arrives is behind all others, however many they are.
        if fifo.last().is_none_or(|&last| last < ticket) { fifo.len() } else { fifo.range(..ticket).count() }
    }

    /// What one of its size classes has in the queue.
    pub fn size_backlog(&self, size: u8) -> &Backlog {
        &self.size(size).backlog
    }

    /// Its size classes with somebody in the queue.
    pub fn active_sizes(&self) -> usize {
        self.sizes.iter().filter(|class| class.backlog.count > 0).count()
    }

    /// Who of one of its size classes is next.
    pub(super) fn first(&self, size: u8) -> Option<Ticket> {
        self.size(size).fifo.first().copied()
    }

    /// Whose turn it is: the first of the size class that was served least.
    pub(super) fn next(&self) -> Option<Ticket> {
        self.next_size()?.fifo.first().copied()
    }

    /// This one waits, under its own ticket.
    pub(super) fn join(&mut self, queued: &QueuedRequest) {
        let floor = self.next_size().map_or(0, |class| class.start);
        let class = &mut self.sizes[usize::from(queued.size)];
        if class.fifo.is_empty() {
            class.start = class.start.max(floor);
        }
        class.fifo.insert(queued.ticket);
        self.backlogs(queued.size).into_iter().for_each(|backlog| backlog.add(queued));
    }

    /// This one waits no longer.
    pub(super) fn leave(&mut self, queued: &QueuedRequest) {
        self.sizes[usize::from(queued.size)].fifo.remove(&queued.ticket);
        self.backlogs(queued.size).into_iter().for_each(|backlog| backlog.subtract(queued));
    }

    /// What one of its size classes has in the queue, and what it has in all.
    pub(super) fn backlogs(&mut self, size: u8) -> [&mut Backlog; 2] {
        [&mut self.sizes[usize::from(size)].backlog, &mut self.backlog]
    }

    /// It was served so much; a negative amount takes it back.
    pub(super) fn serve(&mut self, size: u8, service: f64, now: Ns) {
        self.start = advance(self.start, service / self.weight);
        let class = &mut self.sizes[usize::from(size)];
        class.start = advance(class.start, service);
        self.served = (self.served * self.fade(now) + service).max(0.0);
        self.served_at = now;
    }

    /// One of its requests was granted.
    pub fn granted(&mut self) {
        self.in_flight += 1;
    }

    /// One of its granted requests has ended.
    pub fn settled(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// Whether nothing of it is queued, in flight or remembered.
    pub(super) fn is_idle(&self, served_start: Start, now: Ns) -> bool {
        self.backlog.count == 0 && self.in_flight == 0 && self.start <= served_start && self.rate(now) < 1e-4
    }

    fn size(&self, size: u8) -> &SizeClass {
        &self.sizes[usize::from(size)]
    }

    fn next_size(&self) -> Option<&SizeClass> {
        self.sizes.iter().filter(|class| !class.fifo.is_empty()).min_by_key(|class| class.start)
    }

    fn fade(&self, now: Ns) -> f64 {
        (-(now.saturating_sub(self.served_at) as f64) / (RATE_MEMORY * 1e9)).exp()
    }
}

/// Virtual time after so much more service.
pub(super) fn advance(start: Start, service: f64) -> Start {
    let step = service * ONE;
    if step >= 0.0 { start.saturating_add(step as u64) } else { start.saturating_sub((-step) as u64) }
}
