//! Who waits, and whose turn is it? Start-time fair queueing with lifting: between interactive and batch, then between
//! apps by weight, then between an app's four size classes, then by arrival.
//!
//! Every queue has a virtual start: what it has been served, over its weight. The smallest is next. A queue that
//! becomes active starts at the smallest active one's, so idle time earns no credit.

use std::sync::Arc;

use self::crowd::{Crowd, NOBODY};
pub use self::{app::App, backlog::Backlog};
use smallvec::SmallVec;

use super::{books::Amount, bucket::Ns};
use crate::types::Priority;

mod app;
mod backlog;
mod crowd;

/// Virtual time: served cost over weight; 2³² is one cost of 1.
pub type Start = u64;

const ONE: f64 = 4_294_967_296.0;
/// Batch's share of a lane while interactive requests wait: the bound on its starvation.
pub const BATCH_SHARE: f64 = 0.05;

/// A waiter's number while it waits. Numbers are used again.
pub type Id = u32;
/// An app's number in its line.
pub type AppId = u32;
/// Arrival order. It outlives the place, so that a request can come back to where it was.
pub type Ticket = u64;

/// A request in line.
#[derive(Clone, Debug)]
pub struct Waiter {
    /// Whose.
    pub app: AppId,
    /// Its size class.
    pub size: u8,
    /// What it takes.
    pub amount: Amount,
    /// Completion tokens that it will probably use, for forecasts.
    pub expected: u32,
    /// Arrival order.
    pub ticket: Ticket,
    /// When it came.
    pub since: Ns,
    /// Its client's patience ends here.
    pub deadline: Ns,
    /// How much later than its own time it may go because smaller ones passed; set when it first blocks the line.
    pub slack: Option<Ns>,
    /// Prompt tokens before the lane's own correction.
    pub estimated: u32,
    /// Whether its client named a ceiling.
    pub ceiling_given: bool,
    /// What a refusal has said of it: prompt and assumed completion tokens.
    pub requested: Option<u32>,
}

/// Interactive or batch.
#[derive(Debug, Default)]
struct Urgency {
    start: Start,
    /// Start of the last app that was served: where a newcomer begins when nobody waits.
    served_start: Start,
}

/// The waiters of one lane, and the apps whose they are. What a request looks at that does not wait stands first.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Line {
    /// Most lanes have one, which so needs no place of its own.
    apps: SmallVec<[Option<App>; 1]>,
    crowd: Option<Box<Crowd>>,
    tickets: Ticket,
    served_start: Start,
    urgencies: [Urgency; 2],
    free_apps: Vec<AppId>,
    names: [foldhash::HashMap<Arc<str>, AppId>; 2],
    /// Idle apps are looked for when so many are known.
    forget_at: usize,
}

impl Line {
    /// How many wait.
    pub fn len(&self) -> usize {
        self.crowd().backlogs.iter().map(|backlog| backlog.count as usize).sum()
    }

    /// Nobody waits.
    pub fn is_empty(&self) -> bool {
        self.crowd.is_none()
    }

    /// The waiter with this number.
    pub fn get(&self, id: Id) -> Option<&Waiter> {
        self.crowd().get(id)
    }

    /// The same, to be changed in what does not order the line.
    pub fn get_mut(&mut self, id: Id) -> Option<&mut Waiter> {
        self.crowd.as_mut()?.get_mut(id)
    }

    /// A new ticket, behind all others.
    pub fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        self.tickets
    }

    /// Who waits, in no order.
    pub fn waiters(&self) -> impl Iterator<Item = &Waiter> {
        self.crowd().waiters()
    }

    /// What one urgency has in line.
    pub fn backlog(&self, class: Priority) -> &Backlog {
        &self.crowd().backlogs[class as usize]
    }

    /// Joins the line at its ticket's place.
    pub fn push(&mut self, mut waiter: Waiter) -> Id {
        let app = self.apps[waiter.app as usize].as_ref().expect("a waiter's app is known");
        let class = app.class as usize;
        if app.queue(waiter.size).has(waiter.ticket) {
            waiter.ticket = self.ticket();
        }
        self.lift_urgency(class);
        let app = self.apps[waiter.app as usize].as_mut().expect("a waiter's app is known");
        let crowd = self.crowd.get_or_insert_with(|| Box::new(NOBODY));
        if app.backlog().count == 0 {
            // Beside the one that was served last, not behind those that wait for their next: settling moves these.
            let first = crowd.active[class].first().map_or(Start::MAX, |&(start, _)| start);
            app.start = app.start.max(first.min(self.urgencies[class].served_start));
            crowd.active[class].insert((app.start, waiter.app));
        }
        let before = app.queue(waiter.size).first();
        if before.is_none() {
            let floor = app.next_size().map_or(0, |next| app.starts[next]);
            let start = &mut app.starts[usize::from(waiter.size)];
            *start = floor.max(*start);
        }
        let (id, ticket) = (crowd.place(), waiter.ticket);
        app.join(&waiter, id);
        crowd.backlogs[class].add(&waiter);
        crowd.join(id, waiter);
        if before.is_none_or(|(first, _)| ticket < first) {
            if let Some((_, old)) = before {
                crowd.follow(old);
            }
            crowd.lead(id);
        }
        id
    }

    /// Changes what a waiter takes. Its place stays, and its size class.
    pub fn reprice(&mut self, id: Id, amount: Amount, expected: u32) {
        let Some(crowd) = self.crowd.as_mut() else { return };
        let Some(before) = crowd.get(id).cloned() else { return };
        let after = Waiter { amount, expected, ..before.clone() };
        let led = crowd.follow(id);
        let app = self.apps[before.app as usize].as_mut().expect("a waiter's app is known");
        app.reprice(&before, &after);
        let backlog = &mut crowd.backlogs[app.class as usize];
        backlog.take(&before);
        backlog.add(&after);
        crowd.join(id, after);
        if led {
            crowd.lead(id);
        }
    }

    /// Who waits with this number.
    pub fn ids(&self) -> impl Iterator<Item = Id> + use<> {
        0..self.crowd().places() as Id
    }

    /// Leaves the line, for whatever reason.
    pub fn remove(&mut self, id: Id) -> Option<Waiter> {
        let crowd = self.crowd.as_mut()?;
        let led = crowd.follow(id);
        let waiter = crowd.part(id)?;
        let app = self.apps[waiter.app as usize].as_mut().expect("a waiter's app is known");
        app.part(&waiter);
        let class = app.class as usize;
        crowd.backlogs[class].take(&waiter);
        if led && let Some((_, next)) = app.queue(waiter.size).first() {
            crowd.lead(next);
        }
        if app.backlog().count == 0 {
            crowd.active[class].remove(&(app.start, waiter.app));
        }
        if crowd.heads.is_empty() {
            self.crowd = None;
        }
        Some(waiter)
    }

    /// Whose turn it is.
    pub fn head(&self) -> Option<Id> {
        let active = self.crowd.as_ref()?.active.iter().zip(&self.urgencies);
        // Ties go to interactive: it is first.
        let (active, _) = active.filter(|(active, _)| !active.is_empty()).min_by_key(|(_, urgency)| urgency.start)?;
        let &(_, app) = active.first()?;
        self.app_of(app)?.next()
    }

    /// Heads of the size classes of every app, the smallest first.
    pub fn small_heads(&self) -> impl Iterator<Item = Id> {
        self.crowd().heads.iter().map(|&(_, id)| id)
    }

    /// The app was served so much; a negative cost takes it back.
    pub fn serve(&mut self, app_id: AppId, size: u8, cost: f64, now: Ns) {
        let Some(app) = self.apps.get_mut(app_id as usize).and_then(Option::as_mut) else { return };
        let class = app.class as usize;
        let urgency = &mut self.urgencies[class];
        let before = app.start;
        if cost > 0.0 {
            urgency.served_start = urgency.served_start.max(app.start);
        }
        app.start = advance(app.start, cost / app.weight);
        let of_size = &mut app.starts[usize::from(size)];
        *of_size = advance(*of_size, cost);
        if let Some(crowd) = &mut self.crowd
            && crowd.active[class].remove(&(before, app_id))
        {
            crowd.active[class].insert((app.start, app_id));
        }
        let share = if app.class == Priority::Batch { BATCH_SHARE } else { 1.0 };
        if cost > 0.0 {
            self.served_start = self.served_start.max(urgency.start);
        }
        urgency.start = advance(urgency.start, cost / share);
        app.count_served(cost, now);
    }

    fn lift_urgency(&mut self, class: usize) {
        let waits = |class: usize| self.crowd().backlogs[class].count > 0;
        if waits(class) {
            return;
        }
        let floor = if waits(1 - class) { self.urgencies[1 - class].start } else { self.served_start };
        let urgency = &mut self.urgencies[class];
        urgency.start = urgency.start.max(floor);
    }

    fn crowd(&self) -> &Crowd {
        self.crowd.as_deref().unwrap_or(const { &NOBODY })
    }
}

fn advance(start: Start, cost: f64) -> Start {
    let step = cost * ONE;
    if step >= 0.0 { start.saturating_add(step as u64) } else { start.saturating_sub((-step) as u64) }
}
