//! Reservations of killed replicas: the others notice the silence and give them back, limiter by limiter.

use std::{collections::HashSet, sync::Arc, time::Duration};

use redis::RedisResult;
use tokio::time::{Instant, timeout};

use super::task::{RedisTask, Silent, too_late};
use crate::sync::lock;

/// It must have been silent for so long since it was missed: a store that comes back has heard of nobody for a while.
const SURE: Duration = Duration::from_secs(3);

impl RedisTask {
    /// These are silent, and nobody else.
    pub(super) fn note_silent(&self, names: Vec<String>) {
        let mut silent = lock(&self.silent);
        silent.retain(|one| names.contains(&one.name));
        for name in names {
            if silent.iter().all(|one| one.name != name) {
                silent.push(Silent { name, since: Instant::now(), done: HashSet::new() });
            }
        }
    }

    /// Gives back what they had reserved on the limiters that this replica knows. Whoever is first does it.
    pub(super) async fn give_back(self: Arc<Self>) {
        let known: Vec<String> =
            lock(&self.known).iter().filter(|(_, limiter)| limiter.strong_count() > 0).map(|(key, _)| key.clone()).collect();
        let due: Vec<(String, String)> = {
            let mut silent = lock(&self.silent);
            let sure = silent.iter_mut().filter(|one| one.since.elapsed() >= SURE);
            sure.flat_map(|Silent { name, done, .. }| {
                let new = known.iter().filter(|key| done.insert((*key).clone()));
                new.map(|key| (name.clone(), key.clone())).collect::<Vec<_>>()
            })
            .collect()
        };
        for (name, key) in due {
            match self.give_back_on(&name, &key).await {
                Ok(0) => {}
                Ok(_) => tracing::info!(replica = name, "a replica is silent: what it had reserved has come back"),
                // The minute's limits fill up by themselves, and headers show the day's.
                Err(why) => tracing::warn!(replica = name, error = %why, "what a silent replica had reserved stays reserved"),
            }
        }
    }

    async fn give_back_on(&self, name: &str, key: &str) -> RedisResult<u32> {
        let Some(mut connection) = lock(&self.connection).clone() else { return Err(too_late()) };
        let mut script = self.give_back.key(key);
        let script = script.key(format!("{key}:{name}")).arg(self.channel());
        timeout(self.settings.timeout, script.invoke_async(&mut connection)).await.unwrap_or_else(|_| Err(too_late()))
    }
}
