//! What becomes of one client connection? Its requests one by one, its clock, its end.

use std::{
    any::Any,
    future::{Future, poll_fn},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::Body;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, Sleep, sleep, timeout},
};

use super::{
    answer::{Answer, To},
    head::Scanner,
    request::{self, Head, Incoming, Shared},
};
use crate::{
    error::Rejection,
    late::Clock,
    message::{Request, Response},
    proxy::{self, Shield},
    relay::Signal,
    wire::LARGEST_HEAD,
};

/// A connection without a request is kept so long: longer than any client in use keeps its own (OkHttp: 300 s),
/// so that it is the client who closes and no request meets a closing connection.
const LONGEST_IDLE: Duration = Duration::from_secs(330);
/// A client that takes no byte of its answer for so long is gone.
const LONGEST_BLOCKED: Duration = Duration::from_secs(120);
/// While draining, a request that is on its way on an idle connection may still arrive.
const LAST_CALL: Duration = Duration::from_millis(250);
/// After the end of `drain_timeout`, the time for a stream's error frame.
const LAST_FRAME: Duration = Duration::from_millis(500);
/// What a client may go on sending after it was answered, so that the answer is not lost in a reset.
const LINGER: Duration = Duration::from_secs(10);
/// Bytes ahead of their turn that are kept; more wait in the socket.
const MOST_AHEAD: usize = 64 << 10;

/// Serves one client until it leaves, fails, is idle for too long, or the shield drains.
pub async fn serve<I>(io: I, shield: Arc<Shield>)
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    let handle = |request, fault| proxy::handle(&shield, request, fault);
    serve_by(io, &shield, handle, |rejection| proxy::refuse(&shield, rejection)).await;
}

/// Serves one client whose requests `handle` answers (its second argument says why servers could disagree about a
/// request), and `refuse` what never becomes a request.
async fn serve_by<I, H, R, B>(io: I, shield: &Shield, handle: H, refuse: impl Fn(Rejection) -> Response<B>)
where
    I: AsyncRead + AsyncWrite + Unpin,
    H: Fn(Request<Incoming<I>>, Option<&'static str>) -> R,
    R: Future<Output = Response<B>>,
    B: Body<Data = Bytes> + Unpin,
{
    let header_timeout = shield.settings.load().server.header_timeout;
    let clock = Clock::new(Instant::now() + header_timeout);
    let mut connection = Connection { shared: Shared::new(io), clock, header_timeout, used: false, leave: None };
    let mut talk = pin!(connection.talk(shield, handle, refuse));
    let draining = &shield.stop.draining;
    let mut given = pin!(draining.given());
    let (mut listens, mut end) = (false, None);
    poll_fn(|cx| {
        if talk.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        // Every poll comes by here: until draining begins, what comes then is not even looked at.
        if end.is_none() {
            if listens && !draining.is_given() {
                return Poll::Pending;
            }
            listens = true;
            ready!(given.as_mut().poll(cx));
            // It may have begun after those within have looked.
            cx.waker().wake_by_ref();
        }
        end.get_or_insert_with(|| Box::pin(cut(shield))).as_mut().poll(cx)
    })
    .await;
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

/// What a request says of the way that it is answered.
#[derive(Clone, Copy)]
struct Asked {
    to: To,
    /// No request follows it.
    closes: bool,
    /// Servers could disagree about it.
    faulty: bool,
}

/// The client is gone, or its answer is: there is nobody to tell.
struct Gone;

/// One client's connection.
struct Connection<I> {
    shared: Shared<I>,
    clock: Clock,
    header_timeout: Duration,
    /// Whether there was a request.
    used: bool,
    /// While draining: how long a request may still come.
    leave: Option<Pin<Box<Sleep>>>,
}

impl<I: AsyncRead + AsyncWrite + Unpin> Connection<I> {
    /// Request by request, to the last one.
    async fn talk<H, R, B>(&mut self, shield: &Shield, handle: H, refuse: impl Fn(Rejection) -> Response<B>)
    where
        H: Fn(Request<Incoming<I>>, Option<&'static str>) -> R,
        R: Future<Output = Response<B>>,
        B: Body<Data = Bytes> + Unpin,
    {
        let draining = &shield.stop.draining;
        loop {
            // What is moved on at once takes no room in the task, which keeps its largest step's as long as it lives.
            let next = self.next(draining).await;
            let (asked, handled) = match next.map(|head| self.asked(head, &handle)) {
                Ok(asked) => asked,
                Err(nothing) => return Box::pin(self.last_words(nothing, &refuse)).await,
            };
            let Ok(answered) = self.unless_gone(unwound(handled)).await else { return };
            let unread = asked.faulty || !self.shared.lock().rest.is_end();
            let closes = asked.closes || unread || draining.is_given();
            let response = answered.unwrap_or_else(|panic| {
                tracing::error!(panic = words(&*panic), "a request's handler panicked");
                refuse(Rejection::Internal)
            });
            let mut answer = Answer::new(response, To { closes, ..asked.to });
            if self.send(&mut answer).await.is_err() {
                return;
            }
            if answer.closes {
                return Box::pin(self.part(unread)).await;
            }
        }
    }

    /// Has a request handled.
    fn asked<H, R>(&mut self, head: Head, handle: &H) -> (Asked, Pin<Box<R>>)
    where
        H: Fn(Request<Incoming<I>>, Option<&'static str>) -> R,
    {
        self.used = true;
        let Head { request, version, rest, keep_alive, expects, fault } = head;
        // Chunks that two servers count differently would hide a request: none follows them.
        let closes = !keep_alive || rest.exact_size().is_none();
        let asked = Asked { to: To::new(&request.method, version), closes, faulty: fault.is_some() };
        let body = self.shared.body(rest, expects);
        // On the heap, so that it goes with its request.
        (asked, Box::pin(handle(request.with(body), fault)))
    }

    /// What is to be said where no request comes, and the end.
    async fn last_words<B>(&mut self, nothing: Nothing, refuse: &impl Fn(Rejection) -> Response<B>)
    where
        B: Body<Data = Bytes> + Unpin,
    {
        match nothing {
            Nothing::Left => self.part(false).await,
            Nothing::Bad(rejection) => {
                if self.send(&mut Answer::new(refuse(rejection), To::ANYBODY)).await.is_ok() {
                    self.part(true).await;
                }
            }
        }
    }

    /// The head of the next request.
    async fn next(&mut self, draining: &Signal) -> Result<Head, Nothing> {
        let Self { shared, clock, header_timeout, used, leave } = self;
        let mut scanner = Scanner::default();
        let (mut scanned, mut looked_at) = (0, 0);
        // Since when nothing, or no more than a part of a head, has come.
        let mut since = None;
        let end = poll_fn(|cx| {
            let mut inbound = shared.lock();
            let line = &mut inbound.line;
            loop {
                let came = line.came();
                if let Some(end) = scanner.feed(&came[scanned..]) {
                    return Poll::Ready(Ok(scanned + end));
                }
                if came.len() > LARGEST_HEAD {
                    return Poll::Ready(Err(Nothing::malformed(request::TOO_LARGE)));
                }
                // What cannot become a head is told at once. Not at every byte of one that drips in: that would be read as often.
                if came.len() > 2 * looked_at {
                    looked_at = came.len();
                    Head::begins(came).map_err(Nothing::malformed)?;
                }
                let is_first = came.is_empty();
                scanned = came.len();
                match line.poll_more(cx) {
                    Poll::Ready(Ok(0)) if !is_first => {
                        return Poll::Ready(Err(Nothing::malformed("it ends within its head")));
                    }
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(Nothing::Left)),
                    Poll::Ready(Ok(_)) if is_first => since = None,
                    Poll::Ready(Ok(_)) => {}
                    Poll::Pending => break,
                }
            }
            let is_idle = line.came().is_empty();
            if is_idle
                && draining.is_given()
                && leave.get_or_insert_with(|| Box::pin(sleep(LAST_CALL))).as_mut().poll(cx).is_ready()
            {
                return Poll::Ready(Err(Nothing::Left));
            }
            let limit = if is_idle && *used { LONGEST_IDLE } else { *header_timeout };
            let (from, now) = match since {
                Some(since) => (since, None),
                None => {
                    let now = *since.insert(Instant::now());
                    (now, Some(now))
                }
            };
            ready!(clock.poll(from + limit, now, cx));
            Poll::Ready(Err(if is_idle { Nothing::Left } else { Nothing::Bad(Rejection::RequestTimeout("head")) }))
        })
        .await?;
        let bytes = shared.lock().line.take(end);
        Head::read(&bytes, scanner.finish()).map_err(Nothing::malformed)
    }

    /// What `asked` comes to, while the client waits for it.
    async fn unless_gone<F: Future>(&self, asked: F) -> Result<F::Output, Gone> {
        let mut asked = pin!(asked);
        poll_fn(|cx| match asked.as_mut().poll(cx) {
            Poll::Ready(answer) => Poll::Ready(Ok(answer)),
            Poll::Pending => self.poll_gone(cx).map(Err),
        })
        .await
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

/// The end of what did not finish in time.
async fn cut(shield: &Shield) {
    shield.stop.ending.given().await;
    sleep(LAST_FRAME).await;
}

/// The future's output, or its panic.
async fn unwound<F: Future>(mut future: Pin<Box<F>>) -> Result<F::Output, Box<dyn Any + Send>> {
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
        Ok(polled) => polled.map(Ok),
        Err(panic) => Poll::Ready(Err(panic)),
    })
    .await
}

fn words(panic: &(dyn Any + Send)) -> &str {
    panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(test)]
mod tests;
