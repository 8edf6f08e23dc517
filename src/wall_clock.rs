//! The wall clock: calendar time and HTTP dates. It may step, so nothing is timed by it.

use std::{
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

/// A source of the time of day.
pub struct WallClock(Box<dyn Fn() -> SystemTime + Send + Sync>);

impl Default for WallClock {
    /// The system's.
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
    /// A clock that shows what `now` returns: simulations set and step it.
    pub fn of(now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self(Box::new(now))
    }

    /// The time.
    pub fn now(&self) -> SystemTime {
        (self.0)()
    }

    /// The same as Unix time, seconds.
    pub fn unix_seconds(&self) -> u64 {
        self.now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
    }
}
