//! The other end of a store that is no thread with sockets: whoever simulates one takes transactions from here and answers them.

use std::sync::{Arc, Weak, atomic::Ordering::Relaxed};

use tokio::sync::mpsc::UnboundedReceiver;

use crate::{
    limiter::Limiter,
    registry::Registry,
    shared::SharedLimiter,
    store::{
        Call, Command, Commands, StoreHealth,
        protocol::{Answer, Transaction},
    },
    types::Ns,
};

/// The store's end. Until [`Self::reached`] it counts as out of reach.
#[derive(Debug)]
pub struct StoreEnd {
    commands: UnboundedReceiver<Command<SharedLimiter>>,
    limiters: Weak<Registry>,
    health: Arc<StoreHealth>,
}

/// A limiter's transaction, to be answered or given up.
#[derive(Debug)]
pub struct StoreCall(Call<SharedLimiter>);

impl StoreEnd {
    pub(crate) fn new(commands: Commands<SharedLimiter>, limiters: Weak<Registry>, health: Arc<StoreHealth>) -> Self {
        // Nothing else of the program is answered.
        Self { commands: commands.of_limiters, limiters, health }
    }

    /// The next transaction. `None`: the limiters are gone.
    pub async fn next(&mut self) -> Option<StoreCall> {
        match self.commands.recv().await? {
            Command::Call(call) => Some(StoreCall(call)),
            Command::End(_) => None,
        }
    }

    /// The store can be reached.
    pub fn reached(&self) {
        if !self.health.up.swap(true, Relaxed) {
            self.health.sessions.fetch_add(1, Relaxed);
            self.each(|limiter| limiter.change_now(Limiter::reached));
        }
    }

    /// The store is lost.
    pub fn lost(&self) {
        if self.health.up.swap(false, Relaxed) {
            let replicas = self.health.replicas.load(Relaxed);
            self.each(|limiter| limiter.lost(replicas));
        }
    }

    fn each(&self, tell: impl Fn(&Arc<SharedLimiter>)) {
        if let Some(limiters) = self.limiters.upgrade() {
            limiters.all().iter().for_each(tell);
        }
    }
}

impl StoreCall {
    /// What the limiter tells and asks.
    pub fn transaction(&self) -> &Transaction {
        &self.0.transaction
    }

    /// The limiter's number.
    pub fn limiter(&self) -> u64 {
        self.0.limiter.number
    }

    /// The limiters' clock.
    pub fn now(&self) -> Ns {
        self.0.limiter.common.clock.now()
    }

    /// Answers it.
    pub fn answer(self, answer: &Answer) {
        self.0.limiter.change_now(|limiter, now| limiter.answered(self.0.transaction.serial, answer, now));
    }

    /// Nobody answers it.
    pub fn give_up(self) {
        let replicas = self.0.limiter.common.store.as_ref().map_or(1, |store| store.health.replicas.load(Relaxed));
        self.0.limiter.change_now(|limiter, now| {
            if limiter.waits_for(self.0.transaction.serial) {
                limiter.lost(replicas, now);
            }
        });
    }
}
