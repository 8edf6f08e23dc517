//! Every failure as an app sees it: one exhaustive table, and the documented error object.
//!
//! Every failure of our own is `{"error":{"message","type","code"}}` with a status from Groq's documented table. Messages name
//! the remedy, and avoid words that clients search for ("billing" stops LangChain's retries, litellm takes "rate limit" for a
//! 429).

use std::{borrow::Cow, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

mod frame;
mod kinds;
mod rejection;
mod table;
mod upstream;

pub use frame::{frame_of, stream_error};
use kinds::MAX_MESSAGE;
pub use rejection::{CompletionLimit, Rejection};
use table::Row;
pub use upstream::UpstreamError;

/// Longest `retry-after` that the SDKs wait for.
const MAX_SDK_WAIT: Duration = Duration::from_secs(60);
impl Rejection {
    /// The status an app sees.
    pub fn status(&self) -> StatusCode {
        self.row().status
    }

    /// The error's `code`, if any, as in `x-shield-error` and the log.
    pub fn code(&self) -> Option<Cow<'static, str>> {
        self.row().code
    }

    /// The message for the log.
    pub fn summary(&self) -> String {
        let row = self.row();
        format!("{}: {}", row.code.as_deref().unwrap_or(&row.kind), row.message.chars().take(200).collect::<String>())
    }

    /// The whole response. `retry-after` gets its upward jitter here, the same in both headers.
    pub fn into_response(self) -> Response<Bytes> {
        let ours = self.is_ours();
        let row = self.row();
        let (mut headers, body) = match self {
            Self::Upstream(error) => (error.headers, error.body),
            _ => (HeaderMap::new(), None),
        };
        let body = body.unwrap_or_else(|| object(&row, None));
        let after = row.retry_after.map(spread);
        let curable = !row.no_retry && after.is_some_and(|after| after <= MAX_SDK_WAIT);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        headers
            .insert(HeaderName::from_static("x-should-retry"), HeaderValue::from_static(if curable { "true" } else { "false" }));
        if let Some(after) = after {
            let ms = after.as_millis() as u64;
            headers.insert(header::RETRY_AFTER, HeaderValue::from(ms.div_ceil(1000)));
            headers.insert(HeaderName::from_static("retry-after-ms"), HeaderValue::from(ms));
        }
        if ours && let Some(code) = row.code.as_deref().and_then(|c| HeaderValue::from_str(c).ok()) {
            headers.insert(HeaderName::from_static("x-shield-error"), code);
        }
        if ours && row.status == StatusCode::UNAUTHORIZED {
            // RFC 9110 §15.5.2: a server that generates a 401 must name the scheme.
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if row.close {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        let mut response = Response::new(body);
        *response.status_mut() = row.status;
        *response.headers_mut() = headers;
        response
    }

    /// The last frame of a broken stream; every tested client raises an error on it.
    pub fn into_frame(self) -> Bytes {
        let row = self.row();
        let object = object(&row, Some(row.status.as_u16()));
        [b"data: ", object.as_ref(), b"\n\n"].concat().into()
    }
}

/// `{"error":{"message","type","code"}}`, with an integer `status_code` in a stream.
fn object(row: &Row, status_code: Option<u16>) -> Bytes {
    let mut error = serde_json::Map::new();
    let message: String = row.message.chars().take(MAX_MESSAGE).collect();
    error.insert("message".into(), message.into());
    error.insert("type".into(), row.kind.as_ref().into());
    if let Some(code) = &row.code {
        error.insert("code".into(), code.as_ref().into());
    }
    if let Some(status) = status_code {
        error.insert("status_code".into(), status.into());
    }
    serde_json::json!({ "error": error }).to_string().into()
}

/// Maximum jitter: wide enough for thousands of clients, and short for clients that wait until midnight.
const MAX_JITTER: Duration = Duration::from_secs(60);

/// Adds upward jitter, so clients that are told the same time do not all come back at once.
fn spread(after: Duration) -> Duration {
    let floor = after.max(Duration::from_secs(1));
    let width = floor.mul_f64(0.2).min(MAX_JITTER) + Duration::from_secs(2);
    let spread = floor + width.mul_f64(fastrand::f64());
    // A wait that the SDKs accept must remain acceptable to them.
    if floor <= MAX_SDK_WAIT { spread.min(MAX_SDK_WAIT.max(floor)) } else { spread }
}

#[cfg(test)]
mod tests {
    use groq_limiter::types::Dimension;

    use super::*;

    /// Clients used to retry for minutes what can never be sent, and were told to lower a member that their request did not have.
    #[test]
    fn a_hopeless_request_has_a_code_and_a_remedy_of_its_own() {
        use CompletionLimit as L;
        let tokens = |parts, lower| Rejection::NeverFits { dimension: Dimension::TPM, limit: 1000, asked: 5100, parts, lower };
        let (chat, responses) = ("max_completion_tokens", "max_output_tokens");
        for (parts, lower, remedy, sum) in [
            (
                Some((100, 5000)),
                L::Stated(chat),
                "Lower max_completion_tokens or shorten the prompt.",
                "5000 of max_completion_tokens",
            ),
            (
                Some((100, 5000)),
                L::Stated(responses),
                "Lower max_output_tokens or shorten the prompt.",
                "5000 of max_output_tokens",
            ),
            (Some((100, 5000)), L::Unstated(chat), "Set max_completion_tokens, or shorten the prompt.", "100 of prompt"),
            (Some((5100, 0)), L::Stated(chat), "Shorten the prompt.", "5100 of prompt"),
            (Some((5000, 100)), L::Stated(chat), "Shorten the prompt.", "5000 of prompt"),
            (Some((5100, 0)), L::None, "Send less at once.", "Requested 5100. "),
            (None, L::None, "Send less at once.", "Requested 5100. "),
        ] {
            let rejection = tokens(parts, lower);
            let row = rejection.row();
            assert_eq!((row.status.as_u16(), row.code.as_deref()), (413, Some("request_too_large_for_limit")));
            assert_eq!(row.kind, "tokens");
            assert!(row.message.contains("Request too large for") && row.message.contains(sum), "{}", row.message);
            assert!(row.message.ends_with(remedy), "{lower:?} {parts:?}: {}", row.message);
            assert_eq!(rejection.into_response().headers()["x-should-retry"], "false");
        }
    }

    #[test]
    fn the_message_names_what_bounded_the_wait() {
        let (dimension, wait) = (Dimension::RPM, Duration::from_secs(30));
        let after = |retry_after, by_client| {
            Rejection::NotInTime { dimension: dimension.clone(), wait, fits: None, retry_after, by_client }
                .row()
                .message
                .into_owned()
        };
        let late = |by_client| after(wait, by_client);
        assert!(late(true).contains("later than its client waits") && !late(true).contains("queue.max_wait"), "{}", late(true));
        assert!(late(false).contains("later than queue.max_wait allows") && !late(false).contains("client"), "{}", late(false));
        // Two different times used to look like a contradiction.
        assert!(late(true).contains("Try again in 30.0 s, or"), "{}", late(true));
        let part = after(Duration::from_secs(25), true);
        assert!(part.contains("sent in 30.0 s") && part.contains("Try again in 25.0 s and wait for the rest, or"), "{part}");
    }

    #[test]
    fn a_hundred_clients_told_the_same_wait_are_spread_upward() {
        let night = Duration::from_secs(8 * 3600);
        assert!((0..100).all(|_| (night..night + Duration::from_secs(63)).contains(&spread(night))));
        for stated in [0, 1, 10, 50] {
            let stated = Duration::from_secs(stated);
            let told: Vec<_> = (0..100)
                .map(|_| {
                    let response = Rejection::Overloaded { retry_after: stated }.into_response();
                    let number = |name: &str| {
                        crate::headers::text(response.headers(), name).expect("text").parse::<u64>().expect("an integer")
                    };
                    let (seconds, ms) = (number("retry-after"), number("retry-after-ms"));
                    assert_eq!(seconds, ms.div_ceil(1000), "the same wait in both headers");
                    assert!(
                        u128::from(ms) >= stated.as_millis() && seconds <= 60,
                        "upward, and no longer than clients wait: {ms} ms"
                    );
                    ms
                })
                .collect();
            let first = told.iter().min().expect("a hundred");
            let within_a_second = told.iter().filter(|ms| **ms < first + 1000).count();
            assert!(within_a_second < 80, "{within_a_second} of 100 come back within a second of the first");
        }
    }
}
