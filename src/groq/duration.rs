//! Go durations, and `retry-after` in all its forms.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, header};

use crate::headers;

/// Longer durations are clamped to this: they are implausible, and could overflow a clock.
const MAX: Duration = Duration::from_secs(366 * 86_400);

/// Units as Go prints them, longest name first, in nanoseconds. Both Unicode micro signs occur.
const UNITS: [(&str, u64); 8] = [
    ("ms", 1_000_000),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ns", 1),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
];

/// Parses a Go duration (`7.66s`, `2m59.56s`, `370ms`, `16.239999999s`); more than a year counts as one.
fn parse_duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    if text == "0" {
        return Some(Duration::ZERO);
    }
    leading_duration(text).and_then(|(duration, rest)| rest.is_empty().then_some(duration))
}

/// The Go duration at the start of `text`, and the rest.
pub(super) fn leading_duration(text: &str) -> Option<(Duration, &str)> {
    let mut rest = text;
    let mut total: u128 = 0;
    while let Some((nanos, after)) = term(rest) {
        total = total.saturating_add(nanos);
        rest = after;
    }
    let duration = Duration::from_nanos(u64::try_from(total).unwrap_or(u64::MAX)).min(MAX);
    (rest.len() < text.len()).then_some((duration, rest))
}

/// One number with its unit, in nanoseconds.
fn term(text: &str) -> Option<(u128, &str)> {
    let (whole, rest) = digits(text);
    let (fraction, rest) = rest.strip_prefix('.').map_or(("", rest), digits);
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let (rest, unit) = UNITS.iter().find_map(|(name, nanos)| Some((rest.strip_prefix(name)?, u128::from(*nanos))))?;
    let whole = if whole.is_empty() { 0 } else { whole.parse().unwrap_or(u64::MAX) };
    let mut nanos = u128::from(whole) * unit;
    let mut place = unit;
    for digit in fraction.bytes() {
        place /= 10;
        nanos += u128::from(digit - b'0') * place;
    }
    Some((nanos, rest))
}

fn digits(text: &str) -> (&str, &str) {
    text.split_at(text.bytes().take_while(u8::is_ascii_digit).count())
}

/// The time in `retry-after-ms` or `retry-after`: seconds (whole or decimal), a Go duration, or an HTTP date as seen at `now`.
pub fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name: &str| headers::text(headers, name).map(str::trim);
    let after = |text: &str| {
        decimal(text)
            .or_else(|| parse_duration(text))
            .or_else(|| Some(httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default()))
    };
    text("retry-after-ms")
        .and_then(decimal)
        .map(|thousandfold| thousandfold / 1000)
        .or_else(|| text(header::RETRY_AFTER.as_str()).and_then(after))
        .map(|wait| wait.min(MAX))
}

/// A plain number of seconds, not negative.
fn decimal(text: &str) -> Option<Duration> {
    let plain = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let number = text.parse::<f64>().ok().filter(|_| plain)?;
    Some(Duration::try_from_secs_f64(number).unwrap_or(Duration::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_of_captured_texts() {
        let table = [
            ("370ms", 370_000_000),
            ("6ms", 6_000_000),
            ("7.66s", 7_660_000_000),
            ("1m26.4s", 86_400_000_000),
            ("2m59.56s", 179_560_000_000),
            ("3m7.055999999s", 187_055_999_999),
            ("16.239999999s", 16_239_999_999),
            ("19m48s", 1_188_000_000_000),
            ("1h2m3.5s", 3_723_500_000_000),
            ("50.597142857s", 50_597_142_857),
            ("12.5µs", 12_500),
            ("12.5μs", 12_500),
            ("3us", 3_000),
            ("42ns", 42),
            ("0s", 0),
            ("0", 0),
            (" 585ms ", 585_000_000),
            (".5s", 500_000_000),
            ("1.s", 1_000_000_000),
        ];
        for (text, nanos) in table {
            assert_eq!(parse_duration(text), Some(Duration::from_nanos(nanos)), "{text}");
        }
    }

    #[test]
    fn invalid_durations() {
        for text in ["", "s", "-3s", "+3s", "2", "1.2.3s", "5 s", "5s.", "1d", "soon", ".s", "٣s", "1e3s"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
        assert_eq!(parse_duration("99999999999999999999999h"), Some(MAX));
        assert_eq!(parse_duration(&"9h".repeat(100_000)), Some(MAX));
    }

    #[test]
    fn retry_after_in_all_forms() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").expect("a date");
        let table = [
            ("retry-after", "2", Some(2_000)),
            ("retry-after", "0.5", Some(500)),
            ("retry-after", "1m26.4s", Some(86_400)),
            ("retry-after", "Sun, 06 Nov 1994 08:50:07 GMT", Some(30_000)),
            ("retry-after", "Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("retry-after-ms", "1250", Some(1_250)),
            ("retry-after-ms", "12.5", Some(12)),
            ("retry-after", "-1", None),
            ("retry-after", "NaN", None),
            ("retry-after", "inf", None),
            ("retry-after", "soon", None),
        ];
        for (name, value, millis) in table {
            let headers = HeaderMap::from_iter([(name.parse().expect("a name"), value.parse().expect("a value"))]);
            assert_eq!(retry_after(&headers, now).map(|d| d.as_millis()), millis, "{name}: {value}");
        }
        let huge = HeaderMap::from_iter([(header::RETRY_AFTER, "9".repeat(400).parse().expect("a value"))]);
        assert_eq!(retry_after(&huge, now), Some(MAX));
    }

    #[test]
    fn milliseconds_come_before_seconds() {
        let headers = HeaderMap::from_iter([
            (header::RETRY_AFTER, "2".parse().expect("a value")),
            ("retry-after-ms".parse().expect("a name"), "1400".parse().expect("a value")),
        ]);
        assert_eq!(retry_after(&headers, SystemTime::UNIX_EPOCH), Some(Duration::from_millis(1400)));
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC*|[0-9.hmsµun]*") {
            let _ = parse_duration(&text);
        }

        #[test]
        fn reads_what_go_prints(h in 0u64..1000, m in 0u64..60, ms in 0u64..60_000) {
            let text = format!("{h}h{m}m{}s", ms as f64 / 1000.0);
            prop_assert_eq!(parse_duration(&text), Some(Duration::from_millis((h * 3600 + m * 60) * 1000 + ms)));
        }

        #[test]
        fn any_header_value(value in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(value) = http::HeaderValue::from_bytes(&value) {
                let headers = HeaderMap::from_iter([(header::RETRY_AFTER, value)]);
                let _ = retry_after(&headers, SystemTime::now());
            }
        }
    }
}
