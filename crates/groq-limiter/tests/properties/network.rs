//! Invariant 4 (nothing is refused) with arbitrary network delays to the upstream and back.

use std::collections::{BTreeMap, VecDeque};

use groq_limiter::{
    ActualUsage,
    limiter::{Admission, Grant, Limiter},
    queue::Ticket,
    types::{Ns, Observation, RemoteQuota},
};
use proptest::prelude::*;

use crate::{
    history::Exact,
    start::{MS, SECOND, START, limits, request, warm},
};

/// A request and its delays.
#[derive(Clone, Debug)]
struct Journey {
    app: u8,
    gap: Ns,
    /// Size in ten-thousandths of the limit.
    size: u64,
    /// Share of the size that the upstream reserves, and share of that reservation that is used.
    shares: (f64, f64),
    /// Network delays of the request, of the response's head and of its end, as shares of the longest delay.
    delays: [f64; 3],
    /// Time at the upstream from the arrival to the head, and from there to the end.
    latency: (Ns, Ns),
}

fn journey() -> impl Strategy<Value = Journey> {
    let shares = (0.0..=1.0f64, 0.0..=1.0f64);
    let latency = (1..3000u64, 0..20_000u64).prop_map(|(head, end)| (head * MS, end * MS));
    (0..3u8, 10..150 * 1000u64, 10..150u64, shares, prop::array::uniform3(0.0..=1.0f64), latency)
        .prop_map(|(app, gap, size, shares, delays, latency)| Journey { app, gap: gap * 1000, size, shares, delays, latency })
}

enum Step {
    Submit(usize),
    Arrives(usize, Box<Grant>),
    Head(usize, Box<Grant>, Observation),
    Refund(usize),
    End(usize, Box<Grant>),
}

/// Maximum number of units sent within any time span of this length.
struct SentWithin {
    span: Ns,
    recent: VecDeque<(Ns, u64)>,
    most: u64,
}

impl SentWithin {
    fn add(&mut self, now: Ns, units: u64) {
        self.recent.push_back((now, units));
        while self.recent.front().is_some_and(|&(at, _)| at + self.span < now) {
            self.recent.pop_front();
        }
        self.most = self.most.max(self.recent.iter().map(|&(_, units)| units).sum());
    }
}

/// The limiter, the upstream and the events between them.
struct World {
    limiter: Limiter,
    bucket: Exact,
    longest: Ns,
    journeys: Vec<Journey>,
    /// Units that the upstream reserves for each journey.
    reserved: Vec<u64>,
    agenda: BTreeMap<(Ns, usize), Step>,
    recent_sends: SentWithin,
    margin: u64,
    sent: usize,
    refused: usize,
}

impl World {
    /// A world in which the share `in_use` of the limit is used at the start, according to both the limiter and the upstream.
    fn new(limit: u64, longest: Ns, in_use: f64, journeys: Vec<Journey>) -> Self {
        let mut limiter = warm(limits(None, limit));
        let mut bucket = Exact::new(limit, 60 * SECOND);
        let mut left = (limit as f64 * in_use) as u64;
        while left > limit / 50
            && let Ok(Admission::Granted(mut grant)) = limiter.submit(&request(9, 0, limit / 50), START, START, None, || true)
        {
            limiter.sent(&mut grant, START);
            limiter.settle(grant, ActualUsage::Unknown, START);
            assert!(bucket.admit(limit / 50, START));
            left -= limit / 50;
        }
        // The initial requests have arrived before any other is sent.
        let mut at = START + SECOND;
        let mut agenda = BTreeMap::new();
        for (n, journey) in journeys.iter().enumerate() {
            at += journey.gap;
            agenda.insert((at, agenda.len()), Step::Submit(n));
        }
        let recent_sends = SentWithin { span: 2 * longest, recent: VecDeque::new(), most: 0 };
        let reserved = vec![0; journeys.len()];
        Self { limiter, bucket, longest, journeys, reserved, agenda, recent_sends, margin: u64::MAX, sent: 0, refused: 0 }
    }

    fn plan(&mut self, at: Ns, step: Step) {
        let mut order = 1_000_000;
        while self.agenda.contains_key(&(at, order)) {
            order += 1;
        }
        self.agenda.insert((at, order), step);
    }

    fn delay(&self, n: usize, leg: usize) -> Ns {
        (self.longest as f64 * self.journeys[n].delays[leg]) as Ns
    }

    fn run(&mut self) {
        let mut waiting: BTreeMap<Ticket, usize> = BTreeMap::new();
        let mut events = Vec::new();
        while let Some(now) = self.agenda.keys().next().map(|&(at, _)| at).into_iter().chain(self.limiter.wake()).min() {
            if let Some(entry) = self.agenda.first_entry().filter(|entry| entry.key().0 == now) {
                match entry.remove() {
                    Step::Submit(n) => {
                        let Journey { app, size, .. } = self.journeys[n];
                        let units = (self.bucket.limit as u64 * size / 10_000).max(1);
                        match self.limiter.submit(&request(app, 0, units), now, now + 3600 * SECOND, None, || true) {
                            Ok(Admission::Granted(grant)) => self.send(n, grant, now),
                            Ok(Admission::Queued(id)) => drop(waiting.insert(id, n)),
                            Err(refusal) => panic!("rejected before its deadline: {refusal:?}"),
                        }
                    }
                    step => self.step(step, now),
                }
            }
            self.limiter.dispatch(now, &mut events);
            for event in events.drain(..) {
                let (id, Ok(grant)) = event else { panic!("rejected before its deadline") };
                self.send(waiting.remove(&id).expect("a waiting request"), grant, now);
            }
        }
    }

    fn send(&mut self, n: usize, mut grant: Grant, now: Ns) {
        let quota = &self.limiter.quotas()[0];
        let units = quota.units(&grant.cost());
        self.recent_sends.add(now, units);
        self.margin = self.margin.min(quota.margin(units));
        self.reserved[n] = (units as f64 * self.journeys[n].shares.0) as u64;
        self.limiter.sent(&mut grant, now);
        self.plan(now + self.delay(n, 0), Step::Arrives(n, Box::new(grant)));
        self.sent += 1;
    }

    fn step(&mut self, step: Step, now: Ns) {
        let used = |world: &Self, n: usize| (world.reserved[n] as f64 * world.journeys[n].shares.1) as u64;
        match step {
            Step::Submit(_) => {}
            Step::Arrives(n, grant) => {
                if !self.bucket.admit(self.reserved[n], now) {
                    self.refused += 1;
                    return self.limiter.settle(*grant, ActualUsage::Nothing, now);
                }
                let limit = self.bucket.limit as u64;
                let remaining = limit.saturating_sub(self.bucket.units());
                let shown = RemoteQuota { limit, remaining };
                let state = Observation { tokens: Some(shown), ..Observation::default() };
                let ready = now + self.journeys[n].latency.0;
                self.plan(ready + self.delay(n, 1), Step::Head(n, grant, state));
            }
            Step::Head(n, mut grant, state) => {
                self.limiter.observe(&mut grant, &state, now);
                // The end is sent after the head and does not overtake it.
                let ready = now - self.delay(n, 1) + self.journeys[n].latency.1;
                let end = (ready + self.delay(n, 2)).max(now);
                self.plan(ready.max(now), Step::Refund(n));
                self.plan(end.max(ready.max(now)), Step::End(n, grant));
            }
            Step::Refund(n) => self.bucket.add(i128::from(used(self, n)) - i128::from(self.reserved[n]), now),
            Step::End(n, grant) => {
                let usage = ActualUsage::Tokens { prompt: 0, completion: Some(used(self, n)), prompt_total: 0 };
                self.limiter.settle(*grant, usage, now);
            }
        }
    }

    /// Whether the margin covers the requests that may overtake each other.
    fn is_covered(&self) -> bool {
        let drained = self.bucket.limit as u64 * self.longest / (60 * SECOND);
        self.margin > self.recent_sends.most + drained
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    /// 4 Safety: nothing is refused, whatever the delays, the latencies and the order of responses, as long as the margin covers
    /// the units sent within twice the longest delay plus those that drain within one.
    #[test]
    fn safety_with_arbitrary_network_delays(journeys in prop::collection::vec(journey(), 1..150), limit in 20_000..200_000u64,
                                   longest in 0..50u64, in_use in 0.5..1.0f64) {
        let mut world = World::new(limit, longest * MS, in_use, journeys);
        world.run();
        prop_assume!(world.is_covered());
        prop_assert_eq!(world.refused, 0, "of {} sent", world.sent);
        prop_assert_eq!(world.sent, world.journeys.len());
        prop_assert_eq!(world.limiter.in_flight(), 0);
    }
}
