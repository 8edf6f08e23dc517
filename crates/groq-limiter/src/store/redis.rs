//! Redis (or Valkey) as the shared store. One connection on a thread of its own: transactions run as one script, replicas
//! announce themselves, settlements are published. The only part of this crate with a network.

use std::{
    io,
    sync::{Arc, Mutex, atomic::Ordering::Relaxed, mpsc},
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};

use self::task::RedisTask;
use crate::{
    registry::Registry,
    settings::RedisSettings,
    shared::SharedLimiter,
    store::{Command, Commands, Request},
    sync::lock,
};

mod commands;
mod connection;
mod health;
mod task;

/// One transaction, in Redis' Lua: all of it or nothing.
pub const SCRIPT: &str = include_str!("redis/transaction.lua");

/// Starts the thread. It ends when the limiters are gone.
pub(crate) fn start(redis: RedisSettings, limiters: &Arc<Registry>, commands: Commands<SharedLimiter>) -> io::Result<()> {
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
        health: store.handle.health.clone(),
    });
    let body = move || runtime.block_on(task.keep(commands));
    std::thread::Builder::new().name("store".into()).spawn(body).map(drop)
}

impl RedisTask {
    async fn keep(self: Arc<Self>, mut commands: Commands<SharedLimiter>) {
        let beating = tokio::spawn(self.clone().beat());
        loop {
            tokio::select! {
                command = commands.of_limiters.recv() => match command {
                    Some(Command::Transact(limiter, transaction)) => {
                        tokio::spawn(self.clone().transact(limiter, transaction));
                    }
                    Some(Command::End(done)) => {
                        beating.abort();
                        tokio::spawn(self.clone().end(done));
                    }
                    None => break,
                },
                Some(request) = commands.of_program.recv() => match request {
                    Request::Run { script, keys, argument, answer } => {
                        tokio::spawn(self.clone().run_for_program(script, keys, argument, answer));
                    }
                    Request::Listen(listener) => *lock(&self.listener) = Some(listener),
                },
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
                .is_none_or(|limiters| limiters.all().iter().all(|limiter| limiter.with(|limiter| limiter.is_flushed())))
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
}
