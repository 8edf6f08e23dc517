//! The fallback policy: which failures allow another model, and which models may serve the request instead.

use std::time::Duration;

use groq_limiter::types::Dimension;

use super::{caps::is_cap, error::Rejection};
use crate::config::{Fallback, FallbackReason};

const DAY: Duration = Duration::from_secs(86_400);

/// The reason for which `rejection` allows a fallback; `None` if another model would not help.
pub(super) fn reason(rejection: &Rejection) -> Option<FallbackReason> {
    match rejection {
        // A cap belongs to the app, so another model would not help.
        Rejection::NeverFits { dimension, .. } | Rejection::NotInTime { dimension, .. } if is_cap(dimension) => None,
        Rejection::NeverFits { .. } => Some(FallbackReason::TooLarge),
        Rejection::NotInTime { dimension, .. } => Some(reason_of_wait(dimension)),
        Rejection::Refused { dimension, .. } => Some(dimension.as_ref().map_or(FallbackReason::Wait, reason_of_wait)),
        Rejection::BreakerOpen { .. } => Some(FallbackReason::Unavailable),
        Rejection::Upstream(error) => match (error.status.as_u16(), error.code.as_deref()) {
            (_, Some("model_decommissioned" | "model_not_found")) => Some(FallbackReason::Decommissioned),
            (413, _) => Some(FallbackReason::TooLarge),
            _ => None,
        },
        _ => None,
    }
}

/// The reason if `dimension` has no room before the deadline.
pub(super) fn reason_of_wait(dimension: &Dimension) -> FallbackReason {
    if dimension.period >= DAY { FallbackReason::DailyLimit } else { FallbackReason::Wait }
}

/// The models to try, in order, after `model` failed for `reason`; empty if none is configured.
pub(super) fn candidates<'c>(chains: &'c [Fallback], model: &str, reason: FallbackReason) -> &'c [String] {
    chains.iter().find(|chain| chain.model == model && chain.when.contains(&reason)).map_or(&[], |chain| &chain.to)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use http::{HeaderMap, StatusCode};

    use super::*;
    use crate::proxy::error::{CompletionLimit, UpstreamError};

    fn upstream(status: u16, body: &str) -> Rejection {
        let status = StatusCode::from_u16(status).expect("a status");
        let error = UpstreamError::new(status, HeaderMap::new(), body.as_bytes(), SystemTime::UNIX_EPOCH);
        Rejection::Upstream(Box::new(error))
    }

    #[test]
    fn every_rejection_has_its_reason_or_none() {
        let late = |dimension| Rejection::NotInTime { dimension, wait: DAY, fits: None, retry_after: DAY, by_client: false };
        let decommissioned = r#"{"error":{"message":"gone","type":"invalid_request_error","code":"model_decommissioned"}}"#;
        let too_large = r#"{"error":{"message":"Request too large for model `m` in organization `o` service tier `on_demand` on tokens per minute (TPM): Limit 8000, Requested 11881, please reduce your message size and try again.","type":"tokens","code":"rate_limit_exceeded"}}"#;
        let never =
            Rejection::NeverFits { dimension: Dimension::TPM, limit: 1, asked: 2, parts: None, lower: CompletionLimit::None };
        for (rejection, expected) in [
            (late(Dimension::TPD), Some(FallbackReason::DailyLimit)),
            (late(Dimension::RPD), Some(FallbackReason::DailyLimit)),
            (late(Dimension::TPM), Some(FallbackReason::Wait)),
            (Rejection::Refused { dimension: None, retry_after: DAY }, Some(FallbackReason::Wait)),
            (never, Some(FallbackReason::TooLarge)),
            (Rejection::BreakerOpen { retry_after: DAY }, Some(FallbackReason::Unavailable)),
            (upstream(400, decommissioned), Some(FallbackReason::Decommissioned)),
            (upstream(413, too_large), Some(FallbackReason::TooLarge)),
            (upstream(400, r#"{"error":{"message":"bad","type":"invalid_request_error"}}"#), None),
            (upstream(500, "{}"), None),
            (Rejection::NoKey, None),
            (Rejection::Overloaded { retry_after: DAY }, None),
            (Rejection::ShuttingDown, None),
            (Rejection::UpstreamClosed, None),
        ] {
            assert_eq!(reason(&rejection), expected, "{rejection:?}");
        }
    }

    #[test]
    fn candidates_are_those_of_the_model_for_the_reason() {
        let chain = |model: &str, to: &[&str], when: &[FallbackReason]| Fallback {
            model: model.into(),
            to: to.iter().map(|&to| to.to_owned()).collect(),
            when: when.to_vec(),
        };
        let chains = [
            chain("a", &["b", "c"], &FallbackReason::DEFAULT),
            chain("a", &["d"], &[FallbackReason::Wait]),
            chain("b", &["c"], &[FallbackReason::TooLarge]),
        ];
        assert_eq!(candidates(&chains, "a", FallbackReason::DailyLimit), ["b", "c"]);
        assert_eq!(candidates(&chains, "a", FallbackReason::Wait), ["d"]);
        assert!(candidates(&chains, "b", FallbackReason::DailyLimit).is_empty());
        assert!(candidates(&chains, "x", FallbackReason::TooLarge).is_empty());
    }
}
