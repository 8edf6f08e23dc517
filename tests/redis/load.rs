//! Load on several replicas in front of one upstream.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use groq_limiter::{ActualUsage, AdmissionRequest, Limiters, types::Observation};
use tokio::time::{Instant, sleep};

use crate::kit::{Upstream, admission};

/// Prompt tokens of a request.
const PROMPT: u64 = 100;
/// Max completion tokens of a request.
const OUTPUT_LIMIT: u64 = 900;
/// Completion tokens that a request uses.
const COMPLETION: u64 = 300;
/// Time from sending a request to the end of its response.
const GENERATION: Duration = Duration::from_millis(60);

/// The result of a run.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) sent: AtomicU64,
    pub(crate) refused: AtomicU64,
    /// Tokens used after the warm-up.
    pub(crate) used: AtomicU64,
    /// Longest time from the request to a grant or a rejection, in ms.
    pub(crate) longest: AtomicU64,
    /// Requests sent by each of the two apps.
    pub(crate) apps: [AtomicU64; 2],
}

impl Tally {
    pub(crate) fn per_thousand(&self) -> f64 {
        1000.0 * self.refused.load(Relaxed) as f64 / self.sent.load(Relaxed).max(1) as f64
    }
}

/// Every replica, with both apps.
pub(crate) fn with_both(replicas: &[Limiters]) -> Vec<(&Limiters, &'static [usize])> {
    replicas.iter().map(|replica| (replica, &[0, 1][..])).collect()
}

/// Runs closed-loop clients of the given apps on every replica until `end`. Counts tokens used after `from`.
pub(crate) async fn flood(
    replicas: Vec<(&Limiters, &'static [usize])>,
    model: &'static str,
    upstream: &Arc<Upstream>,
    clients: usize,
    from: Instant,
    end: Instant,
) -> Arc<Tally> {
    let tally = Arc::<Tally>::default();
    let mut tasks = tokio::task::JoinSet::new();
    for (number, (limits, apps)) in replicas.into_iter().enumerate() {
        for client in 0..clients {
            let (limits, upstream, tally) = (limits.clone(), upstream.clone(), tally.clone());
            tasks.spawn(async move {
                // Staggered starts.
                sleep(Duration::from_millis((7 * client + number) as u64 % 50)).await;
                while Instant::now() < end {
                    once(&limits, model, &upstream, &tally, apps[client % apps.len()], from, end).await;
                }
            });
        }
    }
    while let Some(ended) = tasks.join_next().await {
        ended.expect("a client");
    }
    tally
}

/// Sends one request.
async fn once(limits: &Limiters, model: &str, upstream: &Upstream, tally: &Tally, app: usize, from: Instant, end: Instant) {
    let start = Instant::now();
    let request = AdmissionRequest { model: model.into(), ..admission(&format!("app{app}"), PROMPT, OUTPUT_LIMIT) };
    let reserved = limits.reserve(&request, end, None).await;
    tally.longest.fetch_max(start.elapsed().as_millis() as u64, Relaxed);
    let Ok(mut reservation) = reserved else {
        sleep(Duration::from_millis(20)).await;
        return;
    };
    reservation.sent(Instant::now());
    tally.sent.fetch_add(1, Relaxed);
    tally.apps[app].fetch_add(1, Relaxed);
    match upstream.reserve(PROMPT + OUTPUT_LIMIT) {
        Ok(state) => {
            reservation.observe(&state, Instant::now());
            sleep(GENERATION).await;
            upstream.refund(OUTPUT_LIMIT - COMPLETION);
            let used = ActualUsage::Tokens { prompt: PROMPT, completion: Some(COMPLETION), prompt_total: PROMPT };
            reservation.settle(used, Instant::now());
            if Instant::now() >= from {
                tally.used.fetch_add(PROMPT + COMPLETION, Relaxed);
            }
        }
        Err(()) => {
            tally.refused.fetch_add(1, Relaxed);
            reservation.refused(None, &Observation::default(), Some(Duration::from_secs(1)), Instant::now());
        }
    }
}
