//! Buffers request bodies: bounded per request, in the time between reads, and over all requests together.
//!
//! When memory grows short, first no new body is begun, then those that nobody waits for are refused, then all.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body::Body;
use http_body_util::BodyExt;
use tokio::{
    sync::Notify,
    time::{Instant, timeout, timeout_at},
};

use crate::{config::Class, proxy::error::Rejection};

/// An announced length is believed up to here; beyond it, the buffer grows with what comes. As many connections as
/// there may be by default, each of which announces much and sends nothing, do not take all the room.
const BELIEVED: u64 = 64 << 10;
/// Bytes a second; a body that comes more slowly on the whole is cut off, however evenly it drips.
const SLOWEST: u64 = 1 << 10;
/// Beside that, a body may pause for so many `body_timeout`s in all.
const PAUSES: u32 = 4;
/// When a client may try again that found no room for its body.
const COME_AGAIN: Duration = Duration::from_secs(1);
/// So long a body is not begun while room is short, in the hope that some comes back.
const LONGEST_HOLD: Duration = Duration::from_secs(1);

/// The bytes of all bodies in flight, and how many they may be.
#[derive(Debug)]
pub struct Bodies(Arc<Room>);

#[derive(Debug)]
struct Room {
    limit: AtomicU64,
    held: AtomicU64,
    /// Told when room is no longer short.
    eased: Notify,
}

impl Room {
    /// Whether less than a quarter is left.
    fn is_short(&self) -> bool {
        let limit = self.limit.load(Relaxed);
        self.held.load(Relaxed) > limit - limit / 4
    }

    /// Waits, for a while, until room is not short; batch is refused when it still is.
    async fn begin(&self, class: Class) -> Result<(), Rejection> {
        let eased = async {
            loop {
                let mut eased = pin!(self.eased.notified());
                // Registered before the look, so that no change is missed.
                eased.as_mut().enable();
                if !self.is_short() {
                    return;
                }
                eased.await;
            }
        };
        let eased = timeout(LONGEST_HOLD, eased).await.is_ok();
        if eased || class == Class::Interactive { Ok(()) } else { Err(Rejection::Overloaded { retry_after: COME_AGAIN }) }
    }
}

/// Room that a body takes; given back when dropped.
#[derive(Debug)]
pub struct Held {
    room: Arc<Room>,
    bytes: u64,
}

impl Bodies {
    /// Room for so many bytes.
    pub fn new(limit: u64) -> Self {
        Self(Arc::new(Room { limit: AtomicU64::new(limit), held: AtomicU64::new(0), eased: Notify::new() }))
    }

    /// Another limit; what is held stays.
    pub fn resize(&self, limit: u64) {
        self.0.limit.store(limit, Relaxed);
    }

    /// Bytes held now.
    pub fn held(&self) -> u64 {
        self.0.held.load(Relaxed)
    }

    fn hold(&self) -> Held {
        Held { room: self.0.clone(), bytes: 0 }
    }
}

impl Held {
    /// Takes room until it is `bytes` in all.
    fn grow_to(&mut self, bytes: usize) -> Result<(), Rejection> {
        let more = (bytes as u64).saturating_sub(self.bytes);
        let held = self.room.held.fetch_add(more, Relaxed) + more;
        self.bytes += more;
        // What was taken too much is given back by the drop that follows.
        if held > self.room.limit.load(Relaxed) { Err(Rejection::Overloaded { retry_after: COME_AGAIN }) } else { Ok(()) }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let was_short = self.room.is_short();
        self.room.held.fetch_sub(self.bytes, Relaxed);
        if was_short && !self.room.is_short() {
            self.room.eased.notify_waiters();
        }
    }
}

/// The whole body, of a request whose head was there at `started`. One that comes in one piece is not copied.
///
/// # Errors
/// [`Rejection::BodyTooLarge`] as soon as it is announced or seen to be over `max_body` bytes,
/// [`Rejection::RequestTimeout`] when nothing comes for `body_timeout`, or for four of them less than 1 KiB a second,
/// [`Rejection::Overloaded`] when there is no room (for [`Class::Batch`], when room stays short), [`Rejection::Malformed`]
/// when it cannot be read to its end.
pub async fn collect<B>(
    body: B,
    mut started: Instant,
    class: Class,
    max_body: u64,
    body_timeout: Duration,
    bodies: &Bodies,
) -> Result<(Bytes, Held), Rejection>
where
    B: Body<Data = Bytes>,
{
    let mut body = pin!(body);
    let mut held = bodies.hold();
    let announced = body.size_hint().lower();
    let exact = body.size_hint().exact().map(|exact| exact as usize);
    if announced > max_body {
        return Err(Rejection::BodyTooLarge { limit: max_body });
    }
    if !body.is_end_stream() && bodies.0.is_short() {
        // On the heap: seldom, and every other request would keep room for it.
        Box::pin(bodies.0.begin(class)).await?;
        started = Instant::now();
    }
    let mut whole = Vec::new();
    let mut due = started + body_timeout;
    while !body.is_end_stream() {
        let Some(frame) = timeout_at(due, body.frame()).await.map_err(|_| Rejection::RequestTimeout("body"))? else { break };
        let frame = frame.map_err(|_| Rejection::Malformed("its body has a bad chunk or ends too early"))?;
        // Trailers end a chunked body and are not forwarded.
        let Ok(data) = frame.into_data() else { continue };
        let needed = whole.len() + data.len();
        if needed as u64 > max_body {
            return Err(Rejection::BodyTooLarge { limit: max_body });
        }
        if whole.is_empty() && body.is_end_stream() {
            held.grow_to(needed)?;
            return Ok((data, held));
        }
        if needed > whole.capacity() {
            let mut capacity = needed.max(2 * whole.capacity()).max(announced.min(BELIEVED) as usize);
            if let Some(exact) = exact {
                // Who has sent a quarter is believed: what is grown out of stays with the allocator for a while.
                capacity = if 4 * needed >= exact { exact } else { capacity.min(exact) };
            }
            held.grow_to(capacity)?;
            whole.reserve_exact(capacity - whole.len());
        }
        whole.extend_from_slice(&data);
        due = started + PAUSES * body_timeout + Duration::from_secs(whole.len() as u64 / SLOWEST);
        due = due.min(Instant::now() + body_timeout);
    }
    Ok((whole.into(), held))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::{Channel, Full, channel::Sender};
    use tokio::time::sleep;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    fn channel() -> (Sender<Bytes, Infallible>, Channel<Bytes, Infallible>) {
        Channel::new(4)
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_in_pieces_is_complete_and_its_memory_is_released() {
        let bodies = Bodies::new(1 << 20);
        let (mut send, body) = channel();
        let sending = async move {
            for piece in [&b"one "[..], b"two ", b"three"] {
                send.send_data(Bytes::from_static(piece)).await.expect("it is read");
                sleep(LIMIT / 2).await;
            }
        };
        let (got, ()) = tokio::join!(collect(body, Instant::now(), Class::Interactive, 100, LIMIT, &bodies), sending);
        let (bytes, held) = got.expect("it is small and quick enough");
        assert_eq!(bytes, "one two three");
        assert!(bodies.held() >= 13);
        drop(held);
        assert_eq!(bodies.held(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn too_large_too_many_too_slow() {
        let bodies = Bodies::new(10);
        let large = collect(Full::new(Bytes::from_static(b"12345")), Instant::now(), Class::Interactive, 4, LIMIT, &bodies).await;
        assert!(matches!(large, Err(Rejection::BodyTooLarge { limit: 4 })), "{large:?}");

        let first = collect(Full::new(Bytes::from_static(b"123456")), Instant::now(), Class::Interactive, 100, LIMIT, &bodies)
            .await
            .expect("there is room");
        let second =
            collect(Full::new(Bytes::from_static(b"123456")), Instant::now(), Class::Interactive, 100, LIMIT, &bodies).await;
        assert!(matches!(second, Err(Rejection::Overloaded { .. })), "{second:?}");
        assert_eq!(bodies.held(), 6);
        drop(first);

        let (_send, silent) = channel();
        let slow = collect(silent, Instant::now(), Class::Interactive, 100, LIMIT, &bodies).await;
        assert!(matches!(slow, Err(Rejection::RequestTimeout("body"))), "{slow:?}");
        assert_eq!(bodies.held(), 0);
    }

    /// The order of overload: no new body is begun, batch is refused, all are refused; room that comes back is used at once.
    #[tokio::test(start_paused = true)]
    async fn when_memory_is_short_new_bodies_wait_then_batch_is_refused_then_all() {
        let bodies = Bodies::new(100);
        let piece = |size: usize| Full::new(Bytes::from(vec![b'x'; size]));
        let ask = |class, size| collect(piece(size), Instant::now(), class, 100, LIMIT, &bodies);
        let most = ask(Class::Batch, 80).await.expect("there is room");

        let started = Instant::now();
        let batch = ask(Class::Batch, 10).await;
        assert!(matches!(batch, Err(Rejection::Overloaded { .. })), "{batch:?}");
        assert_eq!(started.elapsed(), LONGEST_HOLD, "it was not begun in the meantime");
        let small = ask(Class::Interactive, 10).await.expect("there is room for it");
        let large = ask(Class::Interactive, 30).await;
        assert!(matches!(large, Err(Rejection::Overloaded { .. })), "{large:?}");

        let started = Instant::now();
        let ease = async {
            sleep(LONGEST_HOLD / 2).await;
            drop(most);
        };
        let (waited, ()) = tokio::join!(ask(Class::Batch, 50), ease);
        waited.expect("room came back");
        assert_eq!(started.elapsed(), LONGEST_HOLD / 2);
        drop(small);
        assert_eq!(bodies.held(), 0);
    }

    /// Between its reads it is quick enough, and yet it would hold its place for days.
    #[tokio::test(start_paused = true)]
    async fn a_byte_a_second_is_too_slow() {
        let bodies = Bodies::new(1 << 20);
        let (mut send, body) = channel();
        let started = Instant::now();
        let drip = async move {
            while send.send_data(Bytes::from_static(b"x")).await.is_ok() {
                sleep(Duration::from_secs(1)).await;
            }
        };
        let (got, ()) = tokio::join!(collect(body, Instant::now(), Class::Interactive, 1 << 20, LIMIT, &bodies), drip);
        assert!(matches!(got, Err(Rejection::RequestTimeout("body"))), "{got:?}");
        assert!(started.elapsed() < 5 * LIMIT);
    }
}
