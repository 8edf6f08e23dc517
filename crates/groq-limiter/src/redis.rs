//! How is Redis (or Valkey) the store that replicas share? One connection on a thread of its own: transactions run as one
//! script, replicas announce themselves, news of settlements is heard. The one part of a core with a network.

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

use self::{reach::ANNOUNCE, silent::Silent, wire::Offset};
use super::{
    lanes::{Clock, Shared, SharedLane},
    store::{Reach, Word},
};
use crate::settings::RedisSettings;

mod calls;
mod connect;
mod reach;
mod silent;
pub mod wire;

/// One transaction, in Redis' Lua: all of it or nothing.
pub const SCRIPT: &str = include_str!("redis.lua");
/// What a replica that has gone silent had reserved on one lane comes back.
pub const GIVE_BACK: &str = include_str!("redis/silent.lua");

/// Starts the thread. It ends when the lanes are gone.
pub(super) fn start(
    redis: RedisSettings,
    lanes: Weak<Shared>,
    calls: UnboundedReceiver<Word>,
    reach: Arc<Reach>,
) -> io::Result<()> {
    let Some(clock) = lanes.upgrade().map(|lanes| lanes.clock()) else { return Ok(()) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (news, heard) = unbounded_channel();
    let keeper = Arc::new(Keeper {
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
        lanes,
        clock,
        reach,
        news,
    });
    let body = move || runtime.block_on(keeper.keep(calls, heard));
    std::thread::Builder::new().name("store".into()).spawn(body).map(drop)
}

/// A connection to one Redis or to a cluster of them.
#[derive(Clone)]
enum Connection {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

/// The thread's state.
struct Keeper {
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
    known: Mutex<HashMap<String, Weak<SharedLane>>>,
    lanes: Weak<Shared>,
    clock: Clock,
    reach: Arc<Reach>,
    news: UnboundedSender<PushInfo>,
}

impl Keeper {
    async fn keep(self: Arc<Self>, mut calls: UnboundedReceiver<Word>, mut heard: UnboundedReceiver<PushInfo>) {
        let beating = tokio::spawn(self.clone().beat());
        loop {
            tokio::select! {
                word = calls.recv() => match word {
                    Some(Word::Call(call)) => drop(tokio::spawn(self.clone().call(call))),
                    Some(Word::End(done)) => {
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
            while !self.lanes.upgrade().is_none_or(|lanes| lanes.all().iter().all(|lane| lane.with(|lane| lane.is_told()))) {
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

    fn each(&self, tell: impl Fn(&Arc<SharedLane>)) {
        if let Some(lanes) = self.lanes.upgrade() {
            lanes.all().iter().for_each(tell);
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

    fn known(&self) -> MutexGuard<'_, HashMap<String, Weak<SharedLane>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn too_late() -> RedisError {
    RedisError::from(io::Error::new(io::ErrorKind::TimedOut, "no answer within store.timeout"))
}
