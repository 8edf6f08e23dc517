//! Error responses of the upstream: passed if they have the documented error object, otherwise rebuilt.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use groq_limiter::types::UpstreamRefusal;
use http::{HeaderMap, StatusCode, header};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::kinds::{INVALID, MAX_MESSAGE, SERVER};
use crate::groq::{self, mask};

/// An error response of the upstream, in the form that the app gets.
#[derive(Clone, Debug)]
pub struct UpstreamError {
    /// The status the app sees (504 and 520–530 become 502).
    pub status: StatusCode,
    /// `type`
    pub kind: Cow<'static, str>,
    /// `code`, if any.
    pub code: Option<Cow<'static, str>>,
    /// `message`
    pub message: Cow<'static, str>,
    /// How long the upstream says to wait: the exact time in its message, or its `retry-after`. `None` if waiting does not help.
    pub retry_after: Option<Duration>,
    /// The upstream's end-to-end headers without those that describe its body.
    pub headers: HeaderMap,
    /// The upstream's own object, masked; `None` if there is none to pass.
    pub body: Option<Bytes>,
    /// Whether the object is ours, because the upstream's response has none.
    pub rebuilt: bool,
}

/// The code of rebuilt errors.
const CODE: &str = "upstream_error";

/// The members of an error object, unparsed.
type Members<'a> = BTreeMap<Cow<'a, str>, &'a RawValue>;

impl UpstreamError {
    /// Reads an error response. `headers` contains end-to-end headers only; `now` is the time that an HTTP date in `retry-after`
    /// is compared with.
    pub fn new(status: StatusCode, mut headers: HeaderMap, body: &[u8], now: SystemTime) -> Self {
        let object = members(body);
        let message = object.as_ref().and_then(|object| text(object.get("message")));
        let refusal = message.as_deref().and_then(groq::parse_refusal);
        let hopeless = refusal.as_ref().is_some_and(UpstreamRefusal::hopeless);
        let stated = message.as_deref().and_then(groq::stated_wait).or_else(|| groq::retry_after(&headers, now));
        let shown = match status.as_u16() {
            429 if hopeless => StatusCode::PAYLOAD_TOO_LARGE,
            504 | 520..=530 => StatusCode::BAD_GATEWAY,
            // Concerns the shield and its own proxy, and would need a Proxy-Authenticate (RFC 9110 §15.5.8).
            407 => StatusCode::BAD_GATEWAY,
            _ if status.is_client_error() || status.is_server_error() => status,
            // A redirect, which Groq's API does not send.
            _ => StatusCode::BAD_GATEWAY,
        };
        for name in BODY_HEADERS {
            headers.remove(name);
        }
        let mut error = Self {
            status: shown,
            kind: kind_by_status(shown, refusal.as_ref()),
            code: Some(CODE.into()),
            message: Cow::Borrowed(""),
            retry_after: stated.filter(|_| !hopeless && waiting_cures(status)),
            headers,
            body: None,
            rebuilt: true,
        };
        match (object, message) {
            (Some(object), Some(message)) if status == shown || hopeless => error.pass(body, object, &message),
            (_, Some(message)) => error.message = bounded(&message),
            (_, None) => error.message = loose_message(body).unwrap_or_else(|| in_words(status, body)).into(),
        }
        if error.rebuilt {
            error.headers.remove(header::SET_COOKIE);
        }
        if error.blocks_account().is_some() {
            error.retry_after = None;
        }
        error
    }

    /// Whether it failed after generation, so that Groq charges for it.
    pub fn after_generation(&self) -> bool {
        matches!(self.code.as_deref(), Some("json_validate_failed" | "tool_use_failed"))
    }

    /// The code if Groq says that the organization is blocked or restricted.
    pub fn blocks_account(&self) -> Option<&str> {
        let blocks =
            |code: &&str| matches!(*code, "blocked_api_access" | "organization_restricted") || code.starts_with("spend_");
        self.code.as_deref().filter(blocks)
    }

    /// Whether Groq does not have the model, or no longer.
    pub fn is_missing_model(&self) -> bool {
        matches!(self.code.as_deref(), Some("model_decommissioned" | "model_not_found"))
    }

    /// Adds a sentence to the message. All other members stay as they are.
    pub fn add_to_message(&mut self, sentence: &str) {
        self.message = bounded(&format!("{} {sentence}", self.message));
        if let Some(body) = self.body.take() {
            self.body = members(&body).map(|object| self.repaired(&object));
        }
    }

    /// Passes the upstream's own object: unchanged if it is as documented, otherwise repaired.
    fn pass(&mut self, body: &[u8], object: Members<'_>, message: &str) {
        let kind = text(object.get("type"));
        let code = object.get("code").and_then(|code| text(Some(code)).or_else(|| number(code)));
        let string_or_null = |code: &&RawValue| code.get().starts_with('"') || code.get() == "null";
        let documented = kind.is_some()
            && object.get("code").is_none_or(string_or_null)
            && message.chars().count() <= MAX_MESSAGE
            && object.values().all(|value| is_readable(value));
        if let Some(kind) = kind {
            self.kind = kind.into_owned().into();
        }
        self.code = code.map(|code| code.into_owned().into());
        self.message = bounded(message);
        self.rebuilt = false;
        self.body = Some(if documented { masked_body(body, &object) } else { self.repaired(&object) });
    }

    /// The object with `message`, `type` and `code` as documented and all other members unchanged.
    fn repaired(&self, object: &Members<'_>) -> Bytes {
        let string = |text: &str| serde_json::Value::from(text).to_string();
        let mut members = vec![format!(r#""message":{}"#, string(&self.message)), format!(r#""type":{}"#, string(&self.kind))];
        members.extend(self.code.as_ref().map(|code| format!(r#""code":{}"#, string(code))));
        let others = object.iter().filter(|(name, _)| !["message", "type", "code"].contains(&name.as_ref()));
        let others = others.filter(|(_, value)| is_readable(value));
        members.extend(others.map(|(name, value)| {
            let value = if name == GENERATED { value.get().into() } else { mask(value.get()) };
            format!("{}:{value}", string(name))
        }));
        format!(r#"{{"error":{{{}}}}}"#, members.join(",")).into()
    }
}

/// Whether every JSON parser reads it: half of a surrogate pair, `"\ud800"`, is valid JSON that many refuse.
fn is_readable(value: &RawValue) -> bool {
    serde_json::from_str::<serde_json::Value>(value.get()).is_ok()
}

/// The model's own output. It contains no organization id, so it is not masked.
const GENERATED: &str = "failed_generation";

/// Whether the same request may succeed later.
fn waiting_cures(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 409 | 413 | 425 | 429 | 498 | 500..)
}

/// Headers that describe the original body, which the app does not get, and `retry-after`, which is set again.
const BODY_HEADERS: [header::HeaderName; 11] = [
    header::CONTENT_LENGTH,
    header::CONTENT_ENCODING,
    header::CONTENT_TYPE,
    header::CONTENT_LANGUAGE,
    header::CONTENT_DISPOSITION,
    header::CONTENT_RANGE,
    header::ACCEPT_RANGES,
    header::ETAG,
    header::LAST_MODIFIED,
    header::RETRY_AFTER,
    header::HeaderName::from_static("retry-after-ms"),
];

/// The `error` object of a body that has one.
fn members(body: &[u8]) -> Option<Members<'_>> {
    #[derive(Deserialize)]
    struct Whole<'a> {
        #[serde(borrow)]
        error: Members<'a>,
    }
    serde_json::from_slice::<Whole<'_>>(body).ok().map(|whole| whole.error)
}

fn text<'a>(member: Option<&&'a RawValue>) -> Option<Cow<'a, str>> {
    member.and_then(|value| serde_json::from_str::<String>(value.get()).ok()).map(Cow::Owned)
}

fn number<'a>(value: &&'a RawValue) -> Option<Cow<'a, str>> {
    serde_json::from_str::<serde_json::Number>(value.get()).ok().map(|_| Cow::Borrowed(value.get()))
}

/// The message of JSON without an error object: `{"error":"…"}`, `{"message":"…"}`, `{"detail":"…"}`.
fn loose_message(body: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(body).ok()?;
    let message = ["error", "message", "detail"].into_iter().find_map(|name| value.get(name)?.as_str());
    // HTML is not a message, even inside JSON.
    message.filter(|message| !message.trim().is_empty() && !message.contains('<')).map(|message| bounded(message).into_owned())
}

/// The message, masked and cut to the maximum length.
fn bounded(message: &str) -> Cow<'static, str> {
    let cut = message.char_indices().nth(MAX_MESSAGE).map_or(message.len(), |(at, _)| at);
    Cow::Owned(mask(&message[..cut]).into_owned())
}

/// The body with ids masked everywhere except in the model's output.
fn masked_body(body: &[u8], object: &Members<'_>) -> Bytes {
    let body = String::from_utf8_lossy(body);
    let own = object.get(GENERATED).and_then(|own| body.find(own.get()).map(|at| (at, at + own.get().len())));
    match own {
        Some((from, to)) => [&mask(&body[..from]), &body[from..to], &mask(&body[to..])].concat().into(),
        None => mask(&body).into_owned().into(),
    }
}

fn kind_by_status(status: StatusCode, refusal: Option<&UpstreamRefusal>) -> Cow<'static, str> {
    let unit = refusal.and_then(|refusal| refusal.dimension.as_ref().map(|d| d.unit).or(refusal.unit));
    match (status.as_u16(), unit) {
        (413 | 429, Some(unit)) => groq::error_type(unit),
        (429, None) if refusal.is_some_and(|refusal| refusal.requested > 1) => "tokens",
        (429, None) => "requests",
        (400..=499, _) => INVALID,
        _ => SERVER,
    }
    .into()
}

/// The message for a response without an error object: why it failed, and what to do.
fn in_words(status: StatusCode, body: &[u8]) -> String {
    let edge_code = std::str::from_utf8(body)
        .ok()
        .and_then(|text| text.trim().strip_prefix("error code: "))
        .filter(|code| (1..=5).contains(&code.len()) && code.bytes().all(|b| b.is_ascii_digit()));
    let number = status.as_u16();
    let what = match (edge_code, number) {
        (Some(code), _) => format!("Groq's edge answered {number} with its error code {code}"),
        (None, 520..=530) => format!("Groq's edge could not get an answer from Groq (status {number})"),
        (None, _) => {
            let reason = status.canonical_reason().map(|reason| format!(" {reason}")).unwrap_or_default();
            format!("Groq, or a proxy before it, answered {number}{reason} without an error object")
        }
    };
    let remedy = match number {
        401 => "Check the API key",
        403 if edge_code == Some("1010") => "It blocks this client's User-Agent: send another one",
        403 => "It refuses this client: check the network, its address and its User-Agent",
        404 | 405 | 410 => "Check the path and upstream.base_url",
        407 => "Check upstream.proxy",
        413 | 414 | 431 => "Send less at once",
        429 => "Send fewer requests at once and try again later",
        498 => "The flex tier has no room at the moment: try again, or use the on_demand tier",
        300..=399 => "It redirects: check upstream.base_url",
        400..=499 => "Check the request",
        _ => "Try again in a while; https://groqstatus.com shows incidents",
    };
    format!("{what}. {remedy}.")
}

#[cfg(test)]
#[path = "upstream_tests.rs"]
mod tests;
