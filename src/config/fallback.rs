//! `[[fallback]]`: other models for requests that their own model cannot serve.

/// `[[fallback]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fallback {
    /// The model that requests name.
    pub model: String,
    /// The models to try instead, in order.
    pub to: Vec<String>,
    /// For which reasons.
    pub when: Vec<FallbackReason>,
}

/// Why a request falls back to another model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FallbackReason {
    /// A daily limit of the model is spent.
    DailyLimit,
    /// The request can never fit under the model's limits.
    TooLarge,
    /// Groq does not serve the model (any more).
    Decommissioned,
    /// The model's breaker is open.
    Unavailable,
    /// The wait would exceed the client's deadline.
    Wait,
}

impl FallbackReason {
    /// The reasons that apply where `when` is not given: all but [`Self::Wait`].
    pub const DEFAULT: [Self; 4] = [Self::DailyLimit, Self::TooLarge, Self::Decommissioned, Self::Unavailable];

    /// Its name in the configuration, in `x-shield-fallback` and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DailyLimit => "daily_limit",
            Self::TooLarge => "too_large",
            Self::Decommissioned => "decommissioned",
            Self::Unavailable => "unavailable",
            Self::Wait => "wait",
        }
    }
}
