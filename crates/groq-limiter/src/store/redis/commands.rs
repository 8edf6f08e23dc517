//! What limiters send to Redis and hear from it: transactions, their answers, updates of other replicas.

use std::{
    io,
    sync::{Arc, Weak, atomic::Ordering::Relaxed},
};

use redis::{ErrorKind, PushInfo, PushKind, RedisError, RedisResult, Script, from_redis_value};
use sha2::{Digest, Sha256};
use tokio::time::{sleep, timeout};

use super::{
    health::LOOK,
    task::{Connection, RedisTask, too_late},
    wire::Reply,
};
use crate::{
    limiter::Limiter,
    request::Scope,
    shared::SharedLimiter,
    store::protocol::{Answer, Transaction},
    store::{Call, ScriptCall},
    sync::lock,
};

impl RedisTask {
    /// Runs a limiter's transaction and tells it the end.
    pub(super) async fn call(self: Arc<Self>, call: Call<SharedLimiter>) {
        let generation = self.generation.load(Relaxed);
        let Call { limiter, transaction } = call;
        let key = self.key(&limiter.key);
        self.know(&key, &limiter);
        let connection = lock(&self.connection).clone();
        let of_cluster = matches!(connection, Some(Connection::Cluster(_)));
        let outcome = match connection {
            Some(connection) => timeout(self.settings.timeout, self.transact(connection, &key, &transaction)).await,
            None => Ok(Err(RedisError::from(io::Error::from(io::ErrorKind::NotConnected)))),
        };
        match outcome.unwrap_or_else(|_| Err(too_late())) {
            Ok(answer) => {
                if of_cluster {
                    self.keep_apart(|kept| *kept != key);
                }
                limiter.change_now(|limiter, now| limiter.answered(transaction.serial, &answer, now));
            }
            Err(why) => {
                if of_cluster {
                    if self.alone(&key, &why) {
                        tracing::warn!(error = %why, "a node of the store is lost: its limits are divided by the number of replicas");
                    }
                } else {
                    self.lost(generation, &why);
                }
                limiter.unanswered(transaction.serial);
                if of_cluster {
                    sleep(LOOK).await;
                    limiter.change_now(Limiter::reached);
                }
            }
        }
    }

    async fn transact(&self, mut connection: Connection, key: &str, transaction: &Transaction) -> RedisResult<Answer> {
        self.health.calls.fetch_add(1, Relaxed);
        let request = lock(&self.offset).request(transaction);
        let mut script = self.script.key(key);
        let script = script.key(format!("{key}:{}", self.name)).arg(request).arg(self.channel());
        let sent = self.clock.now();
        let reply = Reply::parse(script.invoke_async(&mut connection).await?).ok_or_else(not_understood)?;
        let mut offset = lock(&self.offset);
        offset.learn(reply.now, sent, self.clock.now());
        offset.answer(reply, &self.name).ok_or_else(not_understood)
    }

    /// Runs a script of the program's own. A failure is the store's, as for a limiter.
    pub(super) async fn run_script(self: Arc<Self>, call: ScriptCall) {
        let generation = self.generation.load(Relaxed);
        let ScriptCall { script, keys, argument, answer } = call;
        let Some(mut connection) = lock(&self.connection).clone() else { return };
        let of_cluster = matches!(connection, Connection::Cluster(_));
        let key = keys.first().cloned().unwrap_or_default();
        self.health.calls.fetch_add(1, Relaxed);
        let running = async {
            let script = Script::new(script);
            let mut invocation = script.prepare_invoke();
            invocation.key(keys).arg(argument).arg(self.channel());
            invocation.invoke_async(&mut connection).await
        };
        match timeout(self.settings.timeout, running).await.unwrap_or_else(|_| Err(too_late())) {
            // Who asked may have left.
            Ok(reply) => drop(answer.send(reply)),
            Err(why) if of_cluster => {
                self.alone(&key, &why);
            }
            Err(why) => {
                self.lost(generation, &why);
            }
        }
    }

    /// An update of another replica's, or a lost connection.
    pub(super) fn hear(&self, push: &PushInfo) {
        match push.kind {
            // One node of many; who talks to it will be told.
            PushKind::Disconnection if matches!(*lock(&self.connection), Some(Connection::Cluster(_))) => {}
            PushKind::Disconnection => {
                self.lost(self.generation.load(Relaxed), &RedisError::from(io::Error::from(io::ErrorKind::ConnectionReset)));
            }
            PushKind::Message => {
                let Some(text) = push.data.get(1).and_then(|value| from_redis_value::<String>(value.clone()).ok()) else {
                    return;
                };
                let Some((key, reply)) = text.split_once(' ') else { return };
                let limiter = lock(&self.known).get(key).and_then(Weak::upgrade);
                if limiter.is_none()
                    && let Some(listener) = &*lock(&self.listener)
                {
                    // One that has gone hears nothing more.
                    let _ = listener.send(text);
                    return;
                }
                let reply = serde_json::from_str(reply).ok().and_then(Reply::parse);
                if let Some((limiter, answer)) = limiter.zip(reply.and_then(|reply| lock(&self.offset).answer(reply, &self.name)))
                {
                    limiter.change_now(|limiter, now| limiter.updated(&answer.state, now));
                }
            }
            _ => {}
        }
    }

    /// A limiter's key: its name's digest, so that no organization is readable, as the hash tag.
    fn key(&self, limiter: &Scope) -> String {
        let mut digest = Sha256::new();
        for part in [&limiter.organization, &limiter.model, &limiter.tier] {
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part.as_bytes());
        }
        let digest: String = digest.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        format!("{}:{{{digest}}}", self.settings.prefix)
    }

    /// Where replicas publish what they change.
    pub(super) fn channel(&self) -> String {
        format!("{}:updates", self.settings.prefix)
    }

    fn know(&self, key: &str, limiter: &Arc<SharedLimiter>) {
        let mut known = lock(&self.known);
        if known.get(key).is_none_or(|before| before.as_ptr() != Arc::as_ptr(limiter)) {
            known.retain(|_, limiter| limiter.strong_count() > 0);
            known.insert(key.into(), Arc::downgrade(limiter));
        }
    }
}

fn not_understood() -> RedisError {
    RedisError::from((ErrorKind::UnexpectedReturnType, "an answer that is not the script's"))
}
