//! Does Groq answer at all for this model? Closed, open, probing; one breaker per organisation and model.
//!
//! Only Groq's own failures count: refusals, the client's faults, cancellations and our own rejections do not.
//! Open is not the end of a request: it waits for the next probe where its patience allows.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use crate::config;

/// What is known of one lane's upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Answers; so many failures in a row.
    Closed { failures: u32 },
    /// Failed too often; nothing is sent until then.
    Open { until: Instant },
    /// One request is finding out.
    Probing { since: Instant },
}

/// How an attempt ended, as far as the upstream's health goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It answered, whatever it said (5xx apart).
    Good,
    /// 5xx, or no whole answer.
    Bad {
        /// When that was known.
        at: Instant,
    },
    /// Says nothing: a refusal, a client that left.
    Unknown,
}

/// Every lane's breaker. Only lanes that have failed are kept.
#[derive(Debug, Default)]
pub struct Breakers {
    lanes: Mutex<HashMap<Key, Lane>>,
    /// How many lanes there are: while none has failed, no request takes the lock.
    troubled: AtomicUsize,
}

/// Organisation and model.
pub type Key = (Arc<str>, Arc<str>);

#[derive(Debug)]
struct Lane {
    state: State,
    changed: Arc<Notify>,
}

/// Permission for one attempt; says how it went, or (dropped) that nobody knows.
#[derive(Debug)]
pub struct Pass<'a> {
    breakers: &'a Breakers,
    policy: &'a config::Breaker,
    key: &'a Key,
    probe: bool,
    told: bool,
}

/// Either go, or wait.
#[derive(Debug)]
pub enum Admission<'a> {
    /// One attempt may be made.
    Go(Pass<'a>),
    /// Not before then (`None`: not before the probe is back), or before the breaker has `changed`.
    Wait {
        /// When the next probe may go.
        until: Option<Instant>,
        /// Told at every change.
        changed: Arc<Notify>,
    },
}

impl Breakers {
    /// Whether an attempt may be made now. Of those that ask while it is open, one becomes the probe.
    ///
    /// `now` is asked for only where something has failed.
    pub fn admit<'a>(&'a self, key: &'a Key, policy: &'a config::Breaker, now: impl FnOnce() -> Instant) -> Admission<'a> {
        let pass = |probe| Admission::Go(Pass { breakers: self, policy, key, probe, told: false });
        if self.troubled.load(Ordering::Relaxed) == 0 {
            return pass(false);
        }
        let mut lanes = self.lock();
        let Some(lane) = lanes.get_mut(key) else { return pass(false) };
        let now = now();
        match lane.state {
            State::Closed { .. } => pass(false),
            State::Open { until } if until <= now => {
                lane.state = State::Probing { since: now };
                pass(true)
            }
            State::Open { until } => Admission::Wait { until: Some(until), changed: lane.changed.clone() },
            State::Probing { .. } => Admission::Wait { until: None, changed: lane.changed.clone() },
        }
    }

    /// Whether nothing may be sent right now but a probe.
    pub fn is_open(&self, key: &Key) -> bool {
        self.troubled.load(Ordering::Relaxed) > 0
            && self.lock().get(key).is_some_and(|lane| !matches!(lane.state, State::Closed { .. }))
    }

    /// Lanes whose breaker is not closed: organisation, model, time until the next probe.
    pub fn open(&self, now: Instant) -> Vec<(Arc<str>, Arc<str>, Duration)> {
        let lanes = self.lock();
        let open = lanes.iter().filter_map(|((organisation, model), lane)| {
            let left = match lane.state {
                State::Closed { .. } => return None,
                State::Open { until } => until.saturating_duration_since(now),
                State::Probing { .. } => Duration::ZERO,
            };
            Some((organisation.clone(), model.clone(), left))
        });
        open.collect()
    }

    fn record(&self, key: &Key, policy: &config::Breaker, probe: bool, health: Health) {
        if !matches!(health, Health::Bad { .. }) && self.troubled.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut lanes = self.lock();
        match health {
            Health::Good => {
                if let Some(lane) = lanes.remove(key) {
                    lane.changed.notify_waiters();
                }
            }
            Health::Bad { at } => {
                let fresh = || Lane { state: State::Closed { failures: 0 }, changed: Arc::default() };
                let lane = lanes.entry(key.clone()).or_insert_with(fresh);
                let failures = match lane.state {
                    State::Closed { failures } => failures + 1,
                    State::Probing { .. } if probe => policy.failures,
                    // Late news of attempts sent before it opened.
                    State::Open { .. } | State::Probing { .. } => return,
                };
                let opens = failures >= policy.failures;
                lane.state = if opens { State::Open { until: at + policy.open } } else { State::Closed { failures } };
                lane.changed.notify_waiters();
            }
            Health::Unknown => {
                // A probe that left hands on its turn.
                if let Some(lane) = lanes.get_mut(key).filter(|_| probe)
                    && let State::Probing { since } = lane.state
                {
                    lane.state = State::Open { until: since };
                    lane.changed.notify_waiters();
                }
            }
        }
        self.troubled.store(lanes.len(), Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Lane>> {
        self.lanes.lock().expect("no panic while the breakers are held")
    }
}

impl Pass<'_> {
    /// Whether this attempt is the one that finds out.
    pub fn is_probe(&self) -> bool {
        self.probe
    }

    /// How the attempt went.
    pub fn record(mut self, health: Health) {
        self.told = true;
        self.breakers.record(self.key, self.policy, self.probe, health);
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if !self.told {
            self.breakers.record(self.key, self.policy, self.probe, Health::Unknown);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: config::Breaker = config::Breaker { failures: 3, open: Duration::from_secs(5) };

    struct Setup {
        breakers: Breakers,
        key: Key,
        now: Instant,
    }

    impl Setup {
        fn new() -> Self {
            Self { breakers: Breakers::default(), key: ("org".into(), "model".into()), now: Instant::now() }
        }

        fn pass(&self) -> Option<Pass<'_>> {
            match self.breakers.admit(&self.key, &POLICY, || self.now) {
                Admission::Go(pass) => Some(pass),
                Admission::Wait { .. } => None,
            }
        }

        fn fail(&self, times: u32) {
            for _ in 0..times {
                self.pass().expect("closed").record(Health::Bad { at: self.now });
            }
        }
    }

    #[test]
    fn opens_after_failures_in_a_row_and_closes_by_one_probe() {
        let mut it = Setup::new();
        it.fail(2);
        it.pass().expect("closed").record(Health::Good);
        it.fail(3);
        assert!(it.pass().is_none(), "three in a row");
        assert_eq!(it.breakers.open(it.now)[0].2, POLICY.open);
        it.now += POLICY.open;
        let probe = it.pass().expect("one may find out");
        assert!(probe.is_probe() && it.pass().is_none(), "one probe at a time");
        probe.record(Health::Good);
        assert!(it.breakers.open(it.now).is_empty() && it.pass().is_some());
    }

    #[test]
    fn a_failed_probe_opens_it_again() {
        let mut it = Setup::new();
        it.fail(3);
        it.now += POLICY.open;
        it.pass().expect("the probe").record(Health::Bad { at: it.now });
        assert!(it.pass().is_none());
        it.now += POLICY.open;
        assert!(it.pass().is_some());
    }

    #[test]
    fn our_own_refusals_never_count_against_groqs_health() {
        let it = Setup::new();
        for _ in 0..100 {
            it.pass().expect("closed").record(Health::Unknown);
        }
        assert!(it.pass().is_some() && it.breakers.open(it.now).is_empty());
    }

    #[test]
    fn a_probe_that_leaves_hands_on_its_turn() {
        let mut it = Setup::new();
        it.fail(3);
        it.now += POLICY.open;
        drop(it.pass().expect("the probe"));
        assert!(it.pass().expect("the next one").is_probe());
    }

    #[test]
    fn late_news_from_before_it_opened_change_nothing() {
        let mut it = Setup::new();
        let late: Vec<_> = (0..5).map(|_| it.pass().expect("closed")).collect();
        it.fail(3);
        for pass in late {
            pass.record(Health::Bad { at: it.now + POLICY.open / 2 });
        }
        it.now += POLICY.open;
        assert!(it.pass().is_some());
    }

    #[test]
    fn lanes_do_not_share_a_breaker() {
        let it = Setup::new();
        it.fail(3);
        let other: Key = ("org".into(), "other".into());
        assert!(matches!(it.breakers.admit(&other, &POLICY, || it.now), Admission::Go(_)));
    }
}
