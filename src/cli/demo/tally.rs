//! Counts the outcomes of one side's requests.

use std::{
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::{Value, json};

use groq_sim::Sim;

/// The counts of one side while it runs.
#[derive(Debug)]
pub(super) struct Tally {
    /// The address for its apps.
    pub(super) address: SocketAddr,
    sim: Sim,
    /// Tokens that the limit refills meanwhile.
    given_back: f64,
    counts: Mutex<Counts>,
}

/// The counts at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    pub(super) arrived: usize,
    pub(super) failed: usize,
    pub(super) tokens: u64,
    pub(super) waits: Vec<Duration>,
}

/// The result of one side.
#[derive(Clone, Debug)]
pub(super) struct Way {
    pub(super) requests: usize,
    pub(super) served: usize,
    /// Tokens of responses in time, as a share of what the limit refilled.
    pub(super) used: f64,
    /// 429s in the simulator's log.
    pub(super) refused: u64,
    pub(super) wait_p50: Duration,
    pub(super) wait_p99: Duration,
}

impl Tally {
    pub(super) fn new(address: SocketAddr, sim: Sim, given_back: f64) -> Self {
        Self { address, sim, given_back, counts: Mutex::default() }
    }

    pub(super) fn arrived(&self) {
        self.lock().arrived += 1;
    }

    pub(super) fn served(&self, wait: Duration, tokens: u64) {
        let mut counts = self.lock();
        counts.waits.push(wait);
        counts.tokens += tokens;
    }

    pub(super) fn failed(&self) {
        self.lock().failed += 1;
    }

    pub(super) fn counts(&self) -> Counts {
        self.lock().clone()
    }

    /// Share of the refilled tokens that has been used by responses.
    pub(super) fn used(&self) -> f64 {
        self.lock().tokens as f64 / self.given_back
    }

    pub(super) fn refused(&self) -> u64 {
        self.sim.stats().refusals()
    }

    pub(super) fn result(&self, requests: usize) -> Way {
        let mut waits = self.lock().waits.clone();
        waits.sort();
        let quantile = |share: f64| waits.get(((waits.len() as f64 * share) as usize).min(waits.len().saturating_sub(1)));
        Way {
            requests,
            served: waits.len(),
            used: self.used(),
            refused: self.refused(),
            wait_p50: quantile(0.5).copied().unwrap_or_default(),
            wait_p99: quantile(0.99).copied().unwrap_or_default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Way {
    /// Requests without a successful response.
    pub(super) fn failed_share(&self) -> f64 {
        (self.requests - self.served) as f64 / self.requests.max(1) as f64
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "served": self.served, "failed": self.requests - self.served, "used": self.used, "refused": self.refused,
            "wait_p50_s": self.wait_p50.as_secs_f64(), "wait_p99_s": self.wait_p99.as_secs_f64(),
        })
    }
}
