//! Which connection carries a request? Idle ones, kept per core; each is polled only by the request that holds it.

use std::{
    fmt,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::connection::Connection;

/// Groq's edge closes idle connections after some minutes; well before that a new one is cheaper than a lost request.
const MOST_SWEEPS: u32 = 3;
const IDLE_PER_CORE: usize = 1024;
const SHARDS: usize = 16;

/// Idle connections, newest first, a stack for each core.
#[derive(Default)]
#[expect(clippy::vec_box, reason = "a connection is large and moves between stack and request: its pointer moves")]
pub(super) struct Pool {
    shards: [Mutex<Vec<Box<Connection>>>; SHARDS],
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pool")
    }
}

impl Pool {
    /// A connection that is still open.
    pub(super) fn take(&self) -> Option<Box<Connection>> {
        loop {
            let mut connection = self.shard().lock().expect("no panic while a shard is held").pop()?;
            if connection.is_usable() {
                return Some(connection);
            }
        }
    }

    /// Closes what was idle at the last sweeps too, or was closed by the other side. Called every so often.
    pub(super) fn sweep(&self) {
        for shard in &self.shards {
            let mut shard = shard.lock().expect("no panic while a shard is held");
            shard.retain_mut(|connection| {
                connection.sweeps += 1;
                connection.sweeps <= MOST_SWEEPS && connection.is_usable()
            });
        }
    }

    pub(super) fn give(&self, mut connection: Box<Connection>) {
        connection.sweeps = 0;
        let mut shard = self.shard().lock().expect("no panic while a shard is held");
        if shard.len() < IDLE_PER_CORE {
            shard.push(connection);
        }
    }

    #[expect(clippy::vec_box, reason = "as in the pool")]
    fn shard(&self) -> &Mutex<Vec<Box<Connection>>> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local!(static SHARD: usize = NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS);
        &self.shards[SHARD.with(|shard| *shard)]
    }
}
