//! Histories of a limiter: jobs arrive, are sent to an exact upstream, end or are cancelled, and every step is checked.

use std::{collections::BTreeMap, time::Duration};

use groq_limiter::{
    ActualUsage, AdmissionError,
    limiter::{Admission, Grant, Limiter},
    queue::Ticket,
    types::{Ns, Observation, RemoteQuota},
};
use proptest::prelude::*;

use crate::start::{MS, SECOND, START, request};

/// A continuously draining limit of the upstream. Usage is in units × period, for exact arithmetic.
pub(crate) struct Exact {
    pub(crate) limit: i128,
    pub(crate) period: i128,
    pub(crate) used: i128,
    pub(crate) at: i128,
}

impl Exact {
    pub(crate) fn new(limit: u64, period: Ns) -> Self {
        Self { limit: limit.into(), period: period.into(), used: 0, at: 0 }
    }

    pub(crate) fn drain(&mut self, now: Ns) {
        let now = i128::from(now).max(self.at);
        self.used = (self.used - (now - self.at) * self.limit).max(0);
        self.at = now;
    }

    pub(crate) fn admit(&mut self, requested: u64, now: Ns) -> bool {
        self.drain(now);
        let requested = i128::from(requested) * self.period;
        let fits = self.used + requested <= self.limit * self.period;
        if fits {
            self.used += requested;
        }
        fits
    }

    pub(crate) fn add(&mut self, units: i128, now: Ns) {
        self.drain(now);
        self.used = (self.used + units * self.period).max(0);
    }

    /// Used units, rounded up.
    pub(crate) fn units(&self) -> u64 {
        ((self.used + self.period - 1) / self.period) as u64
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) app: u8,
    pub(crate) gap_ms: u64,
    pub(crate) prompt: u64,
    pub(crate) output_limit: u64,
    pub(crate) completion_share: f64,
    pub(crate) latency_ms: u64,
    /// Cancelled after this many milliseconds in the queue.
    pub(crate) cancelled_after: Option<u64>,
}

impl Job {
    pub(crate) fn completion(&self) -> u64 {
        (self.output_limit as f64 * self.completion_share) as u64
    }
}

pub(crate) fn job() -> impl Strategy<Value = Job> {
    (0..3u8, 0..2000u64, 1..400u64, 1..1500u64, 0.0..1.0f64, 1..20_000u64, prop::option::weighted(0.2, 1..5000u64)).prop_map(
        |(app, gap_ms, prompt, output_limit, completion_share, latency_ms, cancelled_after)| Job {
            app,
            gap_ms,
            prompt,
            output_limit,
            completion_share,
            latency_ms,
            cancelled_after,
        },
    )
}

enum Step {
    Arrive(usize),
    Cancel(usize),
    End(usize, Box<Grant>),
}

/// The result of a run.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) sends: usize,
    pub(crate) refused_by_groq: usize,
    pub(crate) rejected: usize,
    pub(crate) cancelled: usize,
    /// Time of each send, and the tokens that it used in the end.
    pub(crate) grants: Vec<(Ns, u64)>,
}

/// Runs jobs through a limiter and an exact upstream without network delay. With `external`, the upstream also has other usage.
pub(crate) fn run(limiter: &mut Limiter, jobs: &[Job], requests: Option<u64>, tokens: u64, external: bool) -> Outcome {
    run_before(limiter, jobs, requests, Exact::new(tokens, 60 * SECOND), external)
}

/// The same with the given upstream.
pub(crate) fn run_before(
    limiter: &mut Limiter,
    jobs: &[Job],
    requests: Option<u64>,
    mut exact_tokens: Exact,
    external: bool,
) -> Outcome {
    let tokens = exact_tokens.limit as u64;
    let mut exact_requests = requests.map(|limit| Exact::new(limit, 60 * SECOND));
    let mut agenda: BTreeMap<(Ns, u64), Step> = BTreeMap::new();
    let mut order = 0;
    let mut plan = |agenda: &mut BTreeMap<(Ns, u64), Step>, at: Ns, step: Step| {
        order += 1;
        agenda.insert((at, order), step);
    };
    let mut at = START;
    for (n, job) in jobs.iter().enumerate() {
        at += job.gap_ms * MS;
        plan(&mut agenda, at, Step::Arrive(n));
    }
    let mut waiting: BTreeMap<Ticket, usize> = BTreeMap::new();
    let mut outcome = Outcome::default();
    let mut events = Vec::new();
    let mut now = START;
    loop {
        let next = agenda.first_key_value().map(|(&(at, _), _)| at);
        let Some(at) = next.into_iter().chain(limiter.wake()).min() else { break };
        assert!(at >= now, "time does not go back");
        // No late wake-up: a nanosecond before it, nothing can be admitted.
        if limiter.wake() == Some(at) && at > now + 1 && next.is_none_or(|next| next >= at) {
            limiter.dispatch(at - 1, &mut events);
            assert!(events.is_empty(), "a request could have been admitted before the wake-up");
        }
        now = at;
        let mut granted = Vec::new();
        if next == Some(at) {
            let (_, step) = agenda.pop_first().expect("there is one");
            match step {
                Step::Arrive(n) => {
                    let job = &jobs[n];
                    let verdict =
                        limiter.submit(&request(job.app, job.prompt, job.output_limit), now, now + 60 * SECOND, None, || true);
                    match verdict {
                        Ok(Admission::Granted(grant)) => granted.push((n, grant)),
                        Ok(Admission::Queued(id)) => {
                            waiting.insert(id, n);
                            if let Some(after) = job.cancelled_after {
                                plan(&mut agenda, now + after * MS, Step::Cancel(n));
                            }
                        }
                        Err(_) => outcome.rejected += 1,
                    }
                }
                Step::Cancel(n) => {
                    if let Some((&id, _)) = waiting.iter().find(|&(_, &waiter)| waiter == n) {
                        waiting.remove(&id);
                        limiter.cancel(id, now);
                        outcome.cancelled += 1;
                    }
                }
                Step::End(n, grant) => {
                    let job = &jobs[n];
                    let completion = job.completion();
                    let held = i128::from(job.prompt + job.output_limit);
                    exact_tokens.add(i128::from(job.prompt + completion) - held, now);
                    limiter.settle(
                        *grant,
                        ActualUsage::Tokens { prompt: job.prompt, completion: Some(completion), prompt_total: job.prompt },
                        now,
                    );
                }
            }
        }
        loop {
            limiter.dispatch(now, &mut events);
            for event in events.drain(..) {
                match event {
                    (id, Ok(grant)) => granted.push((waiting.remove(&id).expect("a waiting request"), grant)),
                    (id, Err(refusal)) => {
                        assert!(matches!(refusal, AdmissionError::NotInTime { .. } | AdmissionError::TooLarge { .. }));
                        waiting.remove(&id).expect("a waiting request");
                        outcome.rejected += 1;
                    }
                }
            }
            if granted.is_empty() {
                break;
            }
            for (n, mut grant) in granted.drain(..) {
                let job = &jobs[n];
                limiter.sent(&mut grant, now);
                outcome.sends += 1;
                outcome.grants.push((now, job.prompt + job.completion()));
                if external && n % 7 == 3 {
                    exact_tokens.add(50, now);
                }
                let ok_requests = exact_requests.as_mut().is_none_or(|bucket| bucket.admit(1, now));
                let ok = ok_requests && exact_tokens.admit(job.prompt + job.output_limit, now);
                let remaining = tokens.saturating_sub(exact_tokens.units());
                let shown = RemoteQuota { limit: tokens, remaining };
                let state = Observation { tokens: Some(shown), ..Observation::default() };
                if ok {
                    limiter.observe(&mut grant, &state, now);
                    plan(&mut agenda, now + job.latency_ms * MS, Step::End(n, Box::new(grant)));
                } else {
                    outcome.refused_by_groq += 1;
                    let _place = limiter.refused(grant, None, &state, Some(Duration::from_secs(1)), now);
                }
            }
        }
        // No lost wake-up: as long as a request waits, a wake-up is scheduled.
        assert_eq!(waiting.len(), limiter.waiting(), "the limiter and the test count the same waiting requests");
        if limiter.waiting() > 0 {
            assert!(limiter.wake().is_some(), "requests wait without a scheduled wake-up");
        }
    }
    outcome
}
