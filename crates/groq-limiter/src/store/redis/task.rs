//! The state of the thread that talks to Redis.

use std::{
    collections::{HashMap, HashSet},
    io,
    sync::{Arc, Mutex, Weak, atomic::AtomicU64},
};

use redis::{
    Cmd, Pipeline, PushInfo, RedisError, RedisFuture, Script, Value,
    aio::{ConnectionLike, MultiplexedConnection},
    cluster_async::ClusterConnection,
};
use tokio::{sync::mpsc::UnboundedSender, time::Instant};

use super::wire::Offset;
use crate::{clock::Clock, registry::Registry, settings::RedisSettings, shared::SharedLimiter, store::StoreHealth};

/// A connection to one Redis or to a cluster of them.
#[derive(Clone)]
pub(super) enum Connection {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::One(one) => one.req_packed_command(cmd),
            Self::Cluster(all) => all.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(&'a mut self, cmd: &'a Pipeline, offset: usize, count: usize) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::One(one) => one.req_packed_commands(cmd, offset, count),
            Self::Cluster(all) => all.req_packed_commands(cmd, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        0
    }
}

/// The thread's state.
pub(super) struct RedisTask {
    pub(super) settings: RedisSettings,
    /// This replica's.
    pub(super) name: String,
    pub(super) script: Script,
    pub(super) announce: Script,
    pub(super) give_back: Script,
    pub(super) connection: Mutex<Option<Connection>>,
    /// Counts losses: a failure is told once.
    pub(super) generation: AtomicU64,
    pub(super) offset: Mutex<Offset>,
    /// The most replicas heard of lately, and when.
    pub(super) counted: Mutex<(u32, Instant)>,
    /// Of a cluster: keys whose node does not answer.
    pub(super) apart: Mutex<HashSet<String>>,
    /// Replicas that are not heard any more.
    pub(super) silent: Mutex<Vec<Silent>>,
    /// Limiters by key, for published changes.
    pub(super) known: Mutex<HashMap<String, Weak<SharedLimiter>>>,
    /// Who hears updates that are of no limiter.
    pub(super) listener: Mutex<Option<UnboundedSender<String>>>,
    pub(super) limiters: Weak<Registry>,
    pub(super) clock: Clock,
    pub(super) health: Arc<StoreHealth>,
    pub(super) pushes: UnboundedSender<PushInfo>,
}

/// A replica that has gone silent.
#[derive(Debug)]
pub(super) struct Silent {
    pub(super) name: String,
    pub(super) since: Instant,
    /// Limiters that have nothing of its any more.
    pub(super) done: HashSet<String>,
}

pub(super) fn too_late() -> RedisError {
    RedisError::from(io::Error::new(io::ErrorKind::TimedOut, "no answer within store.timeout"))
}
