//! The statements about one limit (by the operator, by Groq, by the table of a plan), and which of them is in force.

use crate::types::{Ns, Source};

/// The time for which a limit that Groq has stated counts as certain, ns.
const TRUSTED_FOR: Ns = 60_000_000_000;

/// The statements about one limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statements {
    /// The operator's limit, which holds whatever Groq states. If Groq states a higher one, a second quota enforces this one
    /// ([`Self::bound`]).
    pub configured: Option<u64>,
    /// The limit that Groq has stated in a header or a refusal.
    pub stated: Option<(u64, Source)>,
    /// The limit in the table of the plan, and whether the operator chose that plan.
    pub plan: Option<(u64, bool)>,
}

impl Statements {
    /// Returns the limit in force and where it comes from.
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

    /// Whether the limit is certain enough to refuse a larger request for good without asking Groq. The table of a plan that
    /// the operator did not choose may be wrong, and so may a limit that Groq stated too long ago (`confirmed`, ns). A
    /// larger request is sent then, and takes the whole limit.
    pub fn is_certain(&self, confirmed: Ns) -> bool {
        match self.limit().1 {
            Source::Configured => true,
            Source::Plan => self.plan.is_some_and(|(_, chosen)| chosen),
            Source::Headers | Source::UpstreamRefusal => confirmed < TRUSTED_FOR,
        }
    }

    /// Returns the operator's limit if Groq states a higher one; `None` otherwise.
    pub fn bound(&self) -> Option<u64> {
        self.configured.filter(|&configured| self.stated.is_some_and(|(stated, _)| stated > configured))
    }
}
