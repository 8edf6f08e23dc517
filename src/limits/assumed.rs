//! Completion tokens that the upstream reserves for a request without `max_completion_tokens`: learnt, per limiter.
//!
//! Groq documents no figure. A refusal's `Requested` is prompt plus reserve, but does not say which part of it is the
//! prompt, and prompt estimates can be far off. So it prices the refused request, and others only until that request has
//! been answered and its prompt is known.

use super::bucket::Ns;

const MILLISECOND: Ns = 1_000_000;
/// Reserved before anything is known. Seen for OTPM (GROQ.md §2).
pub const DEFAULT: u32 = 2048;
/// A figure computed from a refusal and its request's own prompt is not lowered by headers for so long, ns: an upstream
/// that stamps its headers when an answer ends would contradict it with every answer.
const EXACT_FOR: Ns = 600_000 * MILLISECOND;

/// How the present figure was learnt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Evidence {
    /// Not at all.
    #[default]
    None,
    /// From a refusal and an estimate of its prompt.
    Refusal,
    /// The figure itself.
    Known,
}

/// The estimate. Times are nanoseconds on the limiter's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct AssumedOutput {
    tokens: u32,
    evidence: Evidence,
    exact_until: Ns,
}

impl AssumedOutput {
    /// Completion tokens to reserve for a request that states none.
    pub fn tokens(&self) -> u32 {
        match self.evidence {
            Evidence::None => DEFAULT,
            _ => self.tokens,
        }
    }

    /// A refusal said `requested` of a request whose prompt is estimated. Counts until something better is known.
    pub fn refused(&mut self, requested: u64, estimated_prompt: u64) {
        if matches!(self.evidence, Evidence::None | Evidence::Refusal) {
            (self.tokens, self.evidence) = (difference(requested, estimated_prompt), Evidence::Refusal);
        }
    }

    /// A request of which a refusal had said `requested` has been answered, so its prompt is known.
    pub fn answered(&mut self, requested: u64, prompt: u64, now: Ns) {
        self.tokens = difference(requested, prompt);
        self.evidence = Evidence::Known;
        self.exact_until = now.saturating_add(EXACT_FOR);
    }
}

fn difference(tokens: u64, prompt: u64) -> u32 {
    u32::try_from(tokens.saturating_sub(prompt)).unwrap_or(u32::MAX)
}
