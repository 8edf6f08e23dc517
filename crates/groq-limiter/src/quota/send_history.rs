//! The recent sends of one dimension, kept as long as they make it uncertain how much of the limit is in use.
//!
//! There are two kinds of uncertainty:
//!
//! * Requests overtake each other on their way to Groq, and headers overtake earlier answers on their way back. A header may
//!   therefore show less than what was sent before its request ([`SendHistory::take_uncertainty`]).
//! * A network that stalls delivers at once what was sent over many seconds. Groq's bucket was full until then, so the units
//!   come back later than we think. An answer shows that its request and those sent before it have arrived. Until then they
//!   count as if they arrived now ([`SendHistory::full_at`]).

use std::collections::VecDeque;

use crate::types::Ns;

/// The largest difference in travel time between requests, ns. Requests that were sent within it may overtake each other,
/// and headers may overtake answers that are not older than it.
const JITTER: Ns = 100_000_000;
/// The delay of a request that the safety margin covers, ns: half of the margin's `LATENESS`. Ordinary answers take less.
const COVERED_DELAY: Ns = 1_000_000_000;
/// The age at which a request counts as arrived, ns. Its answer may still be missing, because a generation may take longer.
const LONGEST_DELAY: Ns = 30_000_000_000;
/// The largest number of sends that are kept only because their headers may still come.
const REMEMBERED: usize = 128;

/// A request that was sent. Amounts are times in ns: what the bucket needs to bring the units back.
#[derive(Clone, Copy, Debug)]
struct Sent {
    position: u64,
    at: Ns,
    /// Sum of all requests that were sent before it, ns.
    before: Ns,
    /// Sum of all refunds before it was sent, ns.
    given_back: Ns,
    /// The amount by which its header may show too little, ns. For a recent send, refunds since then are not included yet.
    uncertain: Ns,
}

/// The recent sends of one dimension. Amounts are times in ns: what the bucket needs to bring the units back.
#[derive(Debug, Default)]
pub(super) struct SendHistory {
    /// Sum of the reservations that are not sent yet, ns. Groq cannot have counted them.
    pub(super) unsent: Ns,
    /// In the order of sending.
    sends: VecDeque<Sent>,
    /// Index of the first recent send, which is not older than [`JITTER`]. Groq may have made a refund that we learn of now
    /// before this request arrived.
    recent: usize,
    /// Sum of all refunds, ns. It may wrap, because only differences are used.
    given_back: Ns,
    /// Sum of all requests that were sent, ns. It may wrap, because only differences are used.
    total: Ns,
    /// Requests that were sent until this time have arrived.
    arrived: Ns,
    /// The send position of the last header. Headers of earlier positions are ignored.
    newest_header: u64,
}

impl SendHistory {
    /// Adds a reservation that is not sent yet.
    pub(super) fn reserved(&mut self, span: Ns) {
        self.unsent = self.unsent.saturating_add(span);
    }

    /// Removes a reservation that was sent, or that will never be sent.
    pub(super) fn no_longer_unsent(&mut self, span: Ns) {
        self.unsent = self.unsent.saturating_sub(span);
    }

    /// Adds a request that is sent now.
    pub(super) fn sent(&mut self, position: u64, span: Ns, now: Ns) {
        self.age(now);
        self.forget(now);
        // Requests that were sent shortly before may arrive after this one.
        let uncertain = self.sent_since(now.saturating_sub(JITTER));
        // Most of 100,000 limiters need room for one send only; with room for four they took a tenth more memory.
        self.sends.reserve_exact(usize::from(self.sends.is_empty()));
        self.sends.push_back(Sent { position, at: now, before: self.total, given_back: self.given_back, uncertain });
        self.total = self.total.wrapping_add(span);
    }

    /// Notes that a request that was sent at `sent_at` has been answered, so it has arrived, and those sent before it.
    pub(super) fn answered(&mut self, sent_at: Ns) {
        self.arrived = self.arrived.max(sent_at);
    }

    /// Returns the earliest time at which the bucket is full again if requests that may not have arrived yet arrive now; 0
    /// if all have arrived.
    pub(super) fn full_at(&self, now: Ns) -> Ns {
        match self.sent_since(self.arrived_by(now)) {
            0 => 0,
            span => now.saturating_sub(COVERED_DELAY).saturating_add(span).saturating_add(self.unsent),
        }
    }

    /// Adds a refund that we learn of with an answer. Groq made it earlier, perhaps before the newest requests arrived.
    pub(super) fn given_back(&mut self, span: Ns, now: Ns) {
        self.age(now);
        self.given_back = self.given_back.wrapping_add(span);
    }

    /// Returns the amount by which the header of the request at this send position may show too little, ns. Headers of
    /// earlier positions are not needed any more.
    pub(super) fn take_uncertainty(&mut self, position: u64) -> Ns {
        self.newest_header = position;
        let Some(at) = self.sends.iter().rposition(|sent| sent.position == position) else { return 0 };
        let sent = &self.sends[at];
        if at < self.recent {
            sent.uncertain
        } else {
            sent.uncertain.saturating_add(self.given_back.wrapping_sub(sent.given_back))
        }
    }

    /// Starts anew under another limit. `unsent` is what is not sent yet, converted to the new limit's rate, ns.
    pub(super) fn requota(&mut self, unsent: Ns) {
        *self = Self { unsent, ..Self::default() };
    }

    /// Returns the sum of what was sent after this time, ns.
    fn sent_since(&self, at: Ns) -> Ns {
        self.sends.get(self.first_since(at)).map_or(0, |first| self.total.wrapping_sub(first.before))
    }

    /// Returns the index of the first send after this time.
    fn first_since(&self, at: Ns) -> usize {
        self.sends.partition_point(|sent| sent.at <= at)
    }

    /// Returns the time until which everything that was sent counts as arrived.
    fn arrived_by(&self, now: Ns) -> Ns {
        self.arrived.max(now.saturating_sub(LONGEST_DELAY))
    }

    /// Ends the uncertainty about refunds for sends that are no longer recent: later refunds are not in their headers.
    fn age(&mut self, now: Ns) {
        while let Some(sent) = self.sends.get_mut(self.recent).filter(|sent| sent.at <= now.saturating_sub(JITTER)) {
            sent.uncertain = sent.uncertain.saturating_add(self.given_back.wrapping_sub(sent.given_back));
            self.recent += 1;
        }
    }

    /// Removes sends that have arrived, unless their headers are still expected and uncertain.
    fn forget(&mut self, now: Ns) {
        let over = now.saturating_sub(JITTER).min(self.arrived_by(now));
        while let Some(first) = self.sends.front().filter(|first| first.at <= over) {
            if first.uncertain > 0 && first.position > self.newest_header && self.sends.len() <= REMEMBERED {
                break;
            }
            self.sends.pop_front();
            self.recent = self.recent.saturating_sub(1);
        }
    }
}
