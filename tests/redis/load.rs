//! Three times the load that the limit allows, on several replicas in front of one upstream.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use groq_limiter::{ActualUsage, AdmissionRequest, Limiters, types::Observation};
use tokio::time::{Instant, sleep};

use crate::kit::{Upstream, ask};

/// Prompt tokens, max completion tokens, and the completion tokens that are used.
const PROMPT: u64 = 100;
const OUTPUT_LIMIT: u64 = 900;
const COMPLETION: u64 = 300;
/// From sending to the end of the answer.
const GENERATION: Duration = Duration::from_millis(60);

/// Results.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) sent: AtomicU64,
    pub(crate) refused: AtomicU64,
    /// Tokens used, by the upstream.
    pub(crate) used: AtomicU64,
    /// The longest time from the request to a grant or a refusal, ms.
    pub(crate) longest: AtomicU64,
    /// Requests sent by each of the two apps.
    pub(crate) apps: [AtomicU64; 2],
}

impl Tally {
    pub(crate) fn per_thousand(&self) -> f64 {
        1000.0 * self.refused.load(Relaxed) as f64 / self.sent.load(Relaxed).max(1) as f64
    }
}

/// Every replica with both apps.
pub(crate) fn with_both(replicas: &[Limiters]) -> Vec<(&Limiters, &'static [usize])> {
    replicas.iter().map(|replica| (replica, &[0, 1][..])).collect()
}

/// Clients of these apps on every replica that always have another request, until `end`. Counts tokens used after `from`.
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

async fn once(limits: &Limiters, model: &str, upstream: &Upstream, tally: &Tally, app: usize, from: Instant, end: Instant) {
    let asked = Instant::now();
    let ask = AdmissionRequest { model: model.into(), ..ask(&format!("app{app}"), PROMPT, OUTPUT_LIMIT) };
    let reserved = limits.reserve(&ask, end, None).await;
    tally.longest.fetch_max(asked.elapsed().as_millis() as u64, Relaxed);
    let Ok(mut reservation) = reserved else {
        sleep(Duration::from_millis(20)).await;
        return;
    };
    reservation.sent(Instant::now());
    tally.sent.fetch_add(1, Relaxed);
    tally.apps[app].fetch_add(1, Relaxed);
    match upstream.take(PROMPT + OUTPUT_LIMIT) {
        Ok(state) => {
            reservation.observe(&state, Instant::now());
            sleep(GENERATION).await;
            upstream.give_back(OUTPUT_LIMIT - COMPLETION);
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
