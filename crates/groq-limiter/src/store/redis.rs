//! Redis (or Valkey) as the shared store. One connection on a thread of its own: transactions run as one script, replicas
//! announce themselves, settlements are published. The only part of this crate with a network.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    time::Duration,
};

use redis::{PushInfo, Script};
use tokio::{
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    time::{Instant, sleep, timeout},
};

use self::{health::ANNOUNCE, task::RedisTask, wire::Offset};
use crate::{
    registry::Registry,
    settings::RedisSettings,
    shared::SharedLimiter,
    store::{Command, Commands, Request},
    sync::lock,
};

mod commands;
mod connect;
mod health;
mod lost_replicas;
mod task;
pub mod wire;

/// One transaction, in Redis' Lua: all of it or nothing.
pub const SCRIPT: &str = include_str!("redis/transaction.lua");
/// What a replica that has gone silent had reserved on one limiter comes back.
pub const GIVE_BACK: &str = include_str!("redis/lost_replicas.lua");

/// Starts the thread. It ends when the limiters are gone.
pub(crate) fn start(redis: RedisSettings, limiters: &Arc<Registry>, commands: Commands<SharedLimiter>) -> io::Result<()> {
    let Some(store) = &limiters.common.store else { return Ok(()) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (pushes, heard) = unbounded_channel();
    let task = Arc::new(RedisTask {
        name: format!("{:016x}", fastrand::u64(..)),
        script: Script::new(SCRIPT),
        announce: Script::new(ANNOUNCE),
        give_back: Script::new(GIVE_BACK),
        connection: Mutex::new(None),
        generation: AtomicU64::new(0),
        offset: Mutex::new(Offset::default()),
        counted: Mutex::new((redis.replicas, Instant::now())),
        settings: redis,
        apart: Mutex::default(),
        silent: Mutex::default(),
        known: Mutex::default(),
        listener: Mutex::default(),
        limiters: Arc::downgrade(limiters),
        clock: limiters.common.clock,
        health: store.health.clone(),
        pushes,
    });
    let body = move || runtime.block_on(task.keep(commands, heard));
    std::thread::Builder::new().name("store".into()).spawn(body).map(drop)
}

impl RedisTask {
    async fn keep(self: Arc<Self>, mut commands: Commands<SharedLimiter>, mut heard: UnboundedReceiver<PushInfo>) {
        let beating = tokio::spawn(self.clone().beat());
        loop {
            tokio::select! {
                command = commands.of_limiters.recv() => match command {
                    Some(Command::Call(call)) => drop(tokio::spawn(self.clone().call(call))),
                    Some(Command::End(done)) => {
                        beating.abort();
                        tokio::spawn(self.clone().end(done));
                    }
                    None => break,
                },
                Some(request) = commands.of_program.recv() => match request {
                    Request::Run(call) => drop(tokio::spawn(self.clone().run_script(call))),
                    Request::Listen(listener) => *lock(&self.listener) = Some(listener),
                },
                Some(push) = heard.recv() => self.hear(&push),
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
