//! What was sent shortly ago, and what it makes uncertain: headers may not show yet, or no longer, what overtook them.

use std::collections::VecDeque;

use super::unacknowledged::Unacknowledged;
use crate::types::Ns;

/// Ways to Groq and back differ by less: within it requests overtake each other, and headers the answers before them.
const JITTER: Ns = 100_000_000;
/// Uncertainties remembered for headers to come.
const UNCERTAINTIES: usize = 128;

/// A dimension as it stood when a request was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SendSnapshot {
    /// When it would have been full again.
    pub tat: Ns,
    /// Sum of all corrections, ns.
    pub corrections: i64,
}

/// A request that was sent shortly ago.
#[derive(Clone, Copy, Debug)]
struct Sent {
    position: u64,
    at: Ns,
    span: Ns,
}

/// Headers of the requests from the first position to the last may be wrong by this.
#[derive(Clone, Copy, Debug)]
struct Uncertainty {
    first: u64,
    last: u64,
    span: Ns,
}

/// The sends of one dimension.
#[derive(Debug, Default)]
pub(super) struct SendHistory {
    /// Reserved and not on its way yet, ns: not part of what Groq can have seen.
    unsent: Ns,
    recent: VecDeque<Sent>,
    /// Sum of `recent`, ns.
    in_transit: Ns,
    /// The newest first.
    uncertainties: VecDeque<Uncertainty>,
    /// `None` where all has arrived: most of 100,000 limiters.
    unacknowledged: Option<Box<Unacknowledged>>,
}

impl SendHistory {
    pub(super) fn unsent(&self) -> Ns {
        self.unsent
    }

    /// So much is reserved and not sent yet.
    pub(super) fn reserved(&mut self, span: Ns) {
        self.unsent = self.unsent.saturating_add(span);
    }

    /// So much is on its way, or never will be: others' positions may count it.
    pub(super) fn no_longer_unsent(&mut self, span: Ns) {
        self.unsent = self.unsent.saturating_sub(span);
    }

    /// A request goes out at this position. `hidden`: no header will show when it arrived.
    pub(super) fn sent(&mut self, position: u64, span: Ns, hidden: bool, now: Ns) {
        self.forget(now);
        // Those before it went out so shortly ago that they may arrive later.
        self.add_uncertainty(Uncertainty { first: position, last: position, span: self.in_transit });
        // Room for one is enough for most of 100,000 limiters; with room for four they took a tenth more.
        self.recent.reserve_exact(usize::from(self.recent.is_empty()));
        self.recent.push_back(Sent { position, at: now, span });
        self.in_transit = self.in_transit.saturating_add(span);
        if hidden {
            self.unacknowledged.get_or_insert_default().sent(span, now);
        }
    }

    /// A request that was sent at this time has been answered.
    pub(super) fn answered(&mut self, sent_at: Ns) {
        if let Some(unacknowledged) = &mut self.unacknowledged {
            unacknowledged.answered(sent_at);
        }
        self.unacknowledged.take_if(|unacknowledged| unacknowledged.is_empty());
    }

    /// When the bucket is full again at the earliest, if Groq takes only now what may not have arrived yet; 0: all has.
    pub(super) fn full_at(&mut self, now: Ns) -> Ns {
        let full_at = self.unacknowledged.as_mut().and_then(|unacknowledged| unacknowledged.full_at(now));
        full_at.map_or(0, |at| at.saturating_add(self.unsent))
    }

    /// So much came back with an answer: Groq gave it back before, perhaps before the newest requests arrived.
    pub(super) fn given_back(&mut self, span: Ns, now: Ns) {
        self.forget(now);
        if let (Some(first), Some(last)) = (self.recent.front(), self.recent.back()) {
            self.add_uncertainty(Uncertainty { first: first.position, last: last.position, span });
        }
    }

    /// By how much the header of the request at this position may show too little, ns. Older positions are done with.
    pub(super) fn take_uncertainty(&mut self, position: u64) -> Ns {
        let of_position = self.uncertainties.iter().filter(|each| (each.first..=each.last).contains(&position));
        let span = of_position.fold(0, |sum: Ns, each| sum.saturating_add(each.span));
        self.uncertainties.retain(|each| each.last > position);
        span
    }

    /// Another limit counts: only what is not sent yet is known in its units.
    pub(super) fn requota(&mut self, unsent: Ns) {
        *self = Self { unsent, ..Self::default() };
    }

    fn add_uncertainty(&mut self, uncertainty: Uncertainty) {
        if uncertainty.span > 0 {
            self.uncertainties.truncate(UNCERTAINTIES - 1);
            self.uncertainties.reserve_exact(usize::from(self.uncertainties.is_empty()));
            self.uncertainties.push_front(uncertainty);
        }
    }

    fn forget(&mut self, now: Ns) {
        while let Some(first) = self.recent.front().filter(|first| first.at + JITTER <= now) {
            self.in_transit = self.in_transit.saturating_sub(first.span);
            self.recent.pop_front();
        }
    }
}
