//! How does the answer reach the app? Whole where it is JSON, event by event where it streams, as it comes where it is
//! neither. Nothing goes out before it is known that the answer has begun well; what it cost is read in passing.

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
    groq::Usage,
    headers,
    limits::{Reservation, Spent},
    shutdown::Ending,
    telemetry::Record,
    upstream::{Inflow, Why},
};

mod keep_alive;
mod passthrough;
mod stream;

pub use keep_alive::{Waiting, opened_early};
use passthrough::Pass;
use stream::Stream;

/// A JSON answer over this many bytes passes as it comes.
const LARGEST_HELD: u64 = 8 << 20;

/// What the request's endpoint answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// One JSON value.
    Json,
    /// Text by the request's own wish: anything but a page.
    Text,
    /// Anything.
    Any,
}

/// An answer that has begun well. Nothing of it has gone out.
pub enum Opened {
    /// A whole body, and its cost where it says so.
    Whole(Bytes, Option<Usage>),
    /// A stream whose first event is there.
    Stream(Box<Stream>),
    /// Anything else, as it comes.
    Pass(Box<Pass>),
}

/// Waits until the answer is whole, or its first event is there.
///
/// # Errors
/// The answer broke before a byte of it went out: sending again is safe for the app.
pub async fn open(head: &Parts, body: Inflow, expected: Expected, must_end: bool) -> Result<Opened, Why> {
    let encoded = head.headers.get(header::CONTENT_ENCODING).is_some_and(|coding| coding != "identity");
    let media = media_type(&head.headers);
    // Nothing, or a part: no more than that is to be read in it.
    let partial = matches!(head.status.as_u16(), 204..=206 | 304);
    if encoded || partial || body.is_end() && expected != Expected::Json {
        return pass(body).await;
    }
    if media.eq_ignore_ascii_case("text/event-stream") {
        return Stream::open(body, must_end).await.map(|stream| Opened::Stream(Box::new(stream)));
    }
    let is_json = media.eq_ignore_ascii_case("application/json");
    match expected {
        Expected::Json => {}
        Expected::Text if media.eq_ignore_ascii_case("text/html") => return Err(Why::Invalid("it is a page")),
        _ if is_json && body.exact_size().is_some_and(|size| size <= LARGEST_HELD) => {}
        _ => return pass(body).await,
    }
    match collect(body).await? {
        Collected::TooLarge(begun, rest) => Ok(Opened::Pass(Box::new(Pass::new(begun, rest)))),
        Collected::All(bytes) if expected == Expected::Json || is_json => match Usage::of_answer(&bytes) {
            Ok(usage) => Ok(Opened::Whole(bytes, usage)),
            // Whatever it calls itself: a file of many values, for one.
            Err(_) if expected == Expected::Any => Ok(Opened::Whole(bytes, None)),
            Err(_) => Err(Why::Invalid("it is not JSON")),
        },
        Collected::All(bytes) => Ok(Opened::Whole(bytes, None)),
    }
}

/// Whatever it is, once it has begun.
async fn pass(mut body: Inflow) -> Result<Opened, Why> {
    let begun = body.data().await.transpose().map_err(cut_short)?.unwrap_or_default();
    Ok(Opened::Pass(Box::new(Pass::new(begun, body))))
}

fn cut_short(why: Why) -> Why {
    if why == Why::Closed { Why::Invalid("it was cut short") } else { why }
}

enum Collected {
    All(Bytes),
    TooLarge(Bytes, Inflow),
}

/// The whole body, unless it turns out to be larger than is held.
async fn collect(mut body: Inflow) -> Result<Collected, Why> {
    let Some(first) = body.data().await.transpose().map_err(cut_short)? else { return Ok(Collected::All(Bytes::new())) };
    // The usual answer comes in one piece and is not copied.
    if body.is_end() {
        body.data().await.transpose().map_err(cut_short)?;
        return Ok(Collected::All(first));
    }
    let mut all = BytesMut::with_capacity(body.exact_size().unwrap_or(0).min(LARGEST_HELD) as usize + first.len());
    all.extend_from_slice(&first);
    while let Some(piece) = body.data().await {
        all.extend_from_slice(&piece.map_err(cut_short)?);
        if all.len() as u64 > LARGEST_HELD {
            return Ok(Collected::TooLarge(all.freeze(), body));
        }
    }
    Ok(Collected::All(all.freeze()))
}

/// At most `limit` bytes of an error's body, as far as it comes within `time`: more of it is not worth waiting for.
pub async fn error_body(mut body: Inflow, limit: usize, time: Duration) -> Bytes {
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

/// The media type alone.
fn media_type(headers: &HeaderMap) -> &str {
    let value = headers::text(headers, header::CONTENT_TYPE).unwrap_or_default();
    if value == "application/json" { value } else { value.split(';').next().unwrap_or_default().trim() }
}

/// What an answer carries to its real end, whoever ends it.
pub struct Carried {
    /// Settled once the cost is known.
    pub reservation: Option<Reservation>,
    /// Written when dropped.
    pub record: Box<Record>,
    /// Ends a running stream when the shield's own time is over.
    pub ending: Ending,
}

impl Carried {
    fn settle(&mut self, spent: Spent) {
        if let Some(reservation) = self.reservation.take() {
            reservation.settle(spent, Instant::now());
        }
    }

    fn settle_usage(&mut self, usage: Option<Usage>) {
        self.record.usage = usage.unwrap_or_default();
        self.settle(usage.map_or(Spent::Charge, spent));
    }
}

/// The truth as the levels count it: cached prompt tokens are free.
fn spent(usage: Usage) -> Spent {
    Spent::Tokens { prompt: usage.prompt.saturating_sub(usage.cached), completion: usage.completion, prompt_total: usage.prompt }
}

/// An answer's body.
pub enum Body {
    /// Known bytes.
    Full {
        /// What is left of them.
        bytes: Bytes,
        /// Dropped with the body.
        record: Option<Box<Record>>,
    },
    /// Server-sent events.
    Stream(Box<Stream>),
    /// As it comes.
    Pass(Box<Pass>),
    /// Comments until the answer is there.
    Waiting(Waiting),
}

impl Body {
    /// The body of an answer that has begun well.
    pub fn new(opened: Opened, mut carried: Carried) -> Self {
        match opened {
            Opened::Whole(bytes, usage) => {
                carried.settle_usage(usage);
                Self::Full { bytes, record: Some(carried.record) }
            }
            Opened::Stream(mut stream) => {
                stream.carried = Some(carried);
                Self::Stream(stream)
            }
            Opened::Pass(mut pass) => {
                pass.carried = Some(carried);
                Self::Pass(pass)
            }
        }
    }

    /// A failure's body.
    pub fn failure(bytes: Bytes, record: Box<Record>) -> Self {
        Self::Full { bytes, record: Some(record) }
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
