//! [`Clock`]: tokio's clock as the nanoseconds that limiters use.

use std::time::Duration;

use tokio::time::Instant;

use crate::types::Ns;

/// The clock's value at its start: 100 days, in ns, so that usage from before the start has positive times.
const ORIGIN: Ns = 8_640_000_000_000_000;

/// The clock of all limiters of a process. The instant is the clock's start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    /// A clock that starts now.
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn now(&self) -> Ns {
        self.at(Instant::now())
    }

    /// The time that the clock shows at an instant.
    pub(crate) fn at(&self, at: Instant) -> Ns {
        let since = at.saturating_duration_since(self.0).as_nanos();
        ORIGIN.saturating_add(Ns::try_from(since).unwrap_or(Ns::MAX))
    }

    /// The instant at which the clock shows `at`, but at most a year from now.
    pub(crate) fn instant(&self, at: Ns) -> Instant {
        // A timer set for later than that is reset when it fires. An instant cannot be arbitrarily far in the future.
        let year = Duration::from_secs(31_536_000);
        self.0 + Duration::from_nanos(at.saturating_sub(ORIGIN)).min(self.0.elapsed() + year)
    }
}
