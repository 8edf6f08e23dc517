//! What is made to go wrong, and when? A script of faults, in code or as JSON.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    answer::{Answer, Step},
    error,
};

/// One entry of the script: the first whose conditions all hold is played. As JSON, a list of objects with the
/// conditions that are wanted and an `action` with its members:
///
/// ```json
/// [{"nth": 1, "action": "status", "status": 503},
///  {"nth": [2, 4], "path": "/chat", "action": "cut", "after": 3, "half": true},
///  {"model": "openai/gpt-oss-20b", "probability": 0.1, "times": 5, "action": "refused",
///   "message": "Rate limit reached …", "retry_after": "2"}]
/// ```
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Fault {
    /// Part of the request's path.
    #[serde(default)]
    pub path: Option<String>,
    /// The request's model.
    #[serde(default)]
    pub model: Option<String>,
    /// Which of the requests with this path and model, from 1; empty: all.
    #[serde(default, deserialize_with = "one_or_many")]
    pub nth: Vec<u64>,
    /// Chance of being played, 0 to 1; by the simulator's seed.
    #[serde(default)]
    pub probability: Option<f64>,
    /// How often at most.
    #[serde(default)]
    pub times: Option<u64>,
    /// What happens.
    #[serde(flatten)]
    pub action: Action,
}

impl Fault {
    /// Plays `action` on every request.
    pub fn always(action: Action) -> Self {
        Self { action, ..Self::default() }
    }

    /// Plays `action` on the `nth` request, from 1.
    pub fn nth(nth: u64, action: Action) -> Self {
        Self { nth: vec![nth], action, ..Self::default() }
    }
}

/// What can go wrong. `after` counts a stream's events; times are in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Action {
    /// Nothing: takes a turn.
    #[default]
    None,
    /// An answer of Groq's own: a status, by default with the body that Groq was seen to send with it.
    Status {
        /// The status.
        status: u16,
        /// A string goes out as it is, anything else as JSON.
        #[serde(default)]
        body: Option<Value>,
        /// `application/json` where it is not said.
        #[serde(default)]
        content_type: Option<String>,
        /// `retry-after`, any text.
        #[serde(default)]
        retry_after: Option<String>,
        /// More headers.
        #[serde(default)]
        headers: Vec<(String, String)>,
    },
    /// Cloudflare's HTML page with this status (502, 520 to 530, 403).
    Html {
        /// The status.
        status: u16,
    },
    /// Cloudflare's 403 `error code: 1010` as text.
    Forbidden,
    /// A status without a body.
    Empty {
        /// The status.
        status: u16,
    },
    /// An error object without `type`.
    Untyped {
        /// The status.
        status: u16,
    },
    /// 429 with any text.
    Refused {
        /// The message.
        message: String,
        /// `retry-after`, any text.
        #[serde(default)]
        retry_after: Option<String>,
    },
    /// The connection closes before the head.
    Close,
    /// … in the head.
    CloseInHead,
    /// … half way through the body, the whole of which was announced.
    CloseInBody,
    /// Bytes that are not HTTP, then the connection closes.
    Garbage {
        /// The bytes; a TLS alert where it is not said.
        #[serde(default)]
        bytes: Option<String>,
    },
    /// The head comes byte by byte.
    SlowHead {
        /// Between two bytes.
        ms: u64,
    },
    /// Content-Length is off by so much; then the connection closes.
    WrongLength {
        /// Bytes added to the true length.
        by: i64,
    },
    /// 200 `text/html` instead of the answer.
    NotJson,
    /// Half of the JSON, properly framed.
    TruncatedJson,
    /// Nothing for so long, then the answer.
    #[serde(alias = "latency")]
    Stall {
        /// How long.
        ms: u64,
    },
    /// A stream breaks.
    Cut {
        /// Events before.
        after: usize,
        /// In the midst of the next event.
        #[serde(default)]
        half: bool,
    },
    /// A stream pauses.
    StallStream {
        /// Events before.
        after: usize,
        /// How long.
        ms: u64,
    },
    /// A stream ends cleanly without `data: [DONE]` (or without `response.completed`).
    NoDone,
    /// A stream ends in `data: {"error": {…, "status_code": 400}}`.
    ErrorFrame {
        /// Events before.
        after: usize,
    },
    /// A stream ends in `event: error`.
    ErrorEvent {
        /// Events before.
        after: usize,
    },
    /// A stream ends in a chunk with `x_groq.error`.
    XGroqError {
        /// Events before.
        after: usize,
    },
}

/// What the connection does in place of an answer.
#[derive(Debug)]
pub(crate) struct Raw {
    pub(crate) bytes: Bytes,
    /// So many first bytes go out one by one, with this pause between.
    pub(crate) slow: Option<(usize, Duration)>,
}

impl Action {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Status { .. } => "status",
            Self::Html { .. } => "html",
            Self::Forbidden => "forbidden",
            Self::Empty { .. } => "empty",
            Self::Untyped { .. } => "untyped",
            Self::Refused { .. } => "refused",
            Self::Close => "close",
            Self::CloseInHead => "close_in_head",
            Self::CloseInBody => "close_in_body",
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

    /// The answer that takes the place of the endpoint's; nothing is charged.
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

    /// What goes out without looking at the request's answer.
    pub(crate) fn raw(&self) -> Option<Raw> {
        match self {
            Self::Close => Some(Raw { bytes: Bytes::new(), slow: None }),
            Self::Garbage { bytes } => {
                let bytes = bytes.clone().map_or(Bytes::from_static(b"\x15\x03\x01\x00\x02\x02\x50"), Bytes::from);
                Some(Raw { bytes, slow: None })
            }
            _ => None,
        }
    }

    /// What goes out of an answer that is spoilt on its way.
    pub(crate) fn spoil(&self, answer: &Answer) -> Option<Raw> {
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
            Self::CloseInHead => Some(Raw { bytes: head(length).into_bytes().drain(..40).collect(), slow: None }),
            Self::CloseInBody => Some(Raw { bytes: whole(length, &body[..body.len() / 2]), slow: None }),
            Self::WrongLength { by } => Some(Raw { bytes: whole((length + by).max(0), &body), slow: None }),
            Self::SlowHead { ms } => {
                Some(Raw { bytes: whole(length, &body), slow: Some((head(length).len(), Duration::from_millis(*ms))) })
            }
            _ => None,
        }
    }

    /// Changes what the body does.
    pub(crate) fn edit(&self, answer: &mut Answer) {
        let is_event = |step: &Step| matches!(step, Step::Bytes(_));
        let events = answer.steps.iter().enumerate().filter(|(_, step)| is_event(step)).map(|(at, _)| at);
        let event = |n: usize| events.clone().nth(n).unwrap_or(answer.steps.len());
        // A pause lets what came before go out.
        let flush = Step::Wait(Duration::from_millis(1));
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
            Self::Cut { after, half: false } => (event(*after), vec![flush, Step::Cut]),
            Self::Cut { after, half: true } => {
                let at = event(*after);
                let part = match answer.steps.get(at) {
                    Some(Step::Bytes(bytes)) => bytes.slice(..bytes.len() / 2),
                    _ => Bytes::new(),
                };
                (at, vec![Step::Bytes(part), flush, Step::Cut])
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

/// The script and how far it has been played.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    script: Vec<(Fault, u64, u64)>,
    random: fastrand::Rng,
}

impl Faults {
    pub(crate) fn new(script: Vec<Fault>, seed: u64) -> Self {
        Self { script: script.into_iter().map(|fault| (fault, 0, 0)).collect(), random: fastrand::Rng::with_seed(seed) }
    }

    /// What becomes of this request.
    pub(crate) fn next(&mut self, path: &str, model: &str) -> Option<Action> {
        let mut played = None;
        for (fault, seen, times) in &mut self.script {
            let here = fault.path.as_ref().is_none_or(|part| path.contains(part.as_str()))
                && fault.model.as_ref().is_none_or(|name| name == model);
            if !here {
                continue;
            }
            *seen += 1;
            let chance = fault.probability.is_none_or(|chance| self.random.f64() < chance);
            let turn = fault.nth.is_empty() || fault.nth.contains(seen);
            if played.is_none() && chance && turn && fault.times.is_none_or(|most| *times < most) {
                *times += 1;
                played = Some(fault.action.clone());
            }
        }
        played
    }
}

fn one_or_many<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<u64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany {
        One(u64),
        Many(Vec<u64>),
    }
    Ok(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(nth) => vec![nth],
        OneOrMany::Many(nth) => nth,
    })
}
