//! How is Redis (or Valkey) the store that replicas share? One connection on a thread of its own: transactions run as one
//! script, replicas announce themselves, news of settlements is heard. The one core file with a network.

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

use redis::{
    ErrorKind, PushInfo, PushKind, RedisError, RedisResult, Script, Value,
    aio::{ConnectionLike, MultiplexedConnection},
    cluster_async::ClusterConnection,
    cmd, from_redis_value,
};
use sha2::{Digest, Sha256};
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::{Instant, sleep, timeout},
};

use self::{
    connect::CONNECT,
    wire::{Offset, Reply},
};
use super::{
    exchange::{Answer, Transaction},
    lanes::{Clock, LaneKey, Shared, SharedLane},
    store::{Call, Reach, Word},
};
use crate::config;

mod connect;
pub mod wire;

/// One transaction, in Redis' Lua: all of it or nothing.
pub const SCRIPT: &str = include_str!("redis.lua");

/// A replica announces itself this often.
const BEAT: Duration = Duration::from_secs(1);
/// A store that is out of reach is looked for this often.
const LOOK: Duration = Duration::from_millis(500);
/// So long a replica counts that has gone silent: a store that restarts empty hears of all of them again meanwhile.
const SILENT: Duration = Duration::from_secs(5);

/// Announces a replica: the time, and how many there are.
const ANNOUNCE: &str = "
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
redis.call('ZADD', KEYS[1], string.format('%.0f', now), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now - ARGV[2]))
redis.call('PEXPIRE', KEYS[1], 60000)
return { string.format('%.0f', now), redis.call('ZCARD', KEYS[1]) }";

/// Starts the thread. It ends when the lanes are gone.
pub(super) fn start(
    store: &config::Store,
    lanes: Weak<Shared>,
    calls: UnboundedReceiver<Word>,
    reach: Arc<Reach>,
) -> io::Result<()> {
    let Some(clock) = lanes.upgrade().map(|lanes| lanes.clock()) else { return Ok(()) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (news, heard) = unbounded_channel();
    let keeper = Arc::new(Keeper {
        url: store.url.clone().unwrap_or_default(),
        ca_file: store.ca_file.clone(),
        prefix: store.prefix.clone(),
        time_limit: store.timeout,
        name: format!("{:016x}", fastrand::u64(..)),
        script: Script::new(SCRIPT),
        announce: Script::new(ANNOUNCE),
        connection: Mutex::new(None),
        generation: AtomicU64::new(0),
        offset: Mutex::new(Offset::default()),
        counted: Mutex::new((store.replicas, Instant::now())),
        apart: Mutex::default(),
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
    connection: Mutex<Option<Connection>>,
    /// Counts losses: a failure is told once.
    generation: AtomicU64,
    offset: Mutex<Offset>,
    /// The most replicas heard of lately, and when.
    counted: Mutex<(u32, Instant)>,
    /// Of a cluster: keys whose node does not answer.
    apart: Mutex<HashSet<String>>,
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

    /// Announces this replica, and finds the store again when it was lost.
    async fn beat(self: Arc<Self>) {
        let mut said = None;
        loop {
            let generation = self.generation.load(Relaxed);
            match timeout(CONNECT + self.time_limit, self.reached()).await.unwrap_or_else(|_| Err(too_late())) {
                Ok(()) => {
                    if !self.reach.up.swap(true, Relaxed) {
                        tracing::info!(replicas = self.reach.replicas.load(Relaxed), "the store answers: limits are shared");
                        self.each(|lane| lane.reached());
                        said = None;
                    }
                }
                Err(why) => {
                    let words = Some(self.because(&why));
                    if !self.lost(generation, &why) && said != words {
                        tracing::warn!(error = %why, "the store is out of reach");
                    }
                    said = words;
                }
            }
            sleep(if self.reach.up.load(Relaxed) { BEAT } else { LOOK }).await;
        }
    }

    /// Connects if need be, and announces this replica.
    async fn reached(&self) -> RedisResult<()> {
        let connection = self.connection().clone();
        let mut connection = match connection {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let sent = self.clock.now();
        let key = format!("{}:replicas", self.prefix);
        let mut announce = self.announce.key(&key);
        let announce = announce.arg(&self.name).arg(SILENT.as_micros() as u64);
        let announced = timeout(self.time_limit, async {
            match &mut connection {
                Connection::One(one) => announce.invoke_async(one).await,
                Connection::Cluster(all) => announce.invoke_async(all).await,
            }
        });
        let announced: RedisResult<(i64, u32)> = announced.await.unwrap_or_else(|_| Err(too_late()));
        match (announced, &connection) {
            (Ok((now, replicas)), _) => {
                self.offset().learn(now, sent, self.clock.now());
                self.count(replicas);
                let known = self.known();
                self.keep_apart(|kept| *kept != key && known.get(kept).is_some_and(|lane| lane.strong_count() > 0));
            }
            // That node's lanes will find out by themselves; the other nodes' need not suffer.
            (Err(why), Connection::Cluster(_)) => drop(self.alone(&key, &why)),
            (Err(why), Connection::One(_)) => return Err(why),
        }
        *self.connection() = Some(connection);
        Ok(())
    }

    /// Runs a lane's transaction and tells it the end.
    async fn call(self: Arc<Self>, call: Call) {
        let generation = self.generation.load(Relaxed);
        let Call { lane, transaction } = call;
        let key = self.key(&lane.key);
        self.know(&key, &lane);
        let connection = self.connection().clone();
        let of_cluster = matches!(connection, Some(Connection::Cluster(_)));
        let outcome = match connection {
            Some(connection) => timeout(self.time_limit, self.transact(connection, &key, &transaction)).await,
            None => Ok(Err(RedisError::from(io::Error::from(io::ErrorKind::NotConnected)))),
        };
        match outcome.unwrap_or_else(|_| Err(too_late())) {
            Ok(answer) => {
                if of_cluster {
                    self.keep_apart(|kept| *kept != key);
                }
                lane.answered(transaction.serial, &answer);
            }
            Err(why) => {
                if of_cluster {
                    if self.alone(&key, &why) {
                        tracing::warn!(error = %why, "a node of the store is lost: its limits are divided by the number of replicas");
                    }
                } else {
                    self.lost(generation, &why);
                }
                lane.unanswered(transaction.serial, self.reach.replicas.load(Relaxed));
                if of_cluster {
                    sleep(LOOK).await;
                    lane.reached();
                }
            }
        }
    }

    async fn transact(&self, mut connection: Connection, key: &str, transaction: &Transaction) -> RedisResult<Answer> {
        self.reach.calls.fetch_add(1, Relaxed);
        let request = self.offset().request(transaction);
        let mut script = self.script.key(key);
        let script = script.key(format!("{key}:{}", self.name)).arg(request).arg(self.channel());
        let sent = self.clock.now();
        let reply: Value = match &mut connection {
            Connection::One(one) => run(script, one).await?,
            Connection::Cluster(all) => run(script, all).await?,
        };
        let reply = Reply::parse(from_redis_value(reply)?).ok_or_else(not_understood)?;
        let mut offset = self.offset();
        offset.learn(reply.now, sent, self.clock.now());
        offset.answer(reply).ok_or_else(not_understood)
    }

    /// The store is lost, unless that is known. Whether this was news.
    fn lost(&self, generation: u64, why: &RedisError) -> bool {
        if self.generation.compare_exchange(generation, generation + 1, Relaxed, Relaxed).is_err() {
            return false;
        }
        *self.connection() = None;
        self.keep_apart(|_| false);
        self.because(why);
        if !self.reach.up.swap(false, Relaxed) {
            return false;
        }
        let replicas = self.reach.replicas.load(Relaxed);
        tracing::warn!(error = %why, replicas, "the store is lost: every limit is divided by the number of replicas");
        self.each(|lane| lane.lost(replicas));
        true
    }

    /// A cluster's node does not answer for this key. Whether this is news.
    fn alone(&self, key: &str, why: &RedisError) -> bool {
        self.because(why);
        let mut apart = self.apart();
        let new = apart.insert(key.into());
        self.reach.apart.store(apart.len(), Relaxed);
        new
    }

    /// Only these keys' nodes do not answer.
    fn keep_apart(&self, keep: impl Fn(&String) -> bool) {
        let mut apart = self.apart();
        apart.retain(keep);
        self.reach.apart.store(apart.len(), Relaxed);
    }

    /// Takes note of it, for people.
    fn because(&self, why: &RedisError) -> Arc<str> {
        let why: Arc<str> = why.to_string().into();
        *self.reach.why.lock().unwrap_or_else(PoisonError::into_inner) = Some(why.clone());
        why
    }

    fn hear(&self, push: &PushInfo) {
        match push.kind {
            // One node of many; who talks to it will be told.
            PushKind::Disconnection if matches!(*self.connection(), Some(Connection::Cluster(_))) => {}
            PushKind::Disconnection => {
                self.lost(self.generation.load(Relaxed), &RedisError::from(io::Error::from(io::ErrorKind::ConnectionReset)));
            }
            PushKind::Message => {
                let Some(text) = push.data.get(1).and_then(|value| from_redis_value::<String>(value.clone()).ok()) else {
                    return;
                };
                let Some((key, reply)) = text.split_once(' ') else { return };
                let lane = self.known().get(key).and_then(Weak::upgrade);
                let reply = serde_json::from_str(reply).ok().and_then(Reply::parse);
                if let Some((lane, answer)) = lane.zip(reply.and_then(|reply| self.offset().answer(reply))) {
                    lane.hear(&answer.state);
                }
            }
            _ => {}
        }
    }

    /// The replicas that count: the most that were heard of within the time that one may be silent.
    fn count(&self, replicas: u32) {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        if replicas >= counted.0 || counted.1.elapsed() > 2 * SILENT {
            *counted = (replicas.max(1), Instant::now());
            self.reach.replicas.store(counted.0, Relaxed);
        }
    }

    /// In order at exit: the others need not wait until this one is missed.
    async fn leave(&self) {
        let connection = self.connection().take();
        let mut leave = cmd("ZREM");
        leave.arg(format!("{}:replicas", self.prefix)).arg(&self.name);
        let left = async {
            match connection {
                Some(Connection::One(mut one)) => leave.query_async(&mut one).await,
                Some(Connection::Cluster(mut all)) => leave.query_async(&mut all).await,
                None => Ok(()),
            }
        };
        if let Ok(Err(why)) = timeout(self.time_limit, left).await {
            tracing::debug!(error = %why, "the store was not told that this replica leaves");
        }
    }

    /// A lane's key: its name's digest, so that no organisation is readable, as the hash tag.
    fn key(&self, lane: &LaneKey) -> String {
        let mut digest = Sha256::new();
        for part in [&lane.organisation, &lane.model, &lane.tier] {
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part.as_bytes());
        }
        let digest: String = digest.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        format!("{}:{{{digest}}}", self.prefix)
    }

    fn channel(&self) -> String {
        format!("{}:news", self.prefix)
    }

    fn know(&self, key: &str, lane: &Arc<SharedLane>) {
        let mut known = self.known();
        if known.get(key).is_none_or(|before| before.as_ptr() != Arc::as_ptr(lane)) {
            known.retain(|_, lane| lane.strong_count() > 0);
            known.insert(key.into(), Arc::downgrade(lane));
        }
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

async fn run(script: &redis::ScriptInvocation<'_>, connection: &mut impl ConnectionLike) -> RedisResult<Value> {
    script.invoke_async(connection).await
}

fn too_late() -> RedisError {
    RedisError::from(io::Error::new(io::ErrorKind::TimedOut, "no answer within store.timeout"))
}

fn not_understood() -> RedisError {
    RedisError::from((ErrorKind::UnexpectedReturnType, "an answer that is not the script's"))
}
