//! Every kind of Redis outage under load: the limit is neither exceeded nor left unused, and sharing resumes afterwards.
//!
//! `cargo test --test redis -- --ignored --nocapture every_outage` runs longer outages with two and eight processes.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use groq_limiter::{Limiters, types::Observation};
use nix::sys::signal::Signal;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    kit::{LONG_TIMEOUT, Redis, Upstream, admission, replica, tokens, until},
    load::{Tally, flood, with_both},
    network::{Fault, Network},
};

const LIMIT: u64 = 1_200_000;
/// The store's timeout, longer than the pauses of a busy machine.
pub(crate) const TIMEOUT: Duration = Duration::from_millis(500);

/// A kind of outage.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Outage {
    /// The process is killed, and restarted without data.
    Killed,
    /// The process is stopped with SIGSTOP, and continued later.
    Paused,
    /// Keys and scripts are deleted.
    Flushed,
    /// The network drops all bytes without closing connections.
    Cut,
    /// The network closes all connections.
    Closed,
    /// The server becomes a replica of another one, which makes it read-only and deletes its data.
    ReadOnly,
    /// The server sends invalid replies.
    WrongReplies,
    /// The server replies after the timeout.
    Slow,
    /// The server is killed, and its replica is read-only until it is promoted.
    FailedOver,
}

impl Outage {
    pub(crate) const EVERY: [Self; 9] = [
        Self::Killed,
        Self::Paused,
        Self::Flushed,
        Self::Cut,
        Self::Closed,
        Self::ReadOnly,
        Self::WrongReplies,
        Self::Slow,
        Self::FailedOver,
    ];

    /// Whether replicas lose the store in this outage.
    pub(crate) fn degrades(self) -> bool {
        self != Self::Flushed
    }
}

/// A Redis behind a relay, and a second one for outages that need it.
pub(crate) struct Scene {
    redis: Redis,
    second: Redis,
    network: Network,
}

impl Scene {
    pub(crate) async fn of(outage: Outage) -> Self {
        let (redis, second) = (Redis::start(&[]).await, Redis::start(&[]).await);
        if outage == Outage::FailedOver {
            second.command(&["REPLICAOF", "127.0.0.1", &redis.port().to_string()]);
            let start = Instant::now();
            while !second.command_text(&["INFO", "replication"]).contains("master_link_status:up") {
                assert!(start.elapsed() < Duration::from_secs(20), "the replica does not follow");
                sleep(Duration::from_millis(20)).await;
            }
        }
        let network = Network::in_front_of(redis.port()).await;
        Self { redis, second, network }
    }

    pub(crate) fn url(&self) -> String {
        self.network.url()
    }

    pub(crate) async fn strike(&mut self, outage: Outage) {
        match outage {
            Outage::Killed => self.redis.kill(),
            Outage::Paused => self.redis.signal(Signal::SIGSTOP),
            Outage::Flushed => {
                self.redis.command(&["FLUSHALL"]);
                self.redis.command(&["SCRIPT", "FLUSH"]);
            }
            Outage::Cut => self.network.set(Fault::Drop),
            Outage::Closed => self.network.set(Fault::Closed),
            Outage::ReadOnly => {
                self.redis.command(&["REPLICAOF", "127.0.0.1", &self.second.port().to_string()]);
            }
            Outage::WrongReplies => self.network.set(Fault::WrongReplies),
            Outage::Slow => self.network.set(Fault::Slow(2 * TIMEOUT)),
            Outage::FailedOver => {
                self.network.connect_to(self.second.port());
                self.redis.kill();
            }
        }
    }

    pub(crate) async fn heal(&mut self, outage: Outage) {
        match outage {
            Outage::Killed => self.redis.restart().await,
            Outage::Paused => self.redis.signal(Signal::SIGCONT),
            Outage::Flushed => {}
            Outage::Cut | Outage::Closed | Outage::WrongReplies | Outage::Slow => self.network.set(Fault::None),
            Outage::ReadOnly => {
                self.redis.command(&["REPLICAOF", "NO", "ONE"]);
            }
            Outage::FailedOver => {
                self.second.command(&["REPLICAOF", "NO", "ONE"]);
            }
        }
    }

    /// Used tokens of the fullest limiter, according to the store.
    pub(crate) fn used(&self, outage: Outage, limit: u64) -> f64 {
        const FULLEST: &str = "
            local time, fullest = redis.call('TIME'), 0
            for _, key in ipairs(redis.call('KEYS', '*{*}')) do
                local record = cjson.decode(redis.call('GET', key))
                fullest = math.max(fullest, record.quotas.TPM.tat + record.epoch - time[1] * 1000000 - time[2])
            end
            return string.format('%.0f', fullest)";
        let redis = if outage == Outage::FailedOver { &self.second } else { &self.redis };
        let micros: f64 = redis.command_text(&["EVAL", FULLEST, "0"]).parse().expect("a number");
        micros / 60e6 * limit as f64
    }
}

/// The result of a run.
#[derive(Debug)]
struct Outcome {
    outage: Outage,
    used: f64,
    sent: u64,
    refused: u64,
    /// Time from the start of the outage until all replicas were degraded.
    lost: Duration,
    /// Time from the end of the outage until no replica was degraded.
    back: Duration,
    /// Longest time to a grant on a limiter that has room.
    longest: Duration,
    /// Used tokens after the outage, according to the store and to the upstream.
    charged: (f64, f64),
}

async fn under_load(outage: Outage, count: usize) -> Outcome {
    let mut scene = Scene::of(outage).await;
    let replicas: Vec<_> = (0..count).map(|_| replica(&scene.url(), tokens(LIMIT), TIMEOUT)).collect();
    until(false, &replicas).await;
    let upstream = Upstream::new(LIMIT);
    upstream.reserve(LIMIT * 9 / 10).expect("an unused limit");
    let start = Instant::now();
    let (from, end) = (start + Duration::from_secs(2), start + Duration::from_secs(16));
    let course = async {
        sleep(Duration::from_secs(4)).await;
        scene.strike(outage).await;
        let struck = Instant::now();
        if outage.degrades() {
            until(true, &replicas).await;
        }
        let lost = struck.elapsed();
        sleep(Duration::from_secs(4)).await;
        scene.heal(outage).await;
        let healed = Instant::now();
        until(false, &replicas).await;
        let back = healed.elapsed();
        // By now the limiters have reported what they used during the outage.
        sleep(Duration::from_millis(500)).await;
        (lost, back, (scene.used(outage, LIMIT), upstream.used()))
    };
    let load = flood(with_both(&replicas), "m", &upstream, 40 / count, from, end);
    let (tally, (lost, back, charged), longest) = tokio::join!(load, course, admitted_at_once(&replicas[0], end));
    let Tally { used, sent, refused, .. } = &*tally;
    let used = used.load(Relaxed) as f64 / ((end - from).as_secs() * LIMIT / 60) as f64;
    Outcome { outage, used, sent: sent.load(Relaxed), refused: refused.load(Relaxed), lost, back, longest, charged }
}

/// Sends requests until `end` on a limiter that has room for them. Returns the longest time to a grant.
async fn admitted_at_once(limits: &Limiters, end: Instant) -> Duration {
    let mut longest = Duration::ZERO;
    while Instant::now() < end {
        let asked = Instant::now();
        let request = groq_limiter::AdmissionRequest { model: "unhindered".into(), ..admission("a", 10, 10) };
        let mut granted = limits.reserve(&request, asked + Duration::from_secs(20), None).await.expect("room");
        longest = longest.max(asked.elapsed());
        granted.sent(Instant::now());
        granted.observe(&Observation::default(), Instant::now());
        sleep(Duration::from_millis(50)).await;
    }
    longest
}

/// All kinds of outages at the same time, each with two replicas.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shared_limit_is_kept_and_used_in_every_outage() {
    let mut scenes = JoinSet::new();
    for outage in Outage::EVERY {
        scenes.spawn(under_load(outage, 2));
    }
    for outcome in scenes.join_all().await {
        println!("{outcome:?}");
        let Outcome { outage, used, sent, refused, lost, back, longest, charged: (charged, truth) } = outcome;
        assert!(refused <= 1 + sent / 1000, "{outage:?}: {refused} of {sent} were refused");
        assert!(used > 0.95, "{outage:?}: {used} of the limit was used");
        assert!(longest < TIMEOUT + Duration::from_secs(2), "{outage:?}: a request waited {longest:?} for Redis");
        assert!(lost < Duration::from_secs(10), "{outage:?}: known after {lost:?}");
        assert!(back < Duration::from_secs(10), "{outage:?}: back after {back:?}");
        assert!(charged >= truth - 0.05 * LIMIT as f64, "{outage:?}: {charged} of {truth} are charged");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_served_when_redis_was_never_reachable() {
    let alone = replica("redis://127.0.0.1:1", tokens(LIMIT), LONG_TIMEOUT);
    let granted = alone.reserve(&admission("a", 10, 10), Instant::now() + Duration::from_secs(5), None).await.expect("granted");
    assert!(granted.waited() < Duration::from_secs(1), "{:?}", granted.waited());
    assert!(alone.store().expect("a store").is_degraded());
}
