//! A refusal by the limiter, and Groq's response to it.

use http::{HeaderMap, StatusCode};
use serde_json::Value;

use crate::{
    Options, Rounding, Wording,
    dimension::{Dimension, SECOND},
    error::{error, go_duration},
    limiter::Scope,
};

/// A refusal, after which nothing is reserved.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) dimension: Dimension,
    pub(crate) limit: u64,
    /// Used units, rounded down and rounded up.
    pub(crate) used: (u64, u64),
    pub(crate) requested: u64,
    /// Nanoseconds until the request fits; `None` if it is larger than the limit.
    pub(crate) wait: Option<u64>,
}

impl Refusal {
    /// Status, headers in addition to the rate-limit headers, and body. A request that is larger than the limit gets 413 without
    /// `retry-after`, but 429 if its expected output is larger than the limit.
    pub(crate) fn answer(&self, options: &Options, scope: &Scope) -> (StatusCode, HeaderMap, Value) {
        let (organization, model, tier) = scope;
        let scope = format!("model `{model}` in organization `{organization}` service tier `{tier}` on");
        let (words, kind) = (self.dimension.words(), self.dimension.unit().error_type());
        let (limit, requested, tail) = (self.limit, self.requested, options.tail.as_str());
        let mut headers = HeaderMap::new();
        let wait = match (self.wait, options.wording) {
            (Some(wait), _) => wait,
            (None, Wording::From2024) => self.wait_for_excess(),
            (None, _) => {
                let (status, advice) = match self.dimension {
                    Dimension::Otpm => (
                        StatusCode::TOO_MANY_REQUESTS,
                        ". The request's expected output tokens exceed the enforced limit; reduce max_tokens \
                         (or the request's expected output) and try again.",
                    ),
                    _ => (StatusCode::PAYLOAD_TOO_LARGE, ", please reduce your message size and try again."),
                };
                let text = format!("Request too large for {scope} {words}: Limit {limit}, Requested {requested}{advice} {tail}");
                return (status, headers, error(&text, kind, Some("rate_limit_exceeded")));
            }
        };
        let (name, used, about) = match options.wording {
            Wording::Current => (format!(" {words}"), self.used.1, ""),
            Wording::NoDimension => (" ".to_owned(), self.used.0, ""),
            Wording::From2024 => (format!(" {words}"), self.used.1, "~"),
        };
        let text = format!(
            "Rate limit reached for {scope}{name}: Limit {limit}, Used {used}, Requested {about}{requested}. \
             Please try again in {}. {tail}",
            go_duration(wait)
        );
        let seconds = match options.retry_after {
            Rounding::Up => wait.div_ceil(SECOND),
            Rounding::Down => wait / SECOND,
            Rounding::Nearest => (wait + SECOND / 2) / SECOND,
        };
        headers.insert("retry-after", seconds.into());
        (StatusCode::TOO_MANY_REQUESTS, headers, error(&text, kind, Some("rate_limit_exceeded")))
    }

    /// The wait that Groq reported in 2024 for a request that is larger than the limit, although waiting cannot help.
    fn wait_for_excess(&self) -> u64 {
        let over = u128::from(self.used.1) + u128::from(self.requested) - u128::from(self.limit);
        u64::try_from(over * u128::from(self.dimension.window()) / u128::from(self.limit)).unwrap_or(u64::MAX)
    }
}
