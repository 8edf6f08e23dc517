//! The effect of a fault: a different or broken response, over HTTP/1.1 and HTTP/2.

use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    answer::{Answer, Step},
    error,
    raw::RawBytes,
};

/// The effect of a fault. `after` is a number of stream events, and times are in milliseconds. Actions that close the connection
/// over HTTP/1.1 reset only the stream of the request over HTTP/2, except `garbage`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Action {
    /// No fault, but the request counts for `nth`.
    #[default]
    None,
    /// A response with this status, by default with the body that Groq was observed to send.
    Status {
        /// The status.
        status: u16,
        /// The body: a string is sent unchanged, any other value as JSON.
        #[serde(default)]
        body: Option<Value>,
        /// `application/json` by default.
        #[serde(default)]
        content_type: Option<String>,
        /// The value of `retry-after`, sent unchanged.
        #[serde(default)]
        retry_after: Option<String>,
        /// Additional headers.
        #[serde(default)]
        headers: Vec<(String, String)>,
    },
    /// Groq's error with this code: `blocked_api_access`, `spend_limit_reached`, `organization_restricted`,
    /// `model_decommissioned`, `model_not_found`, `invalid_api_key`, `capacity_exceeded`; any other code gives a 400.
    Error {
        /// The code.
        code: String,
    },
    /// The response has only reasoning and no content, with the `finish_reason` `length`.
    Truncated,
    /// Cloudflare's HTML page with this status (502, 520 to 530, 403).
    Html {
        /// The status.
        status: u16,
    },
    /// Cloudflare's 403 `error code: 1010` as text.
    Forbidden,
    /// A response without a body.
    Empty {
        /// The status.
        status: u16,
    },
    /// An error object without `type`.
    Untyped {
        /// The status.
        status: u16,
    },
    /// A 429 with this message.
    Refused {
        /// The message.
        message: String,
        /// The value of `retry-after`, sent unchanged.
        #[serde(default)]
        retry_after: Option<String>,
    },
    /// The connection is closed before the head.
    Close,
    /// The connection is closed within the head; over HTTP/2 before it.
    CloseInHead,
    /// The connection is closed after half of the body; `content-length` is that of the complete body.
    CloseInBody,
    /// Over HTTP/2 the stream is reset with REFUSED_STREAM, which means that the request was not processed; over HTTP/1.1 the
    /// connection is closed.
    RefuseStream,
    /// A regular response, after which the connection is closed: with GOAWAY over HTTP/2, with `connection: close` over HTTP/1.1.
    GoAway,
    /// Bytes that are not HTTP, after which the connection is closed.
    Garbage {
        /// The bytes; a TLS alert by default.
        #[serde(default)]
        bytes: Option<String>,
    },
    /// The head is sent byte by byte. Over HTTP/2, where it is one frame, it is delayed by the same time.
    SlowHead {
        /// Pause after each byte.
        ms: u64,
    },
    /// A wrong `content-length`. The connection is closed after the body; over HTTP/2 the stream ends.
    WrongLength {
        /// Bytes added to the correct length.
        by: i64,
    },
    /// A 200 with `text/html` instead of JSON.
    NotJson,
    /// The first half of the JSON, with the `content-length` of that half.
    TruncatedJson,
    /// A regular response after a delay.
    #[serde(alias = "latency")]
    Stall {
        /// The delay.
        ms: u64,
    },
    /// A stream breaks off.
    Cut {
        /// Number of events before.
        after: usize,
        /// Whether the first half of the next event is still sent.
        #[serde(default)]
        half: bool,
    },
    /// A stream pauses.
    StallStream {
        /// Number of events before.
        after: usize,
        /// The pause.
        ms: u64,
    },
    /// A stream ends cleanly without `data: [DONE]` (or without `response.completed`).
    NoDone,
    /// A stream ends in `data: {"error": {…, "status_code": 400}}`.
    ErrorFrame {
        /// Number of events before.
        after: usize,
    },
    /// A stream ends in `event: error`.
    ErrorEvent {
        /// Number of events before.
        after: usize,
    },
    /// A stream ends in a chunk with `x_groq.error`.
    XGroqError {
        /// Number of events before.
        after: usize,
    },
}

/// A pause before a cut, so that hyper flushes the preceding bytes.
const FLUSH: Step = Step::Wait(Duration::from_millis(1));

impl Action {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Status { .. } => "status",
            Self::Error { .. } => "error",
            Self::Truncated => "truncated",
            Self::Html { .. } => "html",
            Self::Forbidden => "forbidden",
            Self::Empty { .. } => "empty",
            Self::Untyped { .. } => "untyped",
            Self::Refused { .. } => "refused",
            Self::Close => "close",
            Self::CloseInHead => "close_in_head",
            Self::CloseInBody => "close_in_body",
            Self::RefuseStream => "refuse_stream",
            Self::GoAway => "go_away",
            Self::Garbage { .. } => "garbage",
            Self::SlowHead { .. } => "slow_head",
            Self::WrongLength { .. } => "wrong_length",
            Self::NotJson => "not_json",
            Self::TruncatedJson => "truncated_json",
            Self::Stall { .. } => "stall",
            Self::Cut { .. } => "cut",
            Self::StallStream { .. } => "stall_stream",
            Self::NoDone => "no_done",
            Self::ErrorFrame { .. } => "error_frame",
            Self::ErrorEvent { .. } => "error_event",
            Self::XGroqError { .. } => "x_groq_error",
        }
    }

    /// The response that replaces that of the endpoint, without being charged; `None` if the endpoint responds.
    pub(crate) fn answer(&self, model: &str) -> Option<Answer> {
        let status = |code: u16| StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        match self {
            Self::Status { status: code, body, content_type, retry_after, headers } => {
                let body = match body {
                    None => error::to_text(&error::usual(*code, model)),
                    Some(Value::String(text)) => text.clone(),
                    Some(json) => error::to_text(json),
                };
                let mut answer = Answer::new(status(*code), "application/json", body);
                let named = content_type.iter().map(|value| ("content-type", value));
                let waits = retry_after.iter().map(|value| ("retry-after", value));
                let more = headers.iter().map(|(name, value)| (name.as_str(), value));
                for (name, value) in named.chain(waits).chain(more) {
                    if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value)) {
                        answer.headers.insert(name, value);
                    }
                }
                Some(answer)
            }
            Self::Error { code } => {
                let (status, body) = error::by_code(code, model);
                Some(Answer::json(status, &body))
            }
            Self::Html { status: code } => Some(Answer::new(status(*code), "text/html; charset=UTF-8", error::edge_page(*code))),
            Self::Forbidden => Some(Answer::new(StatusCode::FORBIDDEN, "text/plain; charset=UTF-8", "error code: 1010")),
            Self::Empty { status: code } => {
                let mut answer = Answer::new(status(*code), "text/plain", "");
                answer.headers.remove(header::CONTENT_TYPE);
                Some(answer)
            }
            Self::Untyped { status: code } => Some(Answer::json(status(*code), &error::usual(403, model))),
            Self::Refused { message, retry_after } => {
                let body = error::error(message, "tokens", Some("rate_limit_exceeded"));
                let mut answer = Answer::json(StatusCode::TOO_MANY_REQUESTS, &body);
                let wait = retry_after.as_deref().and_then(|text| HeaderValue::from_str(text).ok());
                answer.headers.extend(wait.map(|wait| (header::RETRY_AFTER, wait)));
                Some(answer)
            }
            Self::NotJson => Some(Answer::new(StatusCode::OK, "text/html", "<html><body>It works!</body></html>")),
            _ => None,
        }
    }

    /// The bytes that are sent instead of a response, over HTTP/1.1 or HTTP/2.
    pub(crate) fn raw(&self) -> Option<RawBytes> {
        match self {
            Self::Garbage { bytes } => {
                let bytes = bytes.clone().map_or(Bytes::from_static(b"\x15\x03\x01\x00\x02\x02\x50"), Bytes::from);
                Some(RawBytes { bytes, slow: None })
            }
            _ => None,
        }
    }

    /// The reason with which the HTTP/2 stream is reset instead of a response; over HTTP/1.1 the connection is closed.
    pub(crate) fn reset(&self) -> Option<Reason> {
        match self {
            Self::Close => Some(Reason::INTERNAL_ERROR),
            Self::RefuseStream => Some(Reason::REFUSED_STREAM),
            _ => None,
        }
    }

    /// The bytes of a broken HTTP/1.1 response.
    pub(crate) fn broken_http1(&self, answer: &Answer) -> Option<RawBytes> {
        let body = answer.bytes();
        let head = |length: i64| {
            let mut head = format!("HTTP/1.1 {}\r\ncontent-length: {length}\r\n", answer.status);
            for (name, value) in &answer.headers {
                head += &format!("{name}: {}\r\n", String::from_utf8_lossy(value.as_bytes()));
            }
            head + "\r\n"
        };
        let length = i64::try_from(body.len()).unwrap_or(i64::MAX);
        let whole = |length: i64, body: &[u8]| Bytes::from([head(length).as_bytes(), body].concat());
        match self {
            Self::CloseInHead => Some(RawBytes { bytes: head(length).into_bytes().drain(..40).collect(), slow: None }),
            Self::CloseInBody => Some(RawBytes { bytes: whole(length, &body[..body.len() / 2]), slow: None }),
            Self::WrongLength { by } => Some(RawBytes { bytes: whole((length + by).max(0), &body), slow: None }),
            Self::SlowHead { ms } => {
                Some(RawBytes { bytes: whole(length, &body), slow: Some((head(length).len(), Duration::from_millis(*ms))) })
            }
            _ => None,
        }
    }

    /// The delay of the head of an HTTP/2 response.
    pub(crate) fn head_delay(&self, answer: &Answer) -> Duration {
        let Self::SlowHead { ms } = self else { return Duration::ZERO };
        let bytes: usize = answer.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
        Duration::from_millis(*ms) * u32::try_from(bytes).unwrap_or(u32::MAX)
    }

    /// Breaks an HTTP/2 response as far as the framing of HTTP/2 allows.
    pub(crate) fn break_http2(&self, answer: &mut Answer) {
        let body = answer.bytes();
        match self {
            Self::CloseInBody => {
                answer.headers.insert(header::CONTENT_LENGTH, body.len().into());
                answer.steps = vec![Step::Bytes(body.slice(..body.len() / 2)), FLUSH, Step::Cut];
            }
            Self::WrongLength { by } => {
                let length = i64::try_from(body.len()).unwrap_or(i64::MAX).saturating_add(*by);
                answer.headers.insert(header::CONTENT_LENGTH, u64::try_from(length).unwrap_or(0).into());
            }
            _ => {}
        }
    }

    /// Changes the body: truncates, pauses or extends it.
    pub(crate) fn edit(&self, answer: &mut Answer) {
        let is_event = |step: &Step| matches!(step, Step::Bytes(_));
        let events = answer.steps.iter().enumerate().filter(|(_, step)| is_event(step)).map(|(at, _)| at);
        let event = |n: usize| events.clone().nth(n).unwrap_or(answer.steps.len());
        let (at, then) = match self {
            Self::TruncatedJson => {
                let body = answer.bytes();
                answer.steps = vec![Step::Settle, Step::Bytes(body.slice(..body.len() / 2))];
                return;
            }
            Self::NoDone => {
                let last = events.last().unwrap_or(0);
                answer.steps.truncate(last);
                return;
            }
            Self::StallStream { after, ms } => {
                answer.steps.insert(event(*after), Step::Wait(Duration::from_millis(*ms)));
                return;
            }
            Self::Cut { after, half: false } => (event(*after), vec![FLUSH, Step::Cut]),
            Self::Cut { after, half: true } => {
                let at = event(*after);
                let part = match answer.steps.get(at) {
                    Some(Step::Bytes(bytes)) => bytes.slice(..bytes.len() / 2),
                    _ => Bytes::new(),
                };
                (at, vec![Step::Bytes(part), FLUSH, Step::Cut])
            }
            Self::ErrorFrame { after } => {
                let body = json!({"error": {"message": "Generation failed.", "type": "invalid_request_error",
                                            "code": "generation_failed", "status_code": 400}});
                (event(*after), vec![Step::Bytes(format!("data: {body}\n\n").into())])
            }
            Self::ErrorEvent { after } => {
                let body = error::error("Internal Server Error", "internal_server_error", None);
                (event(*after), vec![Step::Bytes(format!("event: error\ndata: {}\n\n", error::to_text(&body)).into())])
            }
            Self::XGroqError { after } => {
                let body = json!({"id": "chatcmpl-0", "object": "chat.completion.chunk", "created": 0, "model": "x", "choices": [],
                                  "x_groq": {"id": "req_0", "error": "over_capacity"}});
                (event(*after), vec![Step::Bytes(format!("data: {body}\n\n").into())])
            }
            _ => return,
        };
        answer.steps.truncate(at);
        answer.steps.extend(then);
    }
}
