//! Server-sent events. Complete events pass unchanged. A broken stream ends with an error frame, because every tested client
//! takes a stream that just ends for a success.

use std::{
    future::poll_fn,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use groq_limiter::ActualUsage;

use super::context::ResponseContext;
use crate::{
    groq::{SseTail, mask_errors_of_events},
    proxy::error::{Rejection, stream_error},
    upstream::{ExchangeError, ResponseBody},
};

/// Maximum bytes of an event that is buffered until it is complete; a larger one passes in parts.
const MAX_EVENT: usize = 8 << 20;

/// A running stream.
pub struct Stream {
    /// `None` once the stream has ended.
    body: Option<ResponseBody>,
    tail: SseTail,
    /// The start of an incomplete event.
    held: BytesMut,
    /// Complete events that were read before the response was delivered.
    first: Bytes,
    /// Whether a stream that ends without `[DONE]` (or a final event) counts as truncated.
    must_end: bool,
    /// Set before the first byte is sent.
    pub(super) context: Option<ResponseContext>,
}

impl Stream {
    /// Waits for the first complete event.
    pub(super) async fn open(body: ResponseBody, must_end: bool) -> Result<Self, ExchangeError> {
        let mut stream = Self {
            body: Some(body),
            tail: SseTail::default(),
            held: BytesMut::new(),
            first: Bytes::new(),
            must_end,
            context: None,
        };
        stream.first = poll_fn(|cx| stream.poll_events(cx)).await?.unwrap_or_default();
        if stream.first.is_empty() && must_end {
            return Err(ExchangeError::Closed);
        }
        Ok(stream)
    }

    /// The next events, or the frame that ends a broken stream.
    pub(super) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if !self.first.is_empty() {
            let first = std::mem::take(&mut self.first);
            return Poll::Ready(Some(self.replace_error(first)));
        }
        if self.body.is_none() {
            return Poll::Ready(None);
        }
        match self.poll_events(cx) {
            Poll::Ready(Ok(Some(events))) => Poll::Ready(Some(self.replace_error(events))),
            Poll::Ready(Ok(None)) => {
                self.settle();
                self.body = None;
                Poll::Ready(None)
            }
            Poll::Ready(Err(error)) => Poll::Ready(Some(self.cut(error.into()))),
            Poll::Pending if self.is_cut_off(cx) => Poll::Ready(Some(self.cut(Rejection::ShuttingDown))),
            Poll::Pending => Poll::Pending,
        }
    }

    /// The next complete events; `None` at the regular end.
    fn poll_events(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, ExchangeError>> {
        let Some(body) = &mut self.body else { return Poll::Ready(Ok(None)) };
        loop {
            let piece = match body.poll_data(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(piece))) => piece,
                // The stream is complete. Errors of the connection after `[DONE]` do not matter.
                Poll::Ready(Some(Err(_)) | None) if self.tail.ended() => return Poll::Ready(Ok(None)),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(None) if self.must_end => return Poll::Ready(self.last_event().map(Some)),
                Poll::Ready(None) => {
                    let rest = std::mem::take(&mut self.held).freeze();
                    return Poll::Ready(Ok(Some(rest).filter(|rest| !rest.is_empty())));
                }
            };
            let whole = self.tail.feed(&piece);
            if self.held.is_empty() && whole == piece.len() {
                return Poll::Ready(Ok(Some(piece)));
            }
            self.held.extend_from_slice(&piece);
            if whole > 0 || self.held.len() > MAX_EVENT {
                let waiting = if whole > 0 { piece.len() - whole } else { 0 };
                let events = self.held.split_to(self.held.len() - waiting);
                return Poll::Ready(Ok(Some(events.freeze())));
            }
        }
    }

    /// At the end of the body, a final event without its blank line is complete if it ends the stream.
    fn last_event(&mut self) -> Result<Bytes, ExchangeError> {
        const END: &[u8] = b"\n\n";
        self.tail.feed(END);
        if !self.tail.ended() {
            return Err(ExchangeError::Closed);
        }
        self.held.extend_from_slice(END);
        Ok(std::mem::take(&mut self.held).freeze())
    }

    /// Replaces an upstream error in the stream, in any of its three shapes, by a frame on which every client raises an error,
    /// and ends the stream.
    fn replace_error(&mut self, events: Bytes) -> Bytes {
        let Some(error) = self.tail.error() else {
            return if self.tail.has_failed() { mask_errors_of_events(events) } else { events };
        };
        let frame = stream_error(&error.data);
        let mut before = BytesMut::from(&events[..before_error(&events)]);
        before.extend_from_slice(&frame);
        if let Some(context) = &mut self.context {
            context.record.error = Some("error in the stream".into());
        }
        self.settle();
        self.body = None;
        before.freeze()
    }

    /// Ends the stream with the error frame of `rejection`.
    fn cut(&mut self, rejection: Rejection) -> Bytes {
        if let Some(context) = &mut self.context {
            context.record.error = rejection.code().map(|code| code.into_owned());
        }
        self.settle();
        self.body = None;
        rejection.into_frame()
    }

    /// Settles with the usage that the stream stated, or else with the prompt and the completion tokens seen.
    fn settle(&mut self) {
        let Some(context) = &mut self.context else { return };
        context.record.truncated = self.tail.is_truncated_without_content();
        match self.tail.usage() {
            Some(usage) => context.settle_usage(Some(usage)),
            None if self.tail.ended() && self.tail.error().is_none() => context.settle(ActualUsage::Unknown),
            None => context.settle(ActualUsage::Partial { completion: self.tail.completion_tokens() }),
        }
    }

    /// Whether the shutdown's cutoff is reached.
    fn is_cut_off(&mut self, cx: &mut Context<'_>) -> bool {
        self.context.as_mut().is_some_and(|context| context.cutoff.poll_reached(cx))
    }
}

impl Drop for Stream {
    /// Settles with what was seen so far if the client has disconnected.
    fn drop(&mut self) {
        if self.body.is_some() {
            if let Some(context) = &mut self.context {
                context.record.error.get_or_insert_with(|| "client left".into());
            }
            self.settle();
        }
    }
}

/// Number of bytes of `events` before the event that carries an error.
fn before_error(events: &[u8]) -> usize {
    let mut tail = SseTail::default();
    let mut start = 0;
    for end in 1..=events.len() {
        let whole = tail.feed(&events[end - 1..end]);
        if tail.error().is_some() {
            return start;
        }
        if whole > 0 {
            start = end;
        }
    }
    start
}
