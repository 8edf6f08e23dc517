//! Buffers request budget under three bounds: bytes per request, time between reads, and bytes of all requests together.
//!
//! When less than a quarter of the budget is left, new budget are delayed first, then batch requests are refused, then all.

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

/// Maximum bytes allocated for an announced length before data arrives; beyond it, the buffer grows with the data. The default
/// maximum of connections cannot exhaust the budget by announcing large budget and sending nothing.
const MAX_PREALLOCATED: u64 = 64 << 10;
/// Minimum average rate of a body in bytes per second.
const MIN_RATE: u64 = 1 << 10;
/// Number of `body_timeout`s that a body may take in addition to its time at the minimum rate.
const PAUSES: u32 = 4;
/// `retry-after` of a request that found no room for its body.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long a new body is delayed while the budget is short.
const MAX_DELAY: Duration = Duration::from_secs(1);

/// The budget of bytes for all request budget in memory.
#[derive(Debug)]
pub struct BodyBudget(Arc<Budget>);

#[derive(Debug)]
struct Budget {
    limit: AtomicU64,
    held: AtomicU64,
    /// Notified when the budget is no longer short.
    available: Notify,
}

impl Budget {
    /// Whether less than a quarter is left.
    fn is_short(&self) -> bool {
        let limit = self.limit.load(Relaxed);
        self.held.load(Relaxed) > limit - limit / 4
    }

    /// Waits up to [`MAX_DELAY`] until the budget is not short. If it still is, batch requests are refused.
    async fn admit(&self, class: Class) -> Result<(), Rejection> {
        let available = async {
            loop {
                let mut notified = pin!(self.available.notified());
                // Registered before the budget is read, so no change is missed.
                notified.as_mut().enable();
                if !self.is_short() {
                    return;
                }
                notified.await;
            }
        };
        let is_available = timeout(MAX_DELAY, available).await.is_ok();
        if is_available || class == Class::Interactive { Ok(()) } else { Err(Rejection::Overloaded { retry_after: RETRY_AFTER }) }
    }
}

/// The part of the budget that one body takes; returned on drop.
#[derive(Debug)]
pub struct BodyPermit {
    budget: Arc<Budget>,
    bytes: u64,
}

impl BodyBudget {
    /// A budget of `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Self(Arc::new(Budget { limit: AtomicU64::new(limit), held: AtomicU64::new(0), available: Notify::new() }))
    }

    /// Changes the limit. BodyBudget in memory keep what they hold.
    pub fn resize(&self, limit: u64) {
        self.0.limit.store(limit, Relaxed);
    }

    /// Bytes held now.
    pub fn held(&self) -> u64 {
        self.0.held.load(Relaxed)
    }

    fn permit(&self) -> BodyPermit {
        BodyPermit { budget: self.0.clone(), bytes: 0 }
    }
}

impl BodyPermit {
    /// Grows the permit to `bytes` in total.
    fn grow_to(&mut self, bytes: usize) -> Result<(), Rejection> {
        let more = (bytes as u64).saturating_sub(self.bytes);
        let held = self.budget.held.fetch_add(more, Relaxed) + more;
        self.bytes += more;
        // On an error the caller drops the permit, which returns everything.
        if held > self.budget.limit.load(Relaxed) { Err(Rejection::Overloaded { retry_after: RETRY_AFTER }) } else { Ok(()) }
    }
}

impl Drop for BodyPermit {
    fn drop(&mut self) {
        let was_short = self.budget.is_short();
        self.budget.held.fetch_sub(self.bytes, Relaxed);
        if was_short && !self.budget.is_short() {
            self.budget.available.notify_waiters();
        }
    }
}

/// Collects the whole body of a request whose head arrived at `started`. A body in one piece is not copied.
///
/// # Errors
/// [`Rejection::BodyTooLarge`] as soon as its announced or received length exceeds `max_body` bytes,
/// [`Rejection::RequestTimeout`] if nothing arrives for `body_timeout` or the average rate is too low,
/// [`Rejection::Overloaded`] if the budget is exhausted (or stays short, for [`Class::Batch`]),
/// [`Rejection::Malformed`] if it cannot be read to its end.
pub async fn collect<B>(
    body: B,
    mut started: Instant,
    class: Class,
    max_body: u64,
    body_timeout: Duration,
    budget: &BodyBudget,
) -> Result<(Bytes, BodyPermit), Rejection>
where
    B: Body<Data = Bytes>,
{
    let mut body = pin!(body);
    let mut held = budget.permit();
    let announced = body.size_hint().lower();
    let exact = body.size_hint().exact().map(|exact| exact as usize);
    if announced > max_body {
        return Err(Rejection::BodyTooLarge { limit: max_body });
    }
    if !body.is_end_stream() && budget.0.is_short() {
        // Boxed: rarely taken, and its future would otherwise enlarge every request.
        Box::pin(budget.0.admit(class)).await?;
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
            let mut capacity = needed.max(2 * whole.capacity()).max(announced.min(MAX_PREALLOCATED) as usize);
            if let Some(exact) = exact {
                // After a quarter has arrived, allocate the announced length at once: outgrown buffers stay with the allocator
                // for a while.
                capacity = if 4 * needed >= exact { exact } else { capacity.min(exact) };
            }
            held.grow_to(capacity)?;
            whole.reserve_exact(capacity - whole.len());
        }
        whole.extend_from_slice(&data);
        due = started + PAUSES * body_timeout + Duration::from_secs(whole.len() as u64 / MIN_RATE);
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
        let budget = BodyBudget::new(1 << 20);
        let (mut send, body) = channel();
        let sending = async move {
            for piece in [&b"one "[..], b"two ", b"three"] {
                send.send_data(Bytes::from_static(piece)).await.expect("it is read");
                sleep(LIMIT / 2).await;
            }
        };
        let (got, ()) = tokio::join!(collect(body, Instant::now(), Class::Interactive, 100, LIMIT, &budget), sending);
        let (bytes, held) = got.expect("it is small and fast enough");
        assert_eq!(bytes, "one two three");
        assert!(budget.held() >= 13);
        drop(held);
        assert_eq!(budget.held(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn too_large_too_many_too_slow() {
        let budget = BodyBudget::new(10);
        let large = collect(Full::new(Bytes::from_static(b"12345")), Instant::now(), Class::Interactive, 4, LIMIT, &budget).await;
        assert!(matches!(large, Err(Rejection::BodyTooLarge { limit: 4 })), "{large:?}");

        let first = collect(Full::new(Bytes::from_static(b"123456")), Instant::now(), Class::Interactive, 100, LIMIT, &budget)
            .await
            .expect("there is room");
        let second =
            collect(Full::new(Bytes::from_static(b"123456")), Instant::now(), Class::Interactive, 100, LIMIT, &budget).await;
        assert!(matches!(second, Err(Rejection::Overloaded { .. })), "{second:?}");
        assert_eq!(budget.held(), 6);
        drop(first);

        let (_send, silent) = channel();
        let slow = collect(silent, Instant::now(), Class::Interactive, 100, LIMIT, &budget).await;
        assert!(matches!(slow, Err(Rejection::RequestTimeout("body"))), "{slow:?}");
        assert_eq!(budget.held(), 0);
    }

    /// Under overload new bodies are delayed, then batch requests are refused, then all. Returned bytes are used at once.
    #[tokio::test(start_paused = true)]
    async fn when_memory_is_short_new_bodies_wait_then_batch_is_refused_then_all() {
        let budget = BodyBudget::new(100);
        let piece = |size: usize| Full::new(Bytes::from(vec![b'x'; size]));
        let ask = |class, size| collect(piece(size), Instant::now(), class, 100, LIMIT, &budget);
        let most = ask(Class::Batch, 80).await.expect("there is room");

        let started = Instant::now();
        let batch = ask(Class::Batch, 10).await;
        assert!(matches!(batch, Err(Rejection::Overloaded { .. })), "{batch:?}");
        assert_eq!(started.elapsed(), MAX_DELAY, "it was delayed");
        let small = ask(Class::Interactive, 10).await.expect("there is room for it");
        let large = ask(Class::Interactive, 30).await;
        assert!(matches!(large, Err(Rejection::Overloaded { .. })), "{large:?}");

        let started = Instant::now();
        let release = async {
            sleep(MAX_DELAY / 2).await;
            drop(most);
        };
        let (waited, ()) = tokio::join!(ask(Class::Batch, 50), release);
        waited.expect("there is room again");
        assert_eq!(started.elapsed(), MAX_DELAY / 2);
        drop(small);
        assert_eq!(budget.held(), 0);
    }

    /// Each read is in time, yet the body would occupy its buffer for days.
    #[tokio::test(start_paused = true)]
    async fn a_byte_a_second_is_too_slow() {
        let budget = BodyBudget::new(1 << 20);
        let (mut send, body) = channel();
        let started = Instant::now();
        let drip = async move {
            while send.send_data(Bytes::from_static(b"x")).await.is_ok() {
                sleep(Duration::from_secs(1)).await;
            }
        };
        let (got, ()) = tokio::join!(collect(body, Instant::now(), Class::Interactive, 1 << 20, LIMIT, &budget), drip);
        assert!(matches!(got, Err(Rejection::RequestTimeout("body"))), "{got:?}");
        assert!(started.elapsed() < 5 * LIMIT);
    }
}
