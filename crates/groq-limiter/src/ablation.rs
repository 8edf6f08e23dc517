//! Switches that turn one mechanism off, for `cargo bench --bench shield -- --without NAME`. Nothing else uses them.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

static OFF: AtomicU32 = AtomicU32::new(0);

/// A mechanism that has to earn its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// Remaining that is never usage.
    SafetyMargin,
    /// Most of the margin is given back while headers show nobody else.
    MarginRelease,
    /// A larger margin after refusals.
    MarginGrowth,
    /// What others take of the same limits.
    ExternalUsage,
    /// Four queues for each app, by size.
    SizeClasses,
    /// Small requests pass a blocked head.
    Backfill,
    /// Forecasts by the app's and the size class's own share, beside everybody's.
    ForecastViews,
    /// Headers are compared with what had been sent when their request was.
    SendPosition,
    /// What a header may have missed gives nothing back.
    Uncertainty,
    /// One request goes first where nothing is known.
    Probe,
    /// Debts of more than ten periods are cut.
    DebtCut,
}

impl Mechanism {
    /// All of them, by the name that `--without` takes.
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

    /// Whether it is on.
    pub(crate) fn is_on(self) -> bool {
        OFF.load(Relaxed) & (1 << self as u32) == 0
    }
}

/// Turns these off, and all others on, in the whole process.
pub fn without(mechanisms: &[Mechanism]) {
    OFF.store(mechanisms.iter().fold(0, |off, &mechanism| off | 1 << mechanism as u32), Relaxed);
}
