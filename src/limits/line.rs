//! Who waits, and whose turn is it? Start-time fair queueing with lifting: between interactive and batch, then between
//! apps by weight, then between an app's four size classes, then by arrival.
//!
//! Every queue has a virtual start: what it has been served, over its weight. The smallest is next. A queue that
//! becomes active starts at the smallest active one's, so idle time earns no credit.

use std::{collections::BTreeSet, sync::Arc};

pub use self::{app::App, backlog::Backlog};
use super::{books::Amount, bucket::Ns};
use crate::config::Class;

mod app;
mod backlog;

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
    /// How a client's own retry finds the place.
    pub fingerprint: u64,
    /// Prompt tokens before the lane's own correction.
    pub estimated: u32,
    /// Whether its client named a ceiling.
    pub ceiling_given: bool,
}

/// Interactive or batch.
#[derive(Debug)]
struct Urgency {
    start: Start,
    /// Start of the last app that was served: where a newcomer begins when nobody waits.
    served_start: Start,
    active: BTreeSet<(Start, AppId)>,
    backlog: Backlog,
}

impl Default for Urgency {
    fn default() -> Self {
        Self { start: 0, served_start: 0, active: BTreeSet::new(), backlog: Backlog::NONE }
    }
}

/// The waiters of one lane.
#[derive(Debug, Default)]
pub struct Line {
    waiters: Vec<Option<Waiter>>,
    free: Vec<Id>,
    apps: Vec<Option<App>>,
    free_apps: Vec<AppId>,
    names: [foldhash::HashMap<Arc<str>, AppId>; 2],
    urgencies: [Urgency; 2],
    served_start: Start,
    /// Head of every size class of every app, smallest first: who may pass a blocked head.
    heads: BTreeSet<(u64, Id)>,
    tickets: Ticket,
    /// Idle apps are looked for when so many are known.
    forget_at: usize,
}

impl Line {
    /// How many wait.
    pub fn len(&self) -> usize {
        (self.urgencies[0].backlog.count + self.urgencies[1].backlog.count) as usize
    }

    /// Nobody waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The waiter with this number.
    pub fn get(&self, id: Id) -> Option<&Waiter> {
        self.waiters.get(id as usize)?.as_ref()
    }

    /// The same, to be changed in what does not order the line.
    pub fn get_mut(&mut self, id: Id) -> Option<&mut Waiter> {
        self.waiters.get_mut(id as usize)?.as_mut()
    }

    /// A new ticket, behind all others.
    pub fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        self.tickets
    }

    /// Who waits, in no order.
    pub fn waiters(&self) -> impl Iterator<Item = &Waiter> {
        self.waiters.iter().flatten()
    }

    /// What one urgency has in line.
    pub fn backlog(&self, class: Class) -> &Backlog {
        &self.urgencies[class as usize].backlog
    }

    /// Joins the line at its ticket's place.
    pub fn push(&mut self, mut waiter: Waiter) -> Id {
        let app = self.apps[waiter.app as usize].as_ref().expect("a waiter's app is known");
        if app.queue(waiter.size).has(waiter.ticket) {
            waiter.ticket = self.ticket();
        }
        let (app_id, size) = (waiter.app, usize::from(waiter.size));
        let class = self.class_of(app_id);
        self.lift_urgency(class);
        let urgency = &mut self.urgencies[class as usize];
        let app = self.apps[app_id as usize].as_mut().expect("a waiter's app is known");
        if app.backlog().count == 0 {
            // Beside the one that was served last, not behind those that wait for their next: settling moves these.
            let floor = urgency.active.first().map_or(Start::MAX, |&(start, _)| start).min(urgency.served_start);
            app.start = app.start.max(floor);
            urgency.active.insert((app.start, app_id));
        }
        let before = app.queue(waiter.size).first();
        if before.is_none() {
            let floor = app.next_size().map_or(0, |next| app.starts[next]);
            app.starts[size] = app.starts[size].max(floor);
        }
        let id = self.free.pop().unwrap_or(self.waiters.len() as Id);
        app.join(&waiter, id);
        urgency.backlog.add(&waiter);
        if before.is_none_or(|(first, _)| waiter.ticket < first) {
            if let Some((_, old)) = before {
                let old_key = reach(&self.waiters[old as usize].as_ref().expect("a head waits").amount);
                self.heads.remove(&(old_key, old));
            }
            self.heads.insert((reach(&waiter.amount), id));
        }
        match self.waiters.get_mut(id as usize) {
            Some(place) => *place = Some(waiter),
            None => self.waiters.push(Some(waiter)),
        }
        id
    }

    /// Leaves the line, for whatever reason.
    pub fn remove(&mut self, id: Id) -> Option<Waiter> {
        let waiter = self.waiters.get_mut(id as usize)?.take()?;
        self.free.push(id);
        let class = self.class_of(waiter.app);
        let app = self.apps[waiter.app as usize].as_mut().expect("a waiter's app is known");
        app.part(&waiter);
        if self.heads.remove(&(reach(&waiter.amount), id))
            && let Some((_, next)) = app.queue(waiter.size).first()
        {
            let key = reach(&self.waiters[next as usize].as_ref().expect("a head waits").amount);
            self.heads.insert((key, next));
        }
        let urgency = &mut self.urgencies[class as usize];
        urgency.backlog.take(&waiter);
        if app.backlog().count == 0 {
            urgency.active.remove(&(app.start, waiter.app));
        }
        Some(waiter)
    }

    /// Whose turn it is.
    pub fn head(&self) -> Option<Id> {
        let urgency = self
            .urgencies
            .iter()
            .filter(|urgency| !urgency.active.is_empty())
            // Ties go to interactive: it is first.
            .min_by_key(|urgency| urgency.start)?;
        let &(_, app) = urgency.active.first()?;
        let app = self.apps[app as usize].as_ref()?;
        app.next()
    }

    /// Heads of the size classes of every app, the smallest first.
    pub fn small_heads(&self) -> impl Iterator<Item = Id> {
        self.heads.iter().map(|&(_, id)| id)
    }

    /// The app was served so much; a negative cost takes it back.
    pub fn serve(&mut self, app_id: AppId, size: u8, cost: f64, now: Ns) {
        let Some(app) = self.apps.get_mut(app_id as usize).and_then(Option::as_mut) else { return };
        let urgency = &mut self.urgencies[app.class as usize];
        let active = app.backlog().count > 0 && urgency.active.remove(&(app.start, app_id));
        if cost > 0.0 {
            urgency.served_start = urgency.served_start.max(app.start);
        }
        app.start = advance(app.start, cost / app.weight);
        let of_size = &mut app.starts[usize::from(size)];
        *of_size = advance(*of_size, cost);
        if active {
            urgency.active.insert((app.start, app_id));
        }
        let share = if app.class == Class::Batch { BATCH_SHARE } else { 1.0 };
        if cost > 0.0 {
            self.served_start = self.served_start.max(urgency.start);
        }
        urgency.start = advance(urgency.start, cost / share);
        app.count_served(cost, now);
    }

    fn class_of(&self, app: AppId) -> Class {
        self.apps[app as usize].as_ref().expect("a waiter's app is known").class
    }

    fn lift_urgency(&mut self, class: Class) {
        if self.urgencies[class as usize].backlog.count > 0 {
            return;
        }
        let other = &self.urgencies[1 - class as usize];
        let floor = if other.backlog.count > 0 { other.start } else { self.served_start };
        let urgency = &mut self.urgencies[class as usize];
        urgency.start = urgency.start.max(floor);
    }
}

/// How much of a lane a request occupies, for "smaller than".
fn reach(amount: &Amount) -> u64 {
    u64::from(amount.input) + u64::from(amount.output) + u64::from(amount.seconds)
}

fn advance(start: Start, cost: f64) -> Start {
    let step = cost * ONE;
    if step >= 0.0 { start.saturating_add(step as u64) } else { start.saturating_sub((-step) as u64) }
}
