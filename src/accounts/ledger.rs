//! The ledger: what each app has used in the running day and month, and what its requests in flight have reserved.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::{
    account::{Account, Accounts, AppUse},
    budget::{Amounts, Budget, Exceeded},
    calendar::Period,
    count::{Count, Counts, SavedCount, Total},
    earlier::Earlier,
    protocol::{Part, Reply, ReserveRequest, Transaction},
};

/// The accounts of all apps. Times are Unix time in seconds, given by the caller.
#[derive(Debug)]
pub struct Ledger {
    /// Random id of this process.
    pub(super) replica: String,
    accounts: Mutex<Accounts>,
    changed: AtomicBool,
    /// Whether replicas share the ledger through a store.
    is_shared: bool,
    /// Notified when there is something to report to the store.
    pub(super) unreported: Notify,
}

/// The ledger in its saved form, by app. What was in flight counts as used, because a restarted process cannot settle it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved(BTreeMap<String, SavedAccount>);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SavedAccount {
    days: Vec<SavedCount>,
    months: Vec<SavedCount>,
    /// By process, what `days` and `months` include and this replica reports to the store after a restart.
    #[serde(default)]
    earlier: Earlier,
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            replica: format!("{:016x}", fastrand::u64(..)),
            accounts: Mutex::default(),
            changed: AtomicBool::default(),
            is_shared: false,
            unreported: Notify::default(),
        }
    }
}

impl Ledger {
    /// A ledger that replicas share.
    #[must_use]
    pub fn shared() -> Self {
        Self { is_shared: true, ..Self::default() }
    }

    /// Sets the apps that have entries. Each of them has an account of its own, however many other apps there are.
    pub fn name_apps<'a>(&self, apps: impl IntoIterator<Item = &'a str>) {
        self.lock().named = apps.into_iter().map(Arc::from).collect();
    }

    /// Reserves `estimate` for a request of `app` without asking the store. Each of `replicas` processes may use an equal share
    /// of what was left at the last update from the store.
    ///
    /// # Errors
    /// The first of `budgets` whose limit has been reached by what was used and reserved. Nothing is reserved then.
    pub fn reserve(
        self: &Arc<Self>,
        app: &Arc<str>,
        budgets: &[Budget],
        estimate: Amounts,
        now: u64,
        replicas: u32,
    ) -> Result<Permit, Exceeded> {
        let mut accounts = self.lock();
        let (app, account) = accounts.of(app, now);
        let spent = |count: &Count, budget: &Budget| !count.has_room(budget.unit, budget.limit, replicas);
        match account.at(now).exceeded(budgets, now, spent) {
            Some(exceeded) => Err(Exceeded { shares: replicas, ..exceeded }),
            None => Ok(self.permit(account, app, Period::ALL.map(|period| period.start(now)), estimate)),
        }
    }

    /// The name of the account of `app`: its own, or the shared one if there are too many.
    pub(super) fn account_of(&self, app: &Arc<str>, now: u64) -> Arc<str> {
        self.lock().of(app, now).0
    }

    /// The transaction that reserves `estimate` in the store.
    ///
    /// # Errors
    /// A budget that is known to be spent without asking the store.
    pub(super) fn reserve_transaction(
        self: &Arc<Self>,
        app: &Arc<str>,
        budgets: &[Budget],
        estimate: Amounts,
        now: u64,
    ) -> Result<Transaction, Exceeded> {
        let mut accounts = self.lock();
        let (app, account) = accounts.of(app, now);
        let running = account.at(now);
        let spent = |count: &Count, budget: &Budget| count.total().used.of(budget.unit) >= budget.limit;
        if let Some(exceeded) = running.exceeded(budgets, now, spent) {
            return Err(exceeded);
        }
        account.is_acknowledged = false;
        let parts = Period::ALL.map(|period| Part::new(period, period.start(now), running.of(period).mine, now));
        let reserve = ReserveRequest { budgets: budgets.into(), estimate, now };
        // Reported again unless the store replies.
        accounts.unreported.insert(app.clone());
        Ok(Transaction { app, earlier: None, parts: parts.into(), reserve: Some(reserve) })
    }

    /// The transaction that reports the changes of `app` to the store; `None` if there are none.
    pub(super) fn report_transaction(&self, app: &Arc<str>, now: u64) -> Option<Transaction> {
        let mut accounts = self.lock();
        accounts.unreported.remove(app);
        let account = accounts.by_app.get_mut(app)?;
        // An earlier transaction without a reply may or may not have been applied, so report every period.
        let is_acknowledged = std::mem::replace(&mut account.is_acknowledged, false);
        let of_period = |period: Period, counts: &Counts| -> Vec<Part> {
            let unreported = counts.iter().filter(|count| !is_acknowledged || count.is_unreported());
            unreported.map(|count| Part::new(period, count.start, count.mine, now)).collect()
        };
        let parts = [of_period(Period::Day, &account.days), of_period(Period::Month, &account.months)].concat();
        account.is_acknowledged = is_acknowledged && parts.is_empty();
        (!parts.is_empty()).then(|| Transaction { app: app.clone(), earlier: None, parts, reserve: None })
    }

    /// The next transaction that reports what an earlier process of this replica has used; `None` if the store has acknowledged
    /// all of it.
    pub(super) fn earlier_transaction(&self, app: &Arc<str>, now: u64) -> Option<(String, Transaction)> {
        let (replica, parts) = self.lock().by_app.get(app)?.earlier.next(now)?;
        let transaction = Transaction { app: app.clone(), earlier: Some(replica.clone()), parts, reserve: None };
        Some((replica, transaction))
    }

    /// Notes that the store has what the earlier process `replica` has used.
    pub(super) fn acknowledge_earlier(&self, app: &Arc<str>, replica: &str) {
        if let Some(account) = self.lock().by_app.get_mut(app) {
            account.earlier.acknowledge(replica);
            self.changed.store(true, Ordering::Relaxed);
        }
    }

    /// Applies the store's reply to `transaction`. Returns the permit if the transaction asked for one and the store granted it.
    ///
    /// # Errors
    /// The budget that is spent.
    pub(super) fn apply_reply(self: &Arc<Self>, transaction: &Transaction, reply: &Reply) -> Result<Option<Permit>, Exceeded> {
        let mut accounts = self.lock();
        let Transaction { app, parts, reserve, .. } = transaction;
        accounts.unreported.remove(app);
        let account = accounts.by_app.entry(app.clone()).or_default();
        account.is_acknowledged = true;
        let granted = reserve.as_ref().filter(|_| reply.granted);
        let mut is_unreported = false;
        for (part, shared) in parts.iter().zip(&reply.totals) {
            let asked = granted.map_or(Amounts::default(), |reserve| reserve.estimate);
            let reported = part.reported.plus(Total { reserved: asked, ..Total::default() });
            if let Some(count) = account.counts(part.period).find(part.start) {
                count.apply_reply(reported, shared.version, shared.total);
                is_unreported |= count.mine != part.reported;
            }
        }
        let outcome = match (granted, reserve) {
            (Some(reserve), _) => {
                let starts = Period::ALL.map(|period| period.start(reserve.now));
                Ok(Some(self.permit(account, app.clone(), starts, reserve.estimate)))
            }
            (None, None) => Ok(None),
            (None, Some(ReserveRequest { budgets, now, .. })) => {
                let spent = |count: &Count, budget: &Budget| count.total().of(budget.unit) >= budget.limit;
                let running = account.at(*now);
                // The store refused, but requests that settled since may have made room again. Name the first budget then.
                let exceeded = running.exceeded(budgets, *now, spent).or_else(|| running.exceeded(budgets, *now, |_, _| true));
                exceeded.map_or(Ok(None), Err)
            }
        };
        if is_unreported {
            accounts.unreported.insert(app.clone());
            self.unreported.notify_one();
        }
        outcome
    }

    /// Applies an update that another replica caused.
    pub(super) fn apply_update(&self, app: &str, period: Period, start: u64, version: u64, total: Total) {
        if let Some(account) = self.lock().by_app.get_mut(app).filter(|account| account.is_acknowledged)
            && let Some(count) = account.counts(period).find(start)
        {
            count.apply_update(version, total);
        }
    }

    /// Marks `app` as unreported, after a transaction without a reply.
    pub(super) fn keep_unreported(&self, app: Arc<str>) {
        self.lock().unreported.insert(app);
    }

    /// The apps to report to the store; with `all`, also those whose usage it has already acknowledged.
    pub(super) fn take_unreported(&self, all: bool) -> Vec<Arc<str>> {
        let mut accounts = self.lock();
        let Accounts { by_app, unreported, .. } = &mut *accounts;
        if all {
            for (app, account) in by_app.iter_mut().filter(|(_, account)| account.has_used()) {
                account.is_acknowledged = false;
                unreported.insert(app.clone());
            }
        }
        unreported.drain().collect()
    }

    /// Apps with requests in flight, whose reservations have to be renewed in the store.
    pub(super) fn in_flight(&self) -> Vec<Arc<str>> {
        let accounts = self.lock();
        accounts.by_app.iter().filter(|(_, account)| account.is_in_flight()).map(|(app, _)| app.clone()).collect()
    }

    /// Average number of completion tokens of the responses to `app`; 0 before the first one.
    pub fn expected_completion(&self, app: &str) -> u64 {
        self.lock().by_app.get(app).map_or(0, Account::expected_completion)
    }

    /// What `app` has used and reserved.
    pub fn usage(&self, app: &str, now: u64) -> AppUse {
        self.lock().by_app.get_mut(app).map_or_else(AppUse::default, |account| account.usage(now))
    }

    /// Every account, by app.
    pub fn list(&self, now: u64) -> Vec<(Arc<str>, AppUse)> {
        self.lock().by_app.iter_mut().map(|(app, account)| (app.clone(), account.usage(now))).collect()
    }

    /// The ledger to save; `None` if nothing has changed since the last call.
    pub fn take_changes(&self) -> Option<Saved> {
        self.changed.swap(false, Ordering::Relaxed).then(|| {
            let accounts = self.lock();
            let saved = accounts.by_app.iter().map(|(app, account)| {
                let (days, months) = (&account.days, &account.months);
                let earlier = account.earlier.and(&self.replica, Period::Day, days).and(&self.replica, Period::Month, months);
                (app.to_string(), SavedAccount { days: days.saved(), months: months.saved(), earlier })
            });
            Saved(saved.collect())
        })
    }

    /// Restores what an earlier process saved.
    pub fn restore(&self, saved: Saved) {
        let mut accounts = self.lock();
        for (app, SavedAccount { days, months, earlier }) in saved.0 {
            let account =
                Account::restored(Counts::restored(days, self.is_shared), Counts::restored(months, self.is_shared), earlier);
            accounts.by_app.insert(app.into(), account);
        }
    }

    fn permit(self: &Arc<Self>, account: &mut Account, app: Arc<str>, starts: [u64; 2], estimate: Amounts) -> Permit {
        for (period, start) in Period::ALL.into_iter().zip(starts) {
            if let Some(count) = account.counts(period).find(start) {
                count.mine.reserved = count.mine.reserved.plus(estimate);
            }
        }
        self.changed.store(true, Ordering::Relaxed);
        Permit { ledger: self.clone(), app, starts, reserved: estimate, used: Amounts::default() }
    }

    /// Settles in the day and the month in which the request was reserved.
    fn settle(&self, permit: &Permit) {
        let mut accounts = self.lock();
        let Some(account) = accounts.by_app.get_mut(&permit.app) else { return };
        for (period, start) in Period::ALL.into_iter().zip(permit.starts) {
            if let Some(count) = account.counts(period).find(start) {
                count.mine.reserved = count.mine.reserved.minus(permit.reserved);
                count.mine.used = count.mine.used.plus(permit.used);
            }
        }
        self.changed.store(true, Ordering::Relaxed);
        if self.is_shared {
            accounts.unreported.insert(permit.app.clone());
            self.unreported.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Accounts> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reservation under the budgets of an app. Settled on drop with what has been used by then.
#[derive(Debug)]
pub struct Permit {
    ledger: Arc<Ledger>,
    app: Arc<str>,
    /// Start of the day and of the month in which it was reserved.
    starts: [u64; 2],
    reserved: Amounts,
    used: Amounts,
}

impl Permit {
    /// Adds what an attempt has used.
    pub fn used(&mut self, amounts: Amounts) {
        self.used = self.used.plus(amounts);
    }

    /// Updates the average length of the app's responses.
    pub fn learn_completion(&self, tokens: u64) {
        if let Some(account) = self.ledger.lock().by_app.get_mut(&self.app) {
            account.learn_completion(tokens);
        }
    }

    /// What the request has reserved.
    pub fn reserved(&self) -> Amounts {
        self.reserved
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.ledger.settle(self);
    }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "replica_tests.rs"]
mod replica_tests;
