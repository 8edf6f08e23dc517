//! A simulated network: connections whose bytes are delayed, stall or are lost, and whose ends close in any order.

use std::{
    collections::VecDeque,
    future::Future,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use fastrand::Rng;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep, sleep_until},
};

/// Maximum number of bytes in flight in one direction.
const WINDOW: usize = 32 << 10;

/// Probabilities of a connection's faults.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// The connection is refused.
    pub(crate) refused: f64,
    /// Both ends see a reset some time after the connection was established.
    pub(crate) reset: f64,
    /// After some time nothing arrives at either end any more, without a close.
    pub(crate) half_open: f64,
    /// A close overtakes the bytes that were sent last.
    pub(crate) overtaken: f64,
    /// Number of partitions, in which nothing passes on any connection for some time.
    pub(crate) partitions: u64,
}

/// The network between two hosts. Clones share the network.
#[derive(Clone)]
pub(crate) struct Network(Arc<Mutex<Inner>>);

struct Inner {
    random: Rng,
    faults: Faults,
    blocked_until: Instant,
    connections: u64,
    /// Number of open ends at the first host.
    open: usize,
    trace: DefaultHasher,
    /// Sockets that have received something at the current instant.
    instant: (Instant, Vec<(u64, usize)>),
    start: Instant,
}

impl Network {
    pub(crate) fn new(mut random: Rng, faults: Faults, span: Duration) -> Self {
        let now = Instant::now();
        let cuts: Vec<_> = (0..faults.partitions)
            .map(|_| (now + span.mul_f64(random.f64()), Duration::from_millis(random.u64(100..20_000))))
            .collect();
        let inner = Inner {
            random,
            faults,
            blocked_until: now,
            connections: 0,
            open: 0,
            trace: DefaultHasher::new(),
            instant: (now, Vec::new()),
            start: now,
        };
        let network = Self(Arc::new(Mutex::new(inner)));
        for (at, time) in cuts {
            let network = network.clone();
            tokio::spawn(async move {
                sleep_until(at).await;
                let mut inner = network.inner();
                inner.blocked_until = inner.blocked_until.max(at + time);
            });
        }
        network
    }

    /// Opens a connection after the network's latency. The first socket is that of the first host.
    pub(crate) async fn connect(&self) -> io::Result<(Socket, Socket)> {
        let (latency, mut random, number, fate) = {
            let mut inner = self.inner();
            inner.connections += 1;
            let faults = inner.faults;
            let fate = inner.random.f64();
            let fate = if fate < faults.refused {
                Fate::Refused
            } else if fate < faults.refused + faults.reset {
                Fate::Reset
            } else if fate < faults.refused + faults.reset + faults.half_open {
                Fate::HalfOpen
            } else {
                Fate::Lives
            };
            (Duration::from_millis(inner.random.u64(1..60)), inner.random.fork(), inner.connections, fate)
        };
        sleep(2 * latency).await;
        let blocked_until = self.inner().blocked_until;
        sleep_until(blocked_until).await;
        if fate == Fate::Refused {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let overtaken = random.f64() < self.inner().faults.overtaken;
        let ends_after = Duration::from_millis(random.u64(1..20_000));
        let link = Link {
            network: self.clone(),
            number,
            latency,
            random,
            directions: Default::default(),
            half_open: false,
            may_fail: overtaken,
            overtaken,
        };
        let link = Arc::new(Mutex::new(link));
        if fate != Fate::Lives {
            let link = link.clone();
            tokio::spawn(async move {
                sleep(ends_after).await;
                lock(&link).end(fate);
            });
        }
        self.inner().open += 1;
        let [near, far] = [0, 1].map(|side| Socket { link: link.clone(), side, timer: None });
        Ok((near, far))
    }

    /// Number of open ends at the first host.
    pub(crate) fn open(&self) -> usize {
        self.inner().open
    }

    /// A hash of every arrival and its time.
    pub(crate) fn trace(&self) -> u64 {
        self.inner().trace.finish()
    }

    /// Adds an arrival to the trace. Sizes are omitted: hyper's `date` header follows the system's clock, and HPACK encodes a repeated
    /// value in fewer bytes.
    fn note(&self, number: u64, side: usize) {
        let mut inner = self.inner();
        let (now, end) = (Instant::now(), (number, side));
        if inner.instant.0 != now {
            inner.instant = (now, Vec::new());
        }
        if !inner.instant.1.contains(&end) {
            inner.instant.1.push(end);
            let at = inner.start.elapsed().as_nanos();
            (at, end).hash(&mut inner.trace);
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How the network ends a connection, unless a host closes it before.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Lives,
    Refused,
    Reset,
    HalfOpen,
}

/// A connection.
struct Link {
    network: Network,
    number: u64,
    latency: Duration,
    random: Rng,
    /// The bytes that each side has sent.
    directions: [Direction; 2],
    half_open: bool,
    /// Whether a fault of the network can look like a failure of the peer.
    may_fail: bool,
    overtaken: bool,
}

/// Bytes from one side to the other.
#[derive(Default)]
struct Direction {
    pieces: VecDeque<(Instant, Bytes)>,
    bytes: usize,
    /// The end of the stream arrives.
    ends_at: Option<Instant>,
    /// A reset arrives.
    reset_at: Option<Instant>,
    /// The sender has closed its end completely.
    is_closed: bool,
    last: Option<Instant>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Direction {
    fn wake(&mut self) {
        [self.reader.take(), self.writer.take()].into_iter().flatten().for_each(Waker::wake);
    }
}

impl Link {
    /// The arrival time of bytes that are sent now, which is after all bytes sent before.
    fn arrival(&mut self, side: usize) -> Instant {
        let passes = self.network.inner().blocked_until.max(Instant::now());
        let at = passes + self.latency + Duration::from_micros(self.random.u64(..5000));
        let last = &mut self.directions[side].last;
        let at = last.map_or(at, |last| last.max(at));
        *last = Some(at);
        at
    }

    fn end(&mut self, fate: Fate) {
        self.may_fail = true;
        let now = Instant::now();
        self.half_open = fate == Fate::HalfOpen;
        for direction in &mut self.directions {
            direction.pieces.clear();
            if fate == Fate::Reset {
                direction.reset_at = Some(now);
            }
            direction.wake();
        }
    }

    /// Closes an end. The other end gets the end of the stream, or a reset if bytes were not read.
    fn close(&mut self, side: usize) {
        let unread = !self.directions[1 - side].pieces.is_empty();
        let at = self.arrival(side);
        let early = Instant::now() + self.latency / 2;
        let overtaken = self.overtaken;
        let direction = &mut self.directions[side];
        direction.is_closed = true;
        if overtaken {
            direction.reset_at.get_or_insert(early);
        } else if unread {
            direction.reset_at.get_or_insert(at);
        }
        direction.ends_at.get_or_insert(at);
        direction.wake();
        self.directions[1 - side].wake();
    }
}

/// One end of a connection.
pub(crate) struct Socket {
    link: Arc<Mutex<Link>>,
    side: usize,
    timer: Option<Pin<Box<Sleep>>>,
}

/// Tells what has happened to a connection.
#[derive(Clone)]
pub(crate) struct Witness(Arc<Mutex<Link>>);

impl Witness {
    /// Whether an end can see a failure that its peer did not cause.
    pub(crate) fn may_fail(&self) -> bool {
        lock(&self.0).may_fail
    }

    /// Whether the first host has closed its end, of which the other host may not have been notified yet.
    pub(crate) fn is_closed_by_first_host(&self) -> bool {
        lock(&self.0).directions[0].is_closed
    }
}

impl Socket {
    pub(crate) fn witness(&self) -> Witness {
        Witness(self.link.clone())
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            let now = Instant::now();
            let mut link = lock(&this.link);
            let (network, number, half_open) = (link.network.clone(), link.number, link.half_open);
            let direction = &mut link.directions[1 - this.side];
            direction.reader = Some(cx.waker().clone());
            if half_open {
                return Poll::Pending;
            }
            if direction.reset_at.is_some_and(|at| at <= now) {
                direction.pieces.clear();
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            let next = match direction.pieces.front_mut() {
                Some((at, piece)) if *at <= now => {
                    let length = piece.len().min(buf.remaining());
                    buf.put_slice(&piece[..length]);
                    piece.advance(length);
                    if piece.is_empty() {
                        direction.pieces.pop_front();
                    }
                    direction.bytes -= length;
                    direction.writer.take().into_iter().for_each(Waker::wake);
                    network.note(number, this.side);
                    return Poll::Ready(Ok(()));
                }
                Some((at, _)) => Some(*at),
                None if direction.ends_at.is_some_and(|at| at <= now) => {
                    network.note(number, this.side);
                    return Poll::Ready(Ok(()));
                }
                None => direction.ends_at,
            };
            let Some(next) = next.into_iter().chain(direction.reset_at).min() else { return Poll::Pending };
            drop(link);
            let timer = this.timer.get_or_insert_with(|| Box::pin(sleep_until(next)));
            timer.as_mut().reset(next);
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let now = Instant::now();
        let mut link = lock(&self.link);
        let heard = &link.directions[1 - self.side];
        if heard.reset_at.is_some_and(|at| at <= now) || link.directions[self.side].ends_at.is_some() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let left_alone = heard.is_closed;
        let room = WINDOW - link.directions[self.side].bytes;
        if room == 0 {
            link.directions[self.side].writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let length = buf.len().min(room);
        let at = link.arrival(self.side);
        if left_alone {
            // The peer has closed the connection and responds with a reset.
            link.directions[1 - self.side].reset_at.get_or_insert(at);
            link.directions[1 - self.side].wake();
            return Poll::Ready(Ok(length));
        }
        let half_open = link.half_open;
        let direction = &mut link.directions[self.side];
        direction.bytes += length;
        if !half_open {
            direction.pieces.push_back((at, Bytes::copy_from_slice(&buf[..length])));
            direction.reader.take().into_iter().for_each(Waker::wake);
        }
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut link = lock(&self.link);
        let at = link.arrival(self.side);
        let direction = &mut link.directions[self.side];
        direction.ends_at.get_or_insert(at);
        direction.reader.take().into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(()))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let mut link = lock(&self.link);
        link.close(self.side);
        if self.side == 0 {
            link.network.inner().open -= 1;
        }
    }
}

fn lock(link: &Mutex<Link>) -> MutexGuard<'_, Link> {
    link.lock().unwrap_or_else(PoisonError::into_inner)
}
