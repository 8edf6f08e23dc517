//! Requests that reach the upstream later than they were reserved, or later than those after them.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{per_minute, request, shield};
use crate::{
    ActualUsage, Limiters, Permit,
    types::{Observation, RemoteQuota},
};

const SECOND: Duration = Duration::from_secs(1);

/// An upstream of 30 requests a minute that takes each when it arrives. Its headers show tokens alone, of which nobody else
/// takes any.
#[derive(Default)]
struct Upstream {
    full_at: Option<Instant>,
    refused: Vec<Duration>,
}

impl Upstream {
    /// A request arrives so late after it was sent.
    fn serve(&mut self, mut permit: Permit, late: Duration, start: Instant) {
        let now = Instant::now();
        permit.sent(now);
        let arrival = now + late;
        let full_at = self.full_at.unwrap_or(arrival).max(arrival) + 2 * SECOND;
        if full_at > arrival + 60 * SECOND {
            self.refused.push(arrival - start);
            return;
        }
        self.full_at = Some(full_at);
        let tokens = Some(RemoteQuota { limit: 8000, remaining: 8000 });
        permit.observe(&Observation { tokens, ..Observation::default() }, arrival);
        permit.settle(ActualUsage::Tokens { prompt: 0, completion: Some(0), prompt_total: 0 }, arrival);
    }
}

async fn reserved(limits: &Limiters) -> Permit {
    let deadline = Instant::now() + 600 * SECOND;
    limits.reserve(&request("app", 0, 1), deadline, None).await.expect("there is time")
}

/// The margin was given back down to nothing, for 0.8 of a request was cut to none: then one that arrived as early as it was
/// sent was refused when those of the burst had arrived late.
#[tokio::test(start_paused = true)]
async fn what_is_given_back_of_the_margin_leaves_room_for_late_arrivals() {
    for late in [1, 40, 300, 1900] {
        let (limits, start) = (shield(per_minute(30, 8000)), Instant::now());
        let mut upstream = Upstream::default();
        for _ in 0..120 {
            let permit = reserved(&limits).await;
            let late = if start.elapsed() < SECOND { late } else { 0 };
            upstream.serve(permit, Duration::from_millis(late), start);
        }
        assert_eq!(upstream.refused, [], "{late} ms late");
        let took = start.elapsed();
        assert!(took <= 183 * SECOND, "one and no more is kept back: {took:?}");
    }
}

/// A connection takes longer to open than the margin lasts.
#[tokio::test(start_paused = true)]
async fn what_is_reserved_from_a_full_limit_counts_when_it_is_sent() {
    let (limits, start) = (shield(per_minute(30, 8000)), Instant::now());
    let mut upstream = Upstream::default();
    // Nobody else is seen, and most of the margin is given back.
    for _ in 0..30 {
        sleep(4 * SECOND).await;
        let permit = reserved(&limits).await;
        upstream.serve(permit, Duration::ZERO, start);
    }
    sleep(10 * SECOND).await;
    let opens = reserved(&limits).await;
    sleep(Duration::from_millis(4500)).await;
    upstream.serve(opens, Duration::ZERO, start);
    for _ in 0..60 {
        let permit = reserved(&limits).await;
        upstream.serve(permit, Duration::ZERO, start);
    }
    assert_eq!(upstream.refused, []);
}

/// Longer than the margin lasts, nothing arrives; then everything at once. Requests go on being sent meanwhile, and as soon as it is over.
#[tokio::test(start_paused = true)]
async fn what_a_network_delivers_at_once_counts_from_then() {
    for stall in [5, 12, 20, 28] {
        let (limits, start) = (shield(per_minute(30, 8000)), Instant::now());
        let mut upstream = Upstream::default();
        upstream.serve(reserved(&limits).await, Duration::ZERO, start);
        sleep(10 * SECOND).await;
        let mut stalled = Vec::new();
        let over = Instant::now() + stall * SECOND;
        while Instant::now() < over {
            if let Ok(mut permit) = limits.reserve(&request("app", 0, 1), over, None).await {
                permit.sent(Instant::now());
                stalled.push(permit);
            }
            sleep(Duration::from_millis(700)).await;
        }
        assert!(stalled.len() >= stall as usize, "{} sent in {stall} s", stalled.len());
        for permit in stalled {
            upstream.serve(permit, Duration::ZERO, start);
        }
        for _ in 0..60 {
            let permit = reserved(&limits).await;
            upstream.serve(permit, Duration::ZERO, start);
        }
        assert_eq!(upstream.refused, [], "after {stall} s");
    }
}
