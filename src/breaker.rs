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

use crate::{config, error::Rejection};

/// What is known of one lane's upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Answers; so many failures in a row.
    Closed { failures: u32 },
    /// Failed too often; nothing is sent until then.
    Open { until: Instant },
    /// One request is finding out.
    Probing,
}

/// How an attempt ended, as far as the upstream's health goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It answered, whatever it said (5xx apart).
    Good,
    /// 5xx, or no whole answer.
    Bad,
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

/// Either go, or wait: until a time, or until the probe is back.
enum Admission {
    Go { probe: bool },
    Wait { until: Option<Instant>, changed: Arc<Notify> },
}

impl Breakers {
    /// Waits while the breaker is open, at most until `deadline`; refuses at once what cannot make it.
    pub async fn admit<'a>(
        &'a self,
        key: &'a Key,
        policy: &'a config::Breaker,
        deadline: Instant,
    ) -> Result<Pass<'a>, Rejection> {
        let pass = |probe| Ok(Pass { breakers: self, policy, key, probe, told: false });
        if self.troubled.load(Ordering::Relaxed) == 0 {
            return pass(false);
        }
        loop {
            let now = Instant::now();
            let (until, changed) = match self.try_admit(key, now) {
                Admission::Go { probe } => return pass(probe),
                Admission::Wait { until, changed } => (until, changed),
            };
            // Registered before the state is read again, so that no change is missed.
            let notified = changed.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if let Admission::Go { probe } = self.try_admit(key, now) {
                return pass(probe);
            }
            let retry_after = until.map_or(policy.open, |until| until - now);
            if until.unwrap_or(now) >= deadline || now >= deadline {
                return Err(Rejection::BreakerOpen { retry_after });
            }
            tokio::select! {
                () = &mut notified => {}
                () = tokio::time::sleep_until(until.unwrap_or(deadline)) => {}
            }
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
                State::Probing => Duration::ZERO,
            };
            Some((organisation.clone(), model.clone(), left))
        });
        open.collect()
    }

    fn try_admit(&self, key: &Key, now: Instant) -> Admission {
        let mut lanes = self.lock();
        let Some(lane) = lanes.get_mut(key) else { return Admission::Go { probe: false } };
        match lane.state {
            State::Closed { .. } => Admission::Go { probe: false },
            State::Open { until } if until <= now => {
                lane.state = State::Probing;
                Admission::Go { probe: true }
            }
            State::Open { until } => Admission::Wait { until: Some(until), changed: lane.changed.clone() },
            State::Probing => Admission::Wait { until: None, changed: lane.changed.clone() },
        }
    }

    fn record(&self, key: &Key, policy: &config::Breaker, probe: bool, health: Health, now: Instant) {
        if health != Health::Bad && self.troubled.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut lanes = self.lock();
        match health {
            Health::Good => {
                if let Some(lane) = lanes.remove(key) {
                    lane.changed.notify_waiters();
                }
            }
            Health::Bad => {
                let lane = lanes
                    .entry(key.clone())
                    .or_insert_with(|| Lane { state: State::Closed { failures: 0 }, changed: Arc::default() });
                let failures = match lane.state {
                    State::Closed { failures } => failures + 1,
                    State::Probing if probe => policy.failures,
                    // Late news of attempts sent before it opened.
                    State::Open { .. } | State::Probing => return,
                };
                lane.state = State::Closed { failures };
                if failures >= policy.failures {
                    lane.state = State::Open { until: now + policy.open };
                }
                lane.changed.notify_waiters();
            }
            Health::Unknown if probe => {
                if let Some(lane) = lanes.get_mut(key)
                    && lane.state == State::Probing
                {
                    lane.state = State::Open { until: now };
                    lane.changed.notify_waiters();
                }
            }
            Health::Unknown => {}
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
    pub fn record(mut self, health: Health, now: Instant) {
        self.told = true;
        self.breakers.record(self.key, self.policy, self.probe, health, now);
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if !self.told {
            self.breakers.record(self.key, self.policy, self.probe, Health::Unknown, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: config::Breaker = config::Breaker { failures: 3, open: Duration::from_secs(5) };

    fn key() -> Key {
        ("org".into(), "model".into())
    }

    async fn attempt(breakers: &Breakers, health: Health) {
        let key = key();
        let pass = breakers.admit(&key, &POLICY, Instant::now() + Duration::from_secs(60)).await;
        pass.expect("patience enough").record(health, Instant::now());
    }

    async fn refused(breakers: &Breakers, patience: u64) -> Option<Duration> {
        match breakers.admit(&key(), &POLICY, Instant::now() + Duration::from_secs(patience)).await {
            Err(Rejection::BreakerOpen { retry_after }) => Some(retry_after),
            _ => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn opens_after_failures_in_a_row_and_closes_by_one_probe() {
        let breakers = Breakers::default();
        for _ in 0..2 {
            attempt(&breakers, Health::Bad).await;
        }
        attempt(&breakers, Health::Good).await;
        for _ in 0..3 {
            assert_eq!(refused(&breakers, 1).await, None, "two and three in a row are different things");
            attempt(&breakers, Health::Bad).await;
        }
        assert_eq!(refused(&breakers, 1).await, Some(POLICY.open));
        tokio::time::advance(Duration::from_secs(5)).await;
        attempt(&breakers, Health::Good).await;
        assert!(breakers.open(Instant::now()).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn our_own_refusals_never_count_against_groqs_health() {
        let breakers = Breakers::default();
        for _ in 0..100 {
            attempt(&breakers, Health::Unknown).await;
        }
        assert_eq!(refused(&breakers, 1).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn waits_for_the_probe_where_patience_allows() {
        let breakers = Breakers::default();
        for _ in 0..3 {
            attempt(&breakers, Health::Bad).await;
        }
        let start = Instant::now();
        let key = key();
        let probe = breakers.admit(&key, &POLICY, start + Duration::from_secs(60)).await.expect("the probe");
        assert_eq!(start.elapsed(), POLICY.open);
        let deadline = Instant::now() + Duration::from_secs(60);
        let second = breakers.admit(&key, &POLICY, deadline);
        tokio::pin!(second);
        assert!(futures_pending(&mut second).await, "one probe at a time");
        probe.record(Health::Good, Instant::now());
        second.await.expect("closed").record(Health::Good, Instant::now());
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_leaves_hands_on_its_turn() {
        let breakers = Breakers::default();
        for _ in 0..3 {
            attempt(&breakers, Health::Bad).await;
        }
        let key = key();
        let probe = breakers.admit(&key, &POLICY, Instant::now() + Duration::from_secs(60)).await;
        drop(probe);
        attempt(&breakers, Health::Good).await;
        assert!(!breakers.is_open(&key));
    }

    async fn futures_pending<F: Future + Unpin>(future: &mut F) -> bool {
        tokio::time::timeout(Duration::from_secs(1), future).await.is_err()
    }
}
