//! Switches that turn off single mechanisms of the limiter, to measure what each contributes. Only
//! `cargo bench --bench shield -- --without NAME` uses them.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// The mechanisms that are off, one bit each.
static OFF: AtomicU32 = AtomicU32::new(0);

/// A mechanism that can be turned off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// Keeps a part of every limit unused.
    SafetyMargin,
    /// Uses most of the margin while headers show no external usage.
    MarginRelease,
    /// Enlarges the margin after refusals.
    MarginGrowth,
    /// Estimates the usage of the same limits by other programs.
    ExternalUsage,
    /// Keeps four queues for each app, by size of the request.
    SizeClasses,
    /// Lets small requests overtake a blocked head of the queue.
    Backfill,
    /// Forecasts waits also by the share of the app and of its size class, and not only by the whole queue.
    ForecastViews,
    /// Compares headers with what had been sent before their request, and not with everything sent so far.
    SendPosition,
    /// Does not return units because of a header that may not include them yet.
    Uncertainty,
    /// Sends one request as a probe while the limits are not known.
    Probe,
    /// Cuts debts of more than ten periods.
    DebtCut,
}

impl Mechanism {
    /// All mechanisms and their names for `--without`.
    pub const ALL: [(&str, Self); 11] = [
        ("safety-margin", Self::SafetyMargin),
        ("margin-release", Self::MarginRelease),
        ("margin-growth", Self::MarginGrowth),
        ("external-usage", Self::ExternalUsage),
        ("size-classes", Self::SizeClasses),
        ("backfill", Self::Backfill),
        ("forecast-views", Self::ForecastViews),
        ("send-position", Self::SendPosition),
        ("uncertainty", Self::Uncertainty),
        ("probe", Self::Probe),
        ("debt-cut", Self::DebtCut),
    ];

    /// Whether the mechanism is on.
    pub(crate) fn is_on(self) -> bool {
        OFF.load(Relaxed) & (1 << self as u32) == 0
    }
}

/// Turns these mechanisms off, and all others on, for the whole process.
pub fn without(mechanisms: &[Mechanism]) {
    OFF.store(mechanisms.iter().fold(0, |off, &mechanism| off | 1 << mechanism as u32), Relaxed);
}
