//! The limits of Groq's plans, or of a TOML file with groq-shield's `[limits]` table.

use std::collections::BTreeMap;

use serde::{Deserialize, de::IgnoredAny};

/// The limits of one model; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "each field says it all")]
pub struct ModelLimits {
    pub requests_per_minute: Option<u64>,
    pub requests_per_day: Option<u64>,
    pub tokens_per_minute: Option<u64>,
    pub tokens_per_day: Option<u64>,
    pub input_tokens_per_minute: Option<u64>,
    pub output_tokens_per_minute: Option<u64>,
    pub audio_seconds_per_hour: Option<u64>,
    pub audio_seconds_per_day: Option<u64>,
    /// Completion tokens that are reserved for a request without max completion tokens.
    pub assumed_completion_tokens: Option<u64>,
}

impl ModelLimits {
    fn or(self, base: Self) -> Self {
        Self {
            requests_per_minute: self.requests_per_minute.or(base.requests_per_minute),
            requests_per_day: self.requests_per_day.or(base.requests_per_day),
            tokens_per_minute: self.tokens_per_minute.or(base.tokens_per_minute),
            tokens_per_day: self.tokens_per_day.or(base.tokens_per_day),
            input_tokens_per_minute: self.input_tokens_per_minute.or(base.input_tokens_per_minute),
            output_tokens_per_minute: self.output_tokens_per_minute.or(base.output_tokens_per_minute),
            audio_seconds_per_hour: self.audio_seconds_per_hour.or(base.audio_seconds_per_hour),
            audio_seconds_per_day: self.audio_seconds_per_day.or(base.audio_seconds_per_day),
            assumed_completion_tokens: self.assumed_completion_tokens.or(base.assumed_completion_tokens),
        }
    }
}

/// Limits of every model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// For models that are not in `models`.
    pub default: ModelLimits,
    /// By model.
    pub models: BTreeMap<String, ModelLimits>,
}

#[derive(Deserialize)]
struct File {
    limits: Table,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    plan: Option<String>,
    #[serde(default)]
    default: ModelLimits,
    #[serde(default)]
    model: BTreeMap<String, ModelLimits>,
    /// This key and the following ones only concern groq-shield.
    #[serde(rename = "headroom")]
    _headroom: Option<IgnoredAny>,
    #[serde(rename = "state_file")]
    _state_file: Option<IgnoredAny>,
    #[serde(rename = "fit_ceiling")]
    _fit_ceiling: Option<IgnoredAny>,
    #[serde(rename = "mode")]
    _mode: Option<IgnoredAny>,
}

type Row = (&'static str, [u64; 6]);

/// RPM, RPD, TPM, TPD, ASPH, ASPD; 0 for no limit.
const DEVELOPER: &[Row] = &[
    ("openai/gpt-oss-120b", [1000, 0, 250_000, 0, 0, 0]),
    ("openai/gpt-oss-20b", [1000, 0, 250_000, 0, 0, 0]),
    ("openai/gpt-oss-safeguard-20b", [1000, 0, 150_000, 0, 0, 0]),
    ("qwen/qwen3.8-27b", [1000, 0, 250_000, 0, 0, 0]),
    ("whisper-large-v3", [300, 0, 0, 0, 200_000, 0]),
    ("whisper-large-v3-turbo", [400, 0, 0, 0, 400_000, 0]),
    ("canopylabs/orpheus-v1-english", [250, 0, 50_000, 0, 0, 0]),
    ("canopylabs/orpheus-arabic-saudi", [250, 0, 50_000, 0, 0, 0]),
    ("meta-llama/llama-prompt-guard-2-22m", [100, 0, 30_000, 0, 0, 0]),
    ("meta-llama/llama-prompt-guard-2-86m", [100, 0, 30_000, 0, 0, 0]),
];

const FREE: &[Row] = &[
    ("openai/gpt-oss-120b", [30, 1000, 8000, 200_000, 0, 0]),
    ("openai/gpt-oss-20b", [30, 1000, 8000, 200_000, 0, 0]),
    ("openai/gpt-oss-safeguard-20b", [30, 1000, 8000, 200_000, 0, 0]),
    ("qwen/qwen3.8-27b", [30, 1000, 8000, 200_000, 0, 0]),
    ("whisper-large-v3", [20, 2000, 0, 0, 7200, 28_800]),
    ("whisper-large-v3-turbo", [20, 2000, 0, 0, 7200, 28_800]),
    ("canopylabs/orpheus-v1-english", [10, 100, 1200, 3600, 0, 0]),
    ("canopylabs/orpheus-arabic-saudi", [10, 100, 1200, 3600, 0, 0]),
    ("meta-llama/llama-prompt-guard-2-22m", [30, 14_400, 15_000, 500_000, 0, 0]),
    ("meta-llama/llama-prompt-guard-2-86m", [30, 14_400, 15_000, 500_000, 0, 0]),
];

impl Plan {
    /// Groq's developer plan (<https://console.groq.com/docs/rate-limits>, October 2026); other models have the limits of
    /// gpt-oss.
    pub fn developer() -> Self {
        Self::of(DEVELOPER)
    }

    /// Groq's free plan (the same page, October 2026; ITPM and OTPM of qwen3.8-27b from refusals in September 2026); other models
    /// have the limits of gpt-oss.
    pub fn free() -> Self {
        let mut plan = Self::of(FREE);
        if let Some(qwen) = plan.models.get_mut("qwen/qwen3.8-27b") {
            qwen.input_tokens_per_minute = Some(7000);
            qwen.output_tokens_per_minute = Some(1000);
        }
        plan
    }

    /// The same limits for every model; `GET /models` lists none.
    pub fn uniform(limits: ModelLimits) -> Self {
        Self { default: limits, models: BTreeMap::new() }
    }

    /// Parses the `[limits]` table of a groq-shield configuration file. `[limits.default]` and `[limits.model."…"]` override the
    /// limits of `plan`, which is `developer`, `free` or `none`; anything else means `developer`. Other tables are ignored.
    ///
    /// # Errors
    /// The message of the TOML parser, with line and column.
    pub fn parse(text: &str) -> Result<Self, String> {
        let File { limits } = toml::from_str(text).map_err(|error| error.to_string())?;
        let mut plan = match limits.plan.as_deref() {
            Some("none") => Self::default(),
            Some("free") => Self::free(),
            _ => Self::developer(),
        };
        plan.default = limits.default.or(plan.default);
        for (model, own) in limits.model {
            let base = plan.of_model(&model);
            plan.models.insert(model, own.or(base));
        }
        Ok(plan)
    }

    /// The limits of `model`.
    pub fn of_model(&self, model: &str) -> ModelLimits {
        self.models.get(model).copied().unwrap_or(self.default)
    }

    fn of(rows: &[Row]) -> Self {
        let some = |n: u64| (n > 0).then_some(n);
        let limits = |[rpm, rpd, tpm, tpd, asph, aspd]: [u64; 6]| ModelLimits {
            requests_per_minute: some(rpm),
            requests_per_day: some(rpd),
            tokens_per_minute: some(tpm),
            tokens_per_day: some(tpd),
            audio_seconds_per_hour: some(asph),
            audio_seconds_per_day: some(aspd),
            ..ModelLimits::default()
        };
        Self { default: limits(rows[0].1), models: rows.iter().map(|(model, row)| ((*model).to_owned(), limits(*row))).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_overrides_the_limits_that_it_names() {
        let text = "[server]\nlisten = 'x'\n[limits]\nplan = 'free'\nheadroom = 0.1\nmode = 'observe'\n\
                    [limits.model.'openai/gpt-oss-20b']\nrequests_per_minute = 60\n[limits.default]\ntokens_per_day = 5";
        let plan = Plan::parse(text).expect("parses");
        let gpt = plan.of_model("openai/gpt-oss-20b");
        assert_eq!((gpt.requests_per_minute, gpt.tokens_per_minute), (Some(60), Some(8000)));
        assert_eq!(plan.of_model("other").tokens_per_day, Some(5));
        assert_eq!(plan.of_model("qwen/qwen3.8-27b").output_tokens_per_minute, Some(1000));
    }

    #[test]
    fn an_unknown_limit_is_named_with_its_line() {
        for (text, name) in
            [("[limits.default]\nrequests_per_minuet = 60", "requests_per_minuet"), ("[limits]\nplann = 'free'", "plann")]
        {
            let error = Plan::parse(text).expect_err("unknown key");
            assert!(error.contains("line 2") && error.contains(name), "{error}");
        }
    }
}
