//! Redis (or Valkey) as the shared store. One connection on a thread of its own: transactions run as one script, replicas
//! announce themselves, settlements are published. The only part of this crate with a network.

use std::{
    collections::{HashMap, HashSet},
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    time::Duration,
};

use redis::{PushInfo, RedisError, Script, aio::MultiplexedConnection, cluster_async::ClusterConnection};
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::{Instant, sleep, timeout},
};

use self::{health::ANNOUNCE, lost_replicas::Silent, wire::Offset};
use crate::settings::RedisSettings;
use crate::{
    registry::{Clock, Registry, SharedLimiter},
    store::{Command, StoreHealth},
};

mod commands;
mod connect;
mod health;
mod lost_replicas;
pub mod wire;

/// One transaction, in Redis' Lua: all of it or nothing.
pub const SCRIPT: &str = include_str!("redis/transaction.lua");
/// What a replica that has gone silent had reserved on one limiter comes back.
pub const GIVE_BACK: &str = include_str!("redis/lost_replicas.lua");

/// Starts the thread. It ends when the limiters are gone.
pub(crate) fn start(
    redis: RedisSettings,
    limiters: Weak<Registry>,
    calls: UnboundedReceiver<Command>,
    reach: Arc<StoreHealth>,
) -> io::Result<()> {
    let Some(clock) = limiters.upgrade().map(|limiters| limiters.clock()) else { return Ok(()) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (news, heard) = unbounded_channel();
    let task = Arc::new(RedisTask {
        url: redis.url,
        ca_file: redis.ca_file,
        prefix: redis.prefix,
        time_limit: redis.timeout,
        name: format!("{:016x}", fastrand::u64(..)),
        script: Script::new(SCRIPT),
        announce: Script::new(ANNOUNCE),
        give_back: Script::new(GIVE_BACK),
        connection: Mutex::new(None),
        generation: AtomicU64::new(0),
        offset: Mutex::new(Offset::default()),
        counted: Mutex::new((redis.replicas, Instant::now())),
        apart: Mutex::default(),
        silent: Mutex::default(),
        known: Mutex::default(),
        listener: Mutex::default(),
        limiters,
        clock,
        reach,
        news,
    });
    let body = move || runtime.block_on(task.keep(calls, heard));
    std::thread::Builder::new().name("store".into()).spawn(body).map(drop)
}

/// A connection to one Redis or to a cluster of them.
#[derive(Clone)]
enum Connection {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

/// The thread's state.
struct RedisTask {
    url: String,
    ca_file: Option<PathBuf>,
    prefix: String,
    time_limit: Duration,
    /// This replica's.
    name: String,
    script: Script,
    announce: Script,
    give_back: Script,
    connection: Mutex<Option<Connection>>,
    /// Counts losses: a failure is told once.
    generation: AtomicU64,
    offset: Mutex<Offset>,
    /// The most replicas heard of lately, and when.
    counted: Mutex<(u32, Instant)>,
    /// Of a cluster: keys whose node does not answer.
    apart: Mutex<HashSet<String>>,
    /// Replicas that are not heard any more.
    silent: Mutex<Vec<Silent>>,
    /// Lanes by key, for news.
    known: Mutex<HashMap<String, Weak<SharedLimiter>>>,
    /// Who hears news that are of no limiter.
    listener: Mutex<Option<UnboundedSender<String>>>,
    limiters: Weak<Registry>,
    clock: Clock,
    reach: Arc<StoreHealth>,
    news: UnboundedSender<PushInfo>,
}

impl RedisTask {
    async fn keep(self: Arc<Self>, mut calls: UnboundedReceiver<Command>, mut heard: UnboundedReceiver<PushInfo>) {
        let beating = tokio::spawn(self.clone().beat());
        loop {
            tokio::select! {
                word = calls.recv() => match word {
                    Some(Command::Call(call)) => drop(tokio::spawn(self.clone().call(call))),
                    Some(Command::Run(call)) => drop(tokio::spawn(self.clone().run_script(call))),
                    Some(Command::Listen(listener)) => *self.listener() = Some(listener),
                    Some(Command::End(done)) => {
                        beating.abort();
                        tokio::spawn(self.clone().end(done));
                    }
                    None => break,
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
                .is_none_or(|limiters| limiters.all().iter().all(|limiter| limiter.with(|limiter| limiter.is_told())))
            {
                sleep(Duration::from_millis(2)).await;
            }
        };
        if self.reach.up.load(Relaxed) && timeout(self.time_limit, told).await.is_err() {
            tracing::warn!("the store was not told of every settlement before the end");
        }
        self.leave().await;
        // Who waits may have given up.
        let _ = done.send(());
    }

    fn each(&self, tell: impl Fn(&Arc<SharedLimiter>)) {
        if let Some(limiters) = self.limiters.upgrade() {
            limiters.all().iter().for_each(tell);
        }
    }

    fn connection(&self) -> MutexGuard<'_, Option<Connection>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apart(&self) -> MutexGuard<'_, HashSet<String>> {
        self.apart.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn offset(&self) -> MutexGuard<'_, Offset> {
        self.offset.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listener(&self) -> MutexGuard<'_, Option<UnboundedSender<String>>> {
        self.listener.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Weak<SharedLimiter>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn too_late() -> RedisError {
    RedisError::from(io::Error::new(io::ErrorKind::TimedOut, "no answer within store.timeout"))
}
