//! How do lanes reach the store that replicas share? By a channel to the thread that talks to it, which answers each lane.

use std::{
    io,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{
    StoreSnapshot,
    exchange::Transaction,
    lanes::{Shared, SharedLane},
};
use crate::config;

/// The lanes' end.
#[derive(Debug)]
pub(super) struct Store {
    calls: UnboundedSender<Call>,
    pub(super) reach: Arc<Reach>,
}

/// One lane's transaction.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) lane: Arc<SharedLane>,
    pub(super) transaction: Transaction,
}

/// What is known of the store.
#[derive(Debug, Default)]
pub(super) struct Reach {
    /// It answers.
    pub(super) up: AtomicBool,
    /// How many replicas announced themselves, as last heard.
    pub(super) replicas: AtomicU32,
    /// Transactions sent.
    pub(super) calls: AtomicU64,
}

impl Store {
    /// A store whose thread is not started yet, and the thread's end.
    pub(super) fn new() -> (Self, UnboundedReceiver<Call>) {
        let (calls, received) = unbounded_channel();
        let reach = Reach { replicas: AtomicU32::new(1), ..Reach::default() };
        (Self { calls, reach: Arc::new(reach) }, received)
    }

    /// Sends a lane's transaction. It is answered, or lost within the store's time limit.
    pub(super) fn send(&self, lane: &Arc<SharedLane>, transaction: Transaction) {
        let call = Call { lane: lane.clone(), transaction };
        if let Err(unsent) = self.calls.send(call) {
            unsent.0.lane.lost(self.reach.replicas.load(Relaxed));
        }
    }

    pub(super) fn snapshot(&self) -> StoreSnapshot {
        StoreSnapshot {
            degraded: !self.reach.up.load(Relaxed),
            replicas: self.reach.replicas.load(Relaxed),
            calls: self.reach.calls.load(Relaxed),
        }
    }
}

/// Starts the thread that talks to the store. It ends with the lanes.
#[cfg(feature = "redis")]
pub(super) fn start(
    store: &config::Store,
    lanes: Weak<Shared>,
    calls: UnboundedReceiver<Call>,
    reach: Arc<Reach>,
) -> io::Result<()> {
    super::redis::start(store, lanes, calls, reach)
}

#[cfg(not(feature = "redis"))]
pub(super) fn start(_: &config::Store, _: Weak<Shared>, _: UnboundedReceiver<Call>, _: Arc<Reach>) -> io::Result<()> {
    Err(io::Error::other("this groq-shield is built without Redis"))
}
