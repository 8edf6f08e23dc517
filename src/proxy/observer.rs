//! The limiters of observe mode, and what attempts have reserved in them.

use std::sync::Arc;

use groq_limiter::{ActualUsage, Limiters, Permit, types::Observation};
use tokio::{sync::oneshot, time::Instant};

use crate::config::{Mode, Settings};

/// The limiters that tell what would have become of requests.
pub struct Observer {
    pub(super) limits: Limiters,
    pub(super) caps: Limiters,
}

impl Observer {
    /// An observer beside these limiters, which starts where they stand; `None` where limits are enforced.
    pub(super) fn beside(limits: &Limiters, caps: &Limiters, settings: &Settings) -> Option<Arc<Self>> {
        (settings.limits.mode == Mode::Observe).then(|| {
            Arc::new(Self {
                limits: limits.copy(settings.observed(settings.limiter())),
                caps: caps.copy(settings.observed(settings.caps())),
            })
        })
    }

    /// Attempts that have been admitted and not settled.
    #[cfg(test)]
    pub(super) fn in_flight(&self) -> usize {
        self.limits.snapshot().iter().map(|limiter| limiter.in_flight).sum()
    }

    /// Other settings; what is used of the limits stays.
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
    /// It would still wait, or has been admitted since. Its use goes to whoever waits for it.
    Waiting { used: oneshot::Sender<ActualUsage>, usual_completion: u64 },
}

/// What an attempt has reserved in the observer's limiters.
#[derive(Debug)]
pub(super) struct Reservations {
    /// Under the limits of another model than the one that has served it, whose headers say nothing of them.
    pub(super) is_elsewhere: bool,
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
    /// The response head has come. Where nothing waits here, its headers are true here, too.
    pub(super) fn head(&mut self, state: &Observation) {
        if let Self::Admitted(reservations) = self
            && !reservations.is_elsewhere
        {
            reservations.limits.observe(state, Instant::now());
        }
    }

    /// The attempt has ended.
    pub(super) fn settle(self, spent: ActualUsage) {
        match self {
            Self::Admitted(reservations) => reservations.settle(spent),
            // Nobody waits for it any more where it was refused later.
            Self::Waiting { used, .. } => drop(used.send(spent)),
        }
    }

    /// Groq has refused the attempt, which would have been sent later and used what is usual.
    pub(super) fn refused(self) {
        let completion = match &self {
            Self::Admitted(reservations) => reservations.usual_completion,
            Self::Waiting { usual_completion, .. } => *usual_completion,
        };
        self.settle(ActualUsage::Partial { completion });
    }
}
