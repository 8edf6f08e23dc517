//! Requests that reach the upstream long after they were reserved, or after requests that were sent later.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{per_minute, request, shield};
use crate::{
    ActualUsage, Limiters, Permit,
    types::{Observation, RemoteQuota},
};

const SECOND: Duration = Duration::from_secs(1);

/// An upstream that allows 30 requests a minute and charges each when it arrives. Its headers show only tokens, and there is
/// no external usage of them.
#[derive(Default)]
struct Upstream {
    full_at: Option<Instant>,
    refused: Vec<Duration>,
}

impl Upstream {
    /// Sends a request, which arrives `late` after now.
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

/// The safety margin must not be given back completely. Once 0.8 of a request was rounded down to none: then a request that
/// arrived without delay was refused if those of the burst had arrived late.
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
        assert!(took <= 183 * SECOND, "the margin is more than one request: {took:?}");
    }
}

/// It takes longer to open a connection than the safety margin covers.
#[tokio::test(start_paused = true)]
async fn what_is_reserved_from_a_full_limit_counts_when_it_is_sent() {
    let (limits, start) = (shield(per_minute(30, 8000)), Instant::now());
    let mut upstream = Upstream::default();
    // No external usage is seen, so most of the safety margin is given back.
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

/// The network stalls for longer than the safety margin covers, then delivers everything at once. Requests are sent during
/// the stall and immediately after it.
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
