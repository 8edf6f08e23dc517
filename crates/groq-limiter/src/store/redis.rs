//! Redis (or Valkey) as the shared store, with one connection on a thread of its own. Each transaction runs as one script,
//! which publishes the changed record to the other replicas. Replicas announce themselves every second, so that each knows
//! how many there are. This is the only part of the crate that uses the network.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, LazyLock, Mutex, Weak, atomic::Ordering::Relaxed},
    time::Duration,
};

use redis::{FromRedisValue, ParsingError, PushInfo, PushKind, RedisError, RedisResult, Script, Value, from_redis_value};
use sha2::{Digest, Sha256};
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::{Instant, sleep, timeout},
};

use self::connection::{CONNECT, Connection};
use crate::{
    registry::Registry,
    request::Scope,
    settings::RedisSettings,
    shared::SharedLimiter,
    store::{
        Command, StoreHealth,
        protocol::{Answer, State, Transaction},
    },
    sync::lock,
};

mod connection;

/// How often a replica announces itself.
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(1);
/// How often an unreachable store is tried again.
const RECONNECT_INTERVAL: Duration = Duration::from_millis(500);
/// How long a silent replica still counts. All replicas announce themselves to a store that restarts empty within this time.
const SILENT: Duration = Duration::from_secs(5);

/// One transaction as a Lua script, which Redis runs atomically.
pub const SCRIPT: &str = include_str!("redis/transaction.lua");
static TRANSACTION: LazyLock<Script> = LazyLock::new(|| Script::new(SCRIPT));
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

/// The thread's state.
struct RedisTask {
    settings: RedisSettings,
    /// The random name of this replica.
    name: String,
    connection: Mutex<Option<Arc<Connection>>>,
    /// The largest number of replicas counted lately, and when it was counted or the store came back.
    counted: Mutex<(u32, Instant)>,
    /// Limiters by their key in the store, to find the limiter of a published record.
    known: Mutex<HashMap<String, Weak<SharedLimiter>>>,
    /// Gets the updates that do not belong to a limiter.
    listener: Mutex<Option<UnboundedSender<String>>>,
    limiters: Weak<Registry>,
    health: Arc<StoreHealth>,
}

/// Starts the thread that processes `commands`. It ends when all handles to the store have been dropped.
pub(crate) fn start(
    settings: RedisSettings,
    health: Arc<StoreHealth>,
    limiters: Weak<Registry>,
    commands: UnboundedReceiver<Command>,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let task = Arc::new(RedisTask {
        name: format!("{:016x}", fastrand::u64(..)),
        connection: Mutex::default(),
        counted: Mutex::new((settings.replicas, Instant::now())),
        settings,
        known: Mutex::default(),
        listener: Mutex::default(),
        limiters,
        health,
    });
    let body = move || runtime.block_on(task.process(commands));
    std::thread::Builder::new().name("store".into()).spawn(body).map(drop)
}

/// Commands of the limiters and of the program.
impl RedisTask {
    /// Processes commands until all handles to the store have been dropped.
    async fn process(self: Arc<Self>, mut commands: UnboundedReceiver<Command>) {
        tokio::spawn(self.clone().heartbeat());
        while let Some(command) = commands.recv().await {
            match command {
                Command::Transact(scope, transaction) => {
                    if let Some(limiter) = self.limiters.upgrade().and_then(|limiters| limiters.get(&scope)) {
                        tokio::spawn(self.clone().transact(limiter, transaction));
                    }
                }
                // A failure of the program's own script has the same consequences as that of a transaction.
                Command::Run { script, keys, argument, answer } => {
                    let task = self.clone();
                    tokio::spawn(async move {
                        task.health.calls.fetch_add(1, Relaxed);
                        if let Ok(reply) = task.run(&Script::new(script), &keys, &[&argument, &task.channel()]).await {
                            // The caller may have stopped waiting.
                            let _ = answer.send(reply);
                        }
                    });
                }
                Command::Listen(listener) => *lock(&self.listener) = Some(listener),
            }
        }
    }

    /// Runs a limiter's transaction and passes its answer, or its failure, to the limiter.
    async fn transact(self: Arc<Self>, limiter: Arc<SharedLimiter>, transaction: Transaction) {
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

/// The connection, and what comes over it unasked.
impl RedisTask {
    /// Announces this replica periodically, and reconnects after the store was lost.
    async fn heartbeat(self: Arc<Self>) {
        loop {
            match self.announce().await {
                Ok(()) => {
                    if self.limiters.upgrade().is_some_and(|limiters| limiters.store_is(true)) {
                        tracing::info!(replicas = self.health.replicas.load(Relaxed), "the store answers: limits are shared");
                    }
                }
                Err(why) => {
                    if self.note(&why) {
                        tracing::warn!(error = %why, "the store is unreachable");
                    }
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
            lock(&self.counted).1 = Instant::now();
            *lock(&self.connection) = Some(connection);
        }
        let (key, silent) = (format!("{}:replicas", self.settings.prefix), SILENT.as_micros().to_string());
        match self.run(&ANNOUNCE, &[key], &[&self.name, &silent]).await {
            Ok(replicas) => self.count(replicas),
            // With a cluster, the other nodes may still answer.
            Err(why) if lock(&self.connection).is_none() => return Err(why),
            Err(_) => {}
        }
        Ok(())
    }

    /// Updates the number of replicas. A lower number is taken over only after twice the time for which a silent replica
    /// counts, because a store that has come back does not know all replicas yet.
    fn count(&self, replicas: u32) {
        let mut counted = lock(&self.counted);
        if replicas >= counted.0 || counted.1.elapsed() > 2 * SILENT {
            *counted = (replicas.max(1), Instant::now());
            self.health.replicas.store(counted.0, Relaxed);
        }
    }

    /// Receives the updates by other replicas until the connection is lost.
    async fn receive(self: Arc<Self>, connection: Weak<Connection>, mut pushes: UnboundedReceiver<PushInfo>) {
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

    /// Runs a script within the time limit. After a failure the whole store counts as lost; with a cluster, only the node
    /// that holds the key does.
    async fn run<T: FromRedisValue>(&self, script: &Script, keys: &[String], arguments: &[&str]) -> RedisResult<T> {
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
                // Only limiters are tried again here. The program repeats its own scripts if it needs to.
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

    /// Marks the store as lost, unless `connection` has been replaced by a new one already.
    fn lost(&self, connection: &Weak<Connection>, why: &RedisError) {
        if lock(&self.connection).take_if(|current| Arc::as_ptr(current) == connection.as_ptr()).is_none() {
            return;
        }
        self.note(why);
        if self.limiters.upgrade().is_some_and(|limiters| limiters.store_is(false)) {
            let replicas = self.health.replicas.load(Relaxed);
            tracing::warn!(error = %why, replicas, "the store is lost: every limit is divided by the number of replicas");
        }
    }

    /// Keeps the error for [`StoreHandle::why`](crate::store::StoreHandle::why). Returns whether it is another one than before.
    fn note(&self, why: &RedisError) -> bool {
        let why: Arc<str> = why.to_string().into();
        lock(&self.health.why).replace(why.clone()) != Some(why)
    }

    /// The name of the channel on which replicas publish their changes.
    fn channel(&self) -> String {
        format!("{}:updates", self.settings.prefix)
    }
}

impl FromRedisValue for State {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        serde_json::from_str(&from_redis_value::<String>(value)?).map_err(|error| error.to_string().into())
    }
}
