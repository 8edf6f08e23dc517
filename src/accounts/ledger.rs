//! The ledger: what each app has used in the running day and month, and what its requests in flight have reserved.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use serde::{Deserialize, Serialize};

use super::{Amounts, Budget, Exceeded, Period};

/// Apps with an account of their own. Clients choose their names under `[[app]] name = "*"`; all others share one account.
const MAX_ACCOUNTS: usize = 10_000;
/// The account of all apps beyond that.
const OTHER: &str = "other";

/// The accounts of all apps that have budgets. Times are Unix time in seconds, given by the caller.
#[derive(Debug, Default)]
pub struct Ledger {
    accounts: Mutex<HashMap<Arc<str>, Account>>,
    changed: AtomicBool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Account {
    day: Used,
    month: Used,
    reserved: Amounts,
    /// Completion tokens of a response, on average; `None` before the first one.
    completion: Option<f64>,
}

/// Weight of the newest response in the average.
const NEWEST: f64 = 0.1;

/// What was used in the period that began at `start`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Used {
    start: u64,
    #[serde(flatten)]
    amounts: Amounts,
}

impl Used {
    /// Starts anew where `now` is in a later period. A clock that goes back changes nothing: a budget is never granted twice.
    fn roll(&mut self, period: Period, now: u64) {
        let (start, _) = period.bounds(now);
        if start > self.start {
            *self = Self { start, amounts: Amounts::default() };
        }
    }
}

impl Account {
    fn roll(&mut self, now: u64) {
        self.day.roll(Period::Day, now);
        self.month.roll(Period::Month, now);
    }

    fn used(&self, period: Period) -> Amounts {
        match period {
            Period::Day => self.day.amounts,
            Period::Month => self.month.amounts,
        }
    }

    fn add(&mut self, amounts: Amounts) {
        self.day.amounts = self.day.amounts.plus(amounts);
        self.month.amounts = self.month.amounts.plus(amounts);
    }
}

/// What an app has used and reserved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AppUse {
    /// Used in the running day.
    pub day: Amounts,
    /// Used in the running month.
    pub month: Amounts,
    /// Reserved by requests in flight.
    pub reserved: Amounts,
}

impl AppUse {
    /// What was used in the running period.
    pub fn used(&self, period: Period) -> Amounts {
        match period {
            Period::Day => self.day,
            Period::Month => self.month,
        }
    }
}

/// The ledger as it is saved, by app. What was in flight counts as used: nobody will settle it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved(BTreeMap<String, SavedAccount>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SavedAccount {
    day: Used,
    month: Used,
}

impl Ledger {
    /// Reserves `estimate` for a request of `app`.
    ///
    /// # Errors
    /// The budget of `budgets` that is spent: what was used and reserved has reached its limit. Nothing is reserved then.
    pub fn reserve(
        self: &Arc<Self>,
        app: &Arc<str>,
        budgets: &[Budget],
        estimate: Amounts,
        now: u64,
    ) -> Result<Permit, Exceeded> {
        let mut accounts = self.lock();
        let app = if accounts.len() < MAX_ACCOUNTS || accounts.contains_key(app) { app.clone() } else { Arc::from(OTHER) };
        let account = accounts.entry(app.clone()).or_default();
        account.roll(now);
        for &budget in budgets {
            let used = account.used(budget.period).of(budget.unit);
            if used.saturating_add(account.reserved.of(budget.unit)) >= budget.limit {
                return Err(Exceeded { budget, used, resets_in: budget.period.time_left(now) });
            }
        }
        account.reserved = account.reserved.plus(estimate);
        self.changed.store(true, Ordering::Relaxed);
        Ok(Permit { ledger: self.clone(), app, reserved: estimate, used: Amounts::default() })
    }

    /// Completion tokens that a response to `app` has on average; 0 before the first one.
    pub fn expected_completion(&self, app: &str) -> u64 {
        self.lock().get(app).and_then(|account| account.completion).map_or(0, |mean| mean.round() as u64)
    }

    /// What `app` has used and reserved.
    pub fn usage(&self, app: &str, now: u64) -> AppUse {
        self.lock().get_mut(app).map_or_else(AppUse::default, |account| {
            account.roll(now);
            AppUse { day: account.day.amounts, month: account.month.amounts, reserved: account.reserved }
        })
    }

    /// Every account, by app.
    pub fn list(&self, now: u64) -> Vec<(Arc<str>, AppUse)> {
        let names: Vec<_> = self.lock().keys().cloned().collect();
        names.into_iter().map(|app| (app.clone(), self.usage(&app, now))).collect()
    }

    /// The ledger to be saved; `None` where nothing has changed since the last call.
    pub fn take_changes(&self) -> Option<Saved> {
        self.changed.swap(false, Ordering::Relaxed).then(|| {
            let accounts = self.lock();
            let saved = accounts.iter().map(|(app, account)| {
                let mut settled = *account;
                settled.add(account.reserved);
                (app.to_string(), SavedAccount { day: settled.day, month: settled.month })
            });
            Saved(saved.collect())
        })
    }

    /// Takes up what an earlier process has saved.
    pub fn restore(&self, saved: Saved) {
        let mut accounts = self.lock();
        for (app, SavedAccount { day, month }) in saved.0.into_iter().take(MAX_ACCOUNTS) {
            accounts.insert(app.into(), Account { day, month, ..Account::default() });
        }
    }

    /// Counts into the period that the account is in: which one a request counts to that is in flight at midnight does not matter.
    fn settle(&self, app: &Arc<str>, reserved: Amounts, used: Amounts) {
        if let Some(account) = self.lock().get_mut(app) {
            account.reserved = account.reserved.minus(reserved);
            account.add(used);
        }
        self.changed.store(true, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Account>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a request has reserved of its app's budgets. Settled when dropped, with what has been used by then.
#[derive(Debug)]
pub struct Permit {
    ledger: Arc<Ledger>,
    app: Arc<str>,
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
        if let Some(account) = self.ledger.lock().get_mut(&self.app) {
            let mean = account.completion.get_or_insert(tokens as f64);
            *mean += NEWEST * (tokens as f64 - *mean);
        }
    }

    /// What the request has reserved.
    pub fn reserved(&self) -> Amounts {
        self.reserved
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.ledger.settle(&self.app, self.reserved, self.used);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::accounts::Unit;

    const DAY: u64 = 86_400;

    fn tokens(tokens: u64) -> Amounts {
        Amounts { requests: 1, tokens, nano_usd: tokens * 50 }
    }

    fn per_day(limit: u64) -> [Budget; 1] {
        [Budget { unit: Unit::Tokens, period: Period::Day, limit }]
    }

    fn app() -> Arc<str> {
        "a".into()
    }

    #[test]
    fn a_spent_budget_refuses_until_the_next_day() {
        let ledger = Arc::<Ledger>::default();
        let reserve = |now| ledger.reserve(&app(), &per_day(100), tokens(60), now);
        let mut first = reserve(10 * DAY + 5).expect("nothing is used");
        first.used(tokens(90));
        drop(first);
        reserve(10 * DAY + 6).expect("10 are left, and nothing is in flight").used(tokens(30));
        let exceeded = reserve(10 * DAY + 7).expect_err("120 of 100 are used");
        assert_eq!((exceeded.used, exceeded.resets_in.as_secs()), (120, DAY - 7));
        assert_eq!(ledger.usage("a", 10 * DAY + 8).reserved, Amounts::default(), "a refusal reserves nothing");
        reserve(11 * DAY).expect("a new day");
        let month = ledger.usage("a", 11 * DAY);
        assert_eq!((month.day.tokens, month.month.tokens), (0, 120));
    }

    #[test]
    fn what_is_in_flight_is_reserved() {
        let ledger = Arc::<Ledger>::default();
        let reserve = || ledger.reserve(&app(), &per_day(100), tokens(60), DAY);
        let (first, second) = (reserve().expect("0 of 100"), reserve().expect("60 of 100"));
        let exceeded = reserve().expect_err("120 are reserved");
        assert_eq!(exceeded.used, 0);
        drop((first, second));
        reserve().expect("nothing was used");
    }

    #[test]
    fn a_clock_that_goes_back_grants_nothing_twice() {
        let ledger = Arc::<Ledger>::default();
        let spend = |now| ledger.reserve(&app(), &per_day(100), tokens(100), now).map(|mut permit| permit.used(tokens(100)));
        spend(40 * DAY).expect("the first day");
        spend(41 * DAY).expect("the next day");
        for now in [40 * DAY, 41 * DAY, 0] {
            assert!(spend(now).is_err(), "at {now}");
        }
        spend(42 * DAY).expect("a later day");
    }

    #[test]
    fn a_budget_lowered_below_what_is_used_refuses_at_once() {
        let ledger = Arc::<Ledger>::default();
        ledger.reserve(&app(), &per_day(1000), tokens(10), DAY).expect("0 of 1000").used(tokens(500));
        assert!(ledger.reserve(&app(), &per_day(400), tokens(10), DAY).is_err());
        assert!(ledger.reserve(&app(), &per_day(501), tokens(10), DAY).is_ok());
        assert!(ledger.reserve(&app(), &[], tokens(10), DAY).is_ok(), "without budgets");
    }

    #[test]
    fn apps_beyond_the_bound_share_an_account() {
        let ledger = Arc::<Ledger>::default();
        for n in 0..MAX_ACCOUNTS + 100 {
            ledger.reserve(&format!("app-{n}").into(), &[], tokens(1), DAY).expect("no budget").used(tokens(1));
        }
        assert_eq!(ledger.list(DAY).len(), MAX_ACCOUNTS + 1);
        assert_eq!(ledger.usage(OTHER, DAY).day.tokens, 100);
    }

    #[test]
    fn what_is_saved_counts_what_was_in_flight() {
        let ledger = Arc::<Ledger>::default();
        assert_eq!(ledger.take_changes(), None);
        ledger.reserve(&app(), &[], tokens(1), DAY).expect("no budget").used(tokens(7));
        let in_flight = ledger.reserve(&app(), &[], tokens(30), DAY).expect("no budget");
        let saved = ledger.take_changes().expect("it has changed");
        assert_eq!(ledger.take_changes(), None);
        let text = serde_json::to_string(&saved).expect("JSON");
        let restored = Arc::<Ledger>::default();
        restored.restore(serde_json::from_str(&text).expect("the same"));
        assert_eq!(restored.usage("a", DAY).day.tokens, 37);
        drop(in_flight);
        assert_eq!(ledger.usage("a", DAY).day.tokens, 7, "the running process knows better");
    }

    proptest! {
        /// However requests overlap: one is admitted while what was used and reserved is below the limit, and only then, so that a
        /// budget is overrun by what was in flight at most.
        #[test]
        fn a_budget_is_overrun_by_what_was_in_flight_at_most(
            steps in proptest::collection::vec((any::<bool>(), 1..200_u64, 0..200_u64), 1..100),
        ) {
            const LIMIT: u64 = 1000;
            let ledger = Arc::<Ledger>::default();
            let mut in_flight: Vec<(u64, Permit)> = Vec::new();
            let mut used_so_far = 0;
            for (ends, estimate, used) in steps {
                let reserved: u64 = in_flight.iter().map(|(estimate, _)| estimate).sum();
                if ends && !in_flight.is_empty() {
                    in_flight.remove(0).1.used(tokens(used));
                    used_so_far += used;
                } else {
                    let permit = ledger.reserve(&app(), &per_day(LIMIT), tokens(estimate), DAY);
                    prop_assert_eq!(permit.is_ok(), used_so_far + reserved < LIMIT);
                    in_flight.extend(permit.ok().map(|permit| (estimate, permit)));
                }
                prop_assert_eq!(ledger.usage("a", DAY).day.tokens, used_so_far);
            }
            in_flight.clear();
            prop_assert_eq!(ledger.usage("a", DAY).reserved, Amounts::default());
        }
    }
}
