//! Who states a limit, and which statement is in force.

use crate::types::{Ns, Source};

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
    pub fn limit(&self) -> (Option<u64>, Source) {
        match (self.configured, self.stated, self.plan) {
            (Some(configured), Some((stated, source)), _) if stated != configured => (Some(stated), source),
            (Some(configured), _, _) => (Some(configured), Source::Configured),
            (None, Some((stated, source)), _) => (Some(stated), source),
            (None, None, plan) => (plan.map(|(limit, _)| limit), Source::Plan),
        }
    }

    /// Whether headers show the dimension.
    pub fn is_visible(&self) -> bool {
        matches!(self.stated, Some((_, Source::Headers)))
    }

    /// Whether more than the limit can be refused for good on our own word. A table that nobody chose, or a number that Groq
    /// has not repeated for long (`confirmed` so long ago), may be wrong: such a request goes, charged with the whole limit.
    pub fn is_certain(&self, confirmed: Ns) -> bool {
        match self.limit().1 {
            Source::Configured => true,
            Source::Plan => self.plan.is_some_and(|(_, chosen)| chosen),
            Source::Headers | Source::UpstreamRefusal => confirmed < TRUSTED_FOR,
        }
    }

    /// The operator's limit, where Groq states a higher one.
    pub fn bound(&self) -> Option<u64> {
        self.configured.filter(|&configured| self.stated.is_some_and(|(stated, _)| stated > configured))
    }
}
