//! May a request go? Every dimension of one organisation × model × tier: all or none, and what the refusal says.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::Value;

use crate::{
    Charging, Options, OutputTest, Rounding, Wording,
    error::{error, go_duration},
    expected_output::RecentAnswers,
    limit::Level,
    plan::ModelLimits,
};

const SECOND: u64 = 1_000_000_000;

/// What a limit counts, over how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dimension {
    Rpm,
    Rpd,
    Tpm,
    Tpd,
    Itpm,
    Otpm,
    Asph,
    Aspd,
}

impl Dimension {
    pub(crate) const fn code(self) -> &'static str {
        match self {
            Self::Rpm => "RPM",
            Self::Rpd => "RPD",
            Self::Tpm => "TPM",
            Self::Tpd => "TPD",
            Self::Itpm => "ITPM",
            Self::Otpm => "OTPM",
            Self::Asph => "ASPH",
            Self::Aspd => "ASPD",
        }
    }

    const fn words(self) -> &'static str {
        match self {
            Self::Rpm => "requests per minute (RPM)",
            Self::Rpd => "requests per day (RPD)",
            Self::Tpm => "tokens per minute (TPM)",
            Self::Tpd => "tokens per day (TPD)",
            Self::Itpm => "input tokens per minute (ITPM)",
            Self::Otpm => "output tokens per minute (OTPM)",
            Self::Asph => "seconds of audio per hour (ASPH)",
            Self::Aspd => "seconds of audio per day (ASPD)",
        }
    }

    const fn kind(self) -> &'static str {
        match self {
            Self::Rpm | Self::Rpd => "requests",
            Self::Tpm | Self::Tpd | Self::Itpm | Self::Otpm => "tokens",
            Self::Asph | Self::Aspd => "seconds",
        }
    }

    const fn window(self) -> u64 {
        match self {
            Self::Rpm | Self::Tpm | Self::Itpm | Self::Otpm => 60 * SECOND,
            Self::Asph => 3600 * SECOND,
            Self::Rpd | Self::Tpd | Self::Aspd => 86_400 * SECOND,
        }
    }
}

/// What a request wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    Tokens { prompt: u64, ceiling: Option<u64> },
    Audio { seconds: u64 },
}

/// The seconds Groq takes at least for an audio request.
pub(crate) const AUDIO_FLOOR: u64 = 10;

/// What an admitted request took; to be settled once.
#[derive(Clone, Debug)]
pub(crate) struct Admission {
    id: u64,
    at: u64,
    /// The API key.
    key: String,
    /// By dimension, in the lane's order.
    taken: Vec<u64>,
}

/// A refusal: nothing was taken.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) dimension: Dimension,
    limit: u64,
    used: (u64, u64),
    asked: u64,
    /// `None`: never.
    wait: Option<u64>,
}

/// Other traffic of the organisation, which nobody in front of the simulator sees.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stranger {
    /// Share of the limits that it wants.
    pub share: f64,
    /// Tokens of each of its requests.
    pub tokens: u64,
}

/// Organisation, model, tier.
pub(crate) type Scope = (String, String, String);

#[derive(Debug)]
pub(crate) struct Lane {
    born: u64,
    levels: Vec<(Dimension, Level)>,
    assumed: Option<u64>,
    output_test: OutputTest,
    answers: RecentAnswers,
    next_id: u64,
    stranger: Option<(Stranger, f64, u64, fastrand::Rng)>,
    pub(crate) admitted: u64,
    pub(crate) refused: BTreeMap<&'static str, u64>,
}

impl Lane {
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
        let level = |(dimension, limit): (Dimension, Option<u64>)| {
            let used = options.initial_use.get(dimension.code()).copied().unwrap_or(0.0);
            Some((dimension, Level::new(options.algorithm, limit?, dimension.window(), used, now)))
        };
        let rate = |stranger: Stranger| {
            let tokens = limits.tokens_per_minute.map(|limit| limit as f64 / stranger.tokens.max(1) as f64);
            let requests = limits.requests_per_minute.map(|limit| limit as f64);
            stranger.share * tokens.into_iter().chain(requests).fold(f64::INFINITY, f64::min) / 60.0
        };
        let stranger = options.stranger.map(|stranger| (stranger, rate(stranger), now, fastrand::Rng::with_seed(seed)));
        Self {
            born: now,
            levels: table.into_iter().filter_map(level).collect(),
            assumed: limits.assumed_completion_tokens,
            output_test: options.output_test,
            answers: RecentAnswers::default(),
            next_id: 0,
            stranger: stranger.filter(|(_, rate, ..)| *rate > 0.0 && rate.is_finite()),
            admitted: 0,
            refused: BTreeMap::new(),
        }
    }

    /// Takes what a request with this API key asks for, in all dimensions or none.
    pub(crate) fn admit(&mut self, now: u64, key: &str, ask: Ask, charging: Charging) -> Result<Admission, Refusal> {
        self.strangers(now, charging);
        let admission = self.try_admit(now, key, ask, charging);
        match &admission {
            Ok(_) => self.admitted += 1,
            Err(refusal) => *self.refused.entry(refusal.dimension.code()).or_default() += 1,
        }
        admission
    }

    /// Corrects an admission to what was used: prompt (cached tokens taken off) and completion.
    pub(crate) fn settle(&mut self, now: u64, admission: &Admission, prompt: u64, completion: u64, charging: Charging) {
        if admission.at < self.born {
            return; // the limits were reset meanwhile
        }
        self.answers.record(&admission.key, now, completion);
        let by_expectation = matches!(self.output_test, OutputTest::Expected { .. });
        for ((dimension, level), taken) in self.levels.iter_mut().zip(&admission.taken) {
            let used = match dimension {
                Dimension::Otpm if by_expectation => completion,
                _ if charging == Charging::N => continue,
                Dimension::Tpm | Dimension::Tpd => prompt + completion,
                Dimension::Itpm => prompt,
                Dimension::Otpm => completion,
                _ => continue,
            };
            level.correct(now, admission.id, admission.at, *taken, used);
        }
    }

    /// The `x-ratelimit-*` headers as things stand; the token ones are for token traffic only.
    pub(crate) fn headers(&mut self, now: u64, unit: Unit, exact: bool) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (dimension, level) in &mut self.levels {
            let names = match (*dimension, unit) {
                (Dimension::Rpd, _) => {
                    ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"]
                }
                (Dimension::Tpm, Unit::Tokens) => {
                    ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"]
                }
                (Dimension::Asph, Unit::Seconds) => {
                    ["x-ratelimit-limit-audio-seconds", "x-ratelimit-remaining-audio-seconds", "x-ratelimit-reset-audio-seconds"]
                }
                _ => continue,
            };
            let reset = HeaderValue::from_str(&go_duration(level.reset(now, exact))).ok();
            let values = [Some(level.limit.into()), Some(level.remaining(now).into()), reset];
            for (name, value) in names.into_iter().zip(values) {
                headers.extend(value.map(|value| (http::HeaderName::from_static(name), value)));
            }
        }
        headers
    }

    /// Code, limit, units in use (rounded up), units charged since the start.
    pub(crate) fn levels(&mut self, now: u64) -> Vec<(&'static str, u64, u64, i128)> {
        self.levels.iter_mut().map(|(dimension, level)| (dimension.code(), level.limit, level.used(now).1, level.spent)).collect()
    }

    fn try_admit(&mut self, now: u64, key: &str, ask: Ask, charging: Charging) -> Result<Admission, Refusal> {
        let assumed = self.assumed;
        let expected = self.expected_output(now, key, ask);
        let amounts = |dimension: Dimension| match (dimension, expected) {
            (Dimension::Otpm, Some(amounts)) => amounts,
            _ => amounts(dimension, ask, charging, assumed),
        };
        let mut refusal: Option<Refusal> = None;
        for (dimension, level) in &mut self.levels {
            let asked = amounts(*dimension).0;
            let limit = level.limit;
            let wait = if asked > limit { None } else { Some(level.wait(now, asked)) };
            let Some(wait) = wait.map_or(Some(None), |fits| fits.map(Some)) else { continue };
            // What can never fit is said first, then what takes longest.
            let longer = refusal.as_ref().is_none_or(|worst| worst.wait.unwrap_or(u64::MAX) < wait.unwrap_or(u64::MAX));
            if longer {
                refusal = Some(Refusal { dimension: *dimension, limit, used: level.used(now), asked, wait });
            }
        }
        if let Some(refusal) = refusal {
            return Err(refusal);
        }
        let id = self.next_id;
        self.next_id += 1;
        let take = |(dimension, level): &mut (Dimension, Level)| {
            let units = amounts(*dimension).1;
            level.take(now, id, units);
            units
        };
        Ok(Admission { id, at: now, key: key.to_owned(), taken: self.levels.iter_mut().map(take).collect() })
    }

    /// What is tested and held of a request's expected output; `None` where its max completion tokens count instead.
    fn expected_output(&mut self, now: u64, key: &str, ask: Ask) -> Option<(u64, u64)> {
        let OutputTest::Expected { window, hold } = self.output_test else { return None };
        let most = match ask {
            Ask::Tokens { ceiling, .. } => ceiling.unwrap_or(u64::MAX),
            Ask::Audio { .. } => 0,
        };
        let tested = self.answers.largest(key, now, window).min(most);
        Some((tested, if hold { tested } else { 0 }))
    }

    /// What strangers sent up to `now`: a Poisson process of its own seed.
    fn strangers(&mut self, now: u64, charging: Charging) {
        let Some((stranger, rate, mut next, mut random)) = self.stranger.take() else { return };
        while next <= now {
            let ask = Ask::Tokens { prompt: stranger.tokens, ceiling: Some(0) };
            let _ = self.try_admit(next, "", ask, charging); // refused ones give up
            next += (-(1.0 - random.f64()).ln() / rate * SECOND as f64) as u64 + 1;
        }
        self.stranger = Some((stranger, rate, next, random));
    }
}

/// Which limits a kind of traffic is told about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Only requests.
    Requests,
    Tokens,
    Seconds,
}

impl Refusal {
    /// The answer: status, headers beside the lane's own, body. What can never fit gets 413, and no `retry-after`; expected
    /// output that is over the limit gets 429.
    pub(crate) fn answer(&self, options: &Options, scope: &Scope) -> (StatusCode, HeaderMap, Value) {
        let (organisation, model, tier) = scope;
        let scope = format!("model `{model}` in organization `{organisation}` service tier `{tier}` on");
        let (words, kind) = (self.dimension.words(), self.dimension.kind());
        let (limit, asked, tail) = (self.limit, self.asked, options.tail.as_str());
        let mut headers = HeaderMap::new();
        let wait = match (self.wait, options.wording) {
            (Some(wait), _) => wait,
            (None, Wording::Of2024) => self.hopeless_wait(),
            (None, _) => {
                let (status, advice) = match self.dimension {
                    Dimension::Otpm => (
                        StatusCode::TOO_MANY_REQUESTS,
                        ". The request's expected output tokens exceed the enforced limit; reduce max_tokens \
                         (or the request's expected output) and try again.",
                    ),
                    _ => (StatusCode::PAYLOAD_TOO_LARGE, ", please reduce your message size and try again."),
                };
                let text = format!("Request too large for {scope} {words}: Limit {limit}, Requested {asked}{advice} {tail}");
                return (status, headers, error(&text, kind, Some("rate_limit_exceeded")));
            }
        };
        let (name, used, about) = match options.wording {
            Wording::Current => (format!(" {words}"), self.used.1, ""),
            Wording::Nameless => (" ".to_owned(), self.used.0, ""),
            Wording::Of2024 => (format!(" {words}"), self.used.1, "~"),
        };
        let text = format!(
            "Rate limit reached for {scope}{name}: Limit {limit}, Used {used}, Requested {about}{asked}. \
             Please try again in {}. {tail}",
            go_duration(wait)
        );
        let seconds = match options.retry_after {
            Rounding::Up => wait.div_ceil(SECOND),
            Rounding::Down => wait / SECOND,
            Rounding::Nearest => (wait + SECOND / 2) / SECOND,
        };
        headers.insert("retry-after", seconds.into());
        (StatusCode::TOO_MANY_REQUESTS, headers, error(&text, kind, Some("rate_limit_exceeded")))
    }

    /// Whose headers go with it: a refusal by requests carries none of the token ones.
    pub(crate) fn unit(&self) -> Unit {
        match self.dimension.kind() {
            "requests" => Unit::Requests,
            "tokens" => Unit::Tokens,
            _ => Unit::Seconds,
        }
    }

    fn hopeless_wait(&self) -> u64 {
        let over = u128::from(self.used.1) + u128::from(self.asked) - u128::from(self.limit);
        u64::try_from(over * u128::from(self.dimension.window()) / u128::from(self.limit)).unwrap_or(u64::MAX)
    }
}

/// The output that Groq was seen to assume in OTPM where a request names no ceiling.
const ASSUMED_OUTPUT: u64 = 2048;

/// What is tested against a dimension and what is taken from it at admission.
fn amounts(dimension: Dimension, ask: Ask, charging: Charging, assumed: Option<u64>) -> (u64, u64) {
    let (prompt, ceiling, seconds) = match ask {
        Ask::Tokens { prompt, ceiling } => (prompt, ceiling.or(assumed), 0),
        Ask::Audio { seconds } => (0, Some(0), seconds.max(AUDIO_FLOOR)),
    };
    let (input, output) = match dimension {
        Dimension::Rpm | Dimension::Rpd => return (1, 1),
        Dimension::Asph | Dimension::Aspd => return (seconds, seconds),
        Dimension::Tpm | Dimension::Tpd => (prompt, ceiling.unwrap_or(0)),
        Dimension::Itpm => (prompt, 0),
        Dimension::Otpm => (0, ceiling.unwrap_or(ASSUMED_OUTPUT)),
    };
    match charging {
        Charging::R | Charging::N => (input + output, input + output),
        Charging::T => (input + output, input),
        Charging::P => (input, input),
    }
}

#[cfg(test)]
#[path = "limiter_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "limiter_output_tests.rs"]
mod output_tests;
