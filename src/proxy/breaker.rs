//! The circuit breaker: one per organization and model, closed, open or probing.
//!
//! Only failures of the upstream count; refusals, client errors, cancellations and our own rejections do not. While it is open,
//! requests wait for the next probe, at most `breaker.max_wait`, which is why it is written by hand.

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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Attempts are sent; the last `failures` of them failed.
    Closed { failures: u32 },
    /// Too many failures in a row: nothing is sent before `until`.
    Open { until: Instant },
    /// One request has been the probe since `since`.
    Probing { since: Instant },
}

/// What an attempt says about the upstream's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// A response with a status below 500.
    Good,
    /// 5xx, or no complete response.
    Bad {
        /// When the failure was known.
        at: Instant,
    },
    /// Nothing, for example after a refusal or a cancellation.
    Unknown,
}

/// All breakers. Only those with failures are stored.
#[derive(Debug, Default)]
pub struct Breakers {
    breakers: Mutex<HashMap<Key, Breaker>>,
    /// Number of stored breakers: while it is 0, requests do not take the lock.
    kept: AtomicUsize,
}

/// Organization and model.
pub type Key = (Arc<str>, Arc<str>);

#[derive(Debug)]
struct Breaker {
    state: State,
    changed: Arc<Notify>,
}

/// Permission for one attempt. Dropping it without [`Pass::record`] leaves the outcome unknown.
#[derive(Debug)]
pub struct Pass<'a> {
    breakers: &'a Breakers,
    policy: &'a config::Breaker,
    key: &'a Key,
    probe: bool,
    recorded: bool,
}

/// The breaker is open.
#[derive(Clone, Debug)]
pub struct Opened {
    /// When the next probe may be sent; `None` if one is in flight.
    pub until: Option<Instant>,
    /// Notified of every change of state.
    pub changed: Arc<Notify>,
}

impl Breakers {
    /// Checks whether an attempt could be made now, as a probe or not.
    ///
    /// `now` is called only if there are failures.
    ///
    /// # Errors
    /// The breaker is open.
    pub fn check(&self, key: &Key, now: impl FnOnce() -> Instant) -> Result<(), Opened> {
        if self.kept.load(Ordering::Relaxed) == 0 {
            return Ok(());
        }
        self.lock().get(key).map_or(Ok(()), |breaker| breaker.check(now()).map(|_probe| ()))
    }

    /// Takes permission for one attempt. While a probe is due, the first caller becomes the probe.
    ///
    /// `now` is called only if there are failures.
    ///
    /// # Errors
    /// The breaker is open.
    pub fn pass<'a>(
        &'a self,
        key: &'a Key,
        policy: &'a config::Breaker,
        now: impl FnOnce() -> Instant,
    ) -> Result<Pass<'a>, Opened> {
        let pass = |probe| Pass { breakers: self, policy, key, probe, recorded: false };
        if self.kept.load(Ordering::Relaxed) == 0 {
            return Ok(pass(false));
        }
        let mut breakers = self.lock();
        let Some(breaker) = breakers.get_mut(key) else { return Ok(pass(false)) };
        let now = now();
        let probe = breaker.check(now)?;
        if probe {
            breaker.state = State::Probing { since: now };
        }
        Ok(pass(probe))
    }

    /// Breakers that are not closed, as organization, model and time until the next probe.
    pub fn open(&self, now: Instant) -> Vec<(Arc<str>, Arc<str>, Duration)> {
        let breakers = self.lock();
        let open = breakers.iter().filter_map(|((organization, model), breaker)| {
            let left = match breaker.state {
                State::Closed { .. } => return None,
                State::Open { until } => until.saturating_duration_since(now),
                State::Probing { .. } => Duration::ZERO,
            };
            Some((organization.clone(), model.clone(), left))
        });
        open.collect()
    }

    fn record(&self, key: &Key, policy: &config::Breaker, probe: bool, health: Health) {
        if !matches!(health, Health::Bad { .. }) && self.kept.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut breakers = self.lock();
        match health {
            Health::Good => {
                if let Some(breaker) = breakers.remove(key) {
                    breaker.changed.notify_waiters();
                }
            }
            Health::Bad { at } => {
                let fresh = || Breaker { state: State::Closed { failures: 0 }, changed: Arc::default() };
                let breaker = breakers.entry(key.clone()).or_insert_with(fresh);
                let failures = match breaker.state {
                    State::Closed { failures } => failures + 1,
                    State::Probing { .. } if probe => policy.failures,
                    // The attempt was sent before the breaker opened.
                    State::Open { .. } | State::Probing { .. } => return,
                };
                let opens = failures >= policy.failures;
                breaker.state = if opens { State::Open { until: at + policy.open } } else { State::Closed { failures } };
                breaker.changed.notify_waiters();
            }
            Health::Unknown => {
                // The probe was cancelled, so another request may be the probe at once.
                if let Some(breaker) = breakers.get_mut(key).filter(|_| probe)
                    && let State::Probing { since } = breaker.state
                {
                    breaker.state = State::Open { until: since };
                    breaker.changed.notify_waiters();
                }
            }
        }
        self.kept.store(breakers.len(), Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Breaker>> {
        self.breakers.lock().expect("no panic while the breakers are held")
    }
}

impl Breaker {
    /// Whether an attempt made now would be the probe.
    fn check(&self, now: Instant) -> Result<bool, Opened> {
        let until = match self.state {
            State::Closed { .. } => return Ok(false),
            State::Open { until } if until <= now => return Ok(true),
            State::Open { until } => Some(until),
            State::Probing { .. } => None,
        };
        Err(Opened { until, changed: self.changed.clone() })
    }
}

impl Pass<'_> {
    /// Whether this attempt is the probe of an open breaker.
    pub fn is_probe(&self) -> bool {
        self.probe
    }

    /// Records the outcome of the attempt.
    pub fn record(mut self, health: Health) {
        self.recorded = true;
        self.breakers.record(self.key, self.policy, self.probe, health);
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if !self.recorded {
            self.breakers.record(self.key, self.policy, self.probe, Health::Unknown);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: config::Breaker = config::Breaker { failures: 3, open: Duration::from_secs(5), max_wait: None };

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
            self.breakers.pass(&self.key, &POLICY, || self.now).ok()
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
        let probe = it.pass().expect("the probe is due");
        assert!(probe.is_probe() && it.pass().is_none(), "one probe at a time");
        probe.record(Health::Good);
        assert!(it.breakers.open(it.now).is_empty() && it.pass().is_some());
    }

    /// A request that is queued by the limits must not be the probe: all others would wait for it.
    #[test]
    fn a_check_takes_no_probe() {
        let mut it = Setup::new();
        it.fail(3);
        assert!(it.breakers.check(&it.key, || it.now).is_err());
        it.now += POLICY.open;
        assert!(it.breakers.check(&it.key, || it.now).is_ok() && it.breakers.check(&it.key, || it.now).is_ok());
        let probe = it.pass().expect("it has not been taken");
        assert!(probe.is_probe());
        assert_eq!(it.breakers.check(&it.key, || it.now).expect_err("a probe is under way").until, None);
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
    fn models_do_not_share_a_breaker() {
        let it = Setup::new();
        it.fail(3);
        let other: Key = ("org".into(), "other".into());
        assert!(it.breakers.pass(&other, &POLICY, || it.now).is_ok());
    }
}
