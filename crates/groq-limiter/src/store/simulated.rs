//! The other end of a store that is no thread with sockets: whoever simulates one takes transactions from here and answers them.

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

/// The store's end. Until [`Self::reached`] it counts as out of reach.
#[derive(Debug)]
pub struct StoreEnd {
    pub(crate) commands: UnboundedReceiver<Command>,
    pub(crate) limiters: Weak<Registry>,
}

/// A limiter's transaction, to be answered or given up.
#[derive(Debug)]
pub struct StoreCall(Arc<SharedLimiter>, Transaction);

impl StoreEnd {
    /// The next transaction. `None`: the limiters are gone.
    pub async fn next(&mut self) -> Option<StoreCall> {
        loop {
            match self.commands.recv().await? {
                Command::Transact(scope, transaction) => {
                    if let Some(limiter) = self.limiters.upgrade()?.get(&scope) {
                        return Some(StoreCall(limiter, transaction));
                    }
                }
                Command::End(_) => return None,
                // Nothing else of the program is answered.
                Command::Run { .. } | Command::Listen(_) => {}
            }
        }
    }

    /// The store can be reached.
    pub fn reached(&self) {
        self.limiters.upgrade().map(|limiters| limiters.store_is(true));
    }

    /// The store is lost.
    pub fn lost(&self) {
        self.limiters.upgrade().map(|limiters| limiters.store_is(false));
    }
}

impl StoreCall {
    /// What the limiter tells and asks.
    pub fn transaction(&self) -> &Transaction {
        &self.1
    }

    /// The limiter's number.
    pub fn limiter(&self) -> u64 {
        self.0.number
    }

    /// Answers it; `None`: nobody does.
    pub fn answer(self, answer: Option<&Answer>) {
        self.0.answered(self.1.serial, answer);
    }
}
