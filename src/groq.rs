//! Groq's wire formats: paths, headers, durations, refusal texts, usage. Pure: no sockets, no clock.
//! Sources: Groq's documentation and captured traffic; every text here was captured.

use groq_limiter::types::{Observation, RemoteQuota, Unit};
use http::{HeaderMap, HeaderValue};

mod duration;
mod mask;
mod path;
mod refusal;
mod sse;
mod truncation;
mod usage;

pub use duration::retry_after;
pub use mask::{mask, mask_error, mask_errors_of_events};
pub use path::{Endpoint, map_path};
pub use refusal::{parse_refusal, stated_wait};
pub use sse::{SseTail, StreamError};
pub use truncation::is_truncated_without_content;
pub use usage::{Answer, Usage};

/// Reads the `x-ratelimit-*` headers of a response; absent or invalid values are `None`. The limits are buckets, so their
/// `reset` follows from what remains.
pub fn rate_limits(headers: &HeaderMap) -> Observation {
    let (mut requests, mut tokens, mut audio) = (Stated::default(), Stated::default(), Stated::default());
    // One pass over the headers present: looking up six names would hash each of them.
    for (name, value) in headers {
        let stated = match name.as_str() {
            "x-ratelimit-limit-requests" => &mut requests.limit,
            "x-ratelimit-remaining-requests" => &mut requests.remaining,
            "x-ratelimit-limit-tokens" => &mut tokens.limit,
            "x-ratelimit-remaining-tokens" => &mut tokens.remaining,
            "x-ratelimit-limit-audio-seconds" => &mut audio.limit,
            "x-ratelimit-remaining-audio-seconds" => &mut audio.remaining,
            _ => continue,
        };
        stated.get_or_insert(value);
    }
    Observation { requests: requests.quota(), tokens: tokens.quota(), audio: audio.quota() }
}

/// The headers that describe one quota.
#[derive(Default)]
struct Stated<'h> {
    limit: Option<&'h HeaderValue>,
    remaining: Option<&'h HeaderValue>,
}

impl Stated<'_> {
    fn quota(&self) -> Option<RemoteQuota> {
        let limit = count(self.limit?.as_bytes()).filter(|limit| *limit > 0)?;
        let remaining = count(self.remaining?.as_bytes())?.min(limit);
        Some(RemoteQuota { limit, remaining })
    }
}

/// The error object's `type` for a refusal in this unit.
pub fn error_type(unit: Unit) -> &'static str {
    match unit {
        Unit::Requests => "requests",
        Unit::Tokens | Unit::InputTokens | Unit::OutputTokens => "tokens",
        Unit::AudioSeconds => "seconds",
    }
}

/// A whole number, or the whole part of a decimal one; negative numbers count as 0.
fn count(value: &[u8]) -> Option<u64> {
    // The fast path: almost every value is a few digits.
    if (1..20).contains(&value.len()) && value.iter().all(u8::is_ascii_digit) {
        return Some(value.iter().fold(0, |sum, digit| 10 * sum + u64::from(digit - b'0')));
    }
    loose_count(std::str::from_utf8(value).ok()?.trim())
}

fn loose_count(text: &str) -> Option<u64> {
    let plain = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let (number, below_zero) = text.strip_prefix('-').map_or((text, false), |rest| (rest, true));
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    (plain(whole) && plain(fraction)).then(|| if below_zero { 0 } else { whole.parse().unwrap_or(u64::MAX) })
}

#[cfg(test)]
mod tests {
    use http::HeaderName;
    use proptest::prelude::*;

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).expect("a value"))
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn captured_headers() {
        let state = rate_limits(&headers(&[
            ("x-ratelimit-limit-requests", "14400"),
            ("x-ratelimit-remaining-requests", "14399"),
            ("x-ratelimit-limit-tokens", "8000"),
            ("x-ratelimit-remaining-tokens", "7922"),
        ]));
        assert_eq!(state.requests, Some(RemoteQuota { limit: 14_400, remaining: 14_399 }));
        assert_eq!(state.tokens, Some(RemoteQuota { limit: 8000, remaining: 7922 }));
        assert_eq!(state.audio, None);
    }

    #[test]
    fn headers_that_lie_or_lack() {
        let tokens = |limit, remaining| {
            let pairs = [("x-ratelimit-limit-tokens", limit), ("x-ratelimit-remaining-tokens", remaining)];
            rate_limits(&headers(&pairs)).tokens.map(|s| (s.limit, s.remaining))
        };
        assert_eq!(tokens("8000", "-20"), Some((8000, 0)));
        assert_eq!(tokens("8000", "9000"), Some((8000, 8000)));
        assert_eq!(tokens("8000", "12.75"), Some((8000, 12)));
        assert_eq!(tokens("99999999999999999999999", "1"), Some((u64::MAX, 1)));
        for (limit, remaining) in [("0", "0"), ("", "1"), ("x", "1"), ("1", "x"), ("1e3", "1"), ("-5", "1"), ("1", ".")] {
            assert_eq!(tokens(limit, remaining), None, "{limit} {remaining}");
        }
        assert_eq!(rate_limits(&headers(&[("x-ratelimit-limit-tokens", "8000")])), Observation::default());
    }

    proptest! {
        #[test]
        fn any_header_value(values in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..20), 2)) {
            let names = ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens"];
            let pairs = names.into_iter().zip(values);
            let headers = pairs.filter_map(|(name, v)| Some((HeaderName::from_static(name), HeaderValue::from_bytes(&v).ok()?)));
            let state = rate_limits(&headers.collect());
            prop_assert!(state.tokens.is_none_or(|s| s.remaining <= s.limit && s.limit > 0));
        }
    }
}
