//! Budgets that replicas share through the limiters' store: a request reserves there, and what it has used is told there.
//!
//! Without an answer of the store each replica goes on with its share of what was left when it last heard of the others.

use std::{
    collections::HashMap,
    hash::BuildHasher as _,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use foldhash::fast::FixedState;
use groq_limiter::StoreHandle;
use sha2::{Digest as _, Sha256};
use tokio::{
    sync::Mutex as AsyncMutex,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval},
};

use super::{
    budget::{Amounts, Budget, Exceeded},
    calendar::Period,
    ledger::{Ledger, Permit},
    protocol::{Answer, Heard, LEASE, SCRIPT, Transaction},
};

/// Apps whose transactions need not wait for each other's; of one app there is one on its way at a time.
const SLOTS: usize = 64;
/// After a transaction without an answer the store is not asked again for so long.
const BACK_OFF: Duration = Duration::from_millis(500);
/// What requests in flight have reserved is renewed this often.
const RENEW: Duration = LEASE.checked_div(3).expect("three is not zero");
/// A store that has been found again is noticed within this.
const LOOK: Duration = Duration::from_millis(250);
/// So long each replica keeps to its share after that: until then all of them have told what they used meanwhile.
const MEETING: Duration = Duration::from_secs(2);
/// Everything is told again this often, to a store that has been emptied and not been away.
const REPEAT: Duration = Duration::from_secs(60);
/// Transactions at once that tell what has been used.
const TELLING: usize = 64;

/// The ledger, and the store through which replicas share it, where there is one.
#[derive(Debug)]
pub struct SharedLedger {
    ledger: Arc<Ledger>,
    store: Option<Store>,
}

#[derive(Debug)]
struct Store {
    handle: StoreHandle,
    /// First part of every key.
    prefix: String,
    /// This process.
    replica: String,
    serial: AtomicU64,
    /// The last of the store's sessions in which all replicas have told what they had used before.
    met: AtomicU64,
    /// Until when the store is not asked.
    slots: [AsyncMutex<Option<Instant>>; SLOTS],
    /// Apps by the digest in their keys, for updates.
    apps: Mutex<HashMap<String, Arc<str>>>,
}

impl SharedLedger {
    /// A ledger that replicas share through `store`, under keys that begin with `prefix`; or one that is this process' alone.
    pub fn new(store: Option<StoreHandle>, prefix: &str) -> Self {
        let ledger = if store.is_some() { Ledger::shared() } else { Ledger::default() };
        let store = store.map(|handle| Store {
            handle,
            prefix: prefix.to_owned(),
            replica: format!("{:016x}", fastrand::u64(..)),
            serial: AtomicU64::new(0),
            // A process that has just started has nothing to tell.
            met: AtomicU64::new(1),
            slots: std::array::from_fn(|_| AsyncMutex::default()),
            apps: Mutex::default(),
        });
        Self { ledger: ledger.into(), store }
    }

    /// What this process knows.
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// Reserves `estimate` for a request of `app`: in the store, or without its answer of this replica's share.
    ///
    /// # Errors
    /// The budget that is spent. Nothing is reserved then.
    pub async fn reserve(&self, app: &Arc<str>, budgets: &[Budget], estimate: Amounts, now: u64) -> Result<Permit, Exceeded> {
        let Some(store) = &self.store else { return self.ledger.reserve(app, budgets, estimate, now, 1) };
        let app = self.ledger.account_of(app, now);
        let mut slot = store.slot(&app).lock().await;
        if store.is_reachable(&slot) && store.has_met() {
            let transaction = self.ledger.ask(&app, budgets, estimate, now)?;
            if let Some(answer) = store.transact(&mut slot, &transaction).await
                && let Some(permit) = self.ledger.answered(&transaction, &answer)?
            {
                return Ok(permit);
            }
        }
        self.ledger.reserve(&app, budgets, estimate, now, store.handle.replicas())
    }

    /// Tells the store what has been used, and hears what others have. Never ends.
    pub async fn keep_told(self: Arc<Self>) {
        let Some(store) = &self.store else { return std::future::pending().await };
        let mut updates = store.handle.listen();
        let (mut session, mut found, mut renewed, mut repeated) = (0, Instant::now(), Instant::now(), Instant::now());
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(text) = updates.recv() => {
                    self.hear(store, &text);
                    continue;
                }
                () = self.ledger.untold.notified() => {}
                _ = looks.tick() => {}
            }
            if !store.handle.is_up() {
                continue;
            }
            let now = Instant::now();
            // A store that has been found again may have lost everything.
            let mut all = session != store.handle.sessions() || now - repeated >= REPEAT;
            if session != store.handle.sessions() {
                (session, found) = (store.handle.sessions(), now);
            }
            if !store.has_met() && now - found >= MEETING {
                store.met.store(session, Ordering::Relaxed);
                all = true;
            }
            let mut apps = self.ledger.take_untold(all);
            if all {
                repeated = now;
            }
            if now - renewed >= RENEW {
                renewed = now;
                apps.extend(self.ledger.in_flight());
            }
            self.tell(apps).await;
        }
    }

    /// Tells the store what it does not know yet, at the end of the process.
    pub async fn leave(self: Arc<Self>) {
        if self.store.as_ref().is_some_and(|store| store.handle.is_up()) {
            self.tell(self.ledger.take_untold(false)).await;
        }
    }

    async fn tell(self: &Arc<Self>, apps: Vec<Arc<str>>) {
        for some in apps.chunks(TELLING) {
            let telling: JoinSet<()> = some.iter().map(|app| self.clone().tell_of(app.clone())).collect();
            telling.join_all().await;
        }
    }

    async fn tell_of(self: Arc<Self>, app: Arc<str>) {
        let Some(store) = &self.store else { return };
        let mut slot = store.slot(&app).lock().await;
        let Some(transaction) = self.ledger.tell(&app, now()) else { return };
        let answer = if store.is_reachable(&slot) { store.transact(&mut slot, &transaction).await } else { None };
        match answer.filter(|_| store.has_met()) {
            // Nothing was asked for, so that nothing is refused.
            Some(answer) => drop(self.ledger.answered(&transaction, &answer)),
            None => self.ledger.remains_untold(app),
        }
    }

    fn hear(&self, store: &Store, text: &str) {
        let heard = || {
            let (key, total) = text.split_once(' ')?;
            let mut parts = key.rsplitn(3, ':');
            let (start, period, account) = (parts.next()?, parts.next()?, parts.next()?);
            let period = Period::ALL.into_iter().find(|known| known.as_str() == period)?;
            let app = store.apps().get(account)?.clone();
            Some((app, period, start.parse().ok()?, Heard::parse(total)?))
        };
        if let Some((app, period, start, Heard { version, total })) = heard() {
            self.ledger.hear(&app, period, start, version, total);
        }
    }
}

impl Store {
    fn slot(&self, app: &str) -> &AsyncMutex<Option<Instant>> {
        &self.slots[FixedState::default().hash_one(app) as usize % SLOTS]
    }

    fn is_reachable(&self, not_before: &Option<Instant>) -> bool {
        self.handle.is_up() && not_before.is_none_or(|at| Instant::now() >= at)
    }

    /// Whether the store knows what all replicas have used. Until it does, its answers are of no use.
    fn has_met(&self) -> bool {
        self.met.load(Ordering::Relaxed) >= self.handle.sessions()
    }

    /// The store's answer, within its time limit.
    async fn transact(&self, not_before: &mut Option<Instant>, transaction: &Transaction) -> Option<Answer> {
        let account = self.account(&transaction.app);
        let keys = transaction.parts.iter().flat_map(|part| {
            let key = format!("{account}:{}:{}", part.period.as_str(), part.start);
            let told = format!("{key}:{}", self.replica);
            [key, told]
        });
        let serial = self.serial.fetch_add(1, Ordering::Relaxed) + 1;
        let argument = transaction.to_json(&self.replica, serial);
        let words = self.handle.run(SCRIPT, keys.collect(), argument).await;
        let answer = words.and_then(|words| Answer::parse(&words, transaction.parts.len()));
        *not_before = answer.is_none().then(|| Instant::now() + BACK_OFF);
        answer
    }

    /// The beginning of an app's keys: its name's digest, so that any name will do, as the hash tag.
    fn account(&self, app: &Arc<str>) -> String {
        let digest: String = Sha256::digest(app.as_bytes()).iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        let account = format!("{}:budgets:{{{digest}}}", self.prefix);
        self.apps().entry(account.clone()).or_insert_with(|| app.clone());
        account
    }

    fn apps(&self) -> MutexGuard<'_, HashMap<String, Arc<str>>> {
        self.apps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
