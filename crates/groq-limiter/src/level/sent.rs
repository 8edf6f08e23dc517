//! What of that which went out can Groq have seen? How a level stood as a request was sent, and what may have overtaken it.

use super::Level;
use crate::bucket::{Bucket, Ns};

/// Ways to Groq and back differ by less: within it requests overtake each other, and headers the answers before them.
pub(super) const JITTER: Ns = 100_000_000;
/// Doubts remembered for headers to come.
const DOUBTS: usize = 128;

/// A dimension as it stood when a request was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// When it would have been full again.
    pub tat: Ns,
    /// Sum of all corrections, ns.
    pub corrections: i64,
    /// Sum of the store's corrections and settlements, ns.
    pub adjusted: i64,
    /// What all replicas had taken and given back shortly before, ns: Groq may have seen it later.
    pub recent: Ns,
}

impl Level {
    /// It goes out at this position; how the level stands then.
    pub fn sent(&mut self, position: u64, asked: u64, now: Ns) -> Mark {
        self.forget_sent(now);
        // They went out so shortly before that they may arrive later.
        self.doubt(position, position, self.on_its_way);
        if let Some(bucket) = &self.bucket {
            let span = bucket.span(asked);
            self.recent.push_back((position, now, span));
            self.on_its_way = self.on_its_way.saturating_add(span);
        }
        self.mark()
    }

    /// `asked` is on its way, or never will be: others' positions may count it.
    pub fn no_longer_unsent(&mut self, asked: u64) {
        if let Some(bucket) = &self.bucket {
            self.unsent = self.unsent.saturating_sub(bucket.span(asked));
        }
    }

    /// How it stands for a request that is sent now and counted in it.
    pub fn mark(&self) -> Mark {
        let tat = self.bucket.as_ref().map_or(0, Bucket::tat);
        Mark { tat: tat.saturating_sub(self.unsent), corrections: self.corrections, adjusted: 0, recent: 0 }
    }

    pub(super) fn doubt(&mut self, first: u64, last: u64, span: Ns) {
        if span > 0 {
            self.doubts.truncate(DOUBTS - 1);
            self.doubts.push_front((first, last, span));
        }
    }

    pub(super) fn forget_sent(&mut self, now: Ns) {
        while let Some(&(_, at, span)) = self.recent.front()
            && at + JITTER <= now
        {
            self.recent.pop_front();
            self.on_its_way = self.on_its_way.saturating_sub(span);
        }
    }
}
