//! The retry policy: deliver, send again after a delay, or give up. Pure: the clock is an argument.
//!
//! The class of a failure decides whether it may be retried. The delay is full jitter over an exponential bound, in addition to
//! the upstream's `retry-after`. The number of retries is bounded by attempts, by a budget over all requests (so that an outage
//! does not multiply the load), and by the client's max wait.

use std::{sync::Mutex, time::Duration};

use http::StatusCode;
use tokio::time::Instant;

use crate::config;

/// How an attempt ended, for the retry policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A response to deliver: a success or a client error.
    Answered,
    /// Groq refused (429). Not a retry: the request goes back to the front of its app's queue.
    Refused,
    /// Sending again may succeed.
    Transient {
        /// Minimum wait, from the upstream's `retry-after`.
        retry_after: Option<Duration>,
    },
    /// Sending again cannot help, for example with an untrusted certificate or after a failed probe of an open breaker.
    Broken,
}

impl Class {
    /// The class of a response's status.
    pub fn of(status: StatusCode, retry_after: Option<Duration>) -> Self {
        match status.as_u16() {
            429 => Self::Refused,
            498 | 500 | 502..=504 | 520..=530 => Self::Transient { retry_after },
            _ => Self::Answered,
        }
    }
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Deliver the response to the app.
    Deliver,
    /// Return to the front of its app's queue after this delay; `None` if the max wait ends before.
    Requeue(Option<Duration>),
    /// Send again after this delay.
    Again(Duration),
    /// Report the failure to the app.
    GiveUp,
}

/// Minimum pause after a second refusal of a request, whatever the delays of retries.
const MIN_PAUSE: Duration = Duration::from_secs(1);

/// The attempts of one request.
#[derive(Debug)]
pub struct Attempts {
    policy: config::Retry,
    deadline: Instant,
    failed: u32,
    refused: u32,
}

impl Attempts {
    /// No attempts yet, for a request that may be sent until `deadline`.
    pub fn new(policy: config::Retry, deadline: Instant) -> Self {
        Self { policy, deadline, failed: 0, refused: 0 }
    }

    /// Decides what follows an attempt. `random` is uniform in 0..1. Only `Again` takes a retry from the budget. `now` is called
    /// only if it is needed.
    pub fn next(&mut self, class: Class, budget: &Budget, random: f64, now: impl FnOnce() -> Instant) -> Verdict {
        let floor = match class {
            Class::Answered => return Verdict::Deliver,
            Class::Refused => return Verdict::Requeue(self.pause(now)),
            Class::Broken => return Verdict::GiveUp,
            Class::Transient { retry_after } => retry_after.unwrap_or_default(),
        };
        let now = now();
        self.failed += 1;
        let delay = floor + self.bound(self.failed).mul_f64(random);
        let in_time = now.checked_add(delay).is_some_and(|at| at < self.deadline);
        if self.failed < self.policy.attempts && in_time && budget.draw(self.policy.budget, now) {
            Verdict::Again(delay)
        } else {
            Verdict::GiveUp
        }
    }

    /// The pause after a refusal. The first one corrects the limits; a second one means that our estimate is wrong, so back off.
    fn pause(&mut self, now: impl FnOnce() -> Instant) -> Option<Duration> {
        self.refused += 1;
        if self.refused == 1 {
            return Some(Duration::ZERO);
        }
        let pause = self.bound(self.refused - 1).max(MIN_PAUSE);
        now().checked_add(pause).is_some_and(|at| at < self.deadline).then_some(pause)
    }

    /// The upper bound of the back-off after `times` failures.
    fn bound(&self, times: u32) -> Duration {
        let doubled = self.policy.base_delay.saturating_mul(1 << (times - 1).min(20));
        doubled.min(self.policy.max_delay)
    }
}

/// Retries per second that are always allowed.
const ALWAYS: u32 = 10;
const SECONDS: usize = 60;

/// Requests and retries of all apps in the last minute.
#[derive(Debug)]
pub struct Budget {
    start: Instant,
    ring: Mutex<Ring>,
}

#[derive(Debug)]
struct Ring {
    slots: [Slot; SECONDS],
    newest: u64,
    requests: u64,
    retries: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    requests: u32,
    retries: u32,
}

impl Budget {
    /// A budget without requests.
    pub fn new(now: Instant) -> Self {
        let ring = Ring { slots: [Slot::default(); SECONDS], newest: 0, requests: 0, retries: 0 };
        Self { start: now, ring: Mutex::new(ring) }
    }

    /// Counts a request.
    pub fn request(&self, now: Instant) {
        let mut ring = self.at(now);
        ring.requests += 1;
        ring.newest_slot().requests += 1;
    }

    /// Retries of the last minute.
    pub fn retries(&self, now: Instant) -> u64 {
        self.at(now).retries
    }

    /// Takes one retry, if fewer than ten were taken in this second or fewer than `share` of the last minute's requests.
    fn draw(&self, share: f64, now: Instant) -> bool {
        let mut ring = self.at(now);
        let allowed = ring.newest_slot().retries < ALWAYS || (ring.retries as f64) < share * ring.requests as f64;
        if allowed {
            ring.retries += 1;
            ring.newest_slot().retries += 1;
        }
        allowed
    }

    /// The ring, advanced to `now`.
    fn at(&self, now: Instant) -> std::sync::MutexGuard<'_, Ring> {
        let second = now.saturating_duration_since(self.start).as_secs();
        let mut ring = self.ring.lock().expect("no panic while the ring is held");
        let passed = second.saturating_sub(ring.newest);
        if passed > 0 {
            for back in 0..passed.min(SECONDS as u64) {
                let slot = std::mem::take(&mut ring.slots[((second - back) % SECONDS as u64) as usize]);
                ring.requests -= u64::from(slot.requests);
                ring.retries -= u64::from(slot.retries);
            }
            ring.newest = second;
        }
        ring
    }
}

impl Ring {
    fn newest_slot(&mut self) -> &mut Slot {
        &mut self.slots[(self.newest % SECONDS as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn transient(retry_after: Option<u64>) -> Class {
        Class::Transient { retry_after: retry_after.map(Duration::from_secs) }
    }

    fn setup(max_wait: u64) -> (Attempts, Budget, Instant) {
        let now = Instant::now();
        (Attempts::new(config::Retry::default(), now + Duration::from_secs(max_wait)), Budget::new(now), now)
    }

    #[test]
    fn each_status_has_its_class() {
        for status in 400..600u16 {
            let transient = matches!(status, 498 | 500 | 502 | 503 | 504 | 520..=530);
            let class = Class::of(StatusCode::from_u16(status).expect("a status"), None);
            match class {
                Class::Transient { .. } => assert!(transient, "{status}"),
                Class::Refused => assert_eq!(status, 429),
                Class::Answered => assert!(!transient && status != 429, "{status}"),
                Class::Broken => panic!("{status}: a response is not broken"),
            }
        }
    }

    #[test]
    fn four_sends_at_most_by_default() {
        let (mut attempts, budget, now) = setup(50);
        for _ in 0..3 {
            assert!(matches!(attempts.next(transient(None), &budget, 0.5, || now), Verdict::Again(_)));
        }
        assert_eq!(attempts.next(transient(None), &budget, 0.5, || now), Verdict::GiveUp);
    }

    #[test]
    fn retry_after_is_a_floor_and_jitter_comes_on_top() {
        let (mut attempts, budget, now) = setup(50);
        assert_eq!(attempts.next(transient(Some(3)), &budget, 0.0, || now), Verdict::Again(Duration::from_secs(3)));
        assert_eq!(attempts.next(transient(Some(3)), &budget, 0.5, || now), Verdict::Again(Duration::from_millis(3250)));
    }

    #[test]
    fn no_retry_after_the_max_wait() {
        let (mut attempts, budget, now) = setup(2);
        assert_eq!(attempts.next(transient(Some(2)), &budget, 0.0, || now), Verdict::GiveUp);
        assert_eq!(budget.retries(now), 0, "a retry that is not made costs nothing");
    }

    #[test]
    fn no_requeue_after_the_max_wait() {
        let (mut attempts, budget, now) = setup(2);
        let paused = [Some(0), Some(1), Some(1), Some(1), None].map(|seconds| Verdict::Requeue(seconds.map(Duration::from_secs)));
        assert_eq!([(); 5].map(|()| attempts.next(Class::Refused, &budget, 0.5, || now)), paused);
    }

    #[test]
    fn refusals_and_answers_are_no_retries() {
        let (mut attempts, budget, now) = setup(50);
        let mut pause = || attempts.next(Class::Refused, &budget, 0.5, || now);
        assert_eq!(pause(), Verdict::Requeue(Some(Duration::ZERO)), "the limits know when");
        // Refusals that no limit explains back off exponentially, a second at least.
        for pauses in [1, 1, 1, 2, 4, 8, 8] {
            assert_eq!(pause(), Verdict::Requeue(Some(Duration::from_secs(pauses))));
        }
        assert_eq!(attempts.next(Class::Answered, &budget, 0.5, || now), Verdict::Deliver);
        assert_eq!(attempts.next(Class::Broken, &budget, 0.5, || now), Verdict::GiveUp);
        assert_eq!(budget.retries(now), 0);
    }

    /// Found with `retry.max_delay = "100ms"`: one request was sent 81 times in 8 s.
    #[test]
    fn short_delays_of_retries_do_not_shorten_the_pause_after_refusals() {
        let now = Instant::now();
        let policy = config::Retry {
            base_delay: Duration::from_millis(20),
            max_delay: Duration::from_millis(100),
            ..config::Retry::default()
        };
        let (mut attempts, budget) = (Attempts::new(policy, now + Duration::from_secs(50)), Budget::new(now));
        let pauses = [(); 3].map(|()| attempts.next(Class::Refused, &budget, 0.5, || now));
        assert_eq!(pauses, [0, 1, 1].map(|seconds| Verdict::Requeue(Some(Duration::from_secs(seconds)))));
    }

    #[test]
    fn an_outage_is_not_answered_with_a_storm() {
        let now = Instant::now();
        let budget = Budget::new(now);
        (0..1000).for_each(|_| budget.request(now));
        let drawn = (0..1000).filter(|_| budget.draw(0.2, now)).count();
        assert_eq!(drawn, 200);
        let later = now + Duration::from_secs(61);
        assert_eq!((0..1000).filter(|_| budget.draw(0.2, later)).count(), 10, "ten a second are always allowed");
    }

    proptest! {
        #[test]
        fn delay_is_between_floor_and_floor_plus_max(floor in proptest::option::of(0u64..100), random in 0.0..1.0f64, earlier in 0u32..3) {
            let now = Instant::now();
            let mut attempts = Attempts { policy: config::Retry::default(), deadline: now + Duration::from_secs(1000), failed: earlier, refused: 0 };
            let floor_time = Duration::from_secs(floor.unwrap_or(0));
            if let Verdict::Again(delay) = attempts.next(transient(floor), &Budget::new(now), random, || now) {
                prop_assert!(delay >= floor_time && delay <= floor_time + Duration::from_secs(8));
            } else {
                prop_assert_eq!(earlier, 3);
            }
        }

        #[test]
        fn the_ring_counts_the_last_minute(gaps in proptest::collection::vec(0u64..20, 1..200)) {
            let start = Instant::now();
            let (budget, mut now, mut times) = (Budget::new(start), 0, Vec::new());
            for gap in gaps {
                now += gap;
                budget.request(start + Duration::from_secs(now));
                times.push(now);
                let expected = times.iter().filter(|t| **t + 60 > now).count() as u64;
                prop_assert_eq!(budget.at(start + Duration::from_secs(now)).requests, expected);
            }
        }
    }
}
