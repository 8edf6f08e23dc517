//! Fair queueing with lifting: between interactive and batch, then between apps by weight, then between an app's four size
//! classes, then by arrival.
//!
//! Every queue has a virtual start: what it has been served, over its weight. The smallest is next. A queue that
//! becomes active starts at the smallest active one's, so idle time earns no credit.

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
    request::Cost,
    sync::HashMap,
    types::{Ns, Priority},
};

mod app;
pub mod backfill;
pub mod forecast;
mod request;

/// Batch's share of a limiter while interactive requests wait: the bound on its starvation.
pub const BATCH_SHARE: f64 = 0.05;
/// Apps that are idle are forgotten beyond so many.
const IDLE_APPS: usize = 256;
/// Beyond so many apps at once, all further ones share one place: names are the clients' to choose.
const MOST_APPS: usize = 2048;
/// The name of that place.
const EVERYONE_ELSE: &str = "other";

/// Interactive or batch.
#[derive(Debug, Default)]
struct PriorityClass {
    start: Start,
    /// Start of the last app that was served: where a newcomer begins when nobody waits.
    served_start: Start,
    /// The apps that wait, the next one first.
    active: BTreeSet<Turn>,
}

/// The queued requests of one limiter, and the apps whose they are.
#[derive(Debug, Default)]
pub struct FairQueue {
    /// The apps that are known. Boxed: most limiters have one, and a map has room for eleven.
    pub apps: BTreeMap<Arc<AppKey>, Box<App>>,
    /// Idle apps are looked for when so many are known.
    forget_at: usize,
    /// Boxed: a table of whole requests takes a third more, and twice that as it grows.
    waiting: HashMap<Ticket, Box<QueuedRequest>>,
    deadlines: BTreeSet<(Ns, Ticket)>,
    /// Whose request has left the queue, and who has to know.
    pub woken: Vec<Waker>,
    last_ticket: Ticket,
    classes: [PriorityClass; 2],
}

impl FairQueue {
    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The queued request with this ticket.
    pub fn get(&self, ticket: Ticket) -> Option<&QueuedRequest> {
        self.waiting.get(&ticket).map(|queued| &**queued)
    }

    /// The same, to be changed in what does not order the queue.
    pub fn get_mut(&mut self, ticket: Ticket) -> Option<&mut QueuedRequest> {
        self.waiting.get_mut(&ticket).map(|queued| &mut **queued)
    }

    /// The waiting requests, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &QueuedRequest> {
        self.waiting.values().map(|queued| &**queued)
    }

    /// What one priority class has in the queue.
    pub fn backlog(&self, class: Priority) -> Backlog {
        let mut sum = Backlog::default();
        self.active_apps(class).for_each(|app| sum += &app.backlog());
        sum
    }

    /// A new ticket, behind all others.
    pub fn ticket(&mut self) -> Ticket {
        self.last_ticket += 1;
        self.last_ticket
    }

    /// The app's key; it is taken up if it was unknown.
    pub fn app(&mut self, name: &Arc<str>, class: Priority, weight: f64) -> Arc<AppKey> {
        let mut weight = if weight.is_finite() { weight.clamp(1e-3, 1e3) } else { 1.0 };
        let mut key = AppKey { class, name: name.clone() };
        if !self.apps.contains_key(&key) && self.apps.len() >= self.forget_at.max(IDLE_APPS) {
            let served_starts = self.classes.each_ref().map(|class| class.served_start);
            self.apps.retain(|key, app| !app.is_idle(served_starts[key.class as usize]));
            self.forget_at = 2 * self.apps.len();
            if self.apps.len() >= MOST_APPS {
                (key.name, weight) = (EVERYONE_ELSE.into(), 1.0);
            }
        }
        if let Some(app) = self.apps.get_mut(&key) {
            app.weight = weight;
            return app.key.clone();
        }
        let key = Arc::new(key);
        self.apps.insert(key.clone(), Box::new(App::new(key.clone(), weight)));
        key
    }

    /// Joins the queue at its ticket's place, or behind all others where that is taken.
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
            // Beside the one that was served last, not behind those that wait for their next: settling moves these.
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

    /// Changes what a queued request takes. Its place stays, and its size class.
    pub fn reprice(&mut self, ticket: Ticket, cost: Cost) {
        let Some(queued) = self.waiting.get_mut(&ticket) else { return };
        let before = queued.usage();
        queued.cost = cost;
        let app = self.apps.get_mut(&queued.app).expect("a queued request's app is known");
        app.reprice(queued.size, &before, &queued.usage());
    }

    /// Leaves the queue, for whatever reason.
    pub fn remove(&mut self, ticket: Ticket) -> Option<QueuedRequest> {
        let mut queued = self.waiting.remove(&ticket)?;
        self.woken.extend(queued.waker.take());
        if self.waiting.is_empty() {
            // The room of a long queue is not kept for the next one.
            self.waiting = HashMap::default();
        }
        self.deadlines.remove(&(queued.deadline, ticket));
        let app = self.apps.get_mut(&queued.app).expect("a queued request's app is known");
        app.leave(&queued);
        if !app.is_waiting() {
            self.classes[app.key.class as usize].active.remove(&app.turn());
        }
        Some(*queued)
    }

    /// Whose turn it is.
    pub fn head(&self) -> Option<Ticket> {
        // Ties go to interactive: it is first.
        let class = self.classes.iter().filter(|class| !class.active.is_empty()).min_by_key(|class| class.start)?;
        let (.., app) = class.active.first()?;
        self.apps.get(app)?.next()
    }

    /// Whose deadline is next.
    pub fn next_deadline(&self) -> Option<(Ns, Ticket)> {
        self.deadlines.first().copied()
    }

    /// At most so many heads of the apps' size classes, small ones first.
    pub fn small_heads(&self, most: usize) -> Vec<Ticket> {
        let apps: Vec<&App> =
            [Priority::Interactive, Priority::Batch].iter().flat_map(|&class| self.active_apps(class)).collect();
        let heads = (0..SIZES).flat_map(|size| apps.iter().filter_map(move |app| app.first(size)));
        heads.take(most).collect()
    }

    /// The app was served so much; a negative amount takes it back.
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

    /// The apps of a priority class that wait, the next one first.
    fn active_apps(&self, class: Priority) -> impl Iterator<Item = &App> {
        self.classes[class as usize].active.iter().filter_map(|(.., key)| self.apps.get(key).map(|app| &**app))
    }
}
