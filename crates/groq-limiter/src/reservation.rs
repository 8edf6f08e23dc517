//! What was taken, and how does it end? Settled exactly once, whoever drops it, wherever.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Place, Spent, lane::Charge, lanes::SharedLane};
use crate::types::{Dimension, Observation, UpstreamRefusal};

/// What was taken; settled exactly once. Dropped before it was sent: all comes back; after: the charge stands.
#[derive(Debug)]
pub struct Reservation {
    /// `None`: nothing was taken, or it is settled.
    held: Option<(Arc<SharedLane>, Box<Charge>)>,
    waited: Duration,
    bound_by: Option<Dimension>,
}

impl Reservation {
    pub(super) fn new(lane: Arc<SharedLane>, charge: Box<Charge>) -> Self {
        let bound_by = charge.bound.and_then(|slot| lane.with(|lane| lane.dimension(slot).cloned()));
        Self { waited: Duration::from_nanos(charge.waited), bound_by, held: Some((lane, charge)) }
    }

    /// Of something that draws on no limit.
    pub(super) fn free() -> Self {
        Self { held: None, waited: Duration::ZERO, bound_by: None }
    }

    /// How long it waited.
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// The dimension that made it wait.
    pub fn bound_by(&self) -> Option<&Dimension> {
        self.bound_by.as_ref()
    }

    /// Right before the first byte goes out.
    pub fn sent(&mut self, now: Instant) {
        if let Some((lane, charge)) = &mut self.held {
            let now = lane.at(now);
            lane.with(|lane| lane.sent(charge, now));
        }
    }

    /// An answer's head: its headers correct the levels, by send position; its time is learnt.
    pub fn observe(&mut self, state: &Observation, now: Instant) {
        if let Some((lane, charge)) = &mut self.held {
            let now = lane.at(now);
            lane.change(|lane| lane.observe(charge, state, now));
        }
    }

    /// Groq refused (429): the text corrects the levels, the charge comes back, the place in line is kept, if there was one.
    pub fn refused(
        mut self,
        text: Option<&UpstreamRefusal>,
        state: &Observation,
        retry_after: Option<Duration>,
        now: Instant,
    ) -> Option<Place> {
        let (lane, charge) = self.held.take()?;
        let now = lane.at(now);
        Some(Place(Box::new(lane.change(|lane| lane.refused(*charge, text, state, retry_after, now)))))
    }

    /// The truth is known.
    pub fn settle(mut self, spent: Spent, now: Instant) {
        self.end(spent, now);
    }

    fn end(&mut self, spent: Spent, now: Instant) {
        if let Some((lane, charge)) = self.held.take() {
            let now = lane.at(now);
            lane.change(|lane| lane.settle(*charge, spent, now));
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some((_, charge)) = &self.held {
            let spent = if charge.is_sent() { Spent::Charge } else { Spent::Nothing };
            self.end(spent, Instant::now());
        }
    }
}
