//! The heartbeat: it keeps the connection to Redis open, announces this replica, and counts the replicas.

use std::{
    io,
    sync::{Arc, LazyLock, atomic::Ordering::Relaxed},
    time::Duration,
};

use redis::{RedisResult, Script};
use tokio::{
    sync::mpsc::unbounded_channel,
    time::{Instant, sleep, timeout},
};

use super::{
    RedisTask,
    connection::{CONNECT, Connection},
};
use crate::sync::lock;

/// How often a replica announces itself.
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(1);
/// How often an unreachable store is tried again.
pub(super) const RECONNECT_INTERVAL: Duration = Duration::from_millis(500);
/// How long a silent replica still counts. All replicas announce themselves to a store that restarts empty within this time.
const SILENT: Duration = Duration::from_secs(5);

/// Announces a replica, removes the silent ones, and returns the number of replicas.
static ANNOUNCE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local time = redis.call('TIME')
        local now = time[1] * 1000000 + time[2]
        redis.call('ZADD', KEYS[1], now, ARGV[1])
        redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
        redis.call('PEXPIRE', KEYS[1], 60000)
        return redis.call('ZCARD', KEYS[1])",
    )
});

impl RedisTask {
    /// Announces this replica periodically, and reconnects after the store was lost.
    pub(super) async fn heartbeat(self: Arc<Self>) {
        let mut logged = None;
        loop {
            let was_up = self.health.up.load(Relaxed);
            match self.announce().await {
                Ok(()) => {
                    if self.limiters.upgrade().is_some_and(|limiters| limiters.store_is(true)) {
                        tracing::info!(replicas = self.health.replicas.load(Relaxed), "the store answers: limits are shared");
                        logged = None;
                    }
                }
                Err(why) => {
                    self.note(&why);
                    let text = Some(why.to_string());
                    if !was_up && logged != text {
                        tracing::warn!(error = %why, "the store is unreachable");
                    }
                    logged = text;
                }
            }
            sleep(if self.health.up.load(Relaxed) { ANNOUNCE_INTERVAL } else { RECONNECT_INTERVAL }).await;
        }
    }

    /// Connects if there is no connection, and announces this replica.
    async fn announce(self: &Arc<Self>) -> RedisResult<()> {
        if lock(&self.connection).is_none() {
            let (pushes, pushed) = unbounded_channel();
            let channel = self.channel();
            let opening = timeout(CONNECT, Connection::open(&self.settings, &channel, pushes));
            let connection = Arc::new(opening.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??);
            tokio::spawn(self.clone().receive(Arc::downgrade(&connection), pushed));
            *lock(&self.connection) = Some(connection);
        }
        match self.run(&ANNOUNCE, &[self.replicas_key()], &[&self.name, &SILENT.as_micros().to_string()]).await {
            Ok(replicas) => self.count(replicas),
            // With a cluster, the other nodes may still answer.
            Err(why) if lock(&self.connection).is_none() => return Err(why),
            Err(_) => {}
        }
        Ok(())
    }

    /// Updates the number of replicas. A lower number is taken over only after twice the time for which a silent replica
    /// counts, because a store that has restarted does not know all replicas yet.
    fn count(&self, replicas: u32) {
        let mut counted = lock(&self.counted);
        if replicas >= counted.0 || counted.1.elapsed() > 2 * SILENT {
            *counted = (replicas.max(1), Instant::now());
            self.health.replicas.store(counted.0, Relaxed);
        }
    }

    fn replicas_key(&self) -> String {
        format!("{}:replicas", self.settings.prefix)
    }
}
