//! `queue.stream_keepalive`: opens a delayed streaming response early and keeps it alive with comments. A later failure can only
//! be reported in its last frame.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, header};
use http_body::Body;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::proxy::error::frame_of;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The response to wait for.
pub(super) type Pending<B> = Pin<Box<dyn Future<Output = Response<B>> + Send>>;

/// An SSE comment, which clients ignore.
const COMMENT: Bytes = Bytes::from_static(b": waiting\n\n");

/// The body of a stream that was opened before its response arrived.
pub struct Waiting<B> {
    answer: Option<Pending<B>>,
    /// The body of the response, once it has arrived.
    body: Option<Box<B>>,
    ticks: Interval,
}

impl<B: Body<Data = Bytes, Error = BoxError> + Unpin> Waiting<B> {
    /// Waits for `answer`, with a comment now and every `period`.
    pub fn new(answer: Pending<B>, period: Duration) -> Self {
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { answer: Some(answer), body: None, ticks }
    }

    pub(super) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BoxError>>> {
        if let Some(answer) = &mut self.answer {
            match answer.as_mut().poll(cx) {
                Poll::Pending => return self.ticks.poll_tick(cx).map(|_| Some(Ok(COMMENT))),
                Poll::Ready(answer) => {
                    self.answer = None;
                    let (head, mut body) = answer.into_parts();
                    if !head.status.is_success() {
                        // The body of a failure is available in one piece.
                        let Poll::Ready(Some(Ok(object))) = Pin::new(&mut body).poll_frame(cx) else { return Poll::Ready(None) };
                        return Poll::Ready(Some(Ok(frame_of(head.status, &object.into_data().unwrap_or_default()))));
                    }
                    self.body = Some(Box::new(body));
                }
            }
        }
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        Pin::new(body.as_mut()).poll_frame(cx).map(|frame| frame.map(|frame| frame.map(|f| f.into_data().unwrap_or_default())))
    }
}

/// Waits one `period` for the response of a stream, then opens the stream with `headers` and keeps it alive until the response
/// arrives.
pub async fn open_early<B>(mut answer: Pending<B>, period: Duration, headers: impl FnOnce() -> HeaderMap) -> Response<B>
where
    B: Body<Data = Bytes, Error = BoxError> + From<Waiting<B>> + Unpin,
{
    if let Ok(answer) = tokio::time::timeout(period, &mut answer).await {
        return answer;
    }
    let media = HeaderValue::from_static("text/event-stream");
    let mut response = Response::new(Waiting::new(answer, period).into());
    *response.headers_mut() = headers();
    response.headers_mut().insert(header::CONTENT_TYPE, media);
    response
}
