//! A rest of the whole limiter, after refusals that do not say which quota is low.

use std::time::Duration;

use crate::types::Ns;

const SECOND: Ns = 1_000_000_000;
/// However long a refusal says to wait, the limiter looks again after so long.
const LONGEST: Ns = 3600 * SECOND;

/// Backs off exponentially, from a second on, or for as long as the refusal says.
#[derive(Debug, Default)]
pub(super) struct Pause {
    /// When it ends; in the past without one.
    pub(super) until: Ns,
    consecutive: u32,
}

impl Pause {
    /// A refusal has said nothing but to wait.
    pub(super) fn refused(&mut self, retry_after: Option<Duration>, now: Ns) {
        self.consecutive = (self.consecutive + 1).min(6);
        let asked = retry_after.map_or(0, |after| Ns::try_from(after.as_nanos()).unwrap_or(Ns::MAX));
        let rest = asked.max(SECOND << (self.consecutive - 1)).min(LONGEST);
        self.until = self.until.max(now + rest);
    }

    /// An answer has come.
    pub(super) fn answered(&mut self) {
        self.consecutive = 0;
    }
}
