//! Completion tokens that the upstream reserves for a request without `max_completion_tokens`: learnt, per limiter.
//!
//! Groq documents no figure, so it is taken from what answers show:
//!
//! * A header's `limit - remaining` contains the request's own charge. Without the prompt it is an upper bound, and a tight
//!   one as long as the limit is little used. On a limit that is heavily used it says nothing of the reserve, and is ignored.
//! * A refusal's `Requested` is prompt plus reserve. It is an upper bound like a header's while the prompt is an estimate, which
//!   can be far off. Once the refused request is answered, its prompt and so the reserve are known exactly.
//!
//! Until then a guess is reserved. One that is too high costs little, for it comes back when the answer ends; one that is too low
//! costs a few refusals, which teach.

use crate::types::Ns;

/// Reserved before anything is known. Seen for OTPM (GROQ.md §2).
const DEFAULT: u32 = 2048;
/// A header that shows more than one in so many of a limit in use shows mostly others' requests. Taken for a price, it could
/// leave so little of the limit that a request never fits beside others' use and the safety margin.
const LITTLE_USED: u64 = 3;
/// What a refusal and its request's own prompt gave is not lowered by headers for so long, ns. An upstream that stamps its
/// headers when an answer ends would contradict it with every answer.
const EXACT_FOR: Ns = 600_000_000_000;

/// The estimate. Times are nanoseconds on the limiter's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct AssumedOutput {
    /// The least upper bound so far; `None`: nothing is known.
    tokens: Option<u32>,
    exact_until: Ns,
}

impl AssumedOutput {
    /// Completion tokens to reserve for a request that states none.
    pub fn tokens(&self) -> u32 {
        self.tokens.unwrap_or(DEFAULT)
    }

    /// Whether a header that shows `used` of `limit` in use says anything of a request with so long a prompt.
    pub fn is_shown(used: u64, prompt: u64, limit: u64) -> bool {
        used.saturating_sub(prompt) < limit / LITTLE_USED
    }

    /// `total` tokens contain the reserve of a request with so long a prompt, which is in use or was asked for.
    pub fn at_most(&mut self, total: u64, prompt: u64, now: Ns) {
        if self.exact_until <= now {
            let most = difference(total, prompt);
            self.tokens = Some(self.tokens.map_or(most, |tokens| tokens.min(most)));
        }
    }

    /// A request of which a refusal had said `requested` has been answered, so its prompt is known.
    pub fn answered_after_refusal(&mut self, requested: u64, prompt: u64, now: Ns) {
        (self.tokens, self.exact_until) = (Some(difference(requested, prompt)), now.saturating_add(EXACT_FOR));
    }
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
        assert!(AssumedOutput::is_shown(65_546, 10, 250_000) && AssumedOutput::is_shown(3010, 3000, 8000));
        assert!(!AssumedOutput::is_shown(125_000, 10, 250_000));
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
        // Nor does it last without one.
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
