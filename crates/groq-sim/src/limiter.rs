//! The limits of one organization, model and service tier. A request is admitted by all of them or by none.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::{
    Charging, ModelLimits, Options, OutputTest,
    dimension::{Dimension, SECOND, Unit},
    error::go_duration,
    expected_output::RecentAnswers,
    limit::Limit,
    refusal::Refusal,
};

/// What a request costs at admission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cost {
    Tokens { prompt: u64, max_completion: Option<u64> },
    Audio { seconds: u64 },
}

impl Cost {
    pub(crate) fn unit(self) -> Unit {
        match self {
            Self::Tokens { .. } => Unit::Tokens,
            Self::Audio { .. } => Unit::Seconds,
        }
    }
}

/// Groq charges at least this many seconds for an audio request.
pub(crate) const MIN_AUDIO_SECONDS: u64 = 10;

/// Output tokens that Groq was observed to assume for a request without max completion tokens.
const ASSUMED_OUTPUT: u64 = 2048;

/// The reservation of an admitted request.
#[derive(Clone, Debug)]
pub(crate) struct Admission {
    id: u64,
    at: u64,
    /// The API key.
    key: String,
    /// Reserved units, in the order of the limiter's limits.
    taken: Vec<u64>,
}

/// Traffic of the organization from clients other than the one under test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExternalTraffic {
    /// Share of the limits that the traffic tries to use.
    pub share: f64,
    /// Tokens of each request.
    pub tokens: u64,
}

/// A Poisson process of external requests.
#[derive(Clone, Debug)]
struct ExternalProcess {
    tokens: u64,
    per_second: f64,
    /// Time of the next request.
    next: u64,
    random: fastrand::Rng,
}

impl ExternalProcess {
    fn new(traffic: ExternalTraffic, limits: &ModelLimits, now: u64, seed: u64) -> Option<Self> {
        let by_tokens = limits.tokens_per_minute.map(|limit| limit as f64 / traffic.tokens.max(1) as f64);
        let by_requests = limits.requests_per_minute.map(|limit| limit as f64);
        let per_minute = traffic.share * by_tokens.into_iter().chain(by_requests).fold(f64::INFINITY, f64::min);
        let random = fastrand::Rng::with_seed(seed);
        (per_minute > 0.0 && per_minute.is_finite()).then(|| Self {
            tokens: traffic.tokens,
            per_second: per_minute / 60.0,
            next: now,
            random,
        })
    }

    /// Removes the next request and returns its time, unless that is after `now`.
    fn pop(&mut self, now: u64) -> Option<u64> {
        let at = self.next;
        if at > now {
            return None;
        }
        self.next += (-(1.0 - self.random.f64()).ln() / self.per_second * SECOND as f64) as u64 + 1;
        Some(at)
    }
}

/// Organization, model, service tier.
pub(crate) type Scope = (String, String, String);

/// The state of all limits of one scope. Times are in nanoseconds since the simulator's start.
#[derive(Debug)]
pub(crate) struct Limiter {
    created: u64,
    limits: Vec<(Dimension, Limit)>,
    charging: Charging,
    assumed_completion: Option<u64>,
    output_test: OutputTest,
    answers: RecentAnswers,
    next_id: u64,
    external: Option<ExternalProcess>,
    pub(crate) admitted: u64,
    /// Number of refusals by code of the dimension.
    pub(crate) refused: BTreeMap<&'static str, u64>,
}

impl Limiter {
    pub(crate) fn new(limits: &ModelLimits, options: &Options, now: u64, seed: u64) -> Self {
        let table = [
            (Dimension::Rpm, limits.requests_per_minute),
            (Dimension::Rpd, limits.requests_per_day),
            (Dimension::Tpm, limits.tokens_per_minute),
            (Dimension::Tpd, limits.tokens_per_day),
            (Dimension::Itpm, limits.input_tokens_per_minute),
            (Dimension::Otpm, limits.output_tokens_per_minute),
            (Dimension::Asph, limits.audio_seconds_per_hour),
            (Dimension::Aspd, limits.audio_seconds_per_day),
        ];
        let limit = |(dimension, limit): (Dimension, Option<u64>)| {
            let used = options.initial_usage.get(dimension.code()).copied().unwrap_or(0.0);
            Some((dimension, Limit::new(options.algorithm, limit?, dimension.window(), used, now)))
        };
        Self {
            created: now,
            limits: table.into_iter().filter_map(limit).collect(),
            charging: options.charging,
            assumed_completion: limits.assumed_completion_tokens,
            output_test: options.output_test,
            answers: RecentAnswers::default(),
            next_id: 0,
            external: options.external.and_then(|traffic| ExternalProcess::new(traffic, limits, now, seed)),
            admitted: 0,
            refused: BTreeMap::new(),
        }
    }

    /// Reserves the cost of a request with the API key `key` in all dimensions.
    ///
    /// # Errors
    /// The refusal, after which nothing is reserved.
    pub(crate) fn admit(&mut self, now: u64, key: &str, cost: Cost) -> Result<Admission, Refusal> {
        self.admit_external(now);
        let admission = self.try_admit(now, key, cost);
        match &admission {
            Ok(_) => self.admitted += 1,
            Err(refusal) => *self.refused.entry(refusal.dimension.code()).or_default() += 1,
        }
        admission
    }

    /// Replaces a reservation by the actual usage: prompt tokens without cached ones, and completion tokens.
    pub(crate) fn settle(&mut self, now: u64, admission: &Admission, prompt: u64, completion: u64) {
        if admission.at < self.created {
            return; // the limits were reset after the admission
        }
        self.answers.record(&admission.key, now, completion);
        let by_expectation = matches!(self.output_test, OutputTest::Expected { .. });
        for ((dimension, limit), taken) in self.limits.iter_mut().zip(&admission.taken) {
            let used = match dimension {
                Dimension::Otpm if by_expectation => completion,
                _ if self.charging == Charging::NoRefund => continue,
                Dimension::Tpm | Dimension::Tpd => prompt + completion,
                Dimension::Itpm => prompt,
                Dimension::Otpm => completion,
                _ => continue,
            };
            limit.correct(now, admission.id, admission.at, *taken, used);
        }
    }

    /// The `x-ratelimit-*` headers of a response to a request that is counted in `unit`.
    pub(crate) fn headers(&mut self, now: u64, unit: Unit, exact_reset: bool) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (dimension, limit) in &mut self.limits {
            let Some(names) = dimension.header_names(unit) else { continue };
            let reset = HeaderValue::from_str(&go_duration(limit.reset(now, exact_reset))).ok();
            let values = [Some(limit.limit.into()), Some(limit.remaining(now).into()), reset];
            for (name, value) in names.into_iter().zip(values) {
                headers.extend(value.map(|value| (HeaderName::from_static(name), value)));
            }
        }
        headers
    }

    /// Code, limit, used units (rounded up), units charged since the start.
    pub(crate) fn usage(&mut self, now: u64) -> Vec<(&'static str, u64, u64, i128)> {
        let row = |(dimension, limit): &mut (Dimension, Limit)| (dimension.code(), limit.limit, limit.used(now).1, limit.charged);
        self.limits.iter_mut().map(row).collect()
    }

    fn try_admit(&mut self, now: u64, key: &str, cost: Cost) -> Result<Admission, Refusal> {
        let (charging, assumed) = (self.charging, self.assumed_completion);
        let output = self.expected_output(now, key, cost);
        let units = |dimension: Dimension| match (dimension, output) {
            (Dimension::Otpm, Some(units)) => units,
            _ => tested_and_reserved(dimension, cost, charging, assumed),
        };
        let mut refusal: Option<Refusal> = None;
        for (dimension, limit) in &mut self.limits {
            let requested = units(*dimension).0;
            let wait = match limit.wait(now, requested) {
                _ if requested > limit.limit => None,
                None => continue,
                wait => wait,
            };
            // Reports a limit that is smaller than the request, or else the limit with the longest wait.
            let longest = refusal.as_ref().is_none_or(|worst| worst.wait.unwrap_or(u64::MAX) < wait.unwrap_or(u64::MAX));
            if longest {
                let used = limit.used(now);
                refusal = Some(Refusal { dimension: *dimension, limit: limit.limit, used, requested, wait });
            }
        }
        if let Some(refusal) = refusal {
            return Err(refusal);
        }
        let id = self.next_id;
        self.next_id += 1;
        let take = |(dimension, limit): &mut (Dimension, Limit)| {
            let reserved = units(*dimension).1;
            limit.take(now, id, reserved);
            reserved
        };
        Ok(Admission { id, at: now, key: key.to_owned(), taken: self.limits.iter_mut().map(take).collect() })
    }

    /// The expected output tokens of a request that are tested and reserved; `None` if max completion tokens are used instead.
    fn expected_output(&mut self, now: u64, key: &str, cost: Cost) -> Option<(u64, u64)> {
        let OutputTest::Expected { window, hold } = self.output_test else { return None };
        let most = match cost {
            Cost::Tokens { max_completion, .. } => max_completion.unwrap_or(u64::MAX),
            Cost::Audio { .. } => 0,
        };
        let tested = self.answers.largest(key, now, window).min(most);
        Some((tested, if hold { tested } else { 0 }))
    }

    /// Admits the external requests until `now`. Refused ones are not retried.
    fn admit_external(&mut self, now: u64) {
        let Some(mut external) = self.external.take() else { return };
        while let Some(at) = external.pop(now) {
            let cost = Cost::Tokens { prompt: external.tokens, max_completion: Some(0) };
            let _refused = self.try_admit(at, "", cost);
        }
        self.external = Some(external);
    }
}

/// The units that are tested against a dimension at admission, and the units that are reserved.
fn tested_and_reserved(dimension: Dimension, cost: Cost, charging: Charging, assumed: Option<u64>) -> (u64, u64) {
    let (prompt, max_completion, seconds) = match cost {
        Cost::Tokens { prompt, max_completion } => (prompt, max_completion.or(assumed), 0),
        Cost::Audio { seconds } => (0, Some(0), seconds.max(MIN_AUDIO_SECONDS)),
    };
    let (input, output) = match dimension {
        Dimension::Rpm | Dimension::Rpd => return (1, 1),
        Dimension::Asph | Dimension::Aspd => return (seconds, seconds),
        Dimension::Tpm | Dimension::Tpd => (prompt, max_completion.unwrap_or(0)),
        Dimension::Itpm => (prompt, 0),
        Dimension::Otpm => (0, max_completion.unwrap_or(ASSUMED_OUTPUT)),
    };
    match charging {
        Charging::ReserveMaximum | Charging::NoRefund => (input + output, input + output),
        Charging::TestMaximum => (input + output, input),
        Charging::PromptOnly => (input, input),
    }
}

#[cfg(test)]
#[path = "limiter_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "limiter_output_tests.rs"]
mod output_tests;
