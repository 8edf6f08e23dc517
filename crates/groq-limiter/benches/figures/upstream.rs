//! A reference implementation of Groq's rate limiter in exact integer arithmetic: requests and tokens per minute, requests per day,
//! and optionally output tokens per minute. It shares no code with the shield.

use std::{collections::BTreeMap, time::Duration};

use groq_limiter::types::{Dimension, Observation, RemoteQuota, UpstreamRefusal};

use super::{MINUTE, Ns, SECOND};

/// How usage decays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Law {
    /// Usage drains continuously at limit ÷ period, as Groq's does.
    #[default]
    Bucket,
    /// All usage expires at the end of a window of the upstream's clock.
    Fixed,
    /// Usage expires one period after it was added.
    Sliding,
}

/// How much is tested, reserved and charged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Charging {
    /// Reserves prompt + output limit, and refunds the rest at the end. Groq's behaviour, as far as known.
    #[default]
    R,
    /// Tests prompt + output limit, reserves the prompt, and charges the output at the end.
    T,
    /// Tests and reserves the prompt, and charges the output at the end.
    P,
    /// Reserves prompt + output limit, and refunds nothing.
    N,
}

/// One limit.
pub(crate) struct Counter {
    name: &'static str,
    limit: i128,
    period: i128,
    law: Law,
    /// Units × period, for exact arithmetic.
    used: i128,
    at: Ns,
    /// Units by the time they were added; only for a sliding window.
    log: BTreeMap<Ns, i128>,
    /// Units charged since the start, minus refunds.
    pub(crate) net: i128,
}

impl Counter {
    fn new(name: &'static str, limit: u64, period: Ns, law: Law, initial: f64) -> Self {
        let used = (limit as f64 * initial) as i128;
        let mut counter =
            Self { name, limit: limit.into(), period: period.into(), law, used: 0, at: 0, log: BTreeMap::new(), net: 0 };
        counter.change(0, used, 0);
        counter.net = 0;
        counter
    }

    fn advance(&mut self, now: Ns) {
        match self.law {
            Law::Bucket => self.used = (self.used - i128::from(now - self.at) * self.limit).max(0),
            Law::Fixed => {
                let window = |at: Ns| i128::from(at) / self.period;
                if window(now) != window(self.at) {
                    self.used = 0;
                }
            }
            Law::Sliding => {
                while let Some((&at, &units)) = self.log.first_key_value()
                    && i128::from(now - at) >= self.period
                {
                    self.used -= units * self.period;
                    self.log.pop_first();
                }
            }
        }
        self.at = now;
    }

    fn fits(&mut self, units: u64, now: Ns) -> bool {
        self.advance(now);
        self.used + i128::from(units) * self.period <= self.limit * self.period
    }

    /// Adds `units` at `now` to the usage of a request that was admitted at `taken`.
    fn change(&mut self, taken: Ns, units: i128, now: Ns) {
        self.advance(now);
        self.net += units;
        match self.law {
            Law::Bucket => self.used = (self.used + units * self.period).max(0),
            Law::Fixed if i128::from(taken) / self.period != i128::from(now) / self.period && units < 0 => {}
            Law::Fixed => self.used = (self.used + units * self.period).max(0),
            Law::Sliding if i128::from(now - taken) >= self.period && units < 0 => {}
            Law::Sliding => {
                let at = if units < 0 { taken } else { now };
                *self.log.entry(at).or_default() += units;
                self.used += units * self.period;
            }
        }
    }

    /// Used units, rounded up.
    fn used(&self) -> u64 {
        ((self.used + self.period - 1) / self.period) as u64
    }

    /// Nanoseconds until `units` fit.
    fn wait(&self, units: u64) -> Ns {
        let mut over = self.used + i128::from(units) * self.period - self.limit * self.period;
        match self.law {
            Law::Bucket => ((over + self.limit - 1) / self.limit).max(0) as Ns,
            Law::Fixed => self.period as Ns - self.at % self.period as Ns,
            Law::Sliding => {
                for (&at, &units) in &self.log {
                    over -= units * self.period;
                    if over <= 0 {
                        return at + self.period as Ns - self.at;
                    }
                }
                self.period as Ns
            }
        }
    }

    fn shown(&self) -> RemoteQuota {
        let remaining = (self.limit as u64).saturating_sub(self.used());
        RemoteQuota { limit: self.limit as u64, remaining }
    }
}

/// A refusal, as a client sees it.
#[derive(Clone, Debug)]
pub(crate) struct Refused {
    pub(crate) text: UpstreamRefusal,
    pub(crate) state: Observation,
    /// Rounded up to whole seconds.
    pub(crate) retry_after: Duration,
}

/// The limits of one organization, model and service tier.
pub(crate) struct Upstream {
    pub(crate) requests: Counter,
    pub(crate) tokens: Counter,
    day: Counter,
    output: Option<Output>,
    charging: Charging,
}

/// How long a response counts for the expected output.
pub(crate) const EXPECTED_FOR: Ns = 150 * SECOND;

/// The limit on output tokens per minute. The smaller of the request's output limit and the largest response of the last 150 s is
/// tested at admission, and the response is charged when it ends.
struct Output {
    counter: Counter,
    responses: Vec<(Ns, u64)>,
}

impl Output {
    fn expected(&mut self, output_limit: u64, now: Ns) -> u64 {
        self.responses.retain(|&(ended, _)| now < ended + EXPECTED_FOR);
        self.responses.iter().map(|&(_, tokens)| tokens).max().unwrap_or(0).min(output_limit)
    }
}

impl Upstream {
    /// `initial` has the shares of (requests, tokens) per minute that are used at the start; above 1 for debt.
    pub(crate) fn new((rpm, tpm): (u64, u64), output: Option<u64>, law: Law, charging: Charging, initial: (f64, f64)) -> Self {
        let counted = |limit| Counter::new("output tokens per minute (OTPM)", limit, MINUTE, law, 0.0);
        Self {
            requests: Counter::new("requests per minute (RPM)", rpm, MINUTE, law, initial.0),
            tokens: Counter::new("tokens per minute (TPM)", tpm, MINUTE, law, initial.1),
            // Never reached, but reported in headers.
            day: Counter::new("requests per day (RPD)", 10_000_000, 24 * 60 * MINUTE, Law::Bucket, 0.0),
            output: output.map(|limit| Output { counter: counted(limit), responses: Vec::new() }),
            charging,
        }
    }

    /// Admits a request.
    ///
    /// # Errors
    /// The refusal.
    pub(crate) fn admit(&mut self, prompt: u64, output_limit: u64, now: Ns) -> Result<(), Box<Refused>> {
        let tested = if self.charging == Charging::P { prompt } else { prompt + output_limit };
        let tests = [(&mut self.requests, 1), (&mut self.day, 1), (&mut self.tokens, tested)];
        let expected = self.output.as_mut().map(|output| (output.expected(output_limit, now), &mut output.counter));
        let tests = tests.into_iter().chain(expected.map(|(expected, counter)| (counter, expected)));
        let short = tests.into_iter().find_map(|(counter, units)| {
            let fits = counter.fits(units, now);
            (!fits).then(|| (counter.name, counter.limit, counter.used(), units, counter.wait(units)))
        });
        if let Some((name, limit, used, units, wait)) = short {
            // A refusal by a limit on requests has no headers for tokens.
            let state = if name.contains("tokens") { self.state(now) } else { Observation::default() };
            return Err(Box::new(refused(name, limit, used, units, wait, state)));
        }
        let reserved = if matches!(self.charging, Charging::T | Charging::P) { prompt } else { tested };
        for (counter, units) in [(&mut self.requests, 1), (&mut self.day, 1), (&mut self.tokens, reserved)] {
            counter.change(now, units.into(), now);
        }
        Ok(())
    }

    /// Settles a request that was admitted at `admitted` and has generated `completion` tokens.
    pub(crate) fn finish(&mut self, admitted: Ns, output_limit: u64, completion: u64, now: Ns) {
        if let Some(output) = &mut self.output {
            output.counter.change(admitted, completion.into(), now);
            output.responses.push((now, completion));
        }
        match self.charging {
            Charging::R => self.tokens.change(admitted, i128::from(completion) - i128::from(output_limit), now),
            Charging::T | Charging::P => self.tokens.change(admitted, completion.into(), now),
            Charging::N => {}
        }
    }

    /// The rate-limit headers of a response.
    pub(crate) fn state(&mut self, now: Ns) -> Observation {
        self.tokens.advance(now);
        self.day.advance(now);
        Observation { requests: Some(self.day.shown()), tokens: Some(self.tokens.shown()), audio: None }
    }
}

fn refused(name: &str, limit: i128, used: u64, requested: u64, wait: Ns, state: Observation) -> Refused {
    let dimension = Dimension::KNOWN.into_iter().find(|known| known.words() == name).expect("a known dimension's words");
    let text = UpstreamRefusal {
        code: Some(dimension.code.to_string()),
        unit: Some(dimension.unit),
        dimension: Some(dimension),
        limit: limit as u64,
        used: Some(used),
        requested,
        wait: Some(Duration::from_nanos(wait)),
    };
    Refused { text, state, retry_after: Duration::from_secs(wait.div_ceil(SECOND).max(1)) }
}
