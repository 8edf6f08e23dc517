//! What was sent and may not have reached Groq yet.
//!
//! A network that stalls delivers at once what was sent over many seconds, and Groq's bucket, full since long, starts only then.
//! An answer shows that its request has arrived, and those that were sent before it. Until then they count as if they arrived
//! now.

use std::collections::VecDeque;

use crate::types::Ns;

/// The margin holds for requests that are late by so much: it keeps twice that, and ordinary answers take no longer.
const HELD: Ns = 1_000_000_000;
/// What has not been answered for so long has arrived, or never will: a generation may take longer.
const LONGEST_DELAY: Ns = 30_000_000_000;

/// The sends of one dimension that no answer acknowledges.
#[derive(Debug, Default)]
pub(super) struct Unacknowledged {
    /// When each was sent, and what it takes, ns.
    sends: VecDeque<(Ns, Ns)>,
    /// Sum of `sends`, ns.
    span: Ns,
}

impl Unacknowledged {
    /// A request that takes `span` goes out.
    pub(super) fn sent(&mut self, span: Ns, now: Ns) {
        // Room for one is enough for most limiters.
        self.sends.reserve_exact(usize::from(self.sends.is_empty()));
        self.sends.push_back((now, span));
        self.span = self.span.saturating_add(span);
    }

    /// A request that was sent at this time has been answered.
    pub(super) fn answered(&mut self, sent_at: Ns) {
        while let Some(&(_, span)) = self.sends.front().filter(|&&(at, _)| at <= sent_at) {
            self.span = self.span.saturating_sub(span);
            self.sends.pop_front();
        }
    }

    /// Whether all has arrived.
    pub(super) fn is_empty(&self) -> bool {
        self.sends.is_empty()
    }

    /// When a bucket that was full is full again, if they arrive now; `None`: all have.
    pub(super) fn full_at(&mut self, now: Ns) -> Option<Ns> {
        self.answered(now.saturating_sub(LONGEST_DELAY));
        (!self.sends.is_empty()).then(|| now.saturating_sub(HELD).saturating_add(self.span))
    }
}
