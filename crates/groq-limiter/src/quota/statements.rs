//! Who states a limit, and which statement is in force.

use super::{Quota, reconcile::FormerLimit};
use crate::{
    Source,
    bucket::{Bucket, Ns},
};

/// A limit that Groq stated counts as certain for so long, ns.
const TRUSTED_FOR: Ns = 60_000_000_000;

/// Who says what about one limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statements {
    /// The operator: at most so much, whatever Groq says. Where Groq states more, a quota of its own keeps to it.
    pub configured: Option<u64>,
    /// Groq, in headers or a refusal.
    pub stated: Option<(u64, Source)>,
    /// The plan's table, and whether the operator chose that plan.
    pub plan: Option<(u64, bool)>,
}

impl Statements {
    /// The limit in force and where it comes from.
    fn limit(&self) -> (Option<u64>, Source) {
        match (self.configured, self.stated, self.plan) {
            (Some(configured), Some((stated, source)), _) if stated != configured => (Some(stated), source),
            (Some(configured), _, _) => (Some(configured), Source::Configured),
            (None, Some((stated, source)), _) => (Some(stated), source),
            (None, None, plan) => (plan.map(|(limit, _)| limit), Source::Plan),
        }
    }
}

impl Quota {
    /// Where the limit's number comes from.
    pub fn source(&self) -> Source {
        self.statements.limit().1
    }

    /// Who says what.
    pub fn statements(&self) -> Statements {
        self.statements
    }

    /// Whether more than the limit can be refused for good on our own word. A table that nobody chose, or a number
    /// that Groq has not repeated for long, may be wrong: such a request goes, charged with the whole limit.
    pub fn is_certain(&self, now: Ns) -> bool {
        match self.source() {
            Source::Configured => true,
            Source::Plan => self.statements.plan.is_some_and(|(_, chosen)| chosen),
            Source::Headers | Source::UpstreamRefusal => now.saturating_sub(self.confirmed) < TRUSTED_FOR,
        }
    }

    /// Groq has stated its limit, again or anew.
    pub fn confirm(&mut self, now: Ns) {
        self.confirmed = now;
    }

    /// Whether headers show this dimension.
    pub fn is_visible(&self) -> bool {
        matches!(self.statements.stated, Some((_, Source::Headers)))
    }

    /// Another word on the limit; what was used stays used. Positions up to `position` were counted under the old one.
    pub fn agree(&mut self, statements: Statements, position: u64, now: Ns) {
        self.statements = statements;
        let (limit, _) = statements.limit();
        if self.limit() == limit.filter(|&limit| limit <= u32::MAX.into() && limit > 0) {
            return;
        }
        let unit = self.bucket.as_ref().map_or(0, |bucket| bucket.span(1));
        self.before = FormerLimit { position, unit, corrections: self.corrections };
        self.recent.clear();
        self.on_its_way = 0;
        self.uncertainties.clear();
        let kept = self.bucket.take().zip(limit).and_then(|(bucket, limit)| bucket.requota(limit, now));
        self.unsent = match &kept {
            Some(bucket) => bucket.rescale(self.unsent, unit),
            None => 0,
        };
        self.bucket = kept.or_else(|| limit.and_then(|limit| Bucket::new(limit, self.dimension.period)));
        self.rescale_outstanding(unit);
        self.last_refusal = None;
        (self.learnt_external, self.margin_growth) = (0.0, 0.0);
        self.leave(self.headroom, now);
    }

    /// Leaves this share of the limit to others.
    pub fn leave(&mut self, headroom: f64, now: Ns) {
        self.headroom = headroom;
        let part = self.own_part();
        let ours = self.limit().filter(|_| part < 1.0 || self.is_parted()).map(|limit| ((limit as f64 * part) as u64).max(1));
        let kept = self.share.take().zip(ours).and_then(|(share, ours)| share.requota(ours, now));
        self.share = kept.or_else(|| ours.and_then(|ours| Bucket::new(ours, self.dimension.period))).map(Box::new);
    }
}
