//! Reconciliation: headers and refusals correct a bucket, by position in our own order of sending.
//!
//! A header tells what was in use when Groq saw the request, so it is compared with what we knew when we sent it. No clocks are
//! compared, and of several headers only the one of the newest request counts: late ones, in any order, do no harm.

use super::send_history::SendSnapshot;
use crate::{ablation::Mechanism, bucket::Bucket, types::Ns};

/// What Groq said was in use when it saw a request of ours.
#[derive(Clone, Copy, Debug)]
pub struct Reported {
    /// The request's position in the order of sending.
    pub position: u64,
    /// How the quota stood when it was sent.
    pub snapshot: SendSnapshot,
    /// Units in use, the request's own included.
    pub used: u64,
    /// When Groq saw it.
    pub at: Ns,
}

/// The corrections of one bucket.
#[derive(Debug, Default)]
pub(super) struct Reconciler {
    /// Sum of all corrections, ns; wraps, only differences count.
    pub(super) corrections: i64,
    /// The newest position that has corrected the bucket.
    pub(super) newest: u64,
    /// Positions up to here were sent under another limit: what was known of it then is in its units.
    former: u64,
}

impl Reconciler {
    /// Whether headers or refusals have said how full the bucket is.
    pub(super) fn has_corrected(&self) -> bool {
        self.newest > 0
    }

    /// Whether a header of this position is newer than all before.
    pub(super) fn is_news(&self, position: u64) -> bool {
        position > self.newest || !Mechanism::SendPosition.is_on()
    }

    /// Whether the request at this position was sent under the present limit, so that what was known then can be compared.
    pub(super) fn is_comparable(&self, position: u64) -> bool {
        position > self.former
    }

    /// Corrects the bucket; `uncertain` of a surplus may be what the header does not show. The correction, ns.
    pub(super) fn correct(&mut self, bucket: &mut Bucket, reported: &Reported, uncertain: Ns, now: Ns) -> i64 {
        let Reported { position, snapshot, used, at } = *reported;
        self.newest = position;
        let expected = snapshot.tat.saturating_add_signed(self.corrections.wrapping_sub(snapshot.corrections)).max(at);
        let truth = bucket.tat_of(used, at);
        let error = (i128::from(truth) - i128::from(expected)).clamp(i64::MIN.into(), i64::MAX.into()) as i64;
        // Less in use than expected may be what was overtaken on its way, or a refund that both have seen.
        let uncertain = if Mechanism::Uncertainty.is_on() { uncertain } else { 0 };
        let error = if error < 0 { error.saturating_add_unsigned(uncertain).min(0) } else { error };
        bucket.correct(error, at, now);
        self.corrections = self.corrections.wrapping_add(error);
        error
    }

    /// `used` units at least were in use at `at`, when the request at this position was seen; 0: of an earlier process. What was sent
    /// before is part of them: for its positions this is a correction, to which the upstream's reports of the level do not add. The
    /// correction, ns.
    pub(super) fn restore(&mut self, bucket: &mut Bucket, used: u64, position: u64, at: Ns, now: Ns) -> i64 {
        self.newest = self.newest.max(position);
        let before = bucket.tat().max(now);
        bucket.set_tat(bucket.tat_of(used, at).max(bucket.tat()), now);
        let more = i64::try_from(bucket.tat().max(now) - before).unwrap_or(i64::MAX);
        self.corrections = self.corrections.wrapping_add(more);
        more
    }

    /// Another limit counts for positions after this one.
    pub(super) fn requota(&mut self, position: u64) {
        self.former = position;
    }
}

/// Groq's refusals of requests for one dimension.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// Positions up to here are older than the last refusal that was learnt from.
    until: u64,
    last: Option<Ns>,
}

impl Refusals {
    /// A refusal of the request at this position. How long after the last one it came; `None` for the first, and for one that
    /// was on its way when the last one came.
    pub(super) fn add(&mut self, position: u64, last_position: u64, now: Ns) -> Option<Ns> {
        if position <= self.until {
            return None;
        }
        self.until = last_position;
        self.last.replace(now).map(|last| now.saturating_sub(last))
    }

    /// Under another limit the next refusal is the first.
    pub(super) fn requota(&mut self) {
        self.last = None;
    }
}
