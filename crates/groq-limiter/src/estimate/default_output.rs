//! Completion tokens that the upstream reserves for a request without `max_completion_tokens`: learnt, per limiter.
//!
//! Groq documents no figure, so it is taken from what answers show:
//!
//! * A header's `limit - remaining` contains the request's own charge. Without the prompt it is an upper bound, and a tight
//!   one as long as the limit is little used. On a limit that is heavily used it is loose, which costs little there: what is
//!   reserved too much comes back when the answer ends.
//! * A refusal's `Requested` is prompt plus reserve, but does not say which part of it is the prompt, and prompt estimates can
//!   be far off. So it prices the refused request; others only where nothing else is known, or where a header's bound agrees.
//!   Once the refused request is answered, its prompt and so the reserve are known exactly.
//!
//! Until one of them has settled the figure, requests that do not fit by it are sent as if nothing were reserved, in slow
//! start: one, and twice as many with every round that is not refused. A wrong guess costs a refusal or two, and those teach.

use crate::types::Ns;

const MILLISECOND: Ns = 1_000_000;
/// Reserved before anything is known. Seen for OTPM (GROQ.md §2).
pub const DEFAULT: u32 = 2048;
/// Prompts are known to about so many tokens: a smaller reserve is as good as none.
const TOLERANCE: u32 = 64;
/// What a refusal and its request's own prompt gave is not lowered by headers for so long, ns. An upstream that stamps its
/// headers when an answer ends would contradict it with every answer.
const EXACT_FOR: Ns = 600_000 * MILLISECOND;
/// Between two rounds of slow start, ns: time enough for a refusal to come back.
const ROUND: Ns = 200 * MILLISECOND;
/// Rounds are no further apart than this after refusals, ns.
const LONGEST_ROUND: Ns = 60_000 * MILLISECOND;

/// How the present figure was learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Evidence {
    /// Not at all, or from a header or a refusal and an estimate of the prompt.
    Guess,
    /// From a header and the prompt: so much at most.
    Bound,
    /// From a refusal: the figure itself.
    Known,
}

/// The estimate. Times are nanoseconds on the limiter's clock.
#[derive(Clone, Copy, Debug)]
pub struct AssumedOutput {
    tokens: u32,
    evidence: Evidence,
    exact_until: Ns,
    trials: Trials,
}

impl Default for AssumedOutput {
    fn default() -> Self {
        Self { tokens: DEFAULT, evidence: Evidence::Guess, exact_until: 0, trials: Trials::default() }
    }
}

impl AssumedOutput {
    /// Completion tokens to reserve for a request that states none.
    pub fn tokens(&self) -> u32 {
        self.tokens
    }

    /// Whether the figure is more than a guess or an upper bound.
    pub fn is_settled(&self) -> bool {
        match self.evidence {
            Evidence::Guess => false,
            Evidence::Bound => self.tokens <= TOLERANCE || self.tokens.abs_diff(DEFAULT) <= TOLERANCE,
            Evidence::Known => true,
        }
    }

    /// The head of an answer to a request without an output limit showed `used` tokens in use; its prompt is estimated.
    pub fn head(&mut self, used: u64, estimated_prompt: u64) {
        if self.evidence == Evidence::Guess {
            self.tokens = difference(used, estimated_prompt);
        }
    }

    /// An answer to a request without an output limit has ended, so its prompt is known; its head showed `used` tokens in use.
    pub fn answered(&mut self, used: u64, prompt: u64, now: Ns) {
        let most = difference(used, prompt);
        let lower = match self.evidence {
            Evidence::Guess => true,
            Evidence::Bound => most < self.tokens,
            Evidence::Known => most.saturating_add(TOLERANCE) < self.tokens && self.exact_until <= now,
        };
        if lower {
            (self.tokens, self.evidence) = (most, Evidence::Bound);
        }
    }

    /// A refusal said `requested` of a request without an output limit, whose prompt is estimated.
    pub fn refused(&mut self, requested: u64, estimated_prompt: u64, now: Ns) {
        let reserve = difference(requested, estimated_prompt);
        match self.evidence {
            Evidence::Guess => self.tokens = reserve,
            Evidence::Bound if reserve <= self.tokens.saturating_add(self.tokens / 8).saturating_add(TOLERANCE) => {
                (self.tokens, self.evidence) = (reserve, Evidence::Known);
            }
            Evidence::Bound | Evidence::Known => {}
        }
        if reserve > TOLERANCE {
            self.trials.refused(now);
        }
    }

    /// A request of which a refusal had said `requested` has been answered, so its prompt is known.
    pub fn answered_after_refusal(&mut self, requested: u64, prompt: u64, now: Ns) {
        (self.tokens, self.evidence) = (difference(requested, prompt), Evidence::Known);
        self.exact_until = now.saturating_add(EXACT_FOR);
    }

    /// Whether one more may be sent now as if nothing were reserved for it.
    ///
    /// # Errors
    /// When the next one may.
    pub fn try_now(&mut self, now: Ns) -> Result<(), Ns> {
        self.trials.take(now)
    }
}

/// Slow start: rounds of one, two, four …; after a refusal again from one, and further apart.
#[derive(Clone, Copy, Debug)]
struct Trials {
    next_round: Ns,
    apart: Ns,
    size: u32,
    left: u32,
}

impl Default for Trials {
    fn default() -> Self {
        Self { next_round: 0, apart: ROUND, size: 0, left: 0 }
    }
}

impl Trials {
    fn take(&mut self, now: Ns) -> Result<(), Ns> {
        if self.next_round <= now {
            self.size = self.size.saturating_mul(2).max(1);
            (self.left, self.next_round) = (self.size, now.saturating_add(self.apart));
        }
        self.left = self.left.checked_sub(1).ok_or(self.next_round)?;
        Ok(())
    }

    fn refused(&mut self, now: Ns) {
        self.apart = (2 * self.apart).min(LONGEST_ROUND);
        (self.size, self.left, self.next_round) = (0, 0, now.saturating_add(self.apart));
    }
}

fn difference(tokens: u64, prompt: u64) -> u32 {
    u32::try_from(tokens.saturating_sub(prompt)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Ns = 1000 * MILLISECOND;

    #[test]
    fn headers_bound_it_and_a_busy_limit_raises_nothing() {
        let mut assumed = AssumedOutput::default();
        assert_eq!((assumed.tokens(), assumed.is_settled()), (DEFAULT, false));
        assumed.head(5000, 40);
        assumed.answered(5000, 50, 0);
        assert_eq!((assumed.tokens(), assumed.is_settled()), (4950, false));
        assumed.answered(80, 50, 0);
        assert_eq!((assumed.tokens(), assumed.is_settled()), (30, true));
        assumed.answered(7000, 50, 0);
        assert_eq!(assumed.tokens(), 30);
    }

    #[test]
    fn an_estimated_prompt_that_was_too_long_lowers_nothing_for_good() {
        let mut assumed = AssumedOutput::default();
        assumed.head(2048 + 4500, 5000);
        assert!(assumed.tokens() < DEFAULT);
        assumed.answered(2048 + 4500, 4500, 0);
        assert_eq!((assumed.tokens(), assumed.is_settled()), (DEFAULT, true));
    }

    #[test]
    fn a_refusal_settles_what_headers_bound() {
        let mut assumed = AssumedOutput::default();
        assumed.answered(65_536 + 40, 40, 0);
        assumed.refused(32_768 + 38, 36, 0);
        assert_eq!((assumed.tokens(), assumed.is_settled()), (32_770, true));
    }

    #[test]
    fn a_misjudged_prompt_does_not_outweigh_a_header() {
        let mut assumed = AssumedOutput::default();
        assumed.answered(60, 40, 0);
        assumed.refused(12_000, 400, 0);
        assert_eq!(assumed.tokens(), 20);
        // Nor does it last without one.
        let mut assumed = AssumedOutput::default();
        assumed.refused(12_000, 400, 0);
        assert_eq!((assumed.tokens(), assumed.is_settled()), (11_600, false));
        assumed.answered_after_refusal(12_000, 12_000, 0);
        assert_eq!((assumed.tokens(), assumed.is_settled()), (0, true));
    }

    #[test]
    fn an_exact_figure_outlasts_headers_that_contradict_it() {
        let mut assumed = AssumedOutput::default();
        assumed.answered_after_refusal(2148, 100, 0);
        assumed.answered(300, 100, EXACT_FOR - 1);
        assert_eq!(assumed.tokens(), DEFAULT);
        assumed.answered(300, 100, EXACT_FOR);
        assert_eq!(assumed.tokens(), 200);
    }

    #[test]
    fn slow_start_doubles_until_it_is_refused() {
        let mut trials = Trials::default();
        let mut round = |now: Ns| std::iter::from_fn(|| trials.take(now).ok()).count();
        assert_eq!((0..4).map(|n| round(n * ROUND)).collect::<Vec<_>>(), [1, 2, 4, 8]);
        trials.refused(SECOND);
        assert_eq!(trials.take(SECOND), Err(SECOND + 2 * ROUND));
        assert_eq!(trials.take(2 * SECOND), Ok(()));
        for _ in 0..100 {
            trials.refused(2 * SECOND);
        }
        assert_eq!(trials.take(2 * SECOND), Err(2 * SECOND + LONGEST_ROUND));
    }
}
