//! Redis (or Valkey) as the shared store, with one connection on a thread of its own. Each transaction runs as one script,
//! which publishes the changed record to the other replicas. Replicas announce themselves every second, so that each knows
//! how many there are. This is the only part of the crate that uses the network.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, Weak, atomic::Ordering::Relaxed},
};

use redis::{FromRedisValue, RedisError, RedisResult, Script};
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender},
    time::{Instant, timeout},
};

use self::connection::Connection;
use crate::{
    registry::Registry,
    settings::RedisSettings,
    shared::SharedLimiter,
    store::{Command, StoreHealth},
    sync::lock,
};

mod commands;
mod connection;
mod health;

/// One transaction as a Lua script, which Redis runs atomically.
pub const SCRIPT: &str = include_str!("redis/transaction.lua");

/// The thread's state.
struct RedisTask {
    settings: RedisSettings,
    /// The random name of this replica.
    name: String,
    connection: Mutex<Option<Arc<Connection>>>,
    /// The largest number of replicas counted lately, and when.
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
                Command::Run { script, keys, argument, answer } => {
                    tokio::spawn(self.clone().run_for_program(script, keys, argument, answer));
                }
                Command::Listen(listener) => *lock(&self.listener) = Some(listener),
            }
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

    /// Keeps the error for [`StoreHandle::why`](crate::store::StoreHandle::why).
    fn note(&self, why: &RedisError) {
        *lock(&self.health.why) = Some(why.to_string().into());
    }

    /// The name of the channel on which replicas publish their changes.
    fn channel(&self) -> String {
        format!("{}:updates", self.settings.prefix)
    }
}
