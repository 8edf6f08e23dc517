//! Which limits does a model start with? The operator's words over the plan's table.

use crate::{
    config::{self, ModelLimits, Plan, plans},
    groq::Dimension,
};

/// The configuration that lanes share.
#[derive(Clone, Debug, PartialEq)]
pub struct Tables(pub config::Limits);

impl Tables {
    /// What the operator says of a model: its own table, or the default one.
    pub fn configured(&self, model: &str) -> ModelLimits {
        self.0.models.get(model).copied().unwrap_or(self.0.default)
    }

    /// Completion tokens that Groq counts where a request names no ceiling, if the operator says so.
    pub fn assumed(&self, model: &str) -> Option<u64> {
        self.configured(model).assumed_completion_tokens
    }

    /// The plan to start from.
    pub fn plan(&self) -> Plan {
        self.0.plan
    }

    /// A plan's row for a model; empty where it has none.
    pub fn row(plan: Plan, model: &str) -> ModelLimits {
        plans::limits(plan, model).unwrap_or_default()
    }
}

/// A table as dimensions.
pub fn by_dimension(limits: &ModelLimits) -> [(Dimension, Option<u64>); 8] {
    [
        (Dimension::RPM, limits.requests_per_minute),
        (Dimension::RPD, limits.requests_per_day),
        (Dimension::TPM, limits.tokens_per_minute),
        (Dimension::TPD, limits.tokens_per_day),
        (Dimension::ITPM, limits.input_tokens_per_minute),
        (Dimension::OTPM, limits.output_tokens_per_minute),
        (Dimension::ASPH, limits.audio_seconds_per_hour),
        (Dimension::ASPD, limits.audio_seconds_per_day),
    ]
}
