//! Reconciliation: headers and refusals correct a bucket.
//!
//! Every request gets a send position: its number in the limiter's order of sending. A header shows what was in use when
//! Groq received the request, so it is compared with a snapshot of the bucket from the time when that request was sent. No
//! clocks are compared. Only the header of the highest position so far counts, so headers may arrive late and in any order.

use crate::{
    ablation::Mechanism,
    bucket::{Bucket, BucketState},
    types::Ns,
};

/// What Groq reported in use when it received a request.
#[derive(Clone, Copy, Debug)]
pub struct Reported {
    /// The send position of the request.
    pub position: u64,
    /// The quota when the request was sent.
    pub snapshot: BucketState,
    /// Units in use, those of the request included.
    pub used: u64,
    /// The estimated time at which Groq received the request.
    pub at: Ns,
}

/// The corrections of one bucket.
#[derive(Debug, Default)]
pub(super) struct Reconciler {
    /// Sum of all corrections, ns. It may wrap, because only differences are used.
    pub(super) corrections: i64,
    /// The highest send position that has corrected the bucket; 0 if none has.
    pub(super) newest: u64,
    /// The last send position under an earlier limit. Snapshots up to it are in units of that limit.
    pub(super) former: u64,
}

impl Reconciler {
    /// Corrects the bucket by a report. If less is in use than expected, up to `uncertain` ns of the difference are ignored,
    /// because the header may not show them. Returns the correction, ns.
    pub(super) fn correct(&mut self, bucket: &mut Bucket, reported: &Reported, uncertain: Ns, now: Ns) -> i64 {
        let Reported { position, snapshot, used, at } = *reported;
        self.newest = position;
        let expected = snapshot.tat.saturating_add_signed(self.corrections.wrapping_sub(snapshot.corrections)).max(at);
        let truth = bucket.tat_of(used, at);
        let error = (i128::from(truth) - i128::from(expected)).clamp(i64::MIN.into(), i64::MAX.into()) as i64;
        // The difference may come from earlier requests that arrive later, or from a refund that both sides have counted.
        let uncertain = if Mechanism::Uncertainty.is_on() { uncertain } else { 0 };
        let error = if error < 0 { error.saturating_add_unsigned(uncertain).min(0) } else { error };
        bucket.correct(error, at, now);
        self.corrections = self.corrections.wrapping_add(error);
        error
    }

    /// Raises the bucket so that at least `used` units were in use at the time `at`, when Groq received the request at
    /// `position`. A position of 0 means that the figure does not belong to a request of this process. The change counts as
    /// a correction, so that reports about requests that were sent before do not add it again. Returns the correction, ns.
    pub(super) fn restore(&mut self, bucket: &mut Bucket, used: u64, position: u64, at: Ns, now: Ns) -> i64 {
        self.newest = self.newest.max(position);
        let before = bucket.tat().max(now);
        bucket.set_tat(bucket.tat_of(used, at).max(bucket.tat()), now);
        let more = i64::try_from(bucket.tat().max(now) - before).unwrap_or(i64::MAX);
        self.corrections = self.corrections.wrapping_add(more);
        more
    }
}

/// Groq's refusals under the limit of one dimension.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// The last position that was sent before the last refusal arrived. Refusals up to it count as part of that one.
    until: u64,
    /// The time of the last refusal.
    pub(super) last: Option<Ns>,
}

impl Refusals {
    /// Counts a refusal of the request at `position`; `last_position` is the newest send position. Returns the time since
    /// the last refusal, ns; `None` for the first one, and for a request that was already sent when the last refusal
    /// arrived.
    pub(super) fn add(&mut self, position: u64, last_position: u64, now: Ns) -> Option<Ns> {
        if position <= self.until {
            return None;
        }
        self.until = last_position;
        self.last.replace(now).map(|last| now.saturating_sub(last))
    }
}
