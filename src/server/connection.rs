//! What becomes of one client connection? Its requests one by one, its clock, its end.

use std::{
    any::Any,
    future::{Future, poll_fn},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::Response;
use http_body::Body;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, Sleep, sleep, timeout},
};
use tokio_util::either::Either;

use super::{
    answer::{Answer, To},
    end::End,
    head::Scanner,
    request::{self, Head, Incoming, Shared},
};
use crate::{
    late::Clock,
    proxy::error::Rejection,
    proxy::{self, Shield},
    wire::LARGEST_HEAD,
};

/// A connection without a request is kept so long: longer than any client in use keeps its own (OkHttp: 300 s),
/// so that it is the client who closes and no request meets a closing connection.
const LONGEST_IDLE: Duration = Duration::from_secs(330);
/// A client that takes no byte of its answer for so long is gone.
const LONGEST_BLOCKED: Duration = Duration::from_secs(120);
/// While draining, a request that is on its way on an idle connection may still arrive.
const LAST_CALL: Duration = Duration::from_millis(250);
/// What a client may go on sending after it was answered, so that the answer is not lost in a reset.
const LINGER: Duration = Duration::from_secs(10);
/// Bytes ahead of their turn that are kept; more wait in the socket.
const MOST_AHEAD: usize = 64 << 10;

/// Serves one client until it leaves, fails, is idle for too long, or the shield drains. `held` is let go of then.
pub fn serve<I, T>(io: I, shield: Arc<Shield>, held: T) -> impl Future<Output = ()>
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    serve_by(io, shield, held, proxy::handle, proxy::refuse)
}

/// Serves one client whose requests `handle` answers (its last argument says why servers could disagree about a
/// request), and `refuse` what never becomes a request.
fn serve_by<I, T, H, R, B>(
    io: I,
    shield: Arc<Shield>,
    held: T,
    handle: H,
    refuse: impl Fn(&Shield, Rejection) -> Response<B>,
) -> impl Future<Output = ()>
where
    I: AsyncRead + AsyncWrite + Unpin,
    H: Fn(&Arc<Shield>, http::Request<Incoming<I>>, Option<&'static str>) -> R,
    R: Future<Output = Response<B>>,
    B: Body<Data = Bytes> + Unpin,
{
    // Made here: a future that is given something to make something of it keeps room for both.
    let mut end = End::new(&shield.shutdown);
    let mut connection = Connection::new(io, shield);
    async move {
        loop {
            let next = poll_fn(|cx| end.cuts(connection.poll_next(cx), cx));
            // On the heap, so that it goes with its request.
            let step = next.await.map(|next| match next {
                Ok(head) => Either::Left(Box::pin(connection.exchange(head, &handle, &refuse))),
                Err(nothing) => Either::Right(Box::pin(connection.last_words(nothing, &refuse))),
            });
            let Some(mut step) = step else { break };
            let Some(Then::Next) = poll_fn(|cx| end.cuts(Pin::new(&mut step).poll(cx), cx)).await else { break };
        }
        // Its place is free when its socket is.
        drop((connection, held));
    }
}

/// What comes instead of a request.
enum Nothing {
    /// The client left, or has to go: there is nothing to say.
    Left,
    /// What is to be said of what came.
    Bad(Rejection),
}

impl Nothing {
    fn malformed(why: &'static str) -> Self {
        Self::Bad(Rejection::Malformed(why))
    }
}

/// The client is gone, or its answer is: there is nobody to tell.
struct Gone;

/// One client's connection: what it keeps while nothing is asked, in few cache lines. Of ten thousand connections the
/// next one to ask was last looked at long ago.
struct Connection<I> {
    shield: Arc<Shield>,
    shared: Shared<I>,
    clock: Clock,
    header_timeout: Duration,
    /// Since when nothing, or no more than a part of a head, has come.
    since: Option<Instant>,
    /// What is known of the part of a head that has come.
    partial: Option<Box<Partial>>,
    /// Whether there was a request.
    used: bool,
    /// While draining: how long a request may still come.
    leave: Option<Pin<Box<Sleep>>>,
}

/// A head that has not come to its end.
#[derive(Default)]
struct Partial {
    scanner: Scanner,
    scanned: usize,
    looked_at: usize,
}

/// Whether another request can follow.
enum Then {
    Next,
    Over,
}

impl<I: AsyncRead + AsyncWrite + Unpin> Connection<I> {
    fn new(io: I, shield: Arc<Shield>) -> Self {
        let header_timeout = shield.settings.load().server.header_timeout;
        let clock = Clock::new(Instant::now() + header_timeout);
        Self { shield, shared: Shared::new(io), clock, header_timeout, since: None, partial: None, used: false, leave: None }
    }

    /// One request and its answer.
    fn exchange<H, R, B>(
        &mut self,
        head: Head,
        handle: &H,
        refuse: &impl Fn(&Shield, Rejection) -> Response<B>,
    ) -> impl Future<Output = Then>
    where
        H: Fn(&Arc<Shield>, http::Request<Incoming<I>>, Option<&'static str>) -> R,
        R: Future<Output = Response<B>>,
        B: Body<Data = Bytes> + Unpin,
    {
        self.used = true;
        let Head { request, version, rest, keep_alive, expects, fault } = head;
        // Chunks that two servers count differently would hide a request: none follows them.
        let closes = !keep_alive || rest.exact_size().is_none();
        let to = To::new(&request.method, version);
        let body = self.shared.body(rest, expects);
        let is_faulty = fault.is_some();
        let mut handled = Box::pin(handle(&self.shield, request.with(body).into(), fault));
        async move {
            let answered = poll_fn(|cx| match unwound(handled.as_mut(), cx) {
                Poll::Ready(answered) => Poll::Ready(Ok(answered)),
                Poll::Pending => self.poll_gone(cx).map(Err),
            });
            let Ok(answered) = answered.await else { return Then::Over };
            drop(handled);
            let unread = is_faulty || !self.shared.lock().rest.is_end();
            let closes = closes || unread || self.shield.shutdown.draining.is_cancelled();
            let response = answered.unwrap_or_else(|panic| {
                tracing::error!(panic = words(&*panic), "a request's handler panicked");
                refuse(&self.shield, Rejection::Internal)
            });
            let mut answer = Answer::new(response, To { closes, ..to });
            if self.send(&mut answer).await.is_err() {
                return Then::Over;
            }
            if answer.closes {
                // Seldom: a request that waits keeps no room for it.
                Box::pin(self.part(unread)).await;
                return Then::Over;
            }
            Then::Next
        }
    }

    /// What is to be said where no request comes, and the end.
    async fn last_words<B>(&mut self, nothing: Nothing, refuse: &impl Fn(&Shield, Rejection) -> Response<B>) -> Then
    where
        B: Body<Data = Bytes> + Unpin,
    {
        match nothing {
            Nothing::Left => self.part(false).await,
            Nothing::Bad(rejection) => {
                let response = refuse(&self.shield, rejection);
                if self.send(&mut Answer::new(response, To::ANYBODY)).await.is_ok() {
                    self.part(true).await;
                }
            }
        }
        Then::Over
    }

    /// The head of the next request.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Head, Nothing>> {
        let mut inbound = self.shared.lock();
        let line = &mut inbound.line;
        let mut partial = self.partial.take().map_or_else(Partial::default, |partial| *partial);
        loop {
            let came = line.came();
            if let Some(end) = partial.scanner.feed(&came[partial.scanned..]) {
                self.since = None;
                let bytes = line.take(partial.scanned + end);
                return Poll::Ready(Head::read(&bytes, partial.scanner.finish()).map_err(Nothing::malformed));
            }
            if came.len() > LARGEST_HEAD {
                return Poll::Ready(Err(Nothing::malformed(request::TOO_LARGE)));
            }
            // What cannot become a head is told at once. Not at every byte of one that drips in: that would be read as often.
            if came.len() > 2 * partial.looked_at {
                partial.looked_at = came.len();
                Head::begins(came).map_err(Nothing::malformed)?;
            }
            let is_first = came.is_empty();
            partial.scanned = came.len();
            match line.poll_more(cx) {
                Poll::Ready(Ok(0)) if !is_first => {
                    return Poll::Ready(Err(Nothing::malformed("it ends within its head")));
                }
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(Nothing::Left)),
                Poll::Ready(Ok(_)) if is_first => self.since = None,
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => break,
            }
        }
        let is_idle = line.came().is_empty();
        if !is_idle {
            self.partial = Some(Box::new(partial));
        } else if self.shield.shutdown.draining.is_cancelled() {
            ready!(self.leave.get_or_insert_with(|| Box::pin(sleep(LAST_CALL))).as_mut().poll(cx));
            return Poll::Ready(Err(Nothing::Left));
        }
        let limit = if is_idle && self.used { LONGEST_IDLE } else { self.header_timeout };
        let (from, now) = match self.since {
            Some(since) => (since, None),
            None => {
                let now = *self.since.insert(Instant::now());
                (now, Some(now))
            }
        };
        ready!(self.clock.poll(from + limit, now, cx));
        Poll::Ready(Err(if is_idle { Nothing::Left } else { Nothing::Bad(Rejection::RequestTimeout("head")) }))
    }

    /// Reads ahead, so that a client that leaves is noticed while its request runs.
    fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<Gone> {
        let mut inbound = self.shared.lock();
        // What is still to come of a body is read by who wants it.
        while inbound.rest.is_end() && inbound.line.came().len() < MOST_AHEAD {
            match ready!(inbound.line.poll_more(cx)) {
                Ok(0) | Err(_) => return Poll::Ready(Gone),
                Ok(_) => {}
            }
        }
        Poll::Pending
    }

    /// Sends all of an answer to a client that takes it.
    async fn send<B>(&mut self, answer: &mut Answer<B>) -> Result<(), Gone>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        // How far it has come, and since when no further.
        let mut blocked: Option<(u64, Instant)> = None;
        poll_fn(|cx| {
            let sent = answer.poll(&self.shared, cx);
            if let Poll::Ready(sent) = sent {
                return Poll::Ready(sent.map_err(|_| Gone));
            }
            if let Poll::Ready(gone) = self.poll_gone(cx) {
                return Poll::Ready(Err(gone));
            }
            let Some(sent) = answer.blocked_at() else {
                blocked = None;
                return Poll::Pending;
            };
            let (_, since) = *match &mut blocked {
                Some(at) if at.0 == sent => at,
                at => at.insert((sent, Instant::now())),
            };
            self.clock.poll(since + LONGEST_BLOCKED, None, cx).map(|()| Err(Gone))
        })
        .await
    }

    /// Closes, so that the client can read its answer even if it goes on sending.
    async fn part(&self, unread: bool) {
        let unread = unread || !self.shared.lock().line.came().is_empty();
        let close = async {
            poll_fn(|cx| self.shared.lock().line.poll_close(cx)).await?;
            if unread {
                poll_fn(|cx| self.shared.lock().line.poll_rest(cx)).await?;
            }
            io::Result::Ok(())
        };
        // A client that is gone, or stays for too long, has had its answer.
        let _ = timeout(LINGER, close).await;
    }
}

/// The future's output, or its panic.
fn unwound<F: Future>(future: Pin<&mut F>, cx: &mut Context<'_>) -> Poll<Result<F::Output, Box<dyn Any + Send>>> {
    match catch_unwind(AssertUnwindSafe(|| future.poll(cx))) {
        Ok(polled) => polled.map(Ok),
        Err(panic) => Poll::Ready(Err(panic)),
    }
}

fn words(panic: &(dyn Any + Send)) -> &str {
    panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(test)]
mod tests;
