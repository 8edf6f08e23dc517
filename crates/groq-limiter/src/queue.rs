//! The queue of one limiter: start-time fair queueing on three levels, then in the order of arrival.
//!
//! The levels are the two priority classes (interactive and batch), the apps of a class by weight, and the four size classes
//! of an app. Every class, app and size class has a virtual start: the service that it has received, divided by its weight.
//! The one with the smallest start is served next. When it becomes active, its start is raised to the smallest start of the
//! active ones, so idle time earns no credit.
//!
//! Requests are known by their tickets. A ticket is also the place in the order of arrival, so a request that was refused
//! gets back to its old place with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    task::Waker,
};

use self::app::{SIZES, Turn, advance};
pub use self::{
    app::App,
    request::{AppKey, Backlog, QueuedRequest, Start, Ticket},
};
use crate::{
    sync::HashMap,
    types::{Ns, Priority},
};

mod app;
pub mod backfill;
pub mod forecast;
mod request;
pub mod service;

/// The share of a limiter that batch requests get while interactive ones wait, so that they do not starve.
pub const BATCH_SHARE: f64 = 0.05;
/// The number of apps up to which idle ones are kept.
const IDLE_APPS: usize = 256;
/// The largest number of apps; all further ones share one account. Clients choose the names of apps, so there may be any
/// number.
const MAX_APPS: usize = 2048;
/// The name of the shared account.
const SHARED_APP: &str = "other";

/// The apps of one priority class.
#[derive(Debug, Default)]
struct PriorityClass {
    start: Start,
    /// The largest start at which an app was served. An app starts here if no other app is active.
    served_start: Start,
    /// The apps with queued requests, the next one first.
    active: BTreeSet<Turn>,
}

/// The queued requests of one limiter, by app.
#[derive(Debug, Default)]
pub struct FairQueue {
    /// The known apps. Boxed, because most limiters have one app, and a node of the map has room for eleven.
    pub apps: BTreeMap<Arc<AppKey>, Box<App>>,
    /// The queued requests. Boxed, because a table of whole requests takes a third more memory, and twice that as it grows.
    waiting: HashMap<Ticket, Box<QueuedRequest>>,
    deadlines: BTreeSet<(Ns, Ticket)>,
    /// The wakers of requests that have left the queue, to be called by the caller.
    pub woken: Vec<Waker>,
    last_ticket: Ticket,
    classes: [PriorityClass; 2],
}

impl FairQueue {
    /// Returns the number of queued requests.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether no request is queued.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Returns the queued request with this ticket.
    pub fn get(&self, ticket: Ticket) -> Option<&QueuedRequest> {
        self.waiting.get(&ticket).map(|queued| &**queued)
    }

    /// Returns the queued request with this ticket, mutably. Neither its place in the queue nor its usage may be changed.
    pub fn get_mut(&mut self, ticket: Ticket) -> Option<&mut QueuedRequest> {
        self.waiting.get_mut(&ticket).map(|queued| &mut **queued)
    }

    /// Returns the queued requests in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &QueuedRequest> {
        self.waiting.values().map(|queued| &**queued)
    }

    /// Returns the queued requests like [`Self::get_mut`], in no particular order.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut QueuedRequest> {
        self.waiting.values_mut().map(|queued| &mut **queued)
    }

    /// Returns the backlog of one priority class.
    pub fn backlog(&self, class: Priority) -> Backlog {
        let mut sum = Backlog::default();
        self.active_apps(class).for_each(|app| sum += &app.backlog());
        sum
    }

    /// Returns a new ticket, behind all others.
    pub fn ticket(&mut self) -> Ticket {
        self.last_ticket += 1;
        self.last_ticket
    }

    /// Returns the key of the app, which is added if it is unknown, and sets its weight. If there are too many apps, the key
    /// is that of the shared account.
    pub fn app(&mut self, name: &Arc<str>, class: Priority, weight: f64) -> Arc<AppKey> {
        let mut weight = if weight.is_finite() { weight.clamp(1e-3, 1e3) } else { 1.0 };
        let mut key = AppKey { class, name: name.clone() };
        if self.apps.len() >= IDLE_APPS && !self.apps.contains_key(&key) {
            let served_starts = self.classes.each_ref().map(|class| class.served_start);
            self.apps.retain(|key, app| !app.is_idle(served_starts[key.class as usize]));
            if self.apps.len() >= MAX_APPS {
                (key.name, weight) = (SHARED_APP.into(), 1.0);
            }
        }
        let key = Arc::new(key);
        let app = self.apps.entry(key.clone()).or_insert_with(|| Box::new(App::new(key, weight)));
        app.weight = weight;
        app.key.clone()
    }

    /// Queues a request at the place of its ticket. If that ticket is in use, the request gets a new one, behind all others.
    /// Returns the ticket.
    pub fn push(&mut self, mut queued: QueuedRequest) -> Ticket {
        if self.waiting.contains_key(&queued.ticket) {
            queued.ticket = self.ticket();
        }
        let other = self.classes[1 - queued.app.class as usize].start;
        let class = &mut self.classes[queued.app.class as usize];
        if class.active.is_empty() {
            class.start = class.start.max(other);
        }
        let app = self.apps.get_mut(&queued.app).expect("a queued request's app is known");
        if !app.is_waiting() {
            // Not later than the app that was served last, because settling may have moved the starts of the active apps.
            let first = class.active.first().map_or(Start::MAX, |&(start, ..)| start);
            app.start = app.start.max(first.min(class.served_start));
            app.since = queued.ticket;
            class.active.insert(app.turn());
        }
        app.join(&queued);
        let ticket = queued.ticket;
        self.deadlines.insert((queued.deadline, ticket));
        self.waiting.insert(ticket, Box::new(queued));
        ticket
    }

    /// Removes a request from the queue, for any reason.
    pub fn remove(&mut self, ticket: Ticket) -> Option<QueuedRequest> {
        let mut queued = self.waiting.remove(&ticket)?;
        self.woken.extend(queued.waker.take());
        self.deadlines.remove(&(queued.deadline, ticket));
        let app = self.apps.get_mut(&queued.app).expect("a queued request's app is known");
        app.leave(&queued);
        if !app.is_waiting() {
            self.classes[app.key.class as usize].active.remove(&app.turn());
        }
        Some(*queued)
    }

    /// Returns the request whose turn it is; `None` if the queue is empty.
    pub fn head(&self) -> Option<Ticket> {
        // Ties go to the interactive class, because it comes first.
        let class = self.classes.iter().filter(|class| !class.active.is_empty()).min_by_key(|class| class.start)?;
        let (.., app) = class.active.first()?;
        self.apps.get(app)?.next()
    }

    /// Returns the earliest deadline and the ticket of its request; `None` if the queue is empty.
    pub fn next_deadline(&self) -> Option<(Ns, Ticket)> {
        self.deadlines.first().copied()
    }

    /// Returns at most `most` heads of the apps' size classes, small sizes first.
    pub fn small_heads(&self, most: usize) -> Vec<Ticket> {
        let apps: Vec<&App> =
            [Priority::Interactive, Priority::Batch].iter().flat_map(|&class| self.active_apps(class)).collect();
        let heads = (0..SIZES).flat_map(|size| apps.iter().filter_map(move |app| app.first(size)));
        heads.take(most).collect()
    }

    /// Counts service for an app, as a share of the limit; a negative amount takes it back.
    pub fn serve(&mut self, key: &Arc<AppKey>, size: u8, service: f64) {
        let Some(app) = self.apps.get_mut(key) else { return };
        let (start, turn) = (app.start, app.is_waiting().then(|| app.turn()));
        app.serve(size, service);
        let class = &mut self.classes[key.class as usize];
        if let Some(turn) = turn {
            class.active.remove(&turn);
            class.active.insert(app.turn());
        }
        if service > 0.0 {
            class.served_start = class.served_start.max(start);
        }
        let share = if key.class == Priority::Batch { BATCH_SHARE } else { 1.0 };
        class.start = advance(class.start, service / share);
    }

    /// Returns the apps of a priority class that have queued requests, the next one first.
    fn active_apps(&self, class: Priority) -> impl Iterator<Item = &App> {
        self.classes[class as usize].active.iter().filter_map(|(.., key)| self.apps.get(key).map(|app| &**app))
    }
}
