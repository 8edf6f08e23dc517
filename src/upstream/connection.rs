//! How does one exchange with the upstream go? The request out, the answer's head back, both at once, until it is too late.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, Waker, ready},
};

use bytes::{Buf as _, Bytes};
use tokio::time::{Instant, Sleep, sleep_until};

use super::{
    ExchangeError,
    connector::Io,
    head::{self, Head},
};
use crate::{
    late::poll_late,
    wire::{Broken, Line, Rest, Unsent},
};

/// One connection to the upstream.
pub(super) struct Connection {
    line: Line<Io>,
    /// The request, until all of it is with the system: an answer may come before.
    unsent: Option<Unsent>,
    /// Kept from request to request.
    pub(super) alarm: Alarm,
    /// How many sweeps it has seen idle: an age that costs no look at the clock.
    pub(super) sweeps: u32,
}

/// Why there is no head of an answer.
pub(super) enum NoHead {
    /// Nothing went out: the request comes back.
    Unsent(Unsent),
    /// The request may have reached the upstream.
    Failed(ExchangeError),
}

/// One clock for all requests of a connection.
#[derive(Default)]
pub(super) struct Alarm(Option<Pin<Box<Sleep>>>);

impl Alarm {
    pub(super) fn poll(&mut self, due: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let clock = self.0.get_or_insert_with(|| Box::pin(sleep_until(due)));
        poll_late(clock.as_mut(), due, cx)
    }

    /// A waker keeps its task's memory, and that one may end long before the alarm rings.
    pub(super) fn forget_whom_to_wake(&mut self) {
        if let Some(clock) = &mut self.0 {
            let _rung = clock.as_mut().poll(&mut unwoken());
        }
    }
}

fn unwoken() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

impl Connection {
    pub(super) fn new(io: Io) -> Box<Self> {
        Box::new(Self { line: Line::new(io), unsent: None, alarm: Alarm::default(), sweeps: 0 })
    }

    /// Sends `request` and waits for the head until it is `due`.
    pub(super) async fn exchange(&mut self, request: Unsent, is_head: bool, due: Instant) -> Result<Head, NoHead> {
        let whole = request.remaining();
        self.unsent = Some(request);
        let mut looked_at = 0;
        let error = poll_fn(|cx| {
            let sent = self.poll_sent(cx);
            match self.poll_head(&mut looked_at, is_head, cx) {
                // What came before the connection broke counts.
                Poll::Pending if matches!(sent, Poll::Ready(Err(_))) => Poll::Ready(Err(ExchangeError::Closed)),
                Poll::Pending => self.alarm.poll(due, cx).map(|()| Err(ExchangeError::Timeout)),
                head => head,
            }
        });
        let error = match error.await {
            Ok(head) => return Ok(head),
            Err(error) => error,
        };
        match self.unsent.take() {
            Some(request) if error == ExchangeError::Closed && request.remaining() == whole => Err(NoHead::Unsent(request)),
            _ => Err(NoHead::Failed(error)),
        }
    }

    /// Ready when all of the request is with the system.
    fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(unsent) = &mut self.unsent {
            ready!(self.line.poll_send(unsent, cx))?;
            self.unsent = None;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_head(&mut self, looked_at: &mut usize, is_head: bool, cx: &mut Context<'_>) -> Poll<Result<Head, ExchangeError>> {
        loop {
            match ready!(self.line.poll_more(cx)) {
                Ok(0) | Err(_) => return Poll::Ready(Err(ExchangeError::Closed)),
                Ok(_) => {}
            }
            if let Some(head) = head::take(&mut self.line, looked_at, is_head)? {
                return Poll::Ready(Ok(head));
            }
        }
    }

    /// The next bytes of an answer's body. What the upstream has not taken of the request goes on meanwhile.
    pub(super) fn poll_data(&mut self, rest: &mut Rest, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Broken>>> {
        if self.unsent.is_some() {
            // Broken or not: the answer may be there.
            let _sent = self.poll_sent(cx);
        }
        rest.poll_data(&mut self.line, cx)
    }

    /// Whether a request could be sent on it now. Until then it wakes nobody.
    pub(super) fn is_usable(&mut self) -> bool {
        self.unsent.is_none() && self.line.came().is_empty() && self.line.poll_more(&mut unwoken()).is_pending()
    }
}
