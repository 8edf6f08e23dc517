//! The store in which replicas share their quotas. [`StoreHandle`] is a channel to the thread that talks to the store; what
//! the thread learns about the store is in its health.

use std::{collections::HashSet, sync::Arc};

use tokio::sync::{
    mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    oneshot,
};

use crate::{
    request::Scope,
    store::protocol::Transaction,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
        lock,
    },
};

pub mod file;
pub mod protocol;
#[cfg(feature = "redis")]
pub mod redis;
#[doc(hidden)]
pub mod simulated;

/// A command to the store's thread.
#[derive(Debug)]
#[cfg_attr(not(feature = "redis"), expect(dead_code, reason = "there is no thread"))]
pub(crate) enum Command {
    /// Run a transaction of the limiter with this scope and pass the answer to the limiter.
    Transact(Scope, Transaction),
    /// Run a script of the program's own. The sender is dropped if there is no answer.
    Run { script: &'static str, keys: Vec<String>, argument: String, answer: oneshot::Sender<Vec<String>> },
    /// Pass on the updates that do not belong to a limiter.
    Listen(UnboundedSender<String>),
}

/// The state of the connection to the store.
#[derive(Debug, Default)]
pub(crate) struct StoreHealth {
    /// Whether the store answers.
    pub(crate) up: AtomicBool,
    /// How many times the store has become reachable.
    pub(crate) sessions: AtomicU64,
    /// With a cluster: keys whose node does not answer.
    pub(crate) apart: Mutex<HashSet<String>>,
    /// The last error of the store.
    pub(crate) why: Mutex<Option<Arc<str>>>,
    /// The number of replicas that announced themselves, as last reported by the store.
    pub(crate) replicas: AtomicU32,
    /// Number of transactions and scripts sent.
    pub(crate) calls: AtomicU64,
}

/// A handle to the store, used by the limiters, by the status page and metrics, and by everything else that replicas share.
#[derive(Clone, Debug)]
pub struct StoreHandle {
    commands: UnboundedSender<Command>,
    pub(crate) health: Arc<StoreHealth>,
}

impl StoreHandle {
    /// A handle whose thread is not started yet, and the receiver of its commands. `replicas` is assumed until the store
    /// reports how many there are.
    pub(crate) fn new(replicas: u32) -> (Self, UnboundedReceiver<Command>) {
        let (commands, receiver) = unbounded_channel();
        let health = StoreHealth { replicas: AtomicU32::new(replicas), ..StoreHealth::default() };
        (Self { commands, health: Arc::new(health) }, receiver)
    }

    /// Sends a limiter's transaction. Its answer, or its failure, follows within the store's time limit. Returns `false` if
    /// the thread has ended.
    pub(crate) fn transact(&self, limiter: &Scope, transaction: Transaction) -> bool {
        self.commands.send(Command::Transact(limiter.clone(), transaction)).is_ok()
    }

    /// Whether the store, or a node of its cluster, does not answer. The limits concerned are divided by the number of
    /// replicas.
    pub fn is_degraded(&self) -> bool {
        !self.is_up() || !lock(&self.health.apart).is_empty()
    }

    /// The last error of the store; `None` unless it is degraded.
    pub fn why(&self) -> Option<Arc<str>> {
        lock(&self.health.why).clone().filter(|_| self.is_degraded())
    }

    /// Number of transactions and scripts sent since the start.
    pub fn calls(&self) -> u64 {
        self.health.calls.load(Relaxed)
    }

    /// Whether the store answers.
    pub fn is_up(&self) -> bool {
        self.health.up.load(Relaxed)
    }

    /// The number of replicas by which limits are divided; `None` while the store answers.
    pub(crate) fn alone(&self) -> Option<u32> {
        (!self.is_up()).then(|| self.replicas())
    }

    /// How many times the store has become reachable. Its data may have been lost before each of them.
    pub fn sessions(&self) -> u64 {
        self.health.sessions.load(Relaxed)
    }

    /// The number of replicas, as last reported by the store.
    pub fn replicas(&self) -> u32 {
        self.health.replicas.load(Relaxed)
    }

    /// Runs a Lua script on `keys`, which must all be on one node of a cluster. The script gets `argument` and the name of
    /// the channel for updates, and returns a list of strings. Returns `None` if there is no answer within the store's time
    /// limit.
    pub async fn run(&self, script: &'static str, keys: Vec<String>, argument: String) -> Option<Vec<String>> {
        let (answer, answered) = oneshot::channel();
        self.commands.send(Command::Run { script, keys, argument, answer }).ok()?;
        answered.await.ok()
    }

    /// Returns what replicas publish on the channel for updates, except for changes of limiters. There is one listener at a
    /// time: a later call replaces it.
    pub fn listen(&self) -> UnboundedReceiver<String> {
        let (listener, updates) = unbounded_channel();
        // This fails only if the thread has ended; there are no updates then.
        let _ = self.commands.send(Command::Listen(listener));
        updates
    }
}
