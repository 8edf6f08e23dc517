//! Fronts decide when requests are sent: the shield's limiter, and the baselines that are common without it.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use fastrand::Rng;
use groq_limiter::{
    ActualUsage, AdmissionRequest, CostEstimate,
    limiter::{Admission, Event, Grant, Limiter, Requeue},
    queue::Ticket,
    settings::{LimitSettings, ModelLimits, Plan},
    types::{Observation, Priority},
};

use super::{MINUTE, Ns, SECOND, upstream::Refused, world::Job};

/// A request's number.
pub(crate) type Number = usize;

/// What happens to a request next.
pub(crate) enum Decision {
    /// Send the request now.
    Send(Number),
    /// Return an error to the client.
    Fail(Number),
    /// Call [`Front::again`] at this time.
    Requeue(Number, Ns),
}

/// A proxy or client library between the clients and the upstream, of which it only sees the responses.
pub(crate) trait Front {
    fn arrive(&mut self, number: Number, job: &Job, now: Ns) -> Vec<Decision>;
    /// Called at the time of a [`Decision::Requeue`].
    fn again(&mut self, number: Number, job: &Job, now: Ns) -> Vec<Decision> {
        self.arrive(number, job, now)
    }
    fn responded(&mut self, number: Number, job: &Job, state: &Observation, now: Ns) -> Vec<Decision>;
    fn refused(&mut self, number: Number, job: &Job, refused: &Refused, now: Ns) -> Vec<Decision>;
    fn wake(&mut self, now: Ns) -> Vec<Decision>;
    /// The next time at which `wake` is to be called.
    fn next(&self) -> Option<Ns>;
}

/// The shield: the core of one limiter.
pub(crate) struct Shield {
    limiter: Limiter,
    waiting: HashMap<Ticket, Number>,
    grants: HashMap<Number, Grant>,
    events: Vec<Event>,
}

/// Offset of the limiter's clock, so that times before the start of the simulation can be represented.
const START: Ns = 10 * 24 * 60 * MINUTE;

impl Shield {
    /// A shield that is configured with the limits on requests and tokens per minute, and optionally with the one on output.
    pub(crate) fn new((rpm, tpm): (u64, u64), output_tokens_per_minute: Option<u64>) -> Self {
        let (requests_per_minute, tokens_per_minute) = (Some(rpm), Some(tpm));
        let limits = ModelLimits { requests_per_minute, tokens_per_minute, output_tokens_per_minute, ..ModelLimits::default() };
        let tables = LimitSettings { plan: Plan::None, default: limits, ..LimitSettings::default() };
        Self {
            limiter: Limiter::new("m".into(), Arc::new(tables), START),
            waiting: HashMap::new(),
            grants: HashMap::new(),
            events: Vec::new(),
        }
    }

    fn submit(&mut self, number: Number, job: &Job, requeue: Option<Requeue>, now: Ns) -> Vec<Decision> {
        let request = AdmissionRequest {
            organization: "o".into(),
            key: 0,
            model: "m".into(),
            tier: "on_demand".into(),
            app: job.app.into(),
            weight: 1.0,
            class: Priority::Interactive,
            cost: CostEstimate::Tokens {
                prompt: job.estimate,
                max_completion_tokens: job.states_limit.then_some(job.size.output_limit),
            },
            bytes: 0,
        };
        let mut decisions = Vec::new();
        match self.limiter.submit(&request, START + now, START + job.deadline, requeue, || true) {
            Ok(Admission::Granted(grant)) => self.send(number, grant, now, &mut decisions),
            Ok(Admission::Queued(id)) => {
                self.waiting.insert(id, number);
            }
            Err(_) => decisions.push(Decision::Fail(number)),
        }
        decisions.extend(self.wake(now));
        decisions
    }

    fn send(&mut self, number: Number, mut grant: Grant, now: Ns, decisions: &mut Vec<Decision>) {
        self.limiter.sent(&mut grant, START + now);
        self.grants.insert(number, grant);
        decisions.push(Decision::Send(number));
    }
}

impl Front for Shield {
    fn arrive(&mut self, number: Number, job: &Job, now: Ns) -> Vec<Decision> {
        self.submit(number, job, None, now)
    }

    fn responded(&mut self, number: Number, job: &Job, state: &Observation, now: Ns) -> Vec<Decision> {
        let mut grant = self.grants.remove(&number).expect("it was sent");
        self.limiter.observe(&mut grant, state, START + now);
        let (prompt, completion) = (job.size.prompt, job.size.completion);
        self.limiter.settle(
            grant,
            ActualUsage::Tokens { prompt, completion: Some(completion), prompt_total: prompt },
            START + now,
        );
        self.wake(now)
    }

    fn refused(&mut self, number: Number, job: &Job, refused: &Refused, now: Ns) -> Vec<Decision> {
        let grant = self.grants.remove(&number).expect("it was sent");
        let after = Some(refused.retry_after);
        let again = self.limiter.refused(grant, Some(&refused.text), &refused.state, after, START + now);
        self.submit(number, job, Some(again), now)
    }

    fn wake(&mut self, now: Ns) -> Vec<Decision> {
        let mut events = std::mem::take(&mut self.events);
        self.limiter.dispatch(START + now, &mut events);
        let mut decisions = Vec::new();
        for event in events.drain(..) {
            match event {
                (id, Ok(grant)) => {
                    let number = self.waiting.remove(&id).expect("a waiting request");
                    self.send(number, grant, now, &mut decisions);
                }
                (id, Err(_)) => decisions.push(Decision::Fail(self.waiting.remove(&id).expect("a waiting request"))),
            }
        }
        self.events = events;
        decisions
    }

    fn next(&self) -> Option<Ns> {
        self.limiter.wake().map(|at| at.saturating_sub(START))
    }
}

/// The policy of the official SDKs: two retries, after `retry-after` if that is at most a minute, else after an exponential
/// back-off.
pub(crate) struct Retries {
    random: Rng,
    tried: HashMap<Number, u32>,
}

impl Retries {
    pub(crate) fn new(seed: u64) -> Self {
        Self { random: Rng::with_seed(seed), tried: HashMap::new() }
    }

    fn after(&mut self, number: Number, stated: Duration, now: Ns) -> Decision {
        let tried = self.tried.entry(number).or_default();
        if *tried == 2 {
            return Decision::Fail(number);
        }
        let back_off = (0.5 * f64::from(1 << *tried)).min(8.0) * (1.0 - 0.25 * self.random.f64());
        *tried += 1;
        let wait = if stated <= Duration::from_secs(60) { stated.as_secs_f64() } else { back_off };
        Decision::Requeue(number, now + (wait * SECOND as f64) as Ns)
    }
}

/// Baseline A: requests are sent at once.
impl Front for Retries {
    fn arrive(&mut self, number: Number, _: &Job, _: Ns) -> Vec<Decision> {
        vec![Decision::Send(number)]
    }

    fn responded(&mut self, _: Number, _: &Job, _: &Observation, _: Ns) -> Vec<Decision> {
        Vec::new()
    }

    fn refused(&mut self, number: Number, _: &Job, refused: &Refused, now: Ns) -> Vec<Decision> {
        vec![self.after(number, refused.retry_after, now)]
    }

    fn wake(&mut self, _: Ns) -> Vec<Decision> {
        Vec::new()
    }

    fn next(&self) -> Option<Ns> {
        None
    }
}

/// Baselines C and D: a token bucket with the limit's size and rate, and a queue in order of arrival.
pub(crate) struct TokenBucket {
    limit: f64,
    remaining: f64,
    at: Ns,
    /// Completion tokens that are reserved for each request; `None` for the request's output limit.
    completion: Option<u64>,
    settles: bool,
    queue: VecDeque<(Number, f64, Ns)>,
    reservations: HashMap<Number, f64>,
    retries: Retries,
}

impl TokenBucket {
    /// Reserves prompt and output limit, and refunds nothing.
    pub(crate) fn of_output_limits(limit: u64, seed: u64) -> Self {
        let limit = limit as f64;
        Self {
            limit,
            remaining: limit,
            at: 0,
            completion: None,
            settles: false,
            queue: VecDeque::new(),
            reservations: HashMap::new(),
            retries: Retries::new(seed),
        }
    }

    /// Reserves the prompt and `completion`, and settles to the actual usage.
    pub(crate) fn of_predictions(limit: u64, completion: u64, seed: u64) -> Self {
        Self { completion: Some(completion), settles: true, ..Self::of_output_limits(limit, seed) }
    }

    fn refill(&mut self, now: Ns) {
        let refilled = self.limit * (now - self.at) as f64 / MINUTE as f64;
        self.remaining = (self.remaining + refilled).min(self.limit);
        self.at = now;
    }

    fn reserved(&self, job: &Job) -> f64 {
        (job.size.prompt + self.completion.map_or(job.size.output_limit, |usual| usual.min(job.size.output_limit))) as f64
    }
}

impl Front for TokenBucket {
    fn arrive(&mut self, number: Number, job: &Job, now: Ns) -> Vec<Decision> {
        // The queue is bounded by what the limit allows until the deadline. Without the bound, large requests would reach their
        // deadline at the head of the queue, and only small ones would be served.
        let ahead: f64 = self.queue.iter().map(|&(_, reserved, _)| reserved).sum();
        if ahead > self.limit * (job.deadline - now) as f64 / MINUTE as f64 {
            return vec![Decision::Fail(number)];
        }
        self.queue.push_back((number, self.reserved(job), job.deadline));
        self.wake(now)
    }

    fn again(&mut self, number: Number, job: &Job, now: Ns) -> Vec<Decision> {
        self.queue.push_front((number, self.reserved(job), job.deadline));
        self.wake(now)
    }

    fn responded(&mut self, number: Number, job: &Job, _: &Observation, now: Ns) -> Vec<Decision> {
        let reserved = self.reservations.remove(&number).expect("it was sent");
        if self.settles {
            self.refill(now);
            self.remaining = (self.remaining + reserved - job.size.used() as f64).min(self.limit);
        }
        self.wake(now)
    }

    fn refused(&mut self, number: Number, _: &Job, refused: &Refused, now: Ns) -> Vec<Decision> {
        let reserved = self.reservations.remove(&number).expect("it was sent");
        if self.settles {
            self.refill(now);
            self.remaining = (self.remaining + reserved).min(self.limit);
        }
        let mut decisions = vec![self.retries.after(number, refused.retry_after, now)];
        decisions.extend(self.wake(now));
        decisions
    }

    fn wake(&mut self, now: Ns) -> Vec<Decision> {
        self.refill(now);
        let mut decisions = Vec::new();
        while let Some(&(number, reserved, deadline)) = self.queue.front() {
            if deadline < now {
                decisions.push(Decision::Fail(number));
            } else if reserved <= self.remaining {
                self.remaining -= reserved;
                self.reservations.insert(number, reserved);
                decisions.push(Decision::Send(number));
            } else {
                break;
            }
            self.queue.pop_front();
        }
        decisions
    }

    fn next(&self) -> Option<Ns> {
        let &(_, reserved, deadline) = self.queue.front()?;
        let missing = (reserved - self.remaining).max(0.0) / self.limit * MINUTE as f64;
        Some((self.at + missing as Ns + 1).min(deadline + 1))
    }
}
