//! The wall clock, for calendar time and HTTP dates. It may step, so it is not used for timeouts.

use std::{
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

/// A source of the time of day.
pub struct WallClock(Box<dyn Fn() -> SystemTime + Send + Sync>);

impl Default for WallClock {
    /// The system clock.
    fn default() -> Self {
        Self::of(SystemTime::now)
    }
}

impl fmt::Debug for WallClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WallClock")
    }
}

impl WallClock {
    /// A clock that returns the time of `now`, for simulations that set and step it.
    pub fn of(now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self(Box::new(now))
    }

    /// The time.
    pub fn now(&self) -> SystemTime {
        (self.0)()
    }

    /// The time as Unix time in seconds.
    pub fn unix_seconds(&self) -> u64 {
        self.now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
    }
}
