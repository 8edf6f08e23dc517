//! The apps that a queue knows: what each has queued, and what it was served.

use std::{collections::BTreeMap, sync::Arc};

use super::{AppId, Backlog, FairQueue, Id, QueuedRequest, Start, Ticket};
use crate::{bucket::Ns, estimate::RunningMean, types::Priority};

/// Size classes per app.
const SIZES: usize = 4;
/// Apps without a waiter are forgotten beyond so many.
const IDLE_APPS: usize = 256;
/// Beyond so many apps at once, all further ones share one place: names are the clients' to choose.
const MOST_APPS: usize = 2048;
/// Measured rates forget with this time constant, seconds.
const RATE_MEMORY: f64 = 30.0;

/// One app in one priority class.
#[derive(Debug)]
pub struct App {
    /// Its name.
    pub name: Arc<str>,
    /// Its priority class.
    pub class: Priority,
    /// Its weight.
    pub weight: f64,
    pub(super) start: Start,
    /// Of its size classes.
    pub(super) starts: [Start; SIZES],
    served: f64,
    served_at: Ns,
    /// Served and not settled: its number must not be used again.
    running: u32,
    /// Completion tokens of its requests.
    pub completion: RunningMean,
    queued: Option<Box<AppQueue>>,
}

/// What an app has in the queue.
#[derive(Debug)]
struct AppQueue {
    backlog: Backlog,
    sizes: [SizeQueue; SIZES],
}

/// Nobody.
const NOBODY: AppQueue =
    AppQueue { backlog: Backlog::NONE, sizes: [const { SizeQueue { fifo: BTreeMap::new(), backlog: Backlog::NONE } }; SIZES] };

/// One size class of one app.
#[derive(Debug)]
pub(super) struct SizeQueue {
    fifo: BTreeMap<Ticket, Id>,
    backlog: Backlog,
}

impl SizeQueue {
    /// Who is next.
    pub(super) fn first(&self) -> Option<(Ticket, Id)> {
        self.fifo.first_key_value().map(|(&ticket, &id)| (ticket, id))
    }

    /// Whether somebody has this place.
    pub(super) fn has(&self, ticket: Ticket) -> bool {
        self.fifo.contains_key(&ticket)
    }
}

impl App {
    /// Cost per second of late.
    pub fn rate(&self, now: Ns) -> f64 {
        self.served * (-(now.saturating_sub(self.served_at) as f64) / (RATE_MEMORY * 1e9)).exp() / RATE_MEMORY
    }

    /// What it has in the queue.
    pub fn backlog(&self) -> &Backlog {
        &self.queued().backlog
    }

    /// How many of its size class wait before this ticket.
    pub fn before(&self, size: u8, ticket: Ticket) -> usize {
        self.queue(size).fifo.range(..ticket).count()
    }

    /// What one of its size classes has in the queue.
    pub fn size_backlog(&self, size: u8) -> &Backlog {
        &self.queue(size).backlog
    }

    /// Its size classes with somebody in the queue.
    pub fn active_sizes(&self) -> usize {
        self.queued().sizes.iter().filter(|queue| queue.first().is_some()).count()
    }

    fn queued(&self) -> &AppQueue {
        self.queued.as_deref().unwrap_or(const { &NOBODY })
    }

    /// Who of one of its size classes waits.
    pub(super) fn queue(&self, size: u8) -> &SizeQueue {
        &self.queued().sizes[usize::from(size)]
    }

    /// This one waits, under its own ticket.
    pub(super) fn join(&mut self, waiter: &QueuedRequest, id: Id) {
        let queued = self.queued.get_or_insert_with(|| Box::new(NOBODY));
        let queue = &mut queued.sizes[usize::from(waiter.size)];
        queue.fifo.insert(waiter.ticket, id);
        for backlog in [&mut queue.backlog, &mut queued.backlog] {
            backlog.add(waiter);
        }
    }

    /// This one waits no longer.
    pub(super) fn part(&mut self, waiter: &QueuedRequest) {
        let Some(queued) = &mut self.queued else { return };
        let queue = &mut queued.sizes[usize::from(waiter.size)];
        queue.fifo.remove(&waiter.ticket);
        for backlog in [&mut queue.backlog, &mut queued.backlog] {
            backlog.take(waiter);
        }
        if queued.backlog.count == 0 {
            self.queued = None;
        }
    }

    /// A waiter takes something else from now on.
    pub(super) fn reprice(&mut self, before: &QueuedRequest, after: &QueuedRequest) {
        let Some(queued) = &mut self.queued else { return };
        for backlog in [&mut queued.sizes[usize::from(before.size)].backlog, &mut queued.backlog] {
            backlog.take(before);
            backlog.add(after);
        }
    }

    /// It was served so much; a negative cost takes it back.
    pub(super) fn count_served(&mut self, service: f64, now: Ns) {
        let fade = (-(now.saturating_sub(self.served_at) as f64) / (RATE_MEMORY * 1e9)).exp();
        self.served = (self.served * fade + service).max(0.0);
        self.served_at = now;
    }

    /// Whose turn it is.
    pub(super) fn next(&self) -> Option<Id> {
        let (_, id) = self.queued().sizes[self.next_size()?].first()?;
        Some(id)
    }

    /// The size class whose turn it is.
    pub(super) fn next_size(&self) -> Option<usize> {
        let sizes = self.queued().sizes.iter().zip(self.starts).enumerate();
        sizes.filter(|(_, (queue, _))| queue.first().is_some()).min_by_key(|&(_, (_, start))| start).map(|(size, _)| size)
    }
}

impl FairQueue {
    /// The app's number; it is taken up if it was unknown.
    pub fn app(&mut self, name: &Arc<str>, class: Priority, weight: f64, now: Ns) -> AppId {
        let weight = if weight.is_finite() { weight.clamp(1e-3, 1e3) } else { 1.0 };
        // Most limiters have one app: found without its map, which in a limiter that rests has left the caches.
        let is_first = self.apps.first().and_then(Option::as_ref).is_some_and(|app| app.class == class && app.name == *name);
        let known = if is_first { Some(0) } else { self.names[class as usize].get(name).copied() };
        if let Some(id) = known {
            if let Some(app) = &mut self.apps[id as usize] {
                app.weight = weight;
            }
            return id;
        }
        if self.known_apps() >= self.forget_at.max(IDLE_APPS) {
            self.forget_idle(now);
            self.forget_at = 2 * self.known_apps();
        }
        let everyone_else = Arc::from("other");
        let name = if self.known_apps() < MOST_APPS || *name == everyone_else {
            name
        } else {
            return self.app(&everyone_else, class, 1.0, now);
        };
        let app = App {
            name: name.clone(),
            class,
            weight,
            start: 0,
            starts: [0; SIZES],
            served: 0.0,
            served_at: now,
            running: 0,
            completion: RunningMean::default(),
            queued: None,
        };
        let id = match self.free_apps.pop() {
            Some(id) => {
                self.apps[id as usize] = Some(app);
                id
            }
            None => {
                self.apps.push(Some(app));
                (self.apps.len() - 1) as AppId
            }
        };
        self.names[class as usize].insert(name.clone(), id);
        id
    }

    /// The app with this number.
    pub fn app_of(&self, id: AppId) -> Option<&App> {
        self.apps.get(id as usize)?.as_ref()
    }

    /// Every app that is known.
    pub fn apps(&self) -> impl Iterator<Item = &App> {
        self.apps.iter().flatten()
    }

    /// One of the app's requests runs, or has ended.
    pub fn running(&mut self, app_id: AppId, more: bool) -> Option<&mut App> {
        let app = self.apps.get_mut(app_id as usize)?.as_mut()?;
        app.running = if more { app.running + 1 } else { app.running.saturating_sub(1) };
        Some(app)
    }

    fn known_apps(&self) -> usize {
        self.names[0].len() + self.names[1].len()
    }

    /// Forgets apps that have nothing in the queue and whose late use is over.
    fn forget_idle(&mut self, now: Ns) {
        for id in 0..self.apps.len() {
            if let Some(app) = &self.apps[id]
                && app.backlog().count == 0
                && app.running == 0
                && app.start <= self.classes[app.class as usize].served_start
                && app.rate(now) < 1e-4
            {
                self.names[app.class as usize].remove(&app.name);
                self.apps[id] = None;
                self.free_apps.push(id as AppId);
            }
        }
    }
}
