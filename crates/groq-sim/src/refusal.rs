//! A refusal by the limiter, and Groq's response to it.

use http::{HeaderMap, StatusCode};
use serde_json::Value;

use crate::{
    Options, Rounding, Wording,
    dimension::{Dimension, SECOND},
    error::{error, go_duration},
    limiter::Scope,
};

/// A refusal: nothing was taken.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) dimension: Dimension,
    pub(crate) limit: u64,
    /// Rounded down and up.
    pub(crate) used: (u64, u64),
    pub(crate) requested: u64,
    /// Nanoseconds; `None`: it can never fit.
    pub(crate) wait: Option<u64>,
}

impl Refusal {
    /// Status, headers beside the limiter's own, and body. What can never fit gets 413 and no `retry-after`; expected output
    /// over the limit gets 429.
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

    /// The meaningless wait that Groq printed in 2024 for what can never fit.
    fn wait_for_excess(&self) -> u64 {
        let over = u128::from(self.used.1) + u128::from(self.requested) - u128::from(self.limit);
        u64::try_from(over * u128::from(self.dimension.window()) / u128::from(self.limit)).unwrap_or(u64::MAX)
    }
}
