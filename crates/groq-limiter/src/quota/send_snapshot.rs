//! How a quota stood when a request was sent, and how uncertain that is: what may have overtaken it.

use super::Quota;
use crate::bucket::{Bucket, Ns};

/// Ways to Groq and back differ by less: within it requests overtake each other, and headers the answers before them.
pub(super) const JITTER: Ns = 100_000_000;
/// Doubts remembered for headers to come.
const UNCERTAINTIES: usize = 128;

/// A dimension as it stood when a request was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SendSnapshot {
    /// When it would have been full again.
    pub tat: Ns,
    /// Sum of all corrections, ns.
    pub corrections: i64,
    /// Sum of the store's corrections and settlements, ns.
    pub adjusted: i64,
    /// What all replicas had taken and given back shortly before, ns: Groq may have seen it later.
    pub recent: Ns,
}

impl Quota {
    /// It goes out at this position; how the quota stands then.
    pub fn sent(&mut self, position: u64, units: u64, now: Ns) -> SendSnapshot {
        self.forget_sent(now);
        // They went out so shortly before that they may arrive later.
        self.add_uncertainty(position, position, self.on_its_way);
        if let Some(bucket) = &self.bucket {
            let span = bucket.span(units);
            self.recent.push_back((position, now, span));
            self.on_its_way = self.on_its_way.saturating_add(span);
        }
        self.snapshot()
    }

    /// `units` is on its way, or never will be: others' positions may count it.
    pub fn no_longer_unsent(&mut self, units: u64) {
        if let Some(bucket) = &self.bucket {
            self.unsent = self.unsent.saturating_sub(bucket.span(units));
        }
    }

    /// How it stands for a request that is sent now and counted in it.
    pub fn snapshot(&self) -> SendSnapshot {
        let tat = self.bucket.as_ref().map_or(0, Bucket::tat);
        SendSnapshot { tat: tat.saturating_sub(self.unsent), corrections: self.corrections, adjusted: 0, recent: 0 }
    }

    pub(super) fn add_uncertainty(&mut self, first: u64, last: u64, span: Ns) {
        if span > 0 {
            self.uncertainties.truncate(UNCERTAINTIES - 1);
            self.uncertainties.push_front((first, last, span));
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
