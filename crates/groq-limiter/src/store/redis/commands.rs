//! The messages between limiters and Redis: transactions, their answers, and updates by other replicas.

use std::{
    io,
    sync::{Arc, LazyLock, Weak, atomic::Ordering::Relaxed},
};

use redis::{FromRedisValue, ParsingError, PushInfo, PushKind, Script, Value, from_redis_value};
use sha2::{Digest, Sha256};
use tokio::{
    sync::{mpsc::UnboundedReceiver, oneshot},
    time::sleep,
};

use super::{RedisTask, SCRIPT, connection::Connection, health::RECONNECT_INTERVAL};
use crate::{
    request::Scope,
    shared::SharedLimiter,
    store::protocol::{Answer, State, Transaction},
    sync::lock,
};

static TRANSACTION: LazyLock<Script> = LazyLock::new(|| Script::new(SCRIPT));

impl RedisTask {
    /// Runs a limiter's transaction and passes its answer, or its failure, to the limiter.
    pub(super) async fn transact(self: Arc<Self>, limiter: Arc<SharedLimiter>, transaction: Transaction) {
        let (serial, request) = (transaction.serial, serde_json::to_string(&transaction).unwrap_or_default());
        let key = self.key(&limiter.key);
        self.register(&key, &limiter);
        self.health.calls.fetch_add(1, Relaxed);
        match self.run(&TRANSACTION, &[key], &[&request, &self.name, &self.channel()]).await {
            Ok((granted, wait, state)) => {
                let answer = Answer { granted, wait, state: State::seen_by(state, &self.name) };
                limiter.answered(serial, Some(&answer));
            }
            Err(_) => {
                limiter.answered(serial, None);
                // Only one node of a cluster may have failed: the store is still up, so the limiter tries it again.
                sleep(RECONNECT_INTERVAL).await;
                if self.health.up.load(Relaxed) {
                    limiter.change(limiter.now(), |limiter, now| limiter.share(None, now));
                }
            }
        }
    }

    /// Runs a script of the program's own. A failure has the same consequences as that of a transaction.
    pub(super) async fn run_for_program(
        self: Arc<Self>,
        script: &'static str,
        keys: Vec<String>,
        argument: String,
        answer: oneshot::Sender<Vec<String>>,
    ) {
        self.health.calls.fetch_add(1, Relaxed);
        if let Ok(reply) = self.run(&Script::new(script), &keys, &[&argument, &self.channel()]).await {
            // The caller may have stopped waiting.
            let _ = answer.send(reply);
        }
    }

    /// Receives the updates by other replicas until the connection is lost.
    pub(super) async fn receive(self: Arc<Self>, connection: Weak<Connection>, mut pushes: UnboundedReceiver<PushInfo>) {
        while let Some(push) = pushes.recv().await {
            let is_one = || connection.upgrade().is_some_and(|connection| matches!(*connection, Connection::One(_)));
            match push.kind {
                PushKind::Message => {
                    if let Some(Ok(text)) = push.data.into_iter().nth(1).map(from_redis_value) {
                        self.update(text);
                    }
                }
                // The loss of one node of a cluster is noticed when a script on it fails.
                PushKind::Disconnection if is_one() => {
                    self.lost(&connection, &io::Error::from(io::ErrorKind::ConnectionReset).into());
                }
                _ => {}
            }
        }
    }

    /// Passes an update to its limiter. What belongs to no limiter goes to the listener.
    fn update(&self, text: String) {
        let Some((key, record)) = text.split_once(' ') else { return };
        let limiter = lock(&self.known).get(key).and_then(Weak::upgrade);
        match (limiter, &*lock(&self.listener)) {
            (Some(limiter), _) => {
                if let Ok(state) = serde_json::from_str(record) {
                    let state = State::seen_by(state, &self.name);
                    limiter.change(limiter.now(), |limiter, now| {
                        if let Some(sharing) = limiter.sharing(now) {
                            sharing.updated(&state);
                        }
                    });
                }
            }
            // Sending fails only if the listener has been dropped.
            (None, Some(listener)) => drop(listener.send(text)),
            (None, None) => {}
        }
    }

    /// The key of a limiter's record. It contains a digest of the scope, so that the organization cannot be read from it, as
    /// the hash tag. `limits:` keeps it apart from the keys of version 0.1, which kept a hash under the digest alone.
    fn key(&self, limiter: &Scope) -> String {
        let mut digest = Sha256::new();
        for part in [&limiter.organization, &limiter.model, &limiter.tier] {
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part.as_bytes());
        }
        let digest: String = digest.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        format!("{}:limits:{{{digest}}}", self.settings.prefix)
    }

    /// Registers a limiter for the updates of its record.
    fn register(&self, key: &str, limiter: &Arc<SharedLimiter>) {
        let mut known = lock(&self.known);
        if known.get(key).is_none_or(|before| before.as_ptr() != Arc::as_ptr(limiter)) {
            known.retain(|_, limiter| limiter.strong_count() > 0);
            known.insert(key.into(), Arc::downgrade(limiter));
        }
    }
}

impl FromRedisValue for State {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        serde_json::from_str(&from_redis_value::<String>(value)?).map_err(|error| error.to_string().into())
    }
}
