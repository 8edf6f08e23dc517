//! One app in the queue: what it has queued, by size class, and what it was served.

use std::{collections::BTreeSet, sync::Arc};

use super::request::{AppKey, Backlog, QueuedRequest, Start, Ticket};
use crate::request::Cost;

/// Size classes per app.
pub(super) const SIZES: u8 = 4;
/// One unit of service, in virtual time.
const ONE: f64 = 4_294_967_296.0;

/// The order of apps: by virtual start, then by who has waited for longer.
pub(super) type Turn = (Start, Ticket, Arc<AppKey>);

/// One app in one priority class.
#[derive(Debug)]
pub struct App {
    /// Its name and priority class.
    pub key: Arc<AppKey>,
    /// Its weight.
    pub weight: f64,
    pub(super) start: Start,
    /// The request with which it began to wait.
    pub(super) since: Ticket,
    sizes: [SizeClass; SIZES as usize],
}

/// One size class of one app.
#[derive(Debug, Default)]
struct SizeClass {
    start: Start,
    fifo: BTreeSet<Ticket>,
    backlog: Backlog,
}

impl App {
    pub(super) fn new(key: Arc<AppKey>, weight: f64) -> Self {
        Self { key, weight, start: 0, since: 0, sizes: Default::default() }
    }

    /// Whether it has anything in the queue.
    pub fn is_waiting(&self) -> bool {
        self.active_sizes() > 0
    }

    pub(super) fn turn(&self) -> Turn {
        (self.start, self.since, self.key.clone())
    }

    /// What it has in the queue.
    pub fn backlog(&self) -> Backlog {
        let mut sum = Backlog::default();
        self.sizes.iter().for_each(|class| sum += &class.backlog);
        sum
    }

    /// What one of its size classes has in the queue.
    pub fn size_backlog(&self, size: u8) -> &Backlog {
        &self.sizes[usize::from(size)].backlog
    }

    /// Its size classes with somebody in the queue.
    pub fn active_sizes(&self) -> usize {
        self.sizes.iter().filter(|class| !class.fifo.is_empty()).count()
    }

    /// How many of its size class wait before this ticket.
    pub fn before(&self, size: u8, ticket: Ticket) -> usize {
        let fifo = &self.sizes[usize::from(size)].fifo;
        // Whoever arrives is behind all others, however many they are.
        if fifo.last().is_none_or(|&last| last < ticket) { fifo.len() } else { fifo.range(..ticket).count() }
    }

    /// Who of one of its size classes is next.
    pub(super) fn first(&self, size: u8) -> Option<Ticket> {
        self.sizes[usize::from(size)].fifo.first().copied()
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
        class.backlog.add(&queued.usage());
    }

    /// This one waits no longer.
    pub(super) fn leave(&mut self, queued: &QueuedRequest) {
        let class = &mut self.sizes[usize::from(queued.size)];
        class.fifo.remove(&queued.ticket);
        class.backlog.subtract(&queued.usage());
    }

    /// One of its queued requests takes something else now.
    pub(super) fn reprice(&mut self, size: u8, before: &Cost, after: &Cost) {
        let backlog = &mut self.sizes[usize::from(size)].backlog;
        backlog.subtract(before);
        backlog.add(after);
    }

    /// It was served so much; a negative amount takes it back.
    pub(super) fn serve(&mut self, size: u8, service: f64) {
        self.start = advance(self.start, service / self.weight);
        let class = &mut self.sizes[usize::from(size)];
        class.start = advance(class.start, service);
    }

    /// Whether nothing of it is queued, and it would begin like a new one.
    pub(super) fn is_idle(&self, served_start: Start) -> bool {
        !self.is_waiting() && self.start <= served_start
    }

    fn next_size(&self) -> Option<&SizeClass> {
        self.sizes.iter().filter(|class| !class.fifo.is_empty()).min_by_key(|class| class.start)
    }
}

/// Virtual time after so much more service.
pub(super) fn advance(start: Start, service: f64) -> Start {
    let step = service * ONE;
    if step >= 0.0 { start.saturating_add(step as u64) } else { start.saturating_sub((-step) as u64) }
}
