//! One app in the queue: its requests by size class, and the service that it has received.

use std::{collections::BTreeSet, sync::Arc};

use super::request::{AppKey, Backlog, QueuedRequest, Start, Ticket};

/// The number of size classes per app.
pub(super) const SIZES: u8 = 4;
/// One unit of service in virtual time: 2³².
const ONE: f64 = 4_294_967_296.0;

/// The order of apps: by virtual start, then by the request with which they became active.
pub(super) type Turn = (Start, Ticket, Arc<AppKey>);

/// One app in one priority class.
#[derive(Debug)]
pub struct App {
    /// The name and the priority class.
    pub key: Arc<AppKey>,
    /// The weight, which divides the service that the app receives.
    pub weight: f64,
    pub(super) start: Start,
    /// The request with which the app became active.
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

    /// Whether the app has queued requests.
    pub fn is_waiting(&self) -> bool {
        self.active_sizes() > 0
    }

    pub(super) fn turn(&self) -> Turn {
        (self.start, self.since, self.key.clone())
    }

    /// Returns the backlog of the app.
    pub fn backlog(&self) -> Backlog {
        let mut sum = Backlog::default();
        self.sizes.iter().for_each(|class| sum += &class.backlog);
        sum
    }

    /// Returns the backlog of one size class.
    pub fn size_backlog(&self, size: u8) -> &Backlog {
        &self.sizes[usize::from(size)].backlog
    }

    /// Returns the number of size classes that have queued requests.
    pub fn active_sizes(&self) -> usize {
        self.sizes.iter().filter(|class| !class.fifo.is_empty()).count()
    }

    /// Returns the number of requests of this size class that are queued before this ticket.
    pub fn before(&self, size: u8, ticket: Ticket) -> usize {
        let fifo = &self.sizes[usize::from(size)].fifo;
        // A new request is behind all others, so the queue need not be walked.
        if fifo.last().is_none_or(|&last| last < ticket) { fifo.len() } else { fifo.range(..ticket).count() }
    }

    /// Returns the first request of one size class; `None` if it has none.
    pub(super) fn first(&self, size: u8) -> Option<Ticket> {
        self.sizes[usize::from(size)].fifo.first().copied()
    }

    /// Returns the app's next request: the first of the active size class with the smallest start.
    pub(super) fn next(&self) -> Option<Ticket> {
        self.next_size()?.fifo.first().copied()
    }

    /// Adds a request under its ticket.
    pub(super) fn join(&mut self, queued: &QueuedRequest) {
        let floor = self.next_size().map_or(0, |class| class.start);
        let class = &mut self.sizes[usize::from(queued.size)];
        if class.fifo.is_empty() {
            class.start = class.start.max(floor);
        }
        class.fifo.insert(queued.ticket);
        class.backlog.add(&queued.usage());
    }

    /// Removes a request.
    pub(super) fn leave(&mut self, queued: &QueuedRequest) {
        let class = &mut self.sizes[usize::from(queued.size)];
        class.fifo.remove(&queued.ticket);
        class.backlog.subtract(&queued.usage());
    }

    /// Counts service for one size class and for the app; a negative amount takes it back.
    pub(super) fn serve(&mut self, size: u8, service: f64) {
        self.start = advance(self.start, service / self.weight);
        let class = &mut self.sizes[usize::from(size)];
        class.start = advance(class.start, service);
    }

    /// Whether the app has no queued requests and can be removed: added again, it would start at the same time.
    pub(super) fn is_idle(&self, served_start: Start) -> bool {
        !self.is_waiting() && self.start <= served_start
    }

    fn next_size(&self) -> Option<&SizeClass> {
        self.sizes.iter().filter(|class| !class.fifo.is_empty()).min_by_key(|class| class.start)
    }
}

/// Returns the virtual time `start` after `service` more units.
pub(super) fn advance(start: Start, service: f64) -> Start {
    let step = service * ONE;
    if step >= 0.0 { start.saturating_add(step as u64) } else { start.saturating_sub((-step) as u64) }
}
