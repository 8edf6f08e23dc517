//! The accounts of all apps, and which account an app belongs to.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{
    budget::{Amounts, Budget, Exceeded},
    calendar::Period,
    count::{Count, Counts, Total},
    earlier::Earlier,
};

/// Maximum number of accounts for apps without an entry. Clients choose these names under `[[app]] name = "*"`; further apps
/// share one account.
pub(super) const MAX_ACCOUNTS: usize = 10_000;
/// Name of the account that further apps share; no client can send it.
const OTHER: &str = "(other)";

/// Weight of the newest response in the average.
const NEWEST: f64 = 0.1;

/// The accounts of all apps.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    pub(super) by_app: HashMap<Arc<str>, Account>,
    /// Apps with an entry.
    pub(super) named: HashSet<Arc<str>>,
    /// Apps with changes that have not been reported to the store.
    pub(super) unreported: HashSet<Arc<str>>,
    /// Start of the month in which unused accounts were last removed.
    swept: u64,
}

/// What one app has used, and what its requests in flight have reserved.
#[derive(Clone, Debug, Default)]
pub(super) struct Account {
    pub(super) days: Counts,
    pub(super) months: Counts,
    /// Completion tokens of a response, on average; `None` before the first one.
    completion: Option<f64>,
    /// Used by earlier processes, as far as the store has not acknowledged it. `days` and `months` include it.
    pub(super) earlier: Earlier,
    /// Whether the store has replied to the last report.
    pub(super) is_acknowledged: bool,
}

impl Account {
    /// An account with the counts that an earlier process saved.
    pub(super) fn restored(days: Counts, months: Counts, earlier: Earlier) -> Self {
        let earlier = earlier.trimmed(&days, &months);
        Self { days, months, earlier, ..Self::default() }
    }

    /// The counts of one kind of period.
    pub(super) fn counts(&mut self, period: Period) -> &mut Counts {
        match period {
            Period::Day => &mut self.days,
            Period::Month => &mut self.months,
        }
    }

    /// What has been used and reserved; a period without a count has used nothing.
    pub(super) fn usage(&self, now: u64) -> AppUse {
        let total = |counts: &Counts, period: Period| counts.total(period.start(now));
        let (day, month) = (total(&self.days, Period::Day), total(&self.months, Period::Month));
        AppUse { day: day.used, month: month.used, reserved: day.reserved }
    }

    /// Whether this process has used anything, or has usage of earlier ones to report.
    pub(super) fn has_used(&self) -> bool {
        !self.earlier.is_empty() || self.days.iter().chain(self.months.iter()).any(|count| count.mine != Total::default())
    }

    /// Whether requests are in flight.
    pub(super) fn is_in_flight(&self) -> bool {
        self.days.iter().chain(self.months.iter()).any(|count| count.mine.reserved != Amounts::default())
    }

    /// Updates the average with a response of `tokens` completion tokens.
    pub(super) fn learn_completion(&mut self, tokens: u64) {
        let mean = self.completion.get_or_insert(tokens as f64);
        *mean += NEWEST * (tokens as f64 - *mean);
    }

    /// Completion tokens of a response, on average; 0 before the first one.
    pub(super) fn expected_completion(&self) -> u64 {
        self.completion.map_or(0, |mean| mean.round() as u64)
    }

    /// The counts of the day and the month that contain `now`.
    pub(super) fn at(&mut self, now: u64) -> Running {
        let [day, month] = Period::ALL.map(|period| *self.counts(period).at(period.start(now)));
        Running { day, month }
    }
}

/// The counts of the running day and month.
pub(super) struct Running {
    day: Count,
    month: Count,
}

impl Running {
    /// The count of one of them.
    pub(super) fn of(&self, period: Period) -> &Count {
        match period {
            Period::Day => &self.day,
            Period::Month => &self.month,
        }
    }

    /// The first of `budgets` that `is_spent`.
    pub(super) fn exceeded(&self, budgets: &[Budget], now: u64, is_spent: impl Fn(&Count, &Budget) -> bool) -> Option<Exceeded> {
        let budget = *budgets.iter().find(|budget| is_spent(self.of(budget.period), budget))?;
        Some(Exceeded {
            budget,
            used: self.of(budget.period).total().used.of(budget.unit),
            resets_in: budget.period.time_left(now),
            shares: 1,
        })
    }
}

impl Accounts {
    /// The account of `app` and its name.
    pub(super) fn of(&mut self, app: &Arc<str>, now: u64) -> (Arc<str>, &mut Account) {
        let month = Period::Month.start(now);
        if self.by_app.len() >= MAX_ACCOUNTS && self.swept != month {
            self.swept = month;
            self.by_app.retain(|_, account| !(account.days.is_over(month) && account.months.is_over(month)));
        }
        let own = self.by_app.len() < MAX_ACCOUNTS || self.by_app.contains_key(app) || self.named.contains(app);
        let name = if own { app.clone() } else { Arc::from(OTHER) };
        (name.clone(), self.by_app.entry(name).or_default())
    }
}

/// What an app has used and reserved on all replicas, as far as this one knows.
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
    /// What has been used in the running period.
    pub fn used(&self, period: Period) -> Amounts {
        match period {
            Period::Day => self.day,
            Period::Month => self.month,
        }
    }
}
