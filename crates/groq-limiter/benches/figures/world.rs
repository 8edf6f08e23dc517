//! The event loop of a simulation: clients, fronts, network delays and the upstream. Events at the same time are processed in the
//! order in which they were scheduled.

use std::{cmp::Reverse, collections::BinaryHeap};

use fastrand::Rng;
use groq_limiter::types::Observation;

use super::{
    MINUTE, MS, Ns,
    front::{Decision, Front, Number, Retries, Shield, TokenBucket},
    load::{Offer, Size, gap},
    outcome::Outcome,
    rows::{Kind, Row, Span, Stamp},
    upstream::{Refused, Upstream},
};

/// Start of the steady state, which is measured.
pub(crate) const WARM: Ns = 3 * MINUTE;
/// Maximum delay of a timer.
const MAX_TIMER_DELAY: Ns = MS;
/// Maximum virtual duration of a simulation.
const MAX_DURATION: Ns = 30 * 60 * MINUTE;

/// A request and what has happened to it.
pub(crate) struct Job {
    /// Empty for external traffic.
    pub(crate) app: &'static str,
    /// Whether the request has max completion tokens.
    pub(crate) states_limit: bool,
    pub(crate) offer: usize,
    pub(crate) size: Size,
    pub(crate) estimate: u64,
    pub(crate) latency: Ns,
    pub(crate) arrived: Ns,
    pub(crate) deadline: Ns,
    pub(crate) sent: Vec<Ns>,
    pub(crate) refusals: Vec<Ns>,
    pub(crate) admitted: Option<Ns>,
    pub(crate) failed: bool,
    /// The replica that the request is sent through; `None` for external traffic.
    replica: Option<usize>,
    reply: Option<Result<Observation, Box<Refused>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrive(usize),
    External,
    ReachUpstream(Number),
    Finish(Number),
    Back(Number),
    Requeue(Number),
    Wake(usize, Ns),
}

struct World<'a> {
    row: &'a Row,
    now: Ns,
    agenda: BinaryHeap<Reverse<(Ns, u64, Event)>>,
    order: u64,
    jobs: Vec<Job>,
    fronts: Vec<Box<dyn Front>>,
    armed: Vec<Option<Ns>>,
    upstream: Upstream,
    /// Arrivals per second, by offer.
    rates: Vec<f64>,
    external_rate: f64,
    load: Rng,
    ways: Rng,
    steady_sends: usize,
}

/// Runs a row to its end.
pub(crate) fn run(row: &Row, seed: u64) -> Outcome {
    let mut world = World {
        row,
        now: 0,
        agenda: BinaryHeap::new(),
        order: 0,
        jobs: Vec::new(),
        fronts: (0..row.replicas as u64).map(|n| front(row, seed ^ n)).collect(),
        armed: vec![None; row.replicas],
        upstream: Upstream::new(row.limits, row.output, row.law, row.charging, row.initial),
        rates: row.rates(),
        external_rate: row.external * row.rate_of_limit(&row.offers[0].sizes),
        load: Rng::with_seed(seed),
        ways: Rng::with_seed(!seed),
        steady_sends: 0,
    };
    world.begin();
    let (mut net, mut end) = (None, MAX_DURATION);
    while let Some(Reverse((at, _, event))) = world.agenda.pop() {
        world.now = at;
        if at >= WARM && net.is_none() {
            net = Some(world.upstream.tokens.net);
        }
        if world.is_over() {
            end = at;
            break;
        }
        world.step(event);
        end = at;
    }
    let net = world.upstream.tokens.net - net.unwrap_or(0);
    Outcome::of(row, &world.jobs, end, net)
}

fn front(row: &Row, seed: u64) -> Box<dyn Front> {
    let (_, tpm) = row.limits;
    match row.front {
        Kind::Shield => Box::new(Shield::new(row.limits, row.output.filter(|_| row.output_is_configured))),
        Kind::Straight => Box::new(Retries::new(seed)),
        Kind::OutputLimits => Box::new(TokenBucket::of_output_limits(tpm, seed)),
        Kind::Predictions => {
            let (_, usual) = row.offers[0].sizes.measure();
            Box::new(TokenBucket::of_predictions(tpm, usual, seed))
        }
    }
}

impl World<'_> {
    fn begin(&mut self) {
        if let Span::Burst(limits) = self.row.span {
            let mut left = (limits * self.row.binding() as f64) as i64;
            while left > 0 {
                left -= self.arrive(0) as i64;
            }
            return;
        }
        for offer in 0..self.row.offers.len() {
            self.next_arrival(offer);
        }
        if self.row.external > 0.0 {
            self.plan(0, Event::External);
        }
    }

    fn is_over(&self) -> bool {
        match self.row.span {
            Span::Steady(sends) => self.steady_sends >= sends || self.now > MAX_DURATION,
            Span::First(time) => self.now >= time,
            Span::Burst(_) => self.now > MAX_DURATION,
        }
    }

    fn plan(&mut self, at: Ns, event: Event) {
        self.order += 1;
        self.agenda.push(Reverse((at, self.order, event)));
    }

    fn way(&mut self) -> Ns {
        self.now + self.ways.u64(self.row.way.0..=self.row.way.1)
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Arrive(offer) => {
                self.arrive(offer);
                self.next_arrival(offer);
            }
            Event::External => {
                let size = self.row.offers[0].sizes.draw(&mut self.load);
                let number = self.job("", 0, size, None);
                self.reach(number);
                let at = self.now + gap(self.external_rate, &mut self.load);
                self.plan(at, Event::External);
            }
            Event::ReachUpstream(number) => self.reach(number),
            Event::Finish(number) => self.finish(number),
            Event::Back(number) => self.back(number),
            Event::Requeue(number) => self.request(number, |front, job, now| front.again(number, job, now)),
            Event::Wake(replica, at) if self.armed[replica] == Some(at) => {
                self.armed[replica] = None;
                let decisions = self.fronts[replica].wake(self.now);
                self.act(replica, decisions);
            }
            Event::Wake(..) => {}
        }
    }

    fn next_arrival(&mut self, offer: usize) {
        let at = self.now + gap(self.rates[offer], &mut self.load);
        self.plan(at, Event::Arrive(offer));
    }

    /// A client asks; the tokens it will use.
    fn arrive(&mut self, offer: usize) -> u64 {
        let Offer { app, sizes, .. } = self.row.offers[offer];
        let size = sizes.draw(&mut self.load);
        let replica = self.load.usize(..self.row.replicas);
        let number = self.job(app, offer, size, Some(replica));
        self.request(number, |front, job, now| front.arrive(number, job, now));
        self.row.counted(&size)
    }

    fn job(&mut self, app: &'static str, offer: usize, size: Size, replica: Option<usize>) -> Number {
        let error = (0.08 * super::load::normal(&mut self.load)).exp() * self.row.bias;
        let size = Size { output_limit: self.row.unstated.unwrap_or(size.output_limit), ..size };
        self.jobs.push(Job {
            app,
            states_limit: self.row.unstated.is_none(),
            offer,
            size,
            estimate: ((size.prompt as f64 * error) as u64).max(1),
            latency: self.row.latency.draw(&mut self.load),
            arrived: self.now,
            deadline: self.now + self.row.max_wait,
            sent: Vec::new(),
            refusals: Vec::new(),
            admitted: None,
            failed: false,
            replica,
            reply: None,
        });
        self.jobs.len() - 1
    }

    /// The request has arrived at the upstream.
    fn reach(&mut self, number: Number) {
        let job = &mut self.jobs[number];
        match self.upstream.admit(job.size.prompt, job.size.output_limit, self.now) {
            Ok(()) => {
                job.admitted = Some(self.now);
                job.reply = Some(Ok(self.upstream.state(self.now)));
                let at = self.now + job.latency;
                self.plan(at, Event::Finish(number));
            }
            Err(refused) if job.replica.is_some() => {
                job.reply = Some(Err(refused));
                let at = self.way();
                self.plan(at, Event::Back(number));
            }
            Err(_) => job.failed = true,
        }
    }

    fn finish(&mut self, number: Number) {
        let job = &mut self.jobs[number];
        let admitted = job.admitted.expect("it was admitted");
        self.upstream.finish(admitted, job.size.output_limit, job.size.completion, self.now);
        if job.replica.is_none() {
            return;
        }
        if self.row.stamp == Stamp::Finish {
            job.reply = Some(Ok(self.upstream.state(self.now)));
        }
        let at = self.way();
        self.plan(at, Event::Back(number));
    }

    fn back(&mut self, number: Number) {
        match self.jobs[number].reply.take().expect("it has a reply") {
            Ok(state) => self.request(number, |front, job, now| front.responded(number, job, &state, now)),
            Err(refused) => {
                self.jobs[number].refusals.push(self.now);
                self.request(number, |front, job, now| front.refused(number, job, &refused, now));
            }
        }
    }

    fn request(&mut self, number: Number, notify: impl FnOnce(&mut dyn Front, &Job, Ns) -> Vec<Decision>) {
        let replica = self.jobs[number].replica.expect("external traffic has no front");
        let decisions = notify(&mut *self.fronts[replica], &self.jobs[number], self.now);
        self.act(replica, decisions);
    }

    fn act(&mut self, replica: usize, decisions: Vec<Decision>) {
        for decision in decisions {
            match decision {
                Decision::Send(number) => {
                    self.jobs[number].sent.push(self.now);
                    self.steady_sends += usize::from(self.now >= WARM);
                    let at = self.way();
                    self.plan(at, Event::ReachUpstream(number));
                }
                Decision::Fail(number) => self.jobs[number].failed = true,
                Decision::Requeue(number, at) => self.plan(at, Event::Requeue(number)),
            }
        }
        let next = self.fronts[replica].next();
        if next != self.armed[replica] {
            self.armed[replica] = next;
            if let Some(at) = next {
                let delay = self.ways.u64(..MAX_TIMER_DELAY);
                self.plan(at.max(self.now) + delay, Event::Wake(replica, at));
            }
        }
    }
}
