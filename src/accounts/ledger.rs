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
    protocol::{Answer, Ask, Part, Transaction},
};

/// The accounts of all apps that have budgets. Times are Unix time in seconds, given by the caller.
#[derive(Debug, Default)]
pub struct Ledger {
    accounts: Mutex<Accounts>,
    changed: AtomicBool,
    /// Whether replicas share it through a store.
    is_shared: bool,
    /// Something is to be told to the store.
    pub(super) untold: Notify,
}

/// The ledger as it is saved, by app. What was in flight counts as used: nobody will settle it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved(BTreeMap<String, SavedAccount>);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SavedAccount {
    days: Vec<SavedCount>,
    months: Vec<SavedCount>,
}

impl Ledger {
    /// A ledger that replicas share.
    #[must_use]
    pub fn shared() -> Self {
        Self { is_shared: true, ..Self::default() }
    }

    /// The apps that have entries: each has an account of its own, however many others there are.
    pub fn name_apps<'a>(&self, apps: impl IntoIterator<Item = &'a str>) {
        self.lock().named = apps.into_iter().map(Arc::from).collect();
    }

    /// Reserves `estimate` for a request of `app`, without asking anybody: this process is one of `replicas` that share, each for
    /// itself, what was left when they last heard of each other.
    ///
    /// # Errors
    /// The budget of `budgets` that is spent: what was used and reserved has reached its limit. Nothing is reserved then.
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

    /// The account that `app` has: its own, or the one of all apps beyond the bound.
    pub(super) fn account_of(&self, app: &Arc<str>, now: u64) -> Arc<str> {
        self.lock().of(app, now).0
    }

    /// The transaction that asks the store for the same.
    ///
    /// # Errors
    /// The budget that is spent for certain, so that nobody needs to be asked.
    pub(super) fn ask(
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
        account.in_step = false;
        let parts = Period::ALL.map(|period| Part::new(period, running.of(period), now));
        let ask = Ask { budgets: budgets.into(), estimate, now };
        // Told again unless it is answered.
        accounts.untold.insert(app.clone());
        Ok(Transaction { app, parts: parts.into(), ask: Some(ask) })
    }

    /// The transaction that tells the store what it does not know of `app`; `None` where it knows everything.
    pub(super) fn tell(&self, app: &Arc<str>, now: u64) -> Option<Transaction> {
        let mut accounts = self.lock();
        accounts.untold.remove(app);
        let account = accounts.by_app.get_mut(app)?;
        // A transaction without an answer may have been applied.
        let in_step = std::mem::replace(&mut account.in_step, false);
        let of_period = |period: Period, counts: &Counts| -> Vec<Part> {
            let untold = counts.iter().filter(|count| !in_step || count.is_untold());
            untold.map(|count| Part::new(period, count, now)).collect()
        };
        let parts = [of_period(Period::Day, &account.days), of_period(Period::Month, &account.months)].concat();
        account.in_step = in_step && parts.is_empty();
        (!parts.is_empty()).then(|| Transaction { app: app.clone(), parts, ask: None })
    }

    /// The store's answer to `transaction`: what was asked for is reserved where it has granted that.
    ///
    /// # Errors
    /// The budget that is spent.
    pub(super) fn answered(self: &Arc<Self>, transaction: &Transaction, answer: &Answer) -> Result<Option<Permit>, Exceeded> {
        let mut accounts = self.lock();
        let Transaction { app, parts, ask } = transaction;
        accounts.untold.remove(app);
        let account = accounts.by_app.entry(app.clone()).or_default();
        account.in_step = true;
        let granted = ask.as_ref().filter(|_| answer.granted);
        let mut is_untold = false;
        for (part, heard) in parts.iter().zip(&answer.parts) {
            let asked = granted.map_or(Amounts::default(), |ask| ask.estimate);
            let told = part.told.plus(Total { reserved: asked, ..Total::default() });
            if let Some(count) = account.counts(part.period).find(part.start) {
                count.answered(told, heard.version, heard.total);
                is_untold |= count.mine != part.told;
            }
        }
        let outcome = match (granted, ask) {
            (Some(ask), _) => {
                let starts = Period::ALL.map(|period| period.start(ask.now));
                Ok(Some(self.permit(account, app.clone(), starts, ask.estimate)))
            }
            (None, None) => Ok(None),
            (None, Some(Ask { budgets, now, .. })) => {
                let spent = |count: &Count, budget: &Budget| count.total().of(budget.unit) >= budget.limit;
                let running = account.at(*now);
                // The store has counted the same; what has been settled since may have made room again.
                let exceeded = running.exceeded(budgets, *now, spent).or_else(|| running.exceeded(budgets, *now, |_, _| true));
                exceeded.map_or(Ok(None), Err)
            }
        };
        if is_untold {
            accounts.untold.insert(app.clone());
            self.untold.notify_one();
        }
        outcome
    }

    /// News of what another replica has told the store.
    pub(super) fn hear(&self, app: &str, period: Period, start: u64, version: u64, total: Total) {
        if let Some(account) = self.lock().by_app.get_mut(app).filter(|account| account.in_step)
            && let Some(count) = account.counts(period).find(start)
        {
            count.hear(version, total);
        }
    }

    /// The store did not answer.
    pub(super) fn remains_untold(&self, app: Arc<str>) {
        self.lock().untold.insert(app);
    }

    /// The apps of which the store has to be told something; `all`: whatever it was told before.
    pub(super) fn take_untold(&self, all: bool) -> Vec<Arc<str>> {
        let mut accounts = self.lock();
        let Accounts { by_app, untold, .. } = &mut *accounts;
        if all {
            for (app, account) in by_app.iter_mut().filter(|(_, account)| account.has_used()) {
                account.in_step = false;
                untold.insert(app.clone());
            }
        }
        untold.drain().collect()
    }

    /// Apps with requests in flight: what they have reserved has to be renewed in the store.
    pub(super) fn in_flight(&self) -> Vec<Arc<str>> {
        let accounts = self.lock();
        accounts.by_app.iter().filter(|(_, account)| account.is_in_flight()).map(|(app, _)| app.clone()).collect()
    }

    /// Completion tokens that a response to `app` has on average; 0 before the first one.
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

    /// The ledger to be saved; `None` where nothing has changed since the last call.
    pub fn take_changes(&self) -> Option<Saved> {
        self.changed.swap(false, Ordering::Relaxed).then(|| {
            let accounts = self.lock();
            let saved = accounts.by_app.iter().map(|(app, account)| {
                (app.to_string(), SavedAccount { days: account.days.saved(), months: account.months.saved() })
            });
            Saved(saved.collect())
        })
    }

    /// Takes up what an earlier process has saved.
    pub fn restore(&self, saved: Saved) {
        let mut accounts = self.lock();
        for (app, SavedAccount { days, months }) in saved.0 {
            let account = Account::restored(Counts::restored(days), Counts::restored(months));
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

    /// Counts into the day and the month in which the request was reserved.
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
            accounts.untold.insert(permit.app.clone());
            self.untold.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Accounts> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a request has reserved of its app's budgets. Settled when dropped, with what has been used by then.
#[derive(Debug)]
pub struct Permit {
    ledger: Arc<Ledger>,
    app: Arc<str>,
    /// When the day and the month began in which it was reserved.
    starts: [u64; 2],
    reserved: Amounts,
    used: Amounts,
}

impl Permit {
    /// Adds what an attempt has used.
    pub fn used(&mut self, amounts: Amounts) {
        self.used = self.used.plus(amounts);
    }

    /// Learns how long the app's responses are.
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
