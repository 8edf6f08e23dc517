//! The clock of all limiters of a process: tokio's, in nanoseconds.

use std::time::Duration;

use tokio::time::Instant;

use crate::types::Ns;

/// Limiter clocks start here, so that quotas from before the start have room: 100 days.
const ORIGIN: Ns = 8_640_000_000_000_000;

/// The clock of all limiters: tokio's, in ns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    /// Starts now.
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn now(&self) -> Ns {
        self.at(Instant::now())
    }

    pub(crate) fn at(&self, at: Instant) -> Ns {
        let since = at.saturating_duration_since(self.0).as_nanos();
        ORIGIN.saturating_add(Ns::try_from(since).unwrap_or(Ns::MAX))
    }

    pub(crate) fn instant(&self, at: Ns) -> Instant {
        // Waits of more than a year are looked at again after one.
        let year = Duration::from_secs(31_536_000);
        self.0 + Duration::from_nanos(at.saturating_sub(ORIGIN)).min(self.0.elapsed() + year)
    }
}
