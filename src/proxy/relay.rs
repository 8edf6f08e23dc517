//! Relays response bodies to the app: JSON is buffered, event streams pass event by event, everything else passes unread.
//!
//! Nothing is sent before the response is known to be valid so far. Usage is read on the way.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, header, response::Parts};
use http_body::{Frame, SizeHint};
use tokio::time::{Instant, timeout_at};

use crate::{
    groq::{Answer, Usage, is_truncated_without_content, mask_error},
    headers,
    telemetry::Record,
    upstream::{ExchangeError, ResponseBody},
};

mod context;
mod keep_alive;
mod passthrough;
mod stream;

pub use context::ResponseContext;
pub use keep_alive::{Waiting, open_early};
use passthrough::Pass;
use stream::Stream;

/// Maximum bytes of a JSON response that is buffered; a larger one passes unread.
const MAX_BUFFERED: u64 = 8 << 20;

/// The kind of body that an endpoint responds with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// One JSON value.
    Json,
    /// Text, because the request asked for it: anything but HTML.
    Text,
    /// Anything.
    Any,
}

/// The body of a response that is valid so far. Nothing of it has been sent.
pub enum ValidatedBody {
    /// A complete body, and its usage if it has one.
    Whole(Bytes, Option<Usage>),
    /// A stream whose first event has arrived.
    Stream(Box<Stream>),
    /// Anything else, unread.
    Pass(Box<Pass>),
}

/// Waits until the response is complete, or its first event has arrived.
///
/// # Errors
/// The response broke before anything of it was sent, so the request may be retried.
pub async fn validate(
    head: &Parts,
    body: ResponseBody,
    expected: Expected,
    must_end: bool,
) -> Result<ValidatedBody, ExchangeError> {
    let encoded = head.headers.get(header::CONTENT_ENCODING).is_some_and(|coding| coding != "identity");
    let media = media_type(&head.headers);
    // No body or a partial one: nothing to validate.
    let partial = matches!(head.status.as_u16(), 204..=206 | 304);
    if encoded || partial || body.is_end() && expected != Expected::Json {
        return pass(body).await;
    }
    if media.eq_ignore_ascii_case("text/event-stream") {
        // Boxed: its future would otherwise enlarge every other response.
        return Box::pin(Stream::open(body, must_end)).await.map(|stream| ValidatedBody::Stream(Box::new(stream)));
    }
    let is_json = media.eq_ignore_ascii_case("application/json");
    match expected {
        Expected::Json => {}
        Expected::Text if media.eq_ignore_ascii_case("text/html") => return Err(ExchangeError::Invalid("it is a page")),
        _ if is_json && body.exact_size().is_some_and(|size| size <= MAX_BUFFERED) => {}
        _ => return pass(body).await,
    }
    match collect(body).await? {
        Collected::TooLarge(begun, rest) => Ok(ValidatedBody::Pass(Box::new(Pass::new(begun, rest)))),
        Collected::All(bytes) if expected == Expected::Json || is_json => match Usage::of_answer(&bytes) {
            Ok(Answer { usage, has_error }) => Ok(ValidatedBody::Whole(if has_error { mask_error(bytes) } else { bytes }, usage)),
            // For example a JSONL file served as JSON.
            Err(_) if expected == Expected::Any => Ok(ValidatedBody::Whole(bytes, None)),
            Err(_) => Err(ExchangeError::Invalid("it is not JSON")),
        },
        Collected::All(bytes) => Ok(ValidatedBody::Whole(bytes, None)),
    }
}

/// Waits for the first bytes of a body that passes unread.
async fn pass(mut body: ResponseBody) -> Result<ValidatedBody, ExchangeError> {
    let begun = body.data().await.transpose().map_err(cut_short)?.unwrap_or_default();
    Ok(ValidatedBody::Pass(Box::new(Pass::new(begun, body))))
}

fn cut_short(error: ExchangeError) -> ExchangeError {
    if error == ExchangeError::Closed { ExchangeError::Invalid("it was cut short") } else { error }
}

enum Collected {
    All(Bytes),
    TooLarge(Bytes, ResponseBody),
}

/// Collects the body, unless it is too large to be buffered.
async fn collect(mut body: ResponseBody) -> Result<Collected, ExchangeError> {
    let Some(first) = body.data().await.transpose().map_err(cut_short)? else { return Ok(Collected::All(Bytes::new())) };
    // Most responses arrive in one piece and are not copied.
    if body.is_end() {
        body.data().await.transpose().map_err(cut_short)?;
        return Ok(Collected::All(first));
    }
    let mut all = BytesMut::with_capacity(body.exact_size().unwrap_or(0).min(MAX_BUFFERED) as usize + first.len());
    all.extend_from_slice(&first);
    while let Some(piece) = body.data().await {
        all.extend_from_slice(&piece.map_err(cut_short)?);
        if all.len() as u64 > MAX_BUFFERED {
            return Ok(Collected::TooLarge(all.freeze(), body));
        }
    }
    Ok(Collected::All(all.freeze()))
}

/// The first `limit` bytes of an error body that arrive within `time`.
pub async fn error_body(mut body: ResponseBody, limit: usize, time: Duration) -> Bytes {
    let mut all = BytesMut::new();
    let due = Instant::now() + time;
    while let Ok(Some(Ok(piece))) = timeout_at(due, body.data()).await {
        all.extend_from_slice(&piece);
        if all.len() > limit {
            break;
        }
    }
    all.freeze()
}

/// The media type without parameters.
fn media_type(headers: &HeaderMap) -> &str {
    let value = headers::text(headers, header::CONTENT_TYPE).unwrap_or_default();
    if value == "application/json" { value } else { value.split(';').next().unwrap_or_default().trim() }
}

/// The body of a response to an app.
pub enum Body {
    /// Known bytes.
    Full {
        /// The bytes that have not been sent.
        bytes: Bytes,
        /// Dropped with the body.
        record: Option<Box<Record>>,
    },
    /// Server-sent events.
    Stream(Box<Stream>),
    /// An unread body.
    Pass(Box<Pass>),
    /// Keep-alive comments until the response arrives.
    Waiting(Waiting<Self>),
}

impl Body {
    /// The body of a validated response.
    pub fn new(validated: ValidatedBody, mut context: ResponseContext) -> Self {
        match validated {
            ValidatedBody::Whole(bytes, usage) => {
                context.settle_usage(usage);
                context.record.truncated = is_truncated_without_content(&bytes);
                Self::Full { bytes, record: Some(context.record) }
            }
            ValidatedBody::Stream(mut stream) => {
                stream.context = Some(context);
                Self::Stream(stream)
            }
            ValidatedBody::Pass(mut pass) => {
                pass.context = Some(context);
                Self::Pass(pass)
            }
        }
    }

    /// The body of an error object.
    pub fn failure(bytes: Bytes, record: Box<Record>) -> Self {
        Self::Full { bytes, record: Some(record) }
    }
}

impl From<Waiting<Self>> for Body {
    fn from(waiting: Waiting<Self>) -> Self {
        Self::Waiting(waiting)
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self::Full { bytes, record: None }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.get_mut() {
            Self::Full { bytes, .. } => Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(std::mem::take(bytes))))),
            Self::Stream(stream) => stream.poll_data(cx).map(|data| data.map(|data| Ok(Frame::data(data)))),
            Self::Pass(pass) => pass.poll_data(cx).map(|data| data.map(|data| data.map(Frame::data))),
            Self::Waiting(waiting) => waiting.poll_data(cx).map(|data| data.map(|data| data.map(Frame::data))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full { bytes, .. } => bytes.is_empty(),
            Self::Pass(pass) => pass.exact_size() == Some(0),
            Self::Stream(_) | Self::Waiting(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full { bytes, .. } => SizeHint::with_exact(bytes.len() as u64),
            Self::Pass(pass) => pass.exact_size().map_or_else(SizeHint::default, SizeHint::with_exact),
            Self::Stream(_) | Self::Waiting(_) => SizeHint::default(),
        }
    }
}
