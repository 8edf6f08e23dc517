//! The access line: one per request, without keys or content.

use std::borrow::Cow;

use super::Record;
use crate::groq::mask;

/// Maximum characters of a name that a client chose.
pub(super) const NAME: usize = 128;
/// Maximum characters of an error message.
pub(super) const REASON: usize = 500;
/// Prefix of Groq's keys.
const KEY: &str = "gsk_";

/// Writes the access line. Costs one atomic load if the filter excludes it.
pub(super) fn write(record: &Record) {
    // The macro would not evaluate anything either; this makes it explicit.
    if !tracing::enabled!(target: "groq_shield::access", tracing::Level::INFO) {
        return;
    }
    tracing::info!(
        target: "groq_shield::access",
        id = &*clean(record.request_id(), NAME),
        app = &*clean(&record.app, NAME),
        class = record.class_name(),
        model = &*clean(&record.model, NAME),
        fallback_from = record.fallback.as_ref().map(|(from, _)| clean(from, NAME)).as_deref(),
        fallback_reason = record.fallback.as_ref().map(|(_, reason)| reason.as_str()),
        endpoint = record.endpoint,
        path = (record.endpoint == "other").then(|| clean(&record.path, NAME)).as_deref(),
        status = record.status(),
        source = record.source.as_str(),
        wait_ms = millis(record.wait),
        bound = record.bound.as_deref().map(|code| clean(code, NAME)).as_deref(),
        observed_wait_ms = record.observed_wait.map(millis),
        observed_refusal = record.observed_refusal.map(super::ObservedRefusal::as_str),
        observed_fallback = record.observed_fallback.as_deref().map(|to| clean(to, NAME)).as_deref(),
        attempts = record.attempts,
        prompt_tokens = record.usage.prompt,
        completion_tokens = record.usage.completion.unwrap_or(0),
        cached_tokens = record.usage.cached,
        truncated = record.truncated.then_some(true),
        upstream_id = record.upstream_id.as_deref().map(|id| clean(id, NAME)).as_deref(),
        head_ms = record.time_to_head.map(millis),
        total_ms = millis(record.started.elapsed()),
        trace_id = record.traceparent.as_deref().and_then(trace_id),
        error = record.error.as_deref().map(|why| clean(why, REASON)).as_deref(),
        "request"
    );
}

pub(super) fn millis(time: std::time::Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// Makes untrusted text safe for a log: cut to `longest`, without control characters, keys and organization ids.
pub(super) fn clean(text: &str, longest: usize) -> Cow<'_, str> {
    let mut text = Cow::Borrowed(text);
    if text.len() > longest
        && let Some((end, _)) = text.char_indices().nth(longest)
    {
        text = format!("{}…", &text[..end]).into();
    }
    // Bytes are checked faster than characters, and almost all texts are plain.
    let is_plain = text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    if !is_plain && text.contains(char::is_control) {
        text = text.replace(char::is_control, "\u{fffd}").into();
    }
    if text.contains("org_") {
        text = mask(&text).into_owned().into();
    }
    if text.contains(KEY) { without_keys(&text).into() } else { text }
}

/// Masks Groq's keys as `gsk_***`, wherever a client or proxy put one.
fn without_keys(text: &str) -> String {
    let mut parts = text.split(KEY);
    let mut masked = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        masked.push_str("gsk_***");
        masked.push_str(part.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-'));
    }
    masked
}

/// The trace id of a valid `traceparent`.
pub(super) fn trace_id(traceparent: &str) -> Option<&str> {
    let mut parts = traceparent.split('-');
    let (_version, trace, _parent) = (parts.next()?, parts.next()?, parts.next()?);
    (trace.len() == 32 && trace.bytes().all(|b| b.is_ascii_hexdigit())).then_some(trace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_masked_wherever_they_stand() {
        assert_eq!(without_keys("a gsk_abcDEF123 b gsk_x"), "a gsk_*** b gsk_***");
        assert_eq!(clean("Bearer gsk_abc", NAME), "Bearer gsk_***");
    }

    #[test]
    fn plain_names_pass_as_they_are() {
        assert!(matches!(clean("openai/gpt-oss-20b", NAME), Cow::Borrowed("openai/gpt-oss-20b")));
        assert_eq!(clean("a\r\n\u{1b}[2J\u{9b}b", NAME), "a\u{fffd}\u{fffd}\u{fffd}[2J\u{fffd}b");
    }

    #[test]
    fn long_names_are_cut() {
        let long = "é".repeat(1000);
        assert_eq!(clean(&long, NAME).chars().count(), NAME + 1);
    }

    #[test]
    fn only_a_traceparent_has_a_trace_id() {
        assert_eq!(trace_id("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"), Some("4bf92f3577b34da6a3ce929d0e0e4736"));
        for other in ["", "x", "00-short-1-01", "00-4bf92f3577b34da6a3ce929d0e0e473\n-1-01"] {
            assert_eq!(trace_id(other), None);
        }
    }
}
