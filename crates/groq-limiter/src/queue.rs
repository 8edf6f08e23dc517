//! Fair queueing with lifting: between interactive and batch, then between apps by weight, then between an app's four size
//! classes, then by arrival.
//!
//! Every queue has a virtual start: what it has been served, over its weight. The smallest is next. A queue that
//! becomes active starts at the smallest active one's, so idle time earns no credit.

use std::sync::Arc;

pub use self::{
    app::App,
    request::{AppId, Backlog, Id, QueuedRequest, Start, Ticket},
};
use self::{app::advance, apps::Apps, deadlines::Deadlines, waiters::Waiters};
use crate::{
    request::Cost,
    types::{Ns, Priority},
};

mod app;
mod apps;
pub mod backfill;
mod deadlines;
pub mod forecast;
mod request;
mod waiters;

/// Batch's share of a limiter while interactive requests wait: the bound on its starvation.
pub const BATCH_SHARE: f64 = 0.05;

/// Interactive or batch.
#[derive(Clone, Copy, Debug, Default)]
struct PriorityClass {
    start: Start,
    /// Start of the last app that was served: where a newcomer begins when nobody waits.
    served_start: Start,
}

/// The queued requests of one limiter, and the apps whose they are.
#[derive(Debug, Default)]
pub struct FairQueue {
    apps: Apps,
    waiters: Waiters,
    deadlines: Deadlines,
    last_ticket: Ticket,
    served_start: Start,
    classes: [PriorityClass; 2],
}

impl FairQueue {
    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiters.backlogs.iter().map(|backlog| backlog.count as usize).sum()
    }

    /// Nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiters.heads.is_empty()
    }

    /// The queued request with this number.
    pub fn get(&self, id: Id) -> Option<&QueuedRequest> {
        self.waiters.get(id)
    }

    /// The same, to be changed in what does not order the queue.
    pub fn get_mut(&mut self, id: Id) -> Option<&mut QueuedRequest> {
        self.waiters.get_mut(id)
    }

    /// The waiting requests, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (Id, &QueuedRequest)> {
        self.waiters.iter()
    }

    /// What one priority class has in the queue.
    pub fn backlog(&self, class: Priority) -> &Backlog {
        &self.waiters.backlogs[class as usize]
    }

    /// A new ticket, behind all others.
    pub fn ticket(&mut self) -> Ticket {
        self.last_ticket += 1;
        self.last_ticket
    }

    /// The app's number; it is taken up if it was unknown.
    pub fn app(&mut self, name: &Arc<str>, class: Priority, weight: f64, now: Ns) -> AppId {
        self.apps.id(name, class, weight, self.classes.map(|class| class.served_start), now)
    }

    /// The app with this number.
    pub fn app_of(&self, id: AppId) -> Option<&App> {
        self.apps.get(id)
    }

    /// The same, to be changed in what does not order the queue.
    pub fn app_mut(&mut self, id: AppId) -> Option<&mut App> {
        self.apps.get_mut(id)
    }

    /// Every app that is known.
    pub fn apps(&self) -> impl Iterator<Item = &App> {
        self.apps.iter()
    }

    /// The priority class of an app.
    pub fn class_of(&self, app: AppId) -> Priority {
        self.app_of(app).map_or(Priority::Interactive, |app| app.class)
    }

    /// Joins the queue at its ticket's place.
    pub fn push(&mut self, mut queued: QueuedRequest) -> Id {
        let app = self.apps.get(queued.app).expect("a queued request's app is known");
        let class = app.class as usize;
        if app.has(queued.size, queued.ticket) {
            queued.ticket = self.ticket();
        }
        self.lift_class(class);
        let app = self.apps.get_mut(queued.app).expect("a queued request's app is known");
        if app.backlog().count == 0 {
            // Beside the one that was served last, not behind those that wait for their next: settling moves these.
            let first = self.waiters.active[class].first().map_or(Start::MAX, |&(start, _)| start);
            app.start = app.start.max(first.min(self.classes[class].served_start));
            self.waiters.active[class].insert((app.start, queued.app));
        }
        let before = app.first(queued.size);
        let (ticket, deadline) = (queued.ticket, queued.deadline);
        let id = self.waiters.insert(queued.clone());
        app.join(&queued, id);
        self.waiters.backlogs[class].add(&queued);
        if before.is_none_or(|(first, _)| ticket < first) {
            if let Some((_, old)) = before {
                self.waiters.remove_head(old);
            }
            self.waiters.add_head(id);
        }
        self.deadlines.add(deadline, id);
        id
    }

    /// Changes what a queued request takes. Its place stays, and its size class.
    pub fn reprice(&mut self, id: Id, cost: Cost) {
        let Some(before) = self.waiters.get(id).cloned() else { return };
        let led = self.waiters.remove_head(id);
        let after = QueuedRequest { cost, ..before.clone() };
        let app = self.apps.get_mut(before.app).expect("a queued request's app is known");
        app.reprice(&before, &after);
        let backlog = &mut self.waiters.backlogs[app.class as usize];
        backlog.subtract(&before);
        backlog.add(&after);
        if let Some(place) = self.waiters.get_mut(id) {
            *place = after;
        }
        if led {
            self.waiters.add_head(id);
        }
    }

    /// Leaves the queue, for whatever reason.
    pub fn remove(&mut self, id: Id) -> Option<QueuedRequest> {
        let led = self.waiters.remove_head(id);
        let queued = self.waiters.remove(id)?;
        let app = self.apps.get_mut(queued.app).expect("a queued request's app is known");
        app.leave(&queued);
        let class = app.class as usize;
        self.waiters.backlogs[class].subtract(&queued);
        if led && let Some((_, next)) = app.first(queued.size) {
            self.waiters.add_head(next);
        }
        if app.backlog().count == 0 {
            self.waiters.active[class].remove(&(app.start, queued.app));
        }
        let (waiting, waiters) = (self.len(), &self.waiters);
        self.deadlines.compact(waiting, |at, id| waiters.get(id).is_some_and(|queued| queued.deadline == at));
        Some(queued)
    }

    /// Whose turn it is.
    pub fn head(&self) -> Option<Id> {
        let active = self.waiters.active.iter().zip(&self.classes);
        // Ties go to interactive: it is first.
        let (active, _) = active.filter(|(active, _)| !active.is_empty()).min_by_key(|(_, class)| class.start)?;
        let &(_, app) = active.first()?;
        self.app_of(app)?.next()
    }

    /// Whose deadline is next.
    pub fn next_deadline(&self) -> Option<(Ns, Id)> {
        self.deadlines.next()
    }

    /// Heads of the size classes of every app, the smallest first.
    pub fn small_heads(&self) -> impl Iterator<Item = Id> {
        self.waiters.heads.iter().map(|&(_, id)| id)
    }

    /// The app was served so much; a negative amount takes it back.
    pub fn serve(&mut self, app_id: AppId, size: u8, service: f64, now: Ns) {
        let Some(app) = self.apps.get_mut(app_id) else { return };
        let before = app.start;
        app.serve(size, service, now);
        let class = &mut self.classes[app.class as usize];
        let active = &mut self.waiters.active[app.class as usize];
        if active.remove(&(before, app_id)) {
            active.insert((app.start, app_id));
        }
        if service > 0.0 {
            class.served_start = class.served_start.max(before);
            self.served_start = self.served_start.max(class.start);
        }
        let share = if app.class == Priority::Batch { BATCH_SHARE } else { 1.0 };
        class.start = advance(class.start, service / share);
    }

    /// A priority class that becomes active starts where the other one is.
    fn lift_class(&mut self, class: usize) {
        let waits = |class: usize| self.waiters.backlogs[class].count > 0;
        if waits(class) {
            return;
        }
        let floor = if waits(1 - class) { self.classes[1 - class].start } else { self.served_start };
        self.classes[class].start = self.classes[class].start.max(floor);
    }
}
