//! Options of a simulated Groq: limits, how it charges and words refusals, how fast it generates, faults.

use std::{collections::BTreeMap, time::Duration};

use crate::{Algorithm, ExternalTraffic, Fault, OutputTest, Plan};

/// What the limiter tests and holds of the tokens of a request, and when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Charging {
    /// Tests and holds prompt + max completion tokens and refunds what was not used: Groq, as far as known.
    #[default]
    ReserveMaximum,
    /// Tests prompt + max completion tokens, holds the prompt, adds the output at the end.
    TestMaximum,
    /// Tests and holds the prompt, adds the output at the end.
    PromptOnly,
    /// Tests and holds prompt + max completion tokens and refunds nothing.
    NoRefund,
}

/// When the values of the `x-ratelimit-*` headers are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeaderTime {
    /// At admission: Groq.
    #[default]
    Admission,
    /// When the answer's head goes out.
    Finish,
}

/// How `retry-after` becomes whole seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Rounding {
    #[default]
    Up,
    Down,
    Nearest,
}

/// Which of the captured forms a refusal has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wording {
    /// `… on tokens per minute (TPM): Limit …`
    #[default]
    Current,
    /// `… on : Limit …`, the usage rounded down.
    NoDimension,
    /// `Requested ~n`, and 429 even for what can never fit.
    From2024,
}

/// How fast and how much is generated. Lognormal, from the simulator's seed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Median time to the head of a stream.
    pub head: Duration,
    /// Its spread: the standard deviation of the logarithm.
    pub head_sigma: f64,
    /// 0: all at once.
    pub tokens_per_second: f64,
    /// Median completion tokens of a request that allows more.
    pub completion: f64,
    /// Their spread.
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
    /// Answers at once.
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
    /// What is tested and held of a request's tokens.
    pub charging: Charging,
    /// What is tested against `output_tokens_per_minute`.
    pub output_test: OutputTest,
    /// When rate-limit headers are read.
    pub header_time: HeaderTime,
    /// How `retry-after` is rounded.
    pub retry_after: Rounding,
    /// Whether `reset` headers are exact to the nanosecond, and not computed from the whole units of `remaining`.
    pub exact_reset: bool,
    /// How refusals are worded.
    pub wording: Wording,
    /// The last sentence of a refusal.
    pub tail: String,
    /// Organization ids by API key. Any other key is an organization of its own.
    pub organizations: BTreeMap<String, String>,
    /// Share of a limit that is used when a limiter is created, by code (`TPD`); over 1 for debt.
    pub initial_usage: BTreeMap<String, f64>,
    /// Traffic of the organization that does not come through the client under test.
    pub external: Option<ExternalTraffic>,
    /// How fast it generates.
    pub pace: Pace,
    /// Most bytes of an audio file (25 MB on the free plan).
    pub max_audio: usize,
    /// Most bytes of any body.
    pub max_body: usize,
    /// Seed of everything random.
    pub seed: u64,
    /// Injected faults.
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
