//! One HTTP/1.1 connection to the upstream, driven by the request that uses it.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{Request, Response, header};
use http_body::{Body as _, Frame};
use hyper::{
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use tokio::time::Instant;

use super::{
    connector::Io,
    error::{ExchangeError, Unanswered},
    limits::MAX_HEAD,
    request::RequestBody,
    timer::LazyTimer,
    write_errors::IgnoreWriteErrors,
};

/// An open connection.
pub(super) struct Connection {
    sender: SendRequest<RequestBody>,
    /// `None` once the connection has ended.
    driver: Option<http1::Connection<IgnoreWriteErrors, RequestBody>>,
    /// Shared by all requests of the connection.
    pub(super) timer: LazyTimer,
    pub(super) opened_at: Instant,
    /// Whether it was idle before the current request.
    pub(super) was_idle: bool,
    /// Whether another request may follow the current response.
    may_be_reused: bool,
}

/// The driver makes all progress for its sender and its body, and the same task polls it right before them: with that task's
/// waker, every response and frame would wake the task once more.
fn noop() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

impl Connection {
    pub(super) async fn new(io: Io) -> Result<Box<Self>, ExchangeError> {
        let mut builder = http1::Builder::new();
        builder.max_header_size(MAX_HEAD).max_buf_size(MAX_HEAD);
        let (sender, driver) = builder.handshake(IgnoreWriteErrors::new(io)).await.map_err(|error| classify(&error))?;
        Ok(Box::new(Self {
            sender,
            driver: Some(driver),
            timer: LazyTimer::default(),
            opened_at: Instant::now(),
            was_idle: false,
            may_be_reused: true,
        }))
    }

    /// Sends `request` and waits for the head of the response until `deadline`.
    pub(super) async fn exchange(
        &mut self,
        request: Request<RequestBody>,
        deadline: Instant,
    ) -> Result<Response<Incoming>, Unanswered> {
        let mut response = pin!(self.sender.try_send_request(request));
        let (driver, timer) = (&mut self.driver, &mut self.timer);
        let outcome = poll_fn(|cx| {
            drive(driver, cx);
            match response.as_mut().poll(&mut noop()) {
                Poll::Ready(Ok(response)) => Poll::Ready(Ok(response)),
                Poll::Ready(Err(error)) if error.message().is_some() => {
                    Poll::Ready(Err(Unanswered::Unsent(ExchangeError::Closed)))
                }
                Poll::Ready(Err(error)) => Poll::Ready(Err(Unanswered::Failed(classify(&error.into_error())))),
                Poll::Pending => timer.poll(deadline, cx).map(|()| Err(Unanswered::Failed(ExchangeError::Timeout))),
            }
        });
        let response = outcome.await?;
        let headers = response.headers();
        // An intermediary could see another end of the body.
        self.may_be_reused = !(headers.contains_key(header::TRANSFER_ENCODING) && headers.contains_key(header::CONTENT_LENGTH));
        Ok(response)
    }

    /// The next frame of the response's body.
    pub(super) fn poll_frame(
        &mut self,
        body: &mut Incoming,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ExchangeError>>> {
        let mut frame = Pin::new(&mut *body).poll_frame(&mut noop());
        if frame.is_pending() {
            drive(&mut self.driver, cx);
            frame = Pin::new(body).poll_frame(&mut noop());
        }
        // After the head of a response, every error means that the response was truncated.
        frame.map(|frame| frame.map(|frame| frame.map_err(|_| ExchangeError::Closed)))
    }

    /// Whether a request can be sent now, as far as is known without polling the connection.
    pub(super) fn is_ready(&self) -> bool {
        self.may_be_reused && self.driver.is_some() && self.sender.is_ready()
    }

    /// Whether a request can be sent now. Until then the connection wakes no task.
    pub(super) fn is_usable(&mut self) -> bool {
        drive(&mut self.driver, &mut noop());
        self.timer.forget_waker();
        self.is_ready()
    }
}

/// Polls the connection. If it ends with an error, the response or its body reports that.
fn drive(driver: &mut Option<http1::Connection<IgnoreWriteErrors, RequestBody>>, cx: &mut Context<'_>) {
    if let Some(connection) = driver
        && Pin::new(connection).poll(cx).is_ready()
    {
        *driver = None;
    }
}

fn classify(error: &hyper::Error) -> ExchangeError {
    if error.is_parse_too_large() {
        ExchangeError::HEAD_TOO_LARGE
    } else if error.is_parse() {
        ExchangeError::NOT_HTTP
    } else {
        ExchangeError::Closed
    }
}
