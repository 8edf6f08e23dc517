//! Budgets shared by replicas through the limiters' store: requests reserve there, and their usage is reported there.
//!
//! If the store does not reply, each replica uses its share of what was left at the last update.

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
    protocol::{LEASE, Reply, SCRIPT, SharedTotal, Transaction},
};

/// Number of transactions that may be in flight at once. Transactions of one app are sent one after the other.
const SLOTS: usize = 64;
/// How long the store is not asked after a transaction without a reply.
const BACK_OFF: Duration = Duration::from_millis(500);
/// How often reservations of requests in flight are renewed.
const RENEW_PERIOD: Duration = LEASE.checked_div(3).expect("three is not zero");
/// How often the state of the connection to the store is checked.
const POLL_PERIOD: Duration = Duration::from_millis(250);
/// How long each replica keeps to its share after the store is reachable again, so that all replicas can report what they used
/// during the outage.
const SYNC_PERIOD: Duration = Duration::from_secs(2);
/// How often all usage is reported again, in case the store lost its data without becoming unreachable.
const REPEAT_PERIOD: Duration = Duration::from_secs(60);
/// Maximum number of concurrent reports.
const MAX_REPORTS: usize = 64;

/// The ledger, and the store through which replicas share it, if one is configured.
#[derive(Debug)]
pub struct SharedLedger {
    ledger: Arc<Ledger>,
    store: Option<Store>,
}

#[derive(Debug)]
struct Store {
    handle: StoreHandle,
    /// Prefix of every key.
    prefix: String,
    serial: AtomicU64,
    /// The latest store session in which all replicas have had time to report what they used before it.
    synchronized_session: AtomicU64,
    /// For each slot, when the store may be asked again.
    slots: [AsyncMutex<Option<Instant>>; SLOTS],
    /// Apps by the prefix of their keys, to look up the app of an update.
    apps: Mutex<HashMap<String, Arc<str>>>,
}

impl SharedLedger {
    /// A ledger shared through `store` under keys that begin with `prefix`, or a local one without a store.
    pub fn new(store: Option<StoreHandle>, prefix: &str) -> Self {
        let ledger = if store.is_some() { Ledger::shared() } else { Ledger::default() };
        let store = store.map(|handle| Store {
            handle,
            prefix: prefix.to_owned(),
            serial: AtomicU64::new(0),
            // A process that has just started has nothing to report.
            synchronized_session: AtomicU64::new(1),
            slots: std::array::from_fn(|_| AsyncMutex::default()),
            apps: Mutex::default(),
        });
        Self { ledger: ledger.into(), store }
    }

    /// The ledger of this process.
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// Reserves `estimate` for a request of `app` in the store, or from this replica's share if the store does not reply.
    ///
    /// # Errors
    /// The budget that is spent. Nothing is reserved then.
    pub async fn reserve(&self, app: &Arc<str>, budgets: &[Budget], estimate: Amounts, now: u64) -> Result<Permit, Exceeded> {
        let Some(store) = &self.store else { return self.ledger.reserve(app, budgets, estimate, now, 1) };
        let app = self.ledger.account_of(app, now);
        let mut slot = store.slot(&app).lock().await;
        if store.is_reachable(&slot) && store.is_synchronized() && self.report_earlier(store, &mut slot, &app).await {
            let transaction = self.ledger.reserve_transaction(&app, budgets, estimate, now)?;
            if let Some(reply) = store.transact(&mut slot, &self.ledger.replica, &transaction).await
                && let Some(permit) = self.ledger.apply_reply(&transaction, &reply)?
            {
                return Ok(permit);
            }
        }
        self.ledger.reserve(&app, budgets, estimate, now, store.handle.replicas())
    }

    /// Reports usage to the store and applies updates from it. Never returns.
    pub async fn synchronize(self: Arc<Self>) {
        let Some(store) = &self.store else { return std::future::pending().await };
        let mut updates = store.handle.listen();
        let (mut session, mut found, mut renewed, mut repeated) = (0, Instant::now(), Instant::now(), Instant::now());
        let mut polls = interval(POLL_PERIOD);
        polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(text) = updates.recv() => {
                    self.apply_update(store, &text);
                    continue;
                }
                () = self.ledger.unreported.notified() => {}
                _ = polls.tick() => {}
            }
            if !store.handle.is_up() {
                continue;
            }
            let now = Instant::now();
            // A store may have lost its data while it was unreachable.
            let mut all = session != store.handle.sessions() || now - repeated >= REPEAT_PERIOD;
            if session != store.handle.sessions() {
                (session, found) = (store.handle.sessions(), now);
            }
            if !store.is_synchronized() && now - found >= SYNC_PERIOD {
                store.synchronized_session.store(session, Ordering::Relaxed);
                all = true;
            }
            let mut apps = self.ledger.take_unreported(all);
            if all {
                repeated = now;
            }
            if now - renewed >= RENEW_PERIOD {
                renewed = now;
                apps.extend(self.ledger.in_flight());
            }
            self.report(apps).await;
        }
    }

    /// Reports everything that is still unreported, at the end of the process.
    pub async fn flush(self: Arc<Self>) {
        if self.store.as_ref().is_some_and(|store| store.handle.is_up()) {
            self.report(self.ledger.take_unreported(false)).await;
        }
    }

    async fn report(self: &Arc<Self>, apps: Vec<Arc<str>>) {
        for chunk in apps.chunks(MAX_REPORTS) {
            let reports: JoinSet<()> = chunk.iter().map(|app| self.clone().report_app(app.clone())).collect();
            reports.join_all().await;
        }
    }

    /// Reports what earlier processes of this replica have used. `false` if the store lacks some of it.
    async fn report_earlier(&self, store: &Store, slot: &mut Option<Instant>, app: &Arc<str>) -> bool {
        while let Some((replica, transaction)) = self.ledger.earlier_transaction(app, now()) {
            if store.transact(slot, &replica, &transaction).await.is_none() {
                return false;
            }
            self.ledger.acknowledge_earlier(app, &replica);
        }
        true
    }

    async fn report_app(self: Arc<Self>, app: Arc<str>) {
        let Some(store) = &self.store else { return };
        let mut slot = store.slot(&app).lock().await;
        if !store.is_reachable(&slot) || !self.report_earlier(store, &mut slot, &app).await {
            return self.ledger.keep_unreported(app);
        }
        let Some(transaction) = self.ledger.report_transaction(&app, now()) else { return };
        let reply = store.transact(&mut slot, &self.ledger.replica, &transaction).await;
        match reply.filter(|_| store.is_synchronized()) {
            // A report reserves nothing, so it cannot be refused.
            Some(reply) => drop(self.ledger.apply_reply(&transaction, &reply)),
            None => self.ledger.keep_unreported(app),
        }
    }

    fn apply_update(&self, store: &Store, text: &str) {
        let parse = || {
            let (key, total) = text.split_once(' ')?;
            let mut parts = key.rsplitn(3, ':');
            let (start, period, account) = (parts.next()?, parts.next()?, parts.next()?);
            let period = Period::ALL.into_iter().find(|known| known.as_str() == period)?;
            let app = store.apps().get(account)?.clone();
            Some((app, period, start.parse().ok()?, SharedTotal::parse(total)?))
        };
        if let Some((app, period, start, SharedTotal { version, total })) = parse() {
            self.ledger.apply_update(&app, period, start, version, total);
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

    /// Whether all replicas have reported their usage since the store became reachable. Until then its totals are incomplete.
    fn is_synchronized(&self) -> bool {
        self.synchronized_session.load(Ordering::Relaxed) >= self.handle.sessions()
    }

    /// Runs a transaction for the process `replica`. `None` if there is no valid reply within `store.timeout`.
    async fn transact(&self, not_before: &mut Option<Instant>, replica: &str, transaction: &Transaction) -> Option<Reply> {
        let account = self.account(&transaction.app);
        let keys = transaction.parts.iter().flat_map(|part| {
            let key = format!("{account}:{}:{}", part.period.as_str(), part.start);
            let reported = format!("{key}:{replica}");
            [key, reported]
        });
        let serial = self.serial.fetch_add(1, Ordering::Relaxed) + 1;
        let argument = transaction.to_json(replica, serial);
        let fields = self.handle.run(SCRIPT, keys.collect(), argument).await;
        let reply = fields.and_then(|fields| Reply::parse(&fields, transaction.parts.len()));
        *not_before = reply.is_none().then(|| Instant::now() + BACK_OFF);
        reply
    }

    /// Prefix of an app's keys. The hash tag is the digest of the app's name, because names may contain any character.
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
