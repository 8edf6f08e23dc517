//! Sole use: whether headers show that no other client uses the limits. While they do, most of the safety margin is
//! released.
//!
//! The margin covers what other clients take between two headers. It is kept during the first burst, when nothing is known
//! about other clients. It is released once headers have shown for a while that there is no external usage, so that it costs
//! nothing in the end.

use crate::{ablation::Mechanism, types::Ns};

const SECOND: Ns = 1_000_000_000;
/// External usage up to this share of a limit's rate counts as none; it may be jitter of the network.
const NOISE: f64 = 0.01;
/// The time for which headers must show no external usage before any of the margin is released, ns.
const AFTER: Ns = 10 * SECOND;
/// The time over which the margin is released after that, ns.
const OVER: Ns = 30 * SECOND;
/// The time without a header after which nothing is known about external usage, ns.
const FORGOTTEN: Ns = 30 * SECOND;
/// The time for which the whole margin is kept after a refusal, ns.
const DOUBTED: Ns = 600 * SECOND;

/// What headers show of external usage. The margin changes with headers and refusals only, not as time passes, because the
/// times at which waiting requests are ready were computed with it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SoleUse {
    /// The time since which headers show no external usage; `None` if they show some or nothing is known.
    since: Option<Ns>,
    last_header: Ns,
    /// The whole margin is kept until this time, because of a refusal.
    doubted_until: Ns,
}

impl SoleUse {
    /// Applies a header that shows this external usage, a share of its limit's rate. Returns how much of the margin to
    /// release from now on, from 0 to 1.
    pub(super) fn header(&mut self, external: f64, now: Ns) -> f64 {
        if external > NOISE || self.last_header.saturating_add(FORGOTTEN) < now {
            self.since = None;
        }
        self.last_header = now;
        if external > NOISE || !Mechanism::MarginRelease.is_on() {
            return 0.0;
        }
        let since = *self.since.get_or_insert(now.max(self.doubted_until));
        (now.saturating_sub(since.saturating_add(AFTER)) as f64 / OVER as f64).min(1.0)
    }

    /// The upstream has refused a request that should have fit: the whole margin is kept for [`DOUBTED`].
    pub(super) fn refused(&mut self, now: Ns) {
        (self.since, self.doubted_until) = (None, now.saturating_add(DOUBTED));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_margin_is_released_while_headers_show_no_external_usage() {
        let mut sole_use = SoleUse::default();
        let mut at = |second: u64, external: f64| sole_use.header(external, second * SECOND);
        assert_eq!([at(100, 0.0), at(110, 0.005), at(125, 0.0), at(140, 0.0), at(165, 0.0)], [0.0, 0.0, 0.5, 1.0, 1.0]);
        assert_eq!([at(200, 0.0), at(210, 0.0), at(225, 0.0)], [0.0, 0.0, 0.5], "35 s passed without a header");
        assert_eq!([at(240, 0.0), at(241, 0.02), at(242, 0.0), at(267, 0.0)], [1.0, 0.0, 0.0, 0.5], "there was external usage");
    }

    #[test]
    fn after_a_refusal_the_margin_is_kept_for_ten_minutes() {
        let mut sole_use = SoleUse::default();
        sole_use.refused(0);
        for second in (0..=640).step_by(5) {
            let released = sole_use.header(0.0, second * SECOND);
            assert_eq!(released > 0.0, second > 610, "{second}");
        }
    }
}
