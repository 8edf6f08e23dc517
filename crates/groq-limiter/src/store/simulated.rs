//! The other end of a store that is no thread with sockets: whoever simulates one takes transactions from here and answers them.

use std::sync::{Arc, Weak};

use tokio::sync::mpsc::UnboundedReceiver;

use crate::{
    registry::Registry,
    shared::SharedLimiter,
    store::{
        Command, Commands,
        protocol::{Answer, Transaction},
    },
};

/// The store's end. Until [`Self::reached`] it counts as out of reach.
#[derive(Debug)]
pub struct StoreEnd {
    commands: UnboundedReceiver<Command<SharedLimiter>>,
    limiters: Weak<Registry>,
}

/// A limiter's transaction, to be answered or given up.
#[derive(Debug)]
pub struct StoreCall(Arc<SharedLimiter>, Transaction);

impl StoreEnd {
    pub(crate) fn new(commands: Commands<SharedLimiter>, limiters: Weak<Registry>) -> Self {
        // Nothing else of the program is answered.
        Self { commands: commands.of_limiters, limiters }
    }

    /// The next transaction. `None`: the limiters are gone.
    pub async fn next(&mut self) -> Option<StoreCall> {
        match self.commands.recv().await? {
            Command::Transact(limiter, transaction) => Some(StoreCall(limiter, transaction)),
            Command::End(_) => None,
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

    /// Answers it.
    pub fn answer(self, answer: &Answer) {
        self.0.answered(self.1.serial, Some(answer));
    }

    /// Nobody answers it.
    pub fn give_up(self) {
        self.0.answered(self.1.serial, None);
    }
}
