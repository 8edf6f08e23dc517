//! Server-sent events: whole ones pass untouched; a stream that breaks ends in an error frame, never in silence,
//! since a stream that just ends is success to every client.

use std::{
    future::poll_fn,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};

use super::Carried;
use crate::{
    groq::SseTail,
    limits::Spent,
    proxy::error::{Rejection, stream_error},
    upstream::{Inflow, Why},
};

/// An event longer than this passes before it is whole, bytes.
const LONGEST_HELD: usize = 8 << 20;

/// A stream under way.
pub struct Stream {
    /// `None` once it is over.
    inflow: Option<Inflow>,
    tail: SseTail,
    /// The beginning of an event whose end has not come.
    held: BytesMut,
    /// Whole events that were read before the stream was delivered.
    first: Bytes,
    /// Whether an end without `[DONE]` (or a last event) is a cut.
    must_end: bool,
    /// Set before the first byte goes out.
    pub(super) carried: Option<Carried>,
}

impl Stream {
    /// Waits for the first whole event.
    pub(super) async fn open(inflow: Inflow, must_end: bool) -> Result<Self, Why> {
        let mut stream = Self {
            inflow: Some(inflow),
            tail: SseTail::default(),
            held: BytesMut::new(),
            first: Bytes::new(),
            must_end,
            carried: None,
        };
        stream.first = poll_fn(|cx| stream.poll_events(cx)).await?.unwrap_or_default();
        if stream.first.is_empty() && must_end {
            return Err(Why::Closed);
        }
        Ok(stream)
    }

    /// The next events, or the frame that ends a broken stream.
    pub(super) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if !self.first.is_empty() {
            let first = std::mem::take(&mut self.first);
            return Poll::Ready(Some(self.look_for_error(first)));
        }
        if self.inflow.is_none() {
            return Poll::Ready(None);
        }
        match self.poll_events(cx) {
            Poll::Ready(Ok(Some(events))) => Poll::Ready(Some(self.look_for_error(events))),
            Poll::Ready(Ok(None)) => {
                self.settle();
                self.inflow = None;
                Poll::Ready(None)
            }
            Poll::Ready(Err(why)) => Poll::Ready(Some(self.cut(why.into()))),
            Poll::Pending if self.is_over(cx) => Poll::Ready(Some(self.cut(Rejection::ShuttingDown))),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Whole events; `None` at a good end.
    fn poll_events(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Why>> {
        let Some(inflow) = &mut self.inflow else { return Poll::Ready(Ok(None)) };
        loop {
            let piece = match inflow.poll_data(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(piece))) => piece,
                // Bytes after the last event's `[DONE]` are nobody's; a break after it is none.
                Poll::Ready(Some(Err(_)) | None) if self.tail.ended() => return Poll::Ready(Ok(None)),
                Poll::Ready(Some(Err(why))) => return Poll::Ready(Err(why)),
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
            if whole > 0 || self.held.len() > LONGEST_HELD {
                let waiting = if whole > 0 { piece.len() - whole } else { 0 };
                let events = self.held.split_to(self.held.len() - waiting);
                return Poll::Ready(Ok(Some(events.freeze())));
            }
        }
    }

    /// A whole body's end ends its last event, too, if that is one to end with.
    fn last_event(&mut self) -> Result<Bytes, Why> {
        const END: &[u8] = b"\n\n";
        self.tail.feed(END);
        if !self.tail.ended() {
            return Err(Why::Closed);
        }
        self.held.extend_from_slice(END);
        Ok(std::mem::take(&mut self.held).freeze())
    }

    /// An upstream error that not every client raises on becomes a frame that all of them do, and the stream's end.
    fn look_for_error(&mut self, events: Bytes) -> Bytes {
        let Some(error) = self.tail.error() else { return events };
        let frame = stream_error(&error.data);
        let mut before = BytesMut::from(&events[..before_error(&events)]);
        before.extend_from_slice(&frame);
        if let Some(carried) = &mut self.carried {
            carried.record.error = Some("error in the stream".into());
        }
        self.settle();
        self.inflow = None;
        before.freeze()
    }

    fn cut(&mut self, rejection: Rejection) -> Bytes {
        if let Some(carried) = &mut self.carried {
            carried.record.error = rejection.code().map(|code| code.into_owned());
        }
        self.settle();
        self.inflow = None;
        rejection.into_frame()
    }

    /// The truth where the stream told it; else its prompt and what was seen.
    fn settle(&mut self) {
        let Some(carried) = &mut self.carried else { return };
        match self.tail.usage() {
            Some(usage) => carried.settle_usage(Some(usage)),
            None if self.tail.ended() && self.tail.error().is_none() => carried.settle(Spent::Charge),
            None => carried.settle(Spent::Partial { completion: self.tail.completion_tokens() }),
        }
    }

    /// Whether the shield's own time is over.
    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        self.carried.as_mut().is_some_and(|carried| carried.ending.poll_over(cx))
    }
}

impl Drop for Stream {
    /// The client left: what it has cost so far is known.
    fn drop(&mut self) {
        if self.inflow.is_some() {
            if let Some(carried) = &mut self.carried {
                carried.record.error.get_or_insert_with(|| "client left".into());
            }
            self.settle();
        }
    }
}

/// How many bytes of `events` come before the event that carries an error.
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
