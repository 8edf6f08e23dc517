//! Whether Redis can be reached, and how many replicas share it.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use redis::{RedisError, RedisResult, cmd};
use tokio::time::{Instant, sleep, timeout};

use super::{
    connect::CONNECT,
    task::{Connection, RedisTask, too_late},
};
use crate::sync::lock;

/// A replica announces itself this often.
const BEAT: Duration = Duration::from_secs(1);
/// A store that is out of reach is looked for this often.
pub(super) const LOOK: Duration = Duration::from_millis(500);
/// So long a replica counts that has gone silent: a store that restarts empty hears of all of them again meanwhile.
const SILENT: Duration = Duration::from_secs(5);

/// Announces a replica: the time, how many there are, and who has been silent for that long, for a minute.
pub(super) const ANNOUNCE: &str = "
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local function ago(span) return string.format('%.0f', now - span) end
redis.call('ZADD', KEYS[1], ago(0), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ago(60000000))
redis.call('PEXPIRE', KEYS[1], 60000)
local silent = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ago(ARGV[2]))
return { ago(0), redis.call('ZCARD', KEYS[1]) - #silent, silent }";

impl RedisTask {
    /// Announces this replica, and finds the store again when it was lost.
    pub(super) async fn beat(self: Arc<Self>) {
        let mut said = None;
        loop {
            let generation = self.generation.load(Relaxed);
            match timeout(CONNECT + self.settings.timeout, self.reached()).await.unwrap_or_else(|_| Err(too_late())) {
                Ok(()) => {
                    if self.limiters.upgrade().is_some_and(|limiters| limiters.store_reached()) {
                        tracing::info!(replicas = self.health.replicas.load(Relaxed), "the store answers: limits are shared");
                        said = None;
                    }
                    if !lock(&self.silent).is_empty() {
                        tokio::spawn(self.clone().give_back());
                    }
                }
                Err(why) => {
                    let words = Some(self.because(&why));
                    if !self.lost(generation, &why) && said != words {
                        tracing::warn!(error = %why, "the store is unreachable");
                    }
                    said = words;
                }
            }
            sleep(if self.health.up.load(Relaxed) { BEAT } else { LOOK }).await;
        }
    }

    /// Connects if need be, and announces this replica.
    async fn reached(&self) -> RedisResult<()> {
        let connection = lock(&self.connection).clone();
        let mut connection = match connection {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let sent = self.clock.now();
        let key = format!("{}:replicas", self.settings.prefix);
        let mut announce = self.announce.key(&key);
        let announce = announce.arg(&self.name).arg(SILENT.as_micros() as u64);
        let announced = timeout(self.settings.timeout, announce.invoke_async(&mut connection));
        let announced: RedisResult<(i64, u32, Vec<String>)> = announced.await.unwrap_or_else(|_| Err(too_late()));
        match (announced, &connection) {
            (Ok((now, replicas, silent)), _) => {
                lock(&self.offset).learn(now, sent, self.clock.now());
                self.count(replicas);
                self.note_silent(silent);
                let known = lock(&self.known);
                self.keep_apart(|kept| *kept != key && known.get(kept).is_some_and(|limiter| limiter.strong_count() > 0));
            }
            // That node's limiters will find out by themselves; the other nodes' need not suffer.
            (Err(why), Connection::Cluster(_)) => drop(self.alone(&key, &why)),
            (Err(why), Connection::One(_)) => return Err(why),
        }
        *lock(&self.connection) = Some(connection);
        Ok(())
    }

    /// The store is lost, unless that is known. Whether nobody knew.
    pub(super) fn lost(&self, generation: u64, why: &RedisError) -> bool {
        if self.generation.compare_exchange(generation, generation + 1, Relaxed, Relaxed).is_err() {
            return false;
        }
        *lock(&self.connection) = None;
        self.keep_apart(|_| false);
        // It may have been the store that did not hear them.
        lock(&self.silent).clear();
        self.because(why);
        let is_news = self.limiters.upgrade().is_some_and(|limiters| limiters.store_lost());
        if is_news {
            let replicas = self.health.replicas.load(Relaxed);
            tracing::warn!(error = %why, replicas, "the store is lost: every limit is divided by the number of replicas");
        }
        is_news
    }

    /// A cluster's node does not answer for this key. Whether nobody knew.
    pub(super) fn alone(&self, key: &str, why: &RedisError) -> bool {
        self.because(why);
        let mut apart = lock(&self.apart);
        let new = apart.insert(key.into());
        self.health.apart.store(apart.len(), Relaxed);
        new
    }

    /// Only these keys' nodes do not answer.
    pub(super) fn keep_apart(&self, keep: impl Fn(&String) -> bool) {
        let mut apart = lock(&self.apart);
        apart.retain(keep);
        self.health.apart.store(apart.len(), Relaxed);
    }

    /// Takes note of it, for people.
    fn because(&self, why: &RedisError) -> Arc<str> {
        let why: Arc<str> = why.to_string().into();
        *lock(&self.health.why) = Some(why.clone());
        why
    }

    /// The replicas that count: the most that were heard of within the time that one may be silent.
    fn count(&self, replicas: u32) {
        let mut counted = lock(&self.counted);
        if replicas >= counted.0 || counted.1.elapsed() > 2 * SILENT {
            *counted = (replicas.max(1), Instant::now());
            self.health.replicas.store(counted.0, Relaxed);
        }
    }

    /// In order at exit: the others need not wait until this one is missed.
    pub(super) async fn leave(&self) {
        let Some(mut connection) = lock(&self.connection).take() else { return };
        let mut leave = cmd("ZREM");
        leave.arg(format!("{}:replicas", self.settings.prefix)).arg(&self.name);
        let left: Result<RedisResult<()>, _> = timeout(self.settings.timeout, leave.query_async(&mut connection)).await;
        if let Ok(Err(why)) = left {
            tracing::debug!(error = %why, "the store was not told that this replica leaves");
        }
    }
}
