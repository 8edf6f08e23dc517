//! The store that replicas share, as the program sees it: a channel to the thread that talks to it.

use std::{
    collections::HashSet,
    sync::{Arc, mpsc},
    time::Duration,
};

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

/// What the thread is asked for.
#[derive(Debug)]
#[cfg_attr(not(feature = "redis"), expect(dead_code, reason = "there is no thread"))]
pub(crate) enum Command {
    /// The transaction of the limiter of this scope, which is told the answer.
    Transact(Scope, Transaction),
    /// A script of the program's own. The sender is dropped where there is no answer.
    Run { script: &'static str, keys: Vec<String>, argument: String, answer: oneshot::Sender<Vec<String>> },
    /// Hear updates that are not of limiters.
    Listen(UnboundedSender<String>),
    /// This replica ends. Answered when the store knows everything, or has had time to.
    End(mpsc::Sender<()>),
}

/// What is known of the store.
#[derive(Debug, Default)]
pub(crate) struct StoreHealth {
    /// It answers.
    pub(crate) up: AtomicBool,
    /// How often it has been found.
    pub(crate) sessions: AtomicU64,
    /// Of a cluster: keys whose node does not answer.
    pub(crate) apart: Mutex<HashSet<String>>,
    /// Why it did not, the last time.
    pub(crate) why: Mutex<Option<Arc<str>>>,
    /// How many replicas announced themselves, as last heard.
    pub(crate) replicas: AtomicU32,
    /// Transactions sent.
    pub(crate) calls: AtomicU64,
}

/// The store, for the limiters, for people, and for what else replicas of the program share.
#[derive(Clone, Debug)]
pub struct StoreHandle {
    commands: UnboundedSender<Command>,
    pub(crate) health: Arc<StoreHealth>,
}

impl StoreHandle {
    /// A store whose thread is not started yet, and the thread's end. So many replicas are reckoned with until it tells.
    pub(crate) fn new(replicas: u32) -> (Self, UnboundedReceiver<Command>) {
        let (commands, receiver) = unbounded_channel();
        let health = StoreHealth { replicas: AtomicU32::new(replicas), ..StoreHealth::default() };
        (Self { commands, health: Arc::new(health) }, receiver)
    }

    /// Sends a limiter's transaction: it is answered, or lost within the store's time limit. `false`: there is no thread any more.
    pub(crate) fn transact(&self, limiter: &Scope, transaction: Transaction) -> bool {
        self.commands.send(Command::Transact(limiter.clone(), transaction)).is_ok()
    }

    /// Blocks until the thread has left the store, at most so long.
    pub(crate) fn end(&self, max_wait: Duration) {
        let (done, ended) = mpsc::channel();
        if self.commands.send(Command::End(done)).is_ok() && ended.recv_timeout(max_wait).is_err() {
            tracing::debug!("the store was not told that this replica leaves");
        }
    }

    /// Whether it does not answer, or a part of it: limits are divided by the number of replicas.
    pub fn is_degraded(&self) -> bool {
        !self.is_up() || !lock(&self.health.apart).is_empty()
    }

    /// Why it is degraded, as last heard.
    pub fn why(&self) -> Option<Arc<str>> {
        lock(&self.health.why).clone().filter(|_| self.is_degraded())
    }

    /// Transactions sent since the start.
    pub fn calls(&self) -> u64 {
        self.health.calls.load(Relaxed)
    }

    /// Whether it answers.
    pub fn is_up(&self) -> bool {
        self.health.up.load(Relaxed)
    }

    /// Without the store: among so many replicas.
    pub(crate) fn alone(&self) -> Option<u32> {
        (!self.is_up()).then(|| self.replicas())
    }

    /// How often it has been found: it may have lost everything each time.
    pub fn sessions(&self) -> u64 {
        self.health.sessions.load(Relaxed)
    }

    /// How many replicas there are, as last heard.
    pub fn replicas(&self) -> u32 {
        self.health.replicas.load(Relaxed)
    }

    /// Runs a Lua script on `keys`, which are one node's. It gets `argument` and the channel for updates, and answers with a list of
    /// texts. `None`: it did not answer within the store's time limit.
    pub async fn run(&self, script: &'static str, keys: Vec<String>, argument: String) -> Option<Vec<String>> {
        let (answer, answered) = oneshot::channel();
        self.commands.send(Command::Run { script, keys, argument, answer }).ok()?;
        answered.await.ok()
    }

    /// What other replicas publish on the channel for updates. One listener at a time.
    pub fn listen(&self) -> UnboundedReceiver<String> {
        let (updates, heard) = unbounded_channel();
        // Without the thread there are no updates.
        let _ = self.commands.send(Command::Listen(updates));
        heard
    }
}
