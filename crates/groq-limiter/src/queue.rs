//! Fair queueing with lifting: between interactive and batch, then between apps by weight, then between an app's four size
//! classes, then by arrival.
//!
//! Every queue has a virtual start: what it has been served, over its weight. The smallest is next. A queue that
//! becomes active starts at the smallest active one's, so idle time earns no credit.

use std::sync::Arc;

use self::waiters::{NOBODY, Waiters};
pub use self::{app::App, backlog::Backlog};
use smallvec::SmallVec;

use super::{bucket::Ns, quota_set::Cost};
use crate::types::Priority;

mod app;
mod backlog;
pub mod forecast;
mod waiters;

/// Virtual time: served cost over weight; 2³² is one cost of 1.
pub type Start = u64;

const ONE: f64 = 4_294_967_296.0;
/// Batch's share of a limiter while interactive requests wait: the bound on its starvation.
pub const BATCH_SHARE: f64 = 0.05;

/// A waiter's number while it waits. Numbers are used again.
pub type Id = u32;
/// An app's number in its queue.
pub type AppId = u32;
/// Arrival order. It outlives the place, so that a request can come back to where it was.
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
    /// Whether its client named a ceiling.
    pub has_ceiling: bool,
    /// What a refusal has said of it: prompt and assumed completion tokens.
    pub requested: Option<u32>,
}

/// Interactive or batch.
#[derive(Debug, Default)]
struct PriorityClass {
    start: Start,
    /// Start of the last app that was served: where a newcomer begins when nobody waits.
    served_start: Start,
}

/// The queued requests of one limiter, and the apps whose they are.
#[derive(Debug, Default)]
pub struct FairQueue {
    /// Most limiters have one, which so needs no place of its own.
    apps: SmallVec<[Option<App>; 1]>,
    waiters: Option<Box<Waiters>>,
    tickets: Ticket,
    served_start: Start,
    classes: [PriorityClass; 2],
    free_apps: Vec<AppId>,
    names: [foldhash::HashMap<Arc<str>, AppId>; 2],
    /// Idle apps are looked for when so many are known.
    forget_at: usize,
}

impl FairQueue {
    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiters().backlogs.iter().map(|backlog| backlog.count as usize).sum()
    }

    /// Nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiters.is_none()
    }

    /// The waiter with this number.
    pub fn get(&self, id: Id) -> Option<&QueuedRequest> {
        self.waiters().get(id)
    }

    /// The same, to be changed in what does not order the queue.
    pub fn get_mut(&mut self, id: Id) -> Option<&mut QueuedRequest> {
        self.waiters.as_mut()?.get_mut(id)
    }

    /// A new ticket, behind all others.
    pub fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        self.tickets
    }

    /// Who waits, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &QueuedRequest> {
        self.waiters().iter()
    }

    /// What one priority class has in the queue.
    pub fn backlog(&self, class: Priority) -> &Backlog {
        &self.waiters().backlogs[class as usize]
    }

    /// Joins the queue at its ticket's place.
    pub fn push(&mut self, mut waiter: QueuedRequest) -> Id {
        let app = self.apps[waiter.app as usize].as_ref().expect("a waiter's app is known");
        let class = app.class as usize;
        if app.queue(waiter.size).has(waiter.ticket) {
            waiter.ticket = self.ticket();
        }
        self.lift_urgency(class);
        let app = self.apps[waiter.app as usize].as_mut().expect("a waiter's app is known");
        let waiters = self.waiters.get_or_insert_with(|| Box::new(NOBODY));
        if app.backlog().count == 0 {
            // Beside the one that was served last, not behind those that wait for their next: settling moves these.
            let first = waiters.active[class].first().map_or(Start::MAX, |&(start, _)| start);
            app.start = app.start.max(first.min(self.classes[class].served_start));
            waiters.active[class].insert((app.start, waiter.app));
        }
        let before = app.queue(waiter.size).first();
        if before.is_none() {
            let floor = app.next_size().map_or(0, |next| app.starts[next]);
            let start = &mut app.starts[usize::from(waiter.size)];
            *start = floor.max(*start);
        }
        let (id, ticket) = (waiters.place(), waiter.ticket);
        app.join(&waiter, id);
        waiters.backlogs[class].add(&waiter);
        waiters.join(id, waiter);
        if before.is_none_or(|(first, _)| ticket < first) {
            if let Some((_, old)) = before {
                waiters.follow(old);
            }
            waiters.lead(id);
        }
        id
    }

    /// Changes what a waiter takes. Its place stays, and its size class.
    pub fn reprice(&mut self, id: Id, cost: Cost, expected: u32) {
        let Some(waiters) = self.waiters.as_mut() else { return };
        let Some(before) = waiters.get(id).cloned() else { return };
        let after = QueuedRequest { cost, expected, ..before.clone() };
        let led = waiters.follow(id);
        let app = self.apps[before.app as usize].as_mut().expect("a waiter's app is known");
        app.reprice(&before, &after);
        let backlog = &mut waiters.backlogs[app.class as usize];
        backlog.take(&before);
        backlog.add(&after);
        waiters.join(id, after);
        if led {
            waiters.lead(id);
        }
    }

    /// Who waits with this number.
    pub fn ids(&self) -> impl Iterator<Item = Id> + use<> {
        0..self.waiters().places() as Id
    }

    /// Leaves the queue, for whatever reason.
    pub fn remove(&mut self, id: Id) -> Option<QueuedRequest> {
        let waiters = self.waiters.as_mut()?;
        let led = waiters.follow(id);
        let waiter = waiters.part(id)?;
        let app = self.apps[waiter.app as usize].as_mut().expect("a waiter's app is known");
        app.part(&waiter);
        let class = app.class as usize;
        waiters.backlogs[class].take(&waiter);
        if led && let Some((_, next)) = app.queue(waiter.size).first() {
            waiters.lead(next);
        }
        if app.backlog().count == 0 {
            waiters.active[class].remove(&(app.start, waiter.app));
        }
        if waiters.heads.is_empty() {
            self.waiters = None;
        }
        Some(waiter)
    }

    /// Whose turn it is.
    pub fn head(&self) -> Option<Id> {
        let active = self.waiters.as_ref()?.active.iter().zip(&self.classes);
        // Ties go to interactive: it is first.
        let (active, _) =
            active.filter(|(active, _)| !active.is_empty()).min_by_key(|(_, priority_class)| priority_class.start)?;
        let &(_, app) = active.first()?;
        self.app_of(app)?.next()
    }

    /// Heads of the size classes of every app, the smallest first.
    pub fn small_heads(&self) -> impl Iterator<Item = Id> {
        self.waiters().heads.iter().map(|&(_, id)| id)
    }

    /// The app was served so much; a negative cost takes it back.
    pub fn serve(&mut self, app_id: AppId, size: u8, service: f64, now: Ns) {
        let Some(app) = self.apps.get_mut(app_id as usize).and_then(Option::as_mut) else { return };
        let class = app.class as usize;
        let priority_class = &mut self.classes[class];
        let before = app.start;
        if service > 0.0 {
            priority_class.served_start = priority_class.served_start.max(app.start);
        }
        app.start = advance(app.start, service / app.weight);
        let of_size = &mut app.starts[usize::from(size)];
        *of_size = advance(*of_size, service);
        if let Some(waiters) = &mut self.waiters
            && waiters.active[class].remove(&(before, app_id))
        {
            waiters.active[class].insert((app.start, app_id));
        }
        let share = if app.class == Priority::Batch { BATCH_SHARE } else { 1.0 };
        if service > 0.0 {
            self.served_start = self.served_start.max(priority_class.start);
        }
        priority_class.start = advance(priority_class.start, service / share);
        app.count_served(service, now);
    }

    fn lift_urgency(&mut self, class: usize) {
        let waits = |class: usize| self.waiters().backlogs[class].count > 0;
        if waits(class) {
            return;
        }
        let floor = if waits(1 - class) { self.classes[1 - class].start } else { self.served_start };
        let priority_class = &mut self.classes[class];
        priority_class.start = priority_class.start.max(floor);
    }

    fn waiters(&self) -> &Waiters {
        self.waiters.as_deref().unwrap_or(const { &NOBODY })
    }
}

fn advance(start: Start, service: f64) -> Start {
    let step = service * ONE;
    if step >= 0.0 { start.saturating_add(step as u64) } else { start.saturating_sub((-step) as u64) }
}
