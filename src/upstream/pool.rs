//! Which connection carries a request? Idle ones, kept per core; each is polled only by the request that holds it.

use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, response::Parts};
use http_body::Body as _;
use hyper::{
    body::Incoming,
    client::conn::http1::{self, Connection, SendRequest},
};
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, Sleep, sleep_until};

use super::{Why, dial::Io, outgoing::Pieces};
use crate::late::poll_late;

/// Groq's edge closes idle connections after some minutes; well before that a new one is cheaper than a lost request.
const MOST_SWEEPS: u32 = 3;
/// Bytes read at once: a connection that has read so much once keeps room for it. The head of an answer may be as large, and is
/// refused where it has not ended within twice as much.
const LARGEST_READ: usize = 64 << 10;
const IDLE_PER_CORE: usize = 1024;
const SHARDS: usize = 16;

/// One connection to the upstream, with its driver.
pub(super) struct Wire {
    send: SendRequest<Pieces>,
    /// `None` once it has ended.
    driver: Option<Connection<TokioIo<Io>, Pieces>>,
    /// Kept from request to request.
    alarm: Alarm,
    /// How many sweeps it has seen idle: an age that costs no look at the clock.
    sweeps: u32,
}

/// Why there is no head of an answer.
pub(super) enum NoHead {
    /// It did not come in time.
    Late,
    /// Nothing went out: the request comes back.
    Unsent(Box<Request<Pieces>>),
    /// The connection broke, or what came is not HTTP.
    Broken(hyper::Error),
}

/// One clock for all requests of a connection.
#[derive(Default)]
struct Alarm(Option<Pin<Box<Sleep>>>);

impl Alarm {
    fn poll(&mut self, due: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let clock = self.0.get_or_insert_with(|| Box::pin(sleep_until(due)));
        poll_late(clock.as_mut(), due, cx)
    }

    fn forget_whom_to_wake(&mut self) {
        if let Some(clock) = &mut self.0 {
            let _rung = clock.as_mut().poll(&mut unwoken());
        }
    }
}

impl Wire {
    pub(super) async fn new(io: Io) -> hyper::Result<Box<Self>> {
        let (send, driver) = http1::Builder::new().max_buf_size(LARGEST_READ).handshake(TokioIo::new(io)).await?;
        Ok(Box::new(Self { send, driver: Some(driver), alarm: Alarm::default(), sweeps: 0 }))
    }

    /// Sends `request` and waits for the head, until it is `due`.
    pub(super) async fn exchange(
        mut self: Box<Self>,
        request: Request<Pieces>,
        due: Instant,
    ) -> Result<(Parts, Incoming, Box<Self>), NoHead> {
        let answer = self.send.try_send_request(request);
        tokio::pin!(answer);
        let (driver, alarm) = (&mut self.driver, &mut self.alarm);
        let answer = poll_fn(|cx| {
            drive(driver, cx);
            // The driver alone brings the answer, here: to be woken by the one for the other is one turn too many.
            match answer.as_mut().poll(&mut unwoken()) {
                Poll::Pending => alarm.poll(due, cx).map(|()| Err(NoHead::Late)),
                Poll::Ready(answer) => Poll::Ready(answer.map_err(|mut error| match error.take_message() {
                    Some(request) => NoHead::Unsent(Box::new(request)),
                    None => NoHead::Broken(error.into_error()),
                })),
            }
        })
        .await;
        let (head, incoming) = answer?.into_parts();
        Ok((head, incoming, self))
    }

    /// Whether a request could be sent on it now. Until then it wakes nobody.
    fn is_usable(&mut self) -> bool {
        drive(&mut self.driver, &mut unwoken());
        self.driver.is_some() && self.send.is_ready()
    }
}

/// For what only the driver moves, which is polled beside it.
fn unwoken() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

/// Polls the driver. How the connection ended is told to whoever waits for its answer or body.
fn drive(driver: &mut Option<Connection<TokioIo<Io>, Pieces>>, cx: &mut Context<'_>) {
    if let Some(connection) = driver
        && Pin::new(connection).poll(cx).is_ready()
    {
        *driver = None;
    }
}

/// Idle connections, newest first, a stack for each core.
#[derive(Default)]
#[expect(clippy::vec_box, reason = "a wire is large and moves between stack and request: its pointer moves")]
pub(super) struct Pool {
    shards: [Mutex<Vec<Box<Wire>>>; SHARDS],
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pool")
    }
}

impl Pool {
    /// A connection that is still open.
    pub(super) fn take(&self) -> Option<Box<Wire>> {
        loop {
            let mut wire = self.shard().lock().expect("no panic while a shard is held").pop()?;
            if wire.is_usable() {
                return Some(wire);
            }
        }
    }

    /// Closes what was idle at the last sweeps too, or was closed by the other side. Called every so often.
    pub(super) fn sweep(&self) {
        for shard in &self.shards {
            let mut shard = shard.lock().expect("no panic while a shard is held");
            shard.retain_mut(|wire| {
                wire.sweeps += 1;
                wire.sweeps <= MOST_SWEEPS && wire.is_usable()
            });
        }
    }

    fn give(&self, mut wire: Box<Wire>) {
        wire.sweeps = 0;
        let mut shard = self.shard().lock().expect("no panic while a shard is held");
        if shard.len() < IDLE_PER_CORE {
            shard.push(wire);
        }
    }

    #[expect(clippy::vec_box, reason = "as in the pool")]
    fn shard(&self) -> &Mutex<Vec<Box<Wire>>> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local!(static SHARD: usize = NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS);
        &self.shards[SHARD.with(|shard| *shard)]
    }
}

/// The rest of an answer. Read to its end, it gives its connection back; dropped earlier, it closes it.
pub struct Inflow {
    incoming: Incoming,
    wire: Option<Box<Wire>>,
    pool: Arc<Pool>,
    idle_timeout: Duration,
    /// Since when nothing has come.
    silent_since: Option<Instant>,
}

impl fmt::Debug for Inflow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inflow").field("incoming", &self.incoming).finish_non_exhaustive()
    }
}

impl Inflow {
    pub(super) fn new(incoming: Incoming, wire: Box<Wire>, pool: Arc<Pool>, idle_timeout: Duration) -> Self {
        let mut inflow = Self { incoming, wire: Some(wire), pool, idle_timeout, silent_since: None };
        if inflow.incoming.is_end_stream() {
            inflow.release();
        }
        inflow
    }

    /// Bytes still to come, where the upstream said so.
    pub fn exact_size(&self) -> Option<u64> {
        self.incoming.size_hint().exact()
    }

    /// Whether all has come.
    pub fn is_end(&self) -> bool {
        self.incoming.is_end_stream()
    }

    /// The next bytes; `None` at the end of a body that came whole.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Why>>> {
        loop {
            let mut frame = Pin::new(&mut self.incoming).poll_frame(&mut unwoken());
            if frame.is_pending()
                && let Some(wire) = &mut self.wire
            {
                drive(&mut wire.driver, cx);
                frame = Pin::new(&mut self.incoming).poll_frame(&mut unwoken());
            }
            match frame {
                Poll::Ready(Some(Ok(frame))) => {
                    self.silent_since = None;
                    // Trailers are not passed on: no client of Groq reads them.
                    if let Ok(data) = frame.into_data() {
                        return Poll::Ready(Some(Ok(data)));
                    }
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(Why::from(&error)))),
                Poll::Ready(None) => {
                    self.release();
                    return Poll::Ready(None);
                }
                Poll::Pending => return self.poll_alarm(cx).map(|()| Some(Err(Why::Timeout))),
            }
        }
    }

    /// The next bytes, awaited.
    pub async fn data(&mut self) -> Option<Result<Bytes, Why>> {
        poll_fn(|cx| self.poll_data(cx)).await
    }

    /// Ready when the upstream has been silent for `idle_timeout`.
    fn poll_alarm(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let due = *self.silent_since.get_or_insert_with(Instant::now) + self.idle_timeout;
        match &mut self.wire {
            Some(wire) => wire.alarm.poll(due, cx),
            // Given back: all has come.
            None => Poll::Pending,
        }
    }

    fn release(&mut self) {
        if let Some(mut wire) = self.wire.take()
            && wire.is_usable()
        {
            // A waker keeps its task's memory, and that one may end long before the alarm rings.
            wire.alarm.forget_whom_to_wake();
            self.pool.give(wire);
        }
    }
}
