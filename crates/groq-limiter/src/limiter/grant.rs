//! What the limiter hands out to an admitted request, and takes back when it ends.

use crate::{
    queue::QueuedRequest,
    quota_set::Reserved,
    request::{ActualUsage, Cost},
    types::Ns,
};

/// What a granted request holds.
#[derive(Clone, Debug)]
pub struct Grant {
    pub(super) reserved: Reserved,
    /// As it was in the queue.
    pub(super) queued: QueuedRequest,
    /// Whether it is the probe of the cold start.
    pub(super) probe: bool,
    /// Tokens in use as its answer's head has shown, itself included; of a request without `max_completion_tokens` only.
    pub(super) shown_used: Option<u64>,
    pub(super) service: Service,
    /// How long it waited, ns.
    pub waited: Ns,
    /// The slot that made it wait.
    pub bound: Option<usize>,
}

/// What a request counts in its app's fair share: units of its dearest dimension, at their price when it was granted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Service {
    pub(super) slot: usize,
    /// Of one unit.
    pub(super) price: f32,
    /// Counted when it was granted.
    pub(super) granted: f32,
}

impl Grant {
    /// Whether it has been sent.
    pub fn is_sent(&self) -> bool {
        self.reserved.is_sent()
    }

    /// What it took.
    pub fn cost(&self) -> Cost {
        self.reserved.cost
    }

    /// What it used, by unit. `usual`: completion tokens of an answer, in the mean.
    pub(super) fn used(&self, usage: ActualUsage, usual: Option<f32>) -> Cost {
        let cut = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        let reserved = self.cost();
        // A limit on output reserves nothing while no answer has been seen lately. An answer of unknown size has used some of it.
        let unseen = reserved.expected.max(usual.map_or(0, |usual| usual as u32).min(reserved.answer));
        match usage {
            ActualUsage::Nothing => Cost::default(),
            ActualUsage::Request => Cost { requests: reserved.requests, ..Cost::default() },
            // Audio is billed by the second, whatever the answer says of tokens.
            ActualUsage::Tokens { .. } | ActualUsage::Prompt { .. } | ActualUsage::Partial { .. } if reserved.seconds > 0 => {
                reserved
            }
            ActualUsage::Tokens { prompt, completion, .. } => {
                Cost { input: cut(prompt), ..reserved }.with_output(cut(completion))
            }
            ActualUsage::Partial { completion } => reserved.with_output(cut(completion)),
            ActualUsage::Prompt { prompt, .. } => Cost { input: cut(prompt), expected: unseen, ..reserved },
            ActualUsage::Unknown => Cost { expected: unseen, ..reserved },
        }
    }
}
