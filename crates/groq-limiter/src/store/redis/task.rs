//! The state of the thread that talks to Redis, and how it calls it.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, Weak, atomic::Ordering::Relaxed},
};

use redis::{FromRedisValue, RedisError, RedisResult, Script};
use tokio::{
    sync::mpsc::UnboundedSender,
    time::{Instant, timeout},
};

use super::connection::Connection;
use crate::{registry::Registry, settings::RedisSettings, shared::SharedLimiter, store::StoreHealth, sync::lock};

/// The thread's state.
pub(super) struct RedisTask {
    pub(super) settings: RedisSettings,
    /// This replica's.
    pub(super) name: String,
    pub(super) connection: Mutex<Option<Arc<Connection>>>,
    /// The most replicas heard of lately, and when.
    pub(super) counted: Mutex<(u32, Instant)>,
    /// Limiters by key, for published changes.
    pub(super) known: Mutex<HashMap<String, Weak<SharedLimiter>>>,
    /// Who hears updates that are of no limiter.
    pub(super) listener: Mutex<Option<UnboundedSender<String>>>,
    pub(super) limiters: Weak<Registry>,
    pub(super) health: Arc<StoreHealth>,
}

impl RedisTask {
    /// Runs a script within the time limit. A failure is that of the whole store, or of the cluster's node that holds the key.
    pub(super) async fn run<T: FromRedisValue>(&self, script: &Script, keys: &[String], arguments: &[&str]) -> RedisResult<T> {
        let Some(connection) = lock(&self.connection).clone() else {
            return Err(io::Error::from(io::ErrorKind::NotConnected).into());
        };
        let mut call = script.prepare_invoke();
        call.key(keys).arg(arguments);
        let outcome = timeout(self.settings.timeout, connection.run(&call))
            .await
            .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer within store.timeout").into()));
        match (&outcome, &*connection) {
            (Err(why), Connection::One(_)) => self.lost(&Arc::downgrade(&connection), why),
            (Err(why), Connection::Cluster(_)) => {
                self.note(why);
                // The program asks again by itself, or not.
                if lock(&self.known).contains_key(&keys[0]) && lock(&self.health.apart).insert(keys[0].clone()) {
                    tracing::warn!(error = %why, "a node of the store is lost: its limits are divided by the number of replicas");
                }
            }
            (Ok(_), _) => {
                lock(&self.health.apart).remove(&keys[0]);
            }
        }
        outcome
    }

    /// The store is lost, unless there is another connection to it by now.
    pub(super) fn lost(&self, connection: &Weak<Connection>, why: &RedisError) {
        if lock(&self.connection).take_if(|current| Arc::as_ptr(current) == connection.as_ptr()).is_none() {
            return;
        }
        self.note(why);
        if self.limiters.upgrade().is_some_and(|limiters| limiters.store_is(false)) {
            let replicas = self.health.replicas.load(Relaxed);
            tracing::warn!(error = %why, replicas, "the store is lost: every limit is divided by the number of replicas");
        }
    }

    /// Takes note of it, for people.
    pub(super) fn note(&self, why: &RedisError) {
        *lock(&self.health.why) = Some(why.to_string().into());
    }

    /// Where replicas publish what they change.
    pub(super) fn channel(&self) -> String {
        format!("{}:updates", self.settings.prefix)
    }
}
