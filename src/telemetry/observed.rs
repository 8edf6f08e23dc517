//! Counts of observe mode: what would have happened to requests if the limits were enforced.

use super::counts::Sums;

/// Why a request would have been refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObservedRefusal {
    /// The queue would have been full.
    QueueFull,
    /// It is more than a limit can ever hold.
    TooLarge,
    /// It could not have been sent before its deadline.
    MaxWait,
    /// A cap of its app would not have let it pass before its deadline, or ever.
    AppCap,
    /// A budget of its app is spent.
    AppBudget,
    /// The breaker was open.
    BreakerOpen,
}

impl ObservedRefusal {
    /// All reasons.
    pub const ALL: [Self; 6] = [Self::QueueFull, Self::TooLarge, Self::MaxWait, Self::AppCap, Self::AppBudget, Self::BreakerOpen];

    /// The label of `observed_refusals_total{reason}`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::TooLarge => "too_large",
            Self::MaxWait => "max_wait",
            Self::AppCap => "app_cap",
            Self::AppBudget => "app_budget",
            Self::BreakerOpen => "breaker_open",
        }
    }
}

/// What observe mode has counted since the start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ObservedTotals {
    /// Requests that would have been sent, at once or after a wait.
    pub admitted: u64,
    /// Their median wait in seconds; `None` without any.
    pub wait_p50_s: Option<f64>,
    /// The 99th percentile of their waits in seconds.
    pub wait_p99_s: Option<f64>,
    /// Requests that would have been refused, by reason.
    pub refusals: [u64; ObservedRefusal::ALL.len()],
}

impl Sums {
    pub(super) fn observed(&self) -> ObservedTotals {
        let mut waits = super::histogram::Histogram::default();
        self.models.values().for_each(|model| waits.add(&model.observed_wait));
        ObservedTotals {
            admitted: waits.count(),
            wait_p50_s: waits.quantile(0.5),
            wait_p99_s: waits.quantile(0.99),
            refusals: self.observed_refusals,
        }
    }
}
