//! Open-loop load: Poisson arrivals, and lognormal sizes and latencies.

use fastrand::Rng;

use super::{Ns, SECOND};

/// The distribution of an app's request sizes: means in tokens, and the standard deviation of their logarithm.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) prompt: f64,
    pub(crate) output_limit: f64,
    pub(crate) completion: f64,
    pub(crate) spread: f64,
    /// Maximum of prompt + output limit.
    pub(crate) most: u64,
    /// If set, output limits and completions are uniform in these ranges instead.
    pub(crate) even: Option<[(u64, u64); 2]>,
}

impl Sizes {
    /// About 570 tokens used and 1330 reserved per request.
    pub(crate) const USUAL: Self =
        Self { prompt: 300.0, output_limit: 1030.0, completion: 290.0, spread: 0.7, most: 6000, even: None };
    /// Small requests, so that the limit on requests is reached before the one on tokens.
    pub(crate) const TINY: Self =
        Self { prompt: 40.0, output_limit: 120.0, completion: 40.0, spread: 0.5, most: 1000, even: None };
    pub(crate) const SHORT: Self =
        Self { prompt: 50.0, output_limit: 100.0, completion: 50.0, spread: 0.4, most: 400, even: None };
    pub(crate) const LONG: Self =
        Self { prompt: 2500.0, output_limit: 3500.0, completion: 1500.0, spread: 0.4, most: 16_000, even: None };

    /// Output limits that are much larger than the completions.
    pub(crate) const ANSWERS: Self = Self { even: Some([(900, 4000), (60, 400)]), ..Self::TINY };

    pub(crate) fn draw(&self, random: &mut Rng) -> Size {
        let lognormal =
            |mean: f64, random: &mut Rng| (mean.ln() - self.spread * self.spread / 2.0 + self.spread * normal(random)).exp();
        let prompt = (lognormal(self.prompt, random) as u64).clamp(1, self.most / 2);
        if let Some([(least, most), answers]) = self.even {
            let (output_limit, completion) = (random.u64(least..=most), random.u64(answers.0..=answers.1));
            return Size { prompt, output_limit, completion };
        }
        let output_limit = (lognormal(self.output_limit, random) as u64).clamp(1, self.most - prompt);
        let completion = (lognormal(self.completion, random) as u64).clamp(1, output_limit);
        Size { prompt, output_limit, completion }
    }

    /// Mean number of completion tokens.
    pub(crate) fn answer(&self) -> f64 {
        let mut random = Rng::with_seed(7);
        (0..20_000).map(|_| self.draw(&mut random).completion as f64).sum::<f64>() / 20_000.0
    }

    /// Mean number of tokens used, and the 90 % quantile of completions.
    pub(crate) fn measure(&self) -> (f64, u64) {
        let mut random = Rng::with_seed(7);
        let sizes: Vec<_> = (0..20_000).map(|_| self.draw(&mut random)).collect();
        let mean = sizes.iter().map(|size| size.used() as f64).sum::<f64>() / sizes.len() as f64;
        let mut completions: Vec<_> = sizes.iter().map(|size| size.completion).collect();
        completions.sort_unstable();
        (mean, completions[sizes.len() * 9 / 10])
    }
}

/// One request's size in tokens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) prompt: u64,
    pub(crate) output_limit: u64,
    pub(crate) completion: u64,
}

impl Size {
    pub(crate) fn used(&self) -> u64 {
        self.prompt + self.completion
    }
}

/// The load of one app.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offer {
    pub(crate) app: &'static str,
    /// Load as a multiple of the binding limit.
    pub(crate) share: f64,
    pub(crate) sizes: Sizes,
}

/// A lognormal distribution of latencies, with a maximum.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Latency {
    pub(crate) median: Ns,
    pub(crate) spread: f64,
    pub(crate) most: Ns,
}

impl Latency {
    pub(crate) const USUAL: Self = Self { median: 1200 * super::MS, spread: 0.6, most: 20 * SECOND };
    pub(crate) const LONG: Self = Self { median: 12 * SECOND, spread: 0.8, most: 60 * SECOND };

    pub(crate) fn draw(&self, random: &mut Rng) -> Ns {
        ((self.median as f64 * (self.spread * normal(random)).exp()) as Ns).min(self.most)
    }
}

/// Time until the next arrival at `rate` arrivals per second.
pub(crate) fn gap(rate: f64, random: &mut Rng) -> Ns {
    (-(1.0 - random.f64()).ln() / rate * SECOND as f64) as Ns + 1
}

/// A standard normal random number.
pub(crate) fn normal(random: &mut Rng) -> f64 {
    (-2.0 * (1.0 - random.f64()).ln()).sqrt() * (std::f64::consts::TAU * random.f64()).cos()
}
