//! The pause of a whole limiter after refusals that do not say which quota is exhausted.

use std::time::Duration;

use crate::types::Ns;

const SECOND: Ns = 1_000_000_000;
/// Maximum length of a pause, whatever the refusal's `retry-after`.
const MAX_PAUSE: Ns = 3600 * SECOND;

/// An exponential back-off from 1 s to 32 s, or the refusal's `retry-after` if that is longer.
#[derive(Debug, Default)]
pub(super) struct Pause {
    /// When the pause ends; in the past if there is none.
    pub(super) until: Ns,
    /// Refusals since the last response of another kind.
    consecutive: u32,
}

impl Pause {
    /// Starts or extends the pause, after a refusal that no quota explains.
    pub(super) fn refused(&mut self, retry_after: Option<Duration>, now: Ns) {
        self.consecutive = (self.consecutive + 1).min(6);
        let requested = retry_after.map_or(0, |after| Ns::try_from(after.as_nanos()).unwrap_or(Ns::MAX));
        let pause = requested.max(SECOND << (self.consecutive - 1)).min(MAX_PAUSE);
        self.until = self.until.max(now + pause);
    }

    /// Resets the back-off after a response that is no refusal.
    pub(super) fn answered(&mut self) {
        self.consecutive = 0;
    }
}
