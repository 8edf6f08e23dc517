//! Whether headers show that nobody else uses the limits. While they do, most of the safety margin is given back.
//!
//! The margin holds for what others take between two headers. It is kept back from the first burst, where nothing is known
//! of others yet; given back once it is known that there are none, it costs nothing in the end.

use crate::{ablation::Mechanism, types::Ns};

const SECOND: Ns = 1_000_000_000;
/// Others who take less than this share of a limit's rate are noise of the network.
const NOBODY: f64 = 0.01;
/// Headers must have shown nobody else for so long before any of the margin is given back, ns.
const AFTER: Ns = 10 * SECOND;
/// From then on it is given back over so long, ns.
const OVER: Ns = 30 * SECOND;
/// After so long without a header nothing is known of others, ns.
const FORGOTTEN: Ns = 30 * SECOND;
/// After a refusal the whole margin is kept for so long, ns.
const DOUBTED: Ns = 600 * SECOND;

/// What headers show of others. The margin changes with headers and refusals only, not as time passes: whoever waits has been
/// told by it when to go.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SoleUse {
    since: Option<Ns>,
    last_header: Ns,
    doubted_until: Ns,
}

impl SoleUse {
    /// A header shows that others take this share of its limit's rate. How much of the margin is given back from now on, 0 to 1.
    pub(super) fn header(&mut self, external: f64, now: Ns) -> f64 {
        if external > NOBODY || self.last_header.saturating_add(FORGOTTEN) < now {
            self.since = None;
        }
        self.last_header = now;
        if external > NOBODY || !Mechanism::MarginRelease.is_on() {
            return 0.0;
        }
        let since = *self.since.get_or_insert(now.max(self.doubted_until));
        (now.saturating_sub(since.saturating_add(AFTER)) as f64 / OVER as f64).min(1.0)
    }

    /// The upstream has refused a request that should have fit: the whole margin is kept.
    pub(super) fn refused(&mut self, now: Ns) {
        (self.since, self.doubted_until) = (None, now.saturating_add(DOUBTED));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_margin_comes_back_while_headers_show_nobody_else() {
        let mut sole_use = SoleUse::default();
        let mut at = |second: u64, external: f64| sole_use.header(external, second * SECOND);
        assert_eq!([at(100, 0.0), at(110, 0.005), at(125, 0.0), at(140, 0.0), at(165, 0.0)], [0.0, 0.0, 0.5, 1.0, 1.0]);
        assert_eq!([at(200, 0.0), at(210, 0.0), at(225, 0.0)], [0.0, 0.0, 0.5], "what was known was forgotten");
        assert_eq!([at(240, 0.0), at(241, 0.02), at(242, 0.0), at(267, 0.0)], [1.0, 0.0, 0.0, 0.5], "somebody else was there");
    }

    #[test]
    fn after_a_refusal_it_is_kept_for_long() {
        let mut sole_use = SoleUse::default();
        sole_use.refused(0);
        for second in (0..=640).step_by(5) {
            let released = sole_use.header(0.0, second * SECOND);
            assert_eq!(released > 0.0, second > 610, "{second}");
        }
    }
}
