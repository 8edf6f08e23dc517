//! Fair queueing with lifting: between interactive and batch, then between apps by weight, then between an app's four size
//! classes, then by arrival.
//!
//! Every queue has a virtual start: what it has been served, over its weight. The smallest is next. A queue that
//! becomes active starts at the smallest active one's, so idle time earns no credit.

use std::{collections::BTreeSet, sync::Arc};

pub use self::{
    app::App,
    request::{AppId, Backlog, QueuedRequest, Start, Ticket},
};
use self::{app::advance, apps::Apps};
use crate::{
    request::Cost,
    sync::HashMap,
    types::{Ns, Priority},
};

mod app;
mod apps;
pub mod backfill;
pub mod forecast;
mod request;

/// Batch's share of a limiter while interactive requests wait: the bound on its starvation.
pub const BATCH_SHARE: f64 = 0.05;

/// Interactive or batch.
#[derive(Debug, Default)]
struct PriorityClass {
    start: Start,
    /// Start of the last app that was served: where a newcomer begins when nobody waits.
    served_start: Start,
    /// The apps that wait, the next one first.
    active: BTreeSet<(Start, AppId)>,
    /// What waits.
    backlog: Backlog,
}

/// The queued requests of one limiter, and the apps whose they are.
#[derive(Debug, Default)]
pub struct FairQueue {
    /// The apps that are known.
    pub apps: Apps,
    /// Boxed: a table of whole requests takes a third more, and twice that as it grows.
    waiting: HashMap<Ticket, Box<QueuedRequest>>,
    /// Head of every size class of every app, smallest first: who may pass a blocked head.
    heads: BTreeSet<(u64, Ticket)>,
    deadlines: BTreeSet<(Ns, Ticket)>,
    last_ticket: Ticket,
    served_start: Start,
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
    pub fn backlog(&self, class: Priority) -> &Backlog {
        &self.classes[class as usize].backlog
    }

    /// A new ticket, behind all others.
    pub fn ticket(&mut self) -> Ticket {
        self.last_ticket += 1;
        self.last_ticket
    }

    /// The app's number; it is taken up if it was unknown.
    pub fn app(&mut self, name: &Arc<str>, class: Priority, weight: f64, now: Ns) -> AppId {
        self.apps.id(name, class, weight, self.classes.each_ref().map(|class| class.served_start), now)
    }

    /// The priority class of an app.
    pub fn class_of(&self, app: AppId) -> Priority {
        self.apps.get(app).map_or(Priority::Interactive, |app| app.class)
    }

    /// Joins the queue at its ticket's place, or behind all others where that is taken.
    pub fn push(&mut self, mut queued: QueuedRequest) -> Ticket {
        if self.waiting.contains_key(&queued.ticket) {
            queued.ticket = self.ticket();
        }
        let app = self.apps.get_mut(queued.app).expect("a queued request's app is known");
        self.classes[app.class as usize].start = lifted(&self.classes, app.class as usize, self.served_start);
        let class = &mut self.classes[app.class as usize];
        if app.backlog().count == 0 {
            // Beside the one that was served last, not behind those that wait for their next: settling moves these.
            let first = class.active.first().map_or(Start::MAX, |&(start, _)| start);
            app.start = app.start.max(first.min(class.served_start));
            class.active.insert((app.start, queued.app));
        }
        class.backlog.add(&queued);
        let before = app.first(queued.size);
        app.join(&queued);
        self.deadlines.insert((queued.deadline, queued.ticket));
        let ticket = queued.ticket;
        if before.is_none_or(|first| ticket < first) {
            if let Some(old) = before {
                self.remove_head(old);
            }
            self.heads.insert((queued.cost.size(), ticket));
        }
        self.waiting.insert(ticket, Box::new(queued));
        ticket
    }

    /// Changes what a queued request takes. Its place stays, and its size class.
    pub fn reprice(&mut self, ticket: Ticket, cost: Cost) {
        let is_head = self.remove_head(ticket);
        let Some(queued) = self.waiting.get_mut(&ticket) else { return };
        let before = QueuedRequest::clone(queued);
        queued.cost = cost;
        let app = self.apps.get_mut(before.app).expect("a queued request's app is known");
        let class = &mut self.classes[app.class as usize];
        for backlog in app.backlogs(before.size).into_iter().chain([&mut class.backlog]) {
            backlog.subtract(&before);
            backlog.add(queued);
        }
        if is_head {
            self.heads.insert((cost.size(), ticket));
        }
    }

    /// Leaves the queue, for whatever reason.
    pub fn remove(&mut self, ticket: Ticket) -> Option<QueuedRequest> {
        let is_head = self.remove_head(ticket);
        let queued = self.waiting.remove(&ticket)?;
        if self.waiting.is_empty() {
            // The room of a long queue is not kept for the next one.
            self.waiting = HashMap::default();
        }
        self.deadlines.remove(&(queued.deadline, ticket));
        let app = self.apps.get_mut(queued.app).expect("a queued request's app is known");
        app.leave(&queued);
        let class = &mut self.classes[app.class as usize];
        class.backlog.subtract(&queued);
        if app.backlog().count == 0 {
            class.active.remove(&(app.start, queued.app));
        }
        let next = app.first(queued.size).filter(|_| is_head);
        if let Some(next) = next.and_then(|next| self.get(next)) {
            self.heads.insert((next.cost.size(), next.ticket));
        }
        Some(*queued)
    }

    /// Whose turn it is.
    pub fn head(&self) -> Option<Ticket> {
        // Ties go to interactive: it is first.
        let class = self.classes.iter().filter(|class| !class.active.is_empty()).min_by_key(|class| class.start)?;
        let &(_, app) = class.active.first()?;
        self.apps.get(app)?.next()
    }

    /// Whose deadline is next.
    pub fn next_deadline(&self) -> Option<(Ns, Ticket)> {
        self.deadlines.first().copied()
    }

    /// Heads of the size classes of every app, the smallest first.
    pub fn small_heads(&self) -> impl Iterator<Item = Ticket> {
        self.heads.iter().map(|&(_, ticket)| ticket)
    }

    /// The app was served so much; a negative amount takes it back.
    pub fn serve(&mut self, app_id: AppId, size: u8, service: f64, now: Ns) {
        let Some(app) = self.apps.get_mut(app_id) else { return };
        let before = app.start;
        app.serve(size, service, now);
        let class = &mut self.classes[app.class as usize];
        if class.active.remove(&(before, app_id)) {
            class.active.insert((app.start, app_id));
        }
        if service > 0.0 {
            class.served_start = class.served_start.max(before);
            self.served_start = self.served_start.max(class.start);
        }
        let share = if app.class == Priority::Batch { BATCH_SHARE } else { 1.0 };
        class.start = advance(class.start, service / share);
    }

    /// It is no longer the head of its size class; whether it was.
    fn remove_head(&mut self, ticket: Ticket) -> bool {
        self.waiting.get(&ticket).is_some_and(|queued| self.heads.remove(&(queued.cost.size(), ticket)))
    }
}

/// The start of a priority class as it gets a request: one that becomes active starts where the other one is.
fn lifted(classes: &[PriorityClass; 2], class: usize, served_start: Start) -> Start {
    let [this, other] = [&classes[class], &classes[1 - class]];
    let floor = if other.backlog.count > 0 { other.start } else { served_start };
    if this.backlog.count > 0 { this.start } else { this.start.max(floor) }
}
