//! Redis (or Valkey) as the shared store. One connection on a thread of its own: transactions run as one script, replicas
//! announce themselves, settlements are published. The only part of this crate with a network.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, Weak, atomic::Ordering::Relaxed, mpsc},
    time::Duration,
};

use redis::{FromRedisValue, RedisError, RedisResult, Script};
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender},
    time::{Instant, sleep, timeout},
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

/// One transaction, in Redis' Lua: all of it or nothing.
pub const SCRIPT: &str = include_str!("redis/transaction.lua");

/// The thread's state.
struct RedisTask {
    settings: RedisSettings,
    /// This replica's.
    name: String,
    connection: Mutex<Option<Arc<Connection>>>,
    /// The most replicas heard of lately, and when.
    counted: Mutex<(u32, Instant)>,
    /// Limiters by key, for published changes.
    known: Mutex<HashMap<String, Weak<SharedLimiter>>>,
    /// Who hears updates that are of no limiter.
    listener: Mutex<Option<UnboundedSender<String>>>,
    limiters: Weak<Registry>,
    health: Arc<StoreHealth>,
}

/// Starts the thread. It ends when the limiters are gone, and whoever else has the store.
pub(crate) fn start(redis: RedisSettings, limiters: &Arc<Registry>, commands: UnboundedReceiver<Command>) -> io::Result<()> {
    let Some(store) = &limiters.common.store else { return Ok(()) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let task = Arc::new(RedisTask {
        name: format!("{:016x}", fastrand::u64(..)),
        connection: Mutex::default(),
        counted: Mutex::new((redis.replicas, Instant::now())),
        settings: redis,
        known: Mutex::default(),
        listener: Mutex::default(),
        limiters: Arc::downgrade(limiters),
        health: store.health.clone(),
    });
    let body = move || runtime.block_on(task.keep(commands));
    std::thread::Builder::new().name("store".into()).spawn(body).map(drop)
}

impl RedisTask {
    async fn keep(self: Arc<Self>, mut commands: UnboundedReceiver<Command>) {
        let beating = tokio::spawn(self.clone().beat());
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
                Command::End(done) => {
                    beating.abort();
                    tokio::spawn(self.clone().end(done));
                }
            }
        }
        if !beating.is_finished() {
            beating.abort();
            self.leave().await;
        }
    }

    /// Waits for what is being told, within the time limit, and leaves.
    async fn end(self: Arc<Self>, done: mpsc::Sender<()>) {
        let told = async {
            while !self
                .limiters
                .upgrade()
                .is_none_or(|limiters| limiters.all().iter().all(|limiter| limiter.with(|limiter, _| limiter.is_flushed())))
            {
                sleep(Duration::from_millis(2)).await;
            }
        };
        if self.health.up.load(Relaxed) && timeout(self.settings.timeout, told).await.is_err() {
            tracing::warn!("the store was not told of every settlement before the end");
        }
        self.leave().await;
        // The caller may have given up.
        let _ = done.send(());
    }

    /// Runs a script within the time limit. A failure is that of the whole store, or of the cluster's node that holds the key.
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

    /// Takes note of it, for people.
    fn note(&self, why: &RedisError) {
        *lock(&self.health.why) = Some(why.to_string().into());
    }

    /// Where replicas publish what they change.
    fn channel(&self) -> String {
        format!("{}:updates", self.settings.prefix)
    }
}
