//! Options of a simulated Groq: limits, charging, the form of refusals, the speed of generation, faults.

use std::{collections::BTreeMap, time::Duration};

use crate::{Algorithm, ExternalTraffic, Fault, OutputTest, Plan};

/// How many tokens of a request the limiter tests against the limits and reserves at admission.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Charging {
    /// Tests and reserves prompt + max completion tokens, and refunds what was not used. Groq's behaviour, as far as known.
    #[default]
    ReserveMaximum,
    /// Tests prompt + max completion tokens, reserves the prompt, and charges the output at the end.
    TestMaximum,
    /// Tests and reserves the prompt, and charges the output at the end.
    PromptOnly,
    /// Tests and reserves prompt + max completion tokens, and refunds nothing.
    NoRefund,
}

/// When the values of the `x-ratelimit-*` headers are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeaderTime {
    /// At admission, as Groq does.
    #[default]
    Admission,
    /// When the head of the response is sent.
    Finish,
}

/// How `retry-after` is rounded to whole seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Rounding {
    #[default]
    Up,
    Down,
    Nearest,
}

/// The message of a refusal. Each form was captured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wording {
    /// `… on tokens per minute (TPM): Limit …`
    #[default]
    Current,
    /// `… on : Limit …`, with the usage rounded down.
    NoDimension,
    /// `Requested ~n`, and 429 even for a request that is larger than the limit.
    From2024,
}

/// The speed and length of generations. Both are lognormal and depend on the simulator's seed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Median time to the head of the response.
    pub head: Duration,
    /// Standard deviation of the logarithm of the time to the head.
    pub head_sigma: f64,
    /// Tokens generated per second; 0 for all of them at once.
    pub tokens_per_second: f64,
    /// Median number of completion tokens, before max completion tokens are applied.
    pub completion: f64,
    /// Standard deviation of the logarithm of the number of completion tokens.
    pub completion_sigma: f64,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            head: Duration::from_millis(60),
            head_sigma: 0.4,
            tokens_per_second: 1000.0,
            completion: 120.0,
            completion_sigma: 0.7,
        }
    }
}

impl Pace {
    /// A pace without delays.
    pub fn instant() -> Self {
        Self { head: Duration::ZERO, tokens_per_second: 0.0, ..Self::default() }
    }
}

/// Settings of a simulated Groq.
#[derive(Clone, Debug)]
pub struct Options {
    /// The limits.
    pub plan: Plan,
    /// How usage decays.
    pub algorithm: Algorithm,
    /// How many tokens of a request are tested and reserved.
    pub charging: Charging,
    /// What is tested against `output_tokens_per_minute`.
    pub output_test: OutputTest,
    /// When rate-limit headers are read.
    pub header_time: HeaderTime,
    /// How `retry-after` is rounded.
    pub retry_after: Rounding,
    /// Whether `reset` headers are exact to the nanosecond instead of computed from the whole units of `remaining`.
    pub exact_reset: bool,
    /// The message of refusals.
    pub wording: Wording,
    /// The last sentence of a refusal's message.
    pub tail: String,
    /// Organization ids by API key. Each other key has an organization of its own.
    pub organizations: BTreeMap<String, String>,
    /// Share of each limit that is already used when a limiter is created, by code (`TPD`); above 1 for debt.
    pub initial_usage: BTreeMap<String, f64>,
    /// Simulated traffic of the organization from other clients.
    pub external: Option<ExternalTraffic>,
    /// The speed and length of generations.
    pub pace: Pace,
    /// Maximum size of an audio file in bytes (25 MB on Groq's free plan).
    pub max_audio: usize,
    /// Maximum size of a request body in bytes.
    pub max_body: usize,
    /// Seed of all random choices.
    pub seed: u64,
    /// The injected faults.
    pub faults: Vec<Fault>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            plan: Plan::developer(),
            algorithm: Algorithm::default(),
            charging: Charging::default(),
            output_test: OutputTest::default(),
            header_time: HeaderTime::default(),
            retry_after: Rounding::default(),
            exact_reset: false,
            wording: Wording::default(),
            tail: "Visit https://console.groq.com/docs/rate-limits for more information.".to_owned(),
            organizations: BTreeMap::new(),
            initial_usage: BTreeMap::new(),
            external: None,
            pace: Pace::default(),
            max_audio: 100 << 20,
            max_body: 110 << 20,
            seed: 1,
            faults: Vec::new(),
        }
    }
}
