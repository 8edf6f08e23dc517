//! How do lanes reach the store that replicas share? By a channel to the thread that talks to it, which answers each lane.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
        mpsc,
    },
    time::Duration,
};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, error::SendError, unbounded_channel};

use super::{
    StoreSnapshot,
    exchange::Transaction,
    lanes::{Shared, SharedLane},
};
use crate::settings::RedisSettings;

/// The lanes' end.
#[derive(Debug)]
pub(super) struct Store {
    words: UnboundedSender<Word>,
    pub(super) reach: Arc<Reach>,
}

/// What the thread hears.
#[derive(Debug)]
#[cfg_attr(not(feature = "redis"), expect(dead_code, reason = "there is no thread"))]
pub(super) enum Word {
    /// A lane has something to tell or to ask.
    Call(Call),
    /// This replica ends. Answered when the store knows everything, or has had time to.
    End(mpsc::Sender<()>),
}

/// One lane's transaction.
#[derive(Debug)]
#[cfg_attr(not(feature = "redis"), expect(dead_code, reason = "there is no thread"))]
pub(super) struct Call {
    pub(super) lane: Arc<SharedLane>,
    pub(super) transaction: Transaction,
}

/// What is known of the store.
#[derive(Debug, Default)]
pub(super) struct Reach {
    /// It answers.
    pub(super) up: AtomicBool,
    /// So many lanes' part of it does not.
    pub(super) apart: AtomicUsize,
    /// Why it did not, the last time.
    pub(super) why: Mutex<Option<Arc<str>>>,
    /// How many replicas announced themselves, as last heard.
    pub(super) replicas: AtomicU32,
    /// Transactions sent.
    pub(super) calls: AtomicU64,
}

impl Store {
    /// A store whose thread is not started yet, and the thread's end. So many replicas are reckoned with until it tells.
    pub(super) fn new(replicas: u32) -> (Self, UnboundedReceiver<Word>) {
        let (words, received) = unbounded_channel();
        let reach = Reach { replicas: AtomicU32::new(replicas), ..Reach::default() };
        (Self { words, reach: Arc::new(reach) }, received)
    }

    /// Sends a lane's transaction. It is answered, or lost within the store's time limit.
    pub(super) fn send(&self, lane: &Arc<SharedLane>, transaction: Transaction) {
        let call = Call { lane: lane.clone(), transaction };
        if let Err(SendError(Word::Call(unsent))) = self.words.send(Word::Call(call)) {
            unsent.lane.lost(self.reach.replicas.load(Relaxed));
        }
    }

    /// Blocks until the thread has left the store, at most so long.
    pub(super) fn end(&self, patience: Duration) {
        let (done, ended) = mpsc::channel();
        if self.words.send(Word::End(done)).is_ok() && ended.recv_timeout(patience).is_err() {
            tracing::debug!("the store was left without a word");
        }
    }

    pub(super) fn snapshot(&self) -> StoreSnapshot {
        let degraded = !self.reach.up.load(Relaxed) || self.reach.apart.load(Relaxed) > 0;
        let why = self.reach.why.lock().unwrap_or_else(PoisonError::into_inner).clone();
        StoreSnapshot {
            degraded,
            why: why.filter(|_| degraded),
            replicas: self.reach.replicas.load(Relaxed),
            calls: self.reach.calls.load(Relaxed),
        }
    }
}

/// Starts the thread that talks to the store. It ends with the lanes.
#[cfg(feature = "redis")]
pub(super) fn start(
    redis: RedisSettings,
    lanes: Weak<Shared>,
    calls: UnboundedReceiver<Word>,
    reach: Arc<Reach>,
) -> io::Result<()> {
    super::redis::start(redis, lanes, calls, reach)
}

#[cfg(not(feature = "redis"))]
pub(super) fn start(_: RedisSettings, _: Weak<Shared>, _: UnboundedReceiver<Word>, _: Arc<Reach>) -> io::Result<()> {
    Err(io::Error::other("built without the feature `redis`"))
}
