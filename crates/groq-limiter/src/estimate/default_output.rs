//! The completion tokens that the upstream reserves for a request without `max_completion_tokens`, learnt per limiter.
//!
//! Groq documents no figure, so it is learnt from responses:
//!
//! * The `limit - remaining` of a header contains what the upstream reserved for the request. Less the lowest possible prompt,
//!   it is an upper bound, which is tight for a small prompt as long as little of the limit is used. If much of the limit is
//!   used, the header is ignored.
//! * The `Requested` of a refusal is the prompt plus the reserve. While the prompt is an estimate, which can be far off, this is
//!   an upper bound, too. Once the refused request is answered, its prompt is known, and thus the exact reserve.
//!
//! Until then a guess is reserved. A guess that is too high costs little, because the surplus comes back when the response
//! ends. A guess that is too low costs a few refusals, from which the figure is learnt.

use crate::types::{Ns, RemoteQuota};

/// The tokens to reserve before anything is learnt. Groq has shown this figure for output tokens per minute.
const DEFAULT: u32 = 2048;
/// A header counts if it shows less than one in this many units of the limit in use. Otherwise it shows mostly other
/// requests. An estimate as high as that could leave so little of the limit that a request never fits beside external usage
/// and the safety margin.
const LITTLE_USED: u64 = 3;
/// The time for which headers do not lower an exact figure, ns. An upstream that stamps its headers when a response ends
/// would contradict it with every response.
const EXACT_FOR: Ns = 600_000_000_000;

/// The estimated reserve. Times are nanoseconds on the limiter's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct AssumedOutput {
    /// The lowest upper bound so far, or the exact figure; `None` if nothing is known.
    tokens: Option<u32>,
    /// Until this time `tokens` is exact, and upper bounds are ignored.
    exact_until: Ns,
}

impl AssumedOutput {
    /// Returns the completion tokens to reserve for a request without an output limit.
    pub fn tokens(&self) -> u32 {
        self.tokens.unwrap_or(DEFAULT)
    }

    /// Applies the header of a response to a request with at least `prompt` tokens.
    pub fn shown(&mut self, shown: RemoteQuota, prompt: u64, now: Ns) {
        let used = shown.limit.saturating_sub(shown.remaining);
        if shows_reserve(used, prompt, shown.limit) {
            self.at_most(used, prompt, now);
        }
    }

    /// Applies an upper bound: `total` tokens include the `prompt` and the reserve of a request.
    pub fn at_most(&mut self, total: u64, prompt: u64, now: Ns) {
        if self.exact_until <= now {
            let most = difference(total, prompt);
            self.tokens = Some(self.tokens.map_or(most, |tokens| tokens.min(most)));
        }
    }

    /// Sets the exact figure: a request for which a refusal stated `requested` tokens was answered later, so its `prompt` is
    /// known.
    pub fn answered_after_refusal(&mut self, requested: u64, prompt: u64, now: Ns) {
        (self.tokens, self.exact_until) = (Some(difference(requested, prompt)), now.saturating_add(EXACT_FOR));
    }
}

/// Whether a header that shows `used` units of `limit` in use is about the reserve of a request with `prompt` tokens, and not
/// mostly about other requests.
fn shows_reserve(used: u64, prompt: u64, limit: u64) -> bool {
    used.saturating_sub(prompt) < limit / LITTLE_USED
}

fn difference(tokens: u64, prompt: u64) -> u32 {
    u32::try_from(tokens.saturating_sub(prompt)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_bound_it_and_a_busy_limit_raises_nothing() {
        let mut assumed = AssumedOutput::default();
        assert_eq!(assumed.tokens(), DEFAULT);
        assumed.at_most(5000, 50, 0);
        assert_eq!(assumed.tokens(), 4950);
        assumed.at_most(80, 50, 0);
        assert_eq!(assumed.tokens(), 30);
        assumed.at_most(7000, 50, 0);
        assert_eq!(assumed.tokens(), 30);
        assert!(shows_reserve(65_546, 10, 250_000) && shows_reserve(3010, 3000, 8000));
        assert!(!shows_reserve(125_000, 10, 250_000));
    }

    #[test]
    fn a_refusal_lowers_what_headers_bound() {
        let mut assumed = AssumedOutput::default();
        assumed.at_most(65_536 + 40, 40, 0);
        assumed.at_most(32_768 + 38, 36, 0);
        assert_eq!(assumed.tokens(), 32_770);
    }

    #[test]
    fn a_misjudged_prompt_does_not_outweigh_a_header() {
        let mut assumed = AssumedOutput::default();
        assumed.at_most(60, 40, 0);
        assumed.at_most(12_000, 400, 0);
        assert_eq!(assumed.tokens(), 20);
        // Without a header the estimate is replaced once the prompt is known.
        let mut assumed = AssumedOutput::default();
        assumed.at_most(12_000, 400, 0);
        assert_eq!(assumed.tokens(), 11_600);
        assumed.answered_after_refusal(12_000, 12_000, 0);
        assert_eq!(assumed.tokens(), 0);
    }

    #[test]
    fn an_exact_figure_outlasts_headers_that_contradict_it() {
        let mut assumed = AssumedOutput::default();
        assumed.answered_after_refusal(2148, 100, 0);
        assumed.at_most(300, 100, EXACT_FOR - 1);
        assert_eq!(assumed.tokens(), DEFAULT);
        assumed.at_most(300, 100, EXACT_FOR);
        assert_eq!(assumed.tokens(), 200);
    }
}
