//! The limiters of observe mode, and what attempts have reserved in them.

use std::sync::Arc;

use groq_limiter::{ActualUsage, Limiters, Permit, types::Observation};
use tokio::{sync::oneshot, time::Instant};

use crate::config::{Mode, Settings};

/// The limiters that compute what would have happened to requests.
pub struct Observer {
    pub(super) limits: Limiters,
    pub(super) caps: Limiters,
}

impl Observer {
    /// An observer that starts with copies of these limiters; `None` if limits are enforced.
    pub(super) fn new(limits: &Limiters, caps: &Limiters, settings: &Settings) -> Option<Arc<Self>> {
        (settings.limits.mode == Mode::Observe).then(|| {
            Arc::new(Self {
                limits: limits.copy(settings.observed(settings.limiter())),
                caps: caps.copy(settings.observed(settings.caps())),
            })
        })
    }

    /// Number of attempts that have been admitted and not settled.
    #[cfg(test)]
    pub(super) fn in_flight(&self) -> usize {
        self.limits.snapshot().iter().map(|limiter| limiter.in_flight).sum()
    }

    /// Applies new settings. Usage of the limits is kept.
    pub(super) fn reconfigure(&self, settings: &Settings) {
        self.limits.reconfigure(settings.observed(settings.limiter()));
        self.caps.reconfigure(settings.observed(settings.caps()));
    }
}

/// An attempt in the observer's limiters.
#[derive(Debug)]
pub(super) enum Observed {
    /// It would have been sent at once.
    Admitted(Box<Reservations>),
    /// It would have waited. Its usage goes to the task that waits for it.
    Waiting { used: oneshot::Sender<ActualUsage>, usual_completion: u64 },
}

/// What an attempt has reserved in the observer's limiters.
#[derive(Debug)]
pub(super) struct Reservations {
    /// Whether it is under the limits of another model than the one that served it, so the response's headers do not apply.
    pub(super) is_other_model: bool,
    pub(super) cap: Option<Permit>,
    pub(super) limits: Permit,
    pub(super) usual_completion: u64,
}

impl Reservations {
    pub(super) fn settle(self, spent: ActualUsage) {
        let now = Instant::now();
        if let Some(cap) = self.cap {
            cap.settle(spent, now);
        }
        self.limits.settle(spent, now);
    }
}

impl Observed {
    /// Applies the headers of the response. If the attempt has not waited here, they hold for these limiters, too.
    pub(super) fn head(&mut self, state: &Observation) {
        if let Self::Admitted(reservations) = self
            && !reservations.is_other_model
        {
            reservations.limits.observe(state, Instant::now());
        }
    }

    /// Ends the attempt with its usage.
    pub(super) fn settle(self, spent: ActualUsage) {
        match self {
            Self::Admitted(reservations) => reservations.settle(spent),
            // The receiver is gone if it was refused while waiting.
            Self::Waiting { used, .. } => drop(used.send(spent)),
        }
    }

    /// Ends an attempt that Groq refused: it would have been sent later, with the usual usage.
    pub(super) fn refused(self) {
        let completion = match &self {
            Self::Admitted(reservations) => reservations.usual_completion,
            Self::Waiting { usual_completion, .. } => *usual_completion,
        };
        self.settle(ActualUsage::Partial { completion });
    }
}
