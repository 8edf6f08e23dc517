//! What does a lane look like to people, and on disk?

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{Lane, nanos};
use crate::{
    DimensionSnapshot, LaneSnapshot, WaitingSnapshot,
    bucket::Ns,
    forecast::{Asker, forecast},
    level::Level,
    line::Waiter,
    types::{Dimension, Priority},
};

impl Lane {
    /// Levels, line and forecast. The lane's names are the caller's to give.
    pub fn snapshot(&mut self, organization: &Arc<str>, tier: &Arc<str>, now: Ns) -> LaneSnapshot {
        let now = self.advance(now);
        let mut waiting: BTreeMap<(Arc<str>, Priority), WaitingSnapshot> = BTreeMap::new();
        for waiter in self.line.waiters() {
            let Some(app) = self.line.app_of(waiter.app) else { continue };
            let entry = waiting.entry((app.name.clone(), app.class)).or_insert_with(|| WaitingSnapshot {
                app: app.name.clone(),
                class: app.class,
                count: 0,
                oldest: Duration::ZERO,
            });
            entry.count += 1;
            entry.oldest = entry.oldest.max(Duration::from_nanos(now.saturating_sub(waiter.since)));
        }
        let blocked_by = self.blocked.filter(|_| !self.line.is_empty()).and_then(|(slot, until)| {
            let level = self.books.levels().get(slot?)?;
            Some((Dimension::clone(&level.dimension), Duration::from_nanos(until.saturating_sub(now))))
        });
        LaneSnapshot {
            organization: organization.clone(),
            model: self.model.clone(),
            tier: tier.clone(),
            dimensions: self.dimensions(now),
            waiting: waiting.into_values().collect(),
            blocked_by,
            forecast: self.typical_wait(now),
            in_flight: self.in_flight as usize,
            refusals: self.refusals,
        }
    }

    /// Every dimension that has a limit. Where the operator's bound is below the upstream's limit, it is what is shown.
    fn dimensions(&self, now: Ns) -> Vec<DimensionSnapshot> {
        let mut shown: Vec<DimensionSnapshot> = Vec::with_capacity(self.books.levels().len());
        for level in self.books.levels() {
            let Some(this) = dimension(level, now) else { continue };
            match shown.iter_mut().find(|other| level.is_bound() && other.dimension == *level.dimension) {
                Some(other) => {
                    let (stated, level) = (other.stated, other.level.min(this.level));
                    *other = DimensionSnapshot { stated, level, ..this };
                }
                None => shown.push(this),
            }
        }
        shown
    }

    /// What a request like the last in line would wait.
    fn typical_wait(&self, now: Ns) -> Duration {
        let Some(Waiter { app, size, amount, .. }) = self.line.waiters().max_by_key(|waiter| waiter.ticket) else {
            return Duration::from_nanos(self.paused_until.saturating_sub(now));
        };
        let Some(class) = self.line.app_of(*app).map(|app| app.class) else { return Duration::ZERO };
        let asker = Asker { app: *app, class, size: *size, amount: *amount, ticket: None };
        forecast(&self.books, &self.line, &asker, now).wait
    }

    /// Nobody waits or runs, and every level is full again: dropping it loses only what was learnt.
    pub fn is_idle(&mut self, now: Ns) -> bool {
        let now = self.advance(now);
        self.line.is_empty() && self.in_flight == 0 && self.books.levels().iter().all(|level| level.is_full(now))
    }

    /// Nobody waits or runs.
    pub fn is_unused(&self) -> bool {
        self.line.is_empty() && self.in_flight == 0
    }

    /// Whether Groq has said anything about its limits.
    pub fn has_learnt(&self) -> bool {
        self.books.levels().iter().any(|level| level.terms().stated.is_some())
    }

    /// When it was last used.
    pub fn used_at(&self) -> Ns {
        self.used_at
    }

    /// The lane's usual time from sending to an answer's head.
    pub fn usual_time_to_head(&self) -> Duration {
        self.calibration.usual_time_to_head()
    }

    /// A dimension by its slot.
    pub fn dimension(&self, slot: u8) -> Option<&Dimension> {
        self.books.levels().get(usize::from(slot)).map(|level| &*level.dimension)
    }

    /// Whether anybody waits.
    pub fn has_waiters(&self) -> bool {
        !self.line.is_empty()
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.line.len()
    }

    /// Requests that are granted and not settled.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// The dimensions, for tests and for saving.
    pub fn levels(&self) -> &[Level] {
        self.books.levels()
    }

    /// Whether the head is let pass by `delay` more: tests read the patience of the line here.
    pub fn blocked_until(&self) -> Option<Ns> {
        self.blocked.map(|(_, until)| until)
    }
}

fn dimension(level: &Level, now: Ns) -> Option<DimensionSnapshot> {
    let bucket = level.bucket()?;
    let left = bucket.remaining(now);
    let losing = level.spending() - bucket.rate() * (1.0 - level.foreign());
    let exhausted_in = (losing > 0.0).then(|| Duration::try_from_secs_f64(left.max(0.0) / losing).ok()).flatten();
    Some(DimensionSnapshot {
        dimension: Dimension::clone(&level.dimension),
        limit: bucket.limit(),
        level: left,
        reserve: level.reserve(level.typical()),
        source: level.source(),
        configured: level.terms().configured,
        stated: level.terms().stated.map(|(limit, _)| limit),
        foreign: level.foreign(),
        exhausted_in: exhausted_in.filter(|&at| nanos(at) < 10 * bucket.period()),
        full_in: Duration::from_nanos(bucket.tat().saturating_sub(now)),
    })
}
