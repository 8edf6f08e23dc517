//! Whether Redis can be reached, and how many replicas share it.

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

/// A replica announces itself this often.
const BEAT: Duration = Duration::from_secs(1);
/// A store that is out of reach is looked for this often.
pub(super) const LOOK: Duration = Duration::from_millis(500);
/// So long a replica counts that has gone silent: a store that restarts empty hears of all of them again meanwhile.
const SILENT: Duration = Duration::from_secs(5);

/// Announces a replica, and counts those that have been heard of.
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
/// In order at exit: the others need not wait until this one is missed.
static LEAVE: LazyLock<Script> = LazyLock::new(|| Script::new("return redis.call('ZREM', KEYS[1], ARGV[1])"));

impl RedisTask {
    /// Announces this replica, and finds the store again when it was lost.
    pub(super) async fn beat(self: Arc<Self>) {
        let mut said = None;
        loop {
            let was_up = self.health.up.load(Relaxed);
            match self.reach().await {
                Ok(()) => {
                    if self.limiters.upgrade().is_some_and(|limiters| limiters.store_is(true)) {
                        tracing::info!(replicas = self.health.replicas.load(Relaxed), "the store answers: limits are shared");
                        said = None;
                    }
                }
                Err(why) => {
                    self.note(&why);
                    let words = Some(why.to_string());
                    if !was_up && said != words {
                        tracing::warn!(error = %why, "the store is unreachable");
                    }
                    said = words;
                }
            }
            sleep(if self.health.up.load(Relaxed) { BEAT } else { LOOK }).await;
        }
    }

    /// Connects if need be, and announces this replica.
    async fn reach(self: &Arc<Self>) -> RedisResult<()> {
        if lock(&self.connection).is_none() {
            let (pushes, heard) = unbounded_channel();
            let channel = self.channel();
            let opening = timeout(CONNECT, Connection::open(&self.settings, &channel, pushes));
            let connection = Arc::new(opening.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??);
            tokio::spawn(self.clone().hear(Arc::downgrade(&connection), heard));
            *lock(&self.connection) = Some(connection);
        }
        match self.run(&ANNOUNCE, &[self.replicas_key()], &[&self.name, &SILENT.as_micros().to_string()]).await {
            Ok(replicas) => self.count(replicas),
            // A cluster's other nodes may be well.
            Err(why) if lock(&self.connection).is_none() => return Err(why),
            Err(_) => {}
        }
        Ok(())
    }

    /// The replicas that count: the most that were heard of within the time that one may be silent.
    fn count(&self, replicas: u32) {
        let mut counted = lock(&self.counted);
        if replicas >= counted.0 || counted.1.elapsed() > 2 * SILENT {
            *counted = (replicas.max(1), Instant::now());
            self.health.replicas.store(counted.0, Relaxed);
        }
    }

    pub(super) async fn leave(&self) {
        let left: RedisResult<()> = self.run(&LEAVE, &[self.replicas_key()], &[&self.name]).await;
        if let Err(why) = left {
            tracing::debug!(error = %why, "the store was not told that this replica leaves");
        }
    }

    fn replicas_key(&self) -> String {
        format!("{}:replicas", self.settings.prefix)
    }
}
