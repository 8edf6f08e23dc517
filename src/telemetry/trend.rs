//! The history of the last minutes for the page: a ring of slices, each the difference of two readings of the counters.

use std::{collections::VecDeque, time::Duration};

use super::{Outcome, Source, Telemetry, histogram::Histogram};

/// Number of finished slices that are kept.
const SLICES: usize = 180;

/// All models together, at one moment.
#[derive(Clone, Debug, Default)]
struct Reading {
    requests: u64,
    failed: u64,
    refused_by_shield: u64,
    refused_by_groq: u64,
    resends: u64,
    wait: Histogram,
}

/// What happened in one slice of time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Slice {
    /// Requests that ended.
    pub requests: u64,
    /// Those with a status of 500 or more.
    pub failed: u64,
    /// Those that the shield refused for lack of room (413, 429, 503).
    pub refused_by_shield: u64,
    /// Attempts that Groq refused.
    pub refused_by_groq: u64,
    /// Sends after a request's first.
    pub resends: u64,
    /// Median wait in seconds.
    pub wait_p50: Option<f64>,
    /// 99th percentile of waits in seconds.
    pub wait_p99: Option<f64>,
}

/// The last quarter of an hour.
#[derive(Debug, Default)]
pub struct Trend {
    slices: VecDeque<Slice>,
    last: Reading,
}

impl Trend {
    /// The length of a slice: [`Trend::advance`] is to be called this often.
    pub const SLICE: Duration = Duration::from_secs(5);

    /// Ends the current slice.
    pub fn advance(&mut self, telemetry: &Telemetry) {
        let now = telemetry.reading();
        if self.slices.len() == SLICES {
            self.slices.pop_front();
        }
        self.slices.push_back(now.since(&self.last));
        self.last = now;
    }

    /// The finished slices, oldest first, and the current one.
    pub fn slices(&self, telemetry: &Telemetry) -> Vec<Slice> {
        self.slices.iter().copied().chain([telemetry.reading().since(&self.last)]).collect()
    }
}

impl Telemetry {
    /// Everything since the start.
    pub fn since_start(&self) -> Slice {
        self.reading().since(&Reading::default())
    }

    fn reading(&self) -> Reading {
        let sums = self.counts.sums();
        let mut reading =
            Reading { resends: sums.resends, refused_by_groq: sums.attempts[Outcome::Refused as usize], ..Reading::default() };
        for (row, n) in &sums.requests {
            reading.requests += n;
            match row.status {
                413 | 429 | 503 if row.source != Source::Upstream => reading.refused_by_shield += n,
                500.. => reading.failed += n,
                _ => {}
            }
        }
        for counts in sums.models.values() {
            reading.wait.add(&counts.wait);
        }
        reading
    }
}

impl Reading {
    fn since(&self, earlier: &Self) -> Slice {
        let wait = self.wait.since(&earlier.wait);
        Slice {
            requests: self.requests - earlier.requests,
            failed: self.failed - earlier.failed,
            refused_by_shield: self.refused_by_shield - earlier.refused_by_shield,
            refused_by_groq: self.refused_by_groq - earlier.refused_by_groq,
            resends: self.resends - earlier.resends,
            wait_p50: wait.quantile(0.5),
            wait_p99: wait.quantile(0.99),
        }
    }
}
