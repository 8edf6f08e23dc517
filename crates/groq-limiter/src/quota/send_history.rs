//! What was sent, as long as it makes uncertain how much of the limit is in use.
//!
//! Requests overtake each other on their way, and headers overtake the answers before them. A network that stalls delivers at
//! once what was sent over many seconds, and Groq's bucket, full since long, starts only then: an answer shows that its request
//! has arrived, and those that were sent before it; until then they count as if they arrived now.

use std::collections::VecDeque;

use crate::types::Ns;

/// Ways to Groq and back differ by less: within it requests overtake each other, and headers the answers before them.
const JITTER: Ns = 100_000_000;
/// The margin holds for requests that are late by so much: it keeps twice that, and ordinary answers take no longer.
const HELD: Ns = 1_000_000_000;
/// What has not been answered for so long has arrived, or never will: a generation may take longer.
const LONGEST_DELAY: Ns = 30_000_000_000;
/// Sends that are remembered for headers alone.
const REMEMBERED: usize = 128;

/// A dimension as it stood when a request was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SendSnapshot {
    /// When it would have been full again.
    pub tat: Ns,
    /// Sum of all corrections, ns.
    pub corrections: i64,
}

/// A request that was sent.
#[derive(Clone, Copy, Debug)]
struct Sent {
    position: u64,
    at: Ns,
    /// What was sent before it in all, ns.
    before: Ns,
    /// What had come back before it in all, ns.
    given_back: Ns,
    /// By how much its header may show too little, ns; of a recent one without what has come back since.
    uncertain: Ns,
}

/// The sends of one dimension.
#[derive(Debug, Default)]
pub(super) struct SendHistory {
    /// Reserved and not on its way yet, ns: not part of what Groq can have seen.
    pub(super) unsent: Ns,
    sends: VecDeque<Sent>,
    /// The first of them that is recent: what comes back now may have come back before it arrived.
    recent: usize,
    /// What has come back with answers in all, ns; wraps.
    given_back: Ns,
    /// What was sent in all, ns; wraps, only differences count.
    total: Ns,
    /// What was sent until then has arrived.
    arrived: Ns,
    /// Headers of positions up to here are done with.
    newest_header: u64,
}

impl SendHistory {
    /// So much is reserved and not sent yet.
    pub(super) fn reserved(&mut self, span: Ns) {
        self.unsent = self.unsent.saturating_add(span);
    }

    /// So much is on its way, or never will be: others' positions may count it.
    pub(super) fn no_longer_unsent(&mut self, span: Ns) {
        self.unsent = self.unsent.saturating_sub(span);
    }

    /// A request goes out at this position.
    pub(super) fn sent(&mut self, position: u64, span: Ns, now: Ns) {
        self.age(now);
        self.forget(now);
        // Those that went out shortly before may arrive later.
        let uncertain = self.sent_since(now.saturating_sub(JITTER));
        // Room for one is enough for most of 100,000 limiters; with room for four they took a tenth more.
        self.sends.reserve_exact(usize::from(self.sends.is_empty()));
        self.sends.push_back(Sent { position, at: now, before: self.total, given_back: self.given_back, uncertain });
        self.total = self.total.wrapping_add(span);
    }

    /// A request that was sent at this time has been answered.
    pub(super) fn answered(&mut self, sent_at: Ns) {
        self.arrived = self.arrived.max(sent_at);
    }

    /// When the bucket is full again at the earliest, if Groq takes only now what may not have arrived yet; 0: all has.
    pub(super) fn full_at(&self, now: Ns) -> Ns {
        match self.sent_since(self.arrived_by(now)) {
            0 => 0,
            span => now.saturating_sub(HELD).saturating_add(span).saturating_add(self.unsent),
        }
    }

    /// So much came back with an answer: Groq gave it back before, perhaps before the newest requests arrived.
    pub(super) fn given_back(&mut self, span: Ns, now: Ns) {
        self.age(now);
        self.given_back = self.given_back.wrapping_add(span);
    }

    /// By how much the header of the request at this position may show too little, ns. Older positions are done with.
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

    /// Another limit counts: only what is not sent yet is known in its units.
    pub(super) fn requota(&mut self, unsent: Ns) {
        *self = Self { unsent, ..Self::default() };
    }

    /// What was sent after this instant, ns.
    fn sent_since(&self, at: Ns) -> Ns {
        self.sends.get(self.first_since(at)).map_or(0, |first| self.total.wrapping_sub(first.before))
    }

    fn first_since(&self, at: Ns) -> usize {
        self.sends.partition_point(|sent| sent.at <= at)
    }

    fn arrived_by(&self, now: Ns) -> Ns {
        self.arrived.max(now.saturating_sub(LONGEST_DELAY))
    }

    /// Those that are recent no longer: what comes back from now on is in their headers.
    fn age(&mut self, now: Ns) {
        while let Some(sent) = self.sends.get_mut(self.recent).filter(|sent| sent.at <= now.saturating_sub(JITTER)) {
            sent.uncertain = sent.uncertain.saturating_add(self.given_back.wrapping_sub(sent.given_back));
            self.recent += 1;
        }
    }

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
