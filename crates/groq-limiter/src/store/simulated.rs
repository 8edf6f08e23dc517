//! A store for simulations: instead of a thread with sockets, the simulation itself takes the transactions from a
//! [`StoreEnd`] and answers them.

use std::sync::{Arc, Weak};

use tokio::sync::mpsc::UnboundedReceiver;

use crate::{
    registry::Registry,
    shared::SharedLimiter,
    store::{
        Command,
        protocol::{Answer, Transaction},
    },
};

/// The store's end of the channel. The store counts as unreachable until [`Self::reached`] is called.
#[derive(Debug)]
pub struct StoreEnd {
    pub(crate) commands: UnboundedReceiver<Command>,
    pub(crate) limiters: Weak<Registry>,
}

/// A limiter's transaction that waits for its answer.
#[derive(Debug)]
pub struct StoreCall(Arc<SharedLimiter>, Transaction);

impl StoreEnd {
    /// Waits for the next transaction. Returns `None` when the limiters are gone.
    pub async fn next(&mut self) -> Option<StoreCall> {
        loop {
            match self.commands.recv().await? {
                Command::Transact(scope, transaction) => {
                    if let Some(limiter) = self.limiters.upgrade()?.get(&scope) {
                        return Some(StoreCall(limiter, transaction));
                    }
                }
                // Scripts of the program are not simulated.
                Command::Run { .. } | Command::Listen(_) => {}
            }
        }
    }

    /// Makes the store reachable.
    pub fn reached(&self) {
        self.limiters.upgrade().map(|limiters| limiters.store_is(true));
    }

    /// Makes the store unreachable.
    pub fn lost(&self) {
        self.limiters.upgrade().map(|limiters| limiters.store_is(false));
    }
}

impl StoreCall {
    /// The transaction.
    pub fn transaction(&self) -> &Transaction {
        &self.1
    }

    /// The number of the limiter that made it.
    pub fn limiter(&self) -> u64 {
        self.0.number
    }

    /// Answers the transaction; `None` means that the answer was lost.
    pub fn answer(self, answer: Option<&Answer>) {
        self.0.answered(self.1.serial, answer);
    }
}
