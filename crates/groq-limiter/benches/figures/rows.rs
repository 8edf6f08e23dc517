//! The scenarios of the table and their targets.

use super::{
    MINUTE, MS, Ns, SECOND,
    load::{Latency, Offer, Size, Sizes},
    upstream::{Charging, Law},
};

/// What decides when requests are sent to the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The limiter.
    Shield,
    /// Baseline A: only the retries of the SDKs.
    Straight,
    /// Baseline C: reserves prompt + output limit and refunds nothing.
    OutputLimits,
    /// Baseline D: reserves prompt + the 90 % quantile of completions, and settles to the actual usage.
    Predictions,
}

/// When the upstream reads the values of its rate-limit headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stamp {
    Admission,
    Finish,
}

/// The measured time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Span {
    /// From the third minute until this many requests have been sent.
    Steady(usize),
    /// From the start for this long.
    First(Ns),
    /// A burst of this many times the limit per minute, until all requests are done.
    Burst(f64),
}

/// Bounds for the watched app: waits in seconds, and the share of requests that may fail.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Watched {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) failed: f64,
}

/// The targets of a row. Shares are between 0 and 1, times are in seconds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Target {
    pub(crate) used: Option<f64>,
    pub(crate) counted: Option<f64>,
    /// Minimum usage, as a share of what the oracle uses.
    pub(crate) of_possible: Option<f64>,
    pub(crate) per_thousand: Option<f64>,
    /// Maximum total number of refusals.
    pub(crate) refusals: Option<f64>,
    pub(crate) failed: Option<f64>,
    pub(crate) p99: Option<f64>,
    pub(crate) jain: Option<f64>,
    pub(crate) watched: Option<Watched>,
    pub(crate) stretch: Option<f64>,
    /// Bounds for baselines: if one does better, the simulated upstream is too lenient.
    pub(crate) used_at_most: Option<f64>,
    pub(crate) per_thousand_at_least: Option<f64>,
}

/// A row of the table.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// Requests and tokens per minute.
    pub(crate) limits: (u64, u64),
    /// Output tokens per minute, tested by expected output. If set, this is the binding limit.
    pub(crate) output: Option<u64>,
    /// Whether the shield is configured with the limit on output.
    pub(crate) output_is_configured: bool,
    /// The apps, of which the first is watched.
    pub(crate) offers: Vec<Offer>,
    /// Requests state no output limit, and the upstream reserves so much for each.
    pub(crate) unstated: Option<u64>,
    /// External traffic, as a share of the binding limit.
    pub(crate) external: f64,
    pub(crate) requests_bind: bool,
    pub(crate) front: Kind,
    pub(crate) replicas: usize,
    pub(crate) law: Law,
    pub(crate) charging: Charging,
    pub(crate) stamp: Stamp,
    /// Minimum and maximum network delay in one direction.
    pub(crate) way: (Ns, Ns),
    pub(crate) latency: Latency,
    /// Estimated divided by actual prompt tokens.
    pub(crate) bias: f64,
    /// Shares of (requests, tokens) per minute that are used at the start.
    pub(crate) initial: (f64, f64),
    pub(crate) max_wait: Ns,
    pub(crate) span: Span,
    pub(crate) target: Target,
}

pub(crate) const S: (u64, u64) = (30, 8000);
pub(crate) const M: (u64, u64) = (120, 60_000);
pub(crate) const X: (u64, u64) = (1000, 300_000);
const SENDS: usize = 8400;

const LIGHT: Watched = Watched { p50: 1.0, p99: 8.0, failed: 0.0 };
const BUCKET: Target = Target { used: Some(0.99), per_thousand: Some(0.0), jain: Some(0.99), watched: Some(LIGHT), ..NONE };
const NONE: Target = Target {
    used: None,
    counted: None,
    of_possible: None,
    per_thousand: None,
    refusals: None,
    failed: None,
    p99: None,
    jain: None,
    watched: None,
    stretch: None,
    used_at_most: None,
    per_thousand_at_least: None,
};

impl Row {
    /// A light app that offers 15 % of the limit and a heavy one that offers the rest of `load` times the limit, with Groq's known
    /// behaviour.
    fn new(name: &'static str, limits: (u64, u64), load: f64, target: Target) -> Self {
        let offer = |app, share| Offer { app, share, sizes: Sizes::USUAL };
        Self {
            name,
            limits,
            output: None,
            output_is_configured: false,
            unstated: None,
            offers: vec![offer("light", 0.15), offer("heavy", load - 0.15)],
            external: 0.0,
            requests_bind: false,
            front: Kind::Shield,
            replicas: 1,
            law: Law::Bucket,
            charging: Charging::R,
            stamp: Stamp::Admission,
            way: (10 * MS, 50 * MS),
            latency: Latency::USUAL,
            bias: 1.0,
            initial: (0.0, 0.0),
            max_wait: 60 * SECOND,
            span: Span::Steady(SENDS),
            target,
        }
    }

    fn offered(self, offers: &[(&'static str, f64, Sizes)]) -> Self {
        let offers = offers.iter().map(|&(app, share, sizes)| Offer { app, share, sizes }).collect();
        Self { offers, ..self }
    }

    /// The limit on tokens that is used first.
    pub(crate) fn binding(&self) -> u64 {
        self.output.unwrap_or(self.limits.1)
    }

    /// The tokens of a request that count under the limit of [`Self::binding`].
    pub(crate) fn counted(&self, size: &Size) -> u64 {
        if self.output.is_some() { size.completion } else { size.used() }
    }

    /// Arrivals per second, by offer.
    pub(crate) fn rates(&self) -> Vec<f64> {
        self.offers.iter().map(|offer| offer.share * self.rate_of_limit(&offer.sizes)).collect()
    }

    /// Requests per second that use the binding limit exactly.
    pub(crate) fn rate_of_limit(&self, sizes: &Sizes) -> f64 {
        let per_minute = match self.output {
            Some(output) => output as f64 / sizes.answer(),
            None if self.requests_bind => self.limits.0 as f64,
            None => self.limits.1 as f64 / sizes.measure().0,
        };
        per_minute * SECOND as f64 / MINUTE as f64
    }
}

/// Every row, in the table's order.
pub(crate) fn rows() -> Vec<Row> {
    let with = |used, per_thousand| Target { used: Some(used), per_thousand: Some(per_thousand), ..NONE };
    let external = |per_thousand, failed| Target {
        used: Some(0.99),
        per_thousand: Some(per_thousand),
        watched: Some(Watched { p50: f64::MAX, p99: f64::MAX, failed }),
        ..NONE
    };
    let shorts = Target { watched: Some(Watched { p50: 0.05, p99: 2.0, failed: 0.0 }), ..with(0.99, 0.0) };
    let longs = Target { watched: Some(Watched { p50: f64::MAX, p99: 30.0, failed: 0.0 }), ..with(0.99, 0.0) };
    let cold = |used, refusals| Target { used: Some(used), refusals: Some(refusals), ..NONE };
    // One response more or less at the end of ten minutes is 2 to 4 %.
    let output_first = |of_possible| Target { of_possible: Some(of_possible), refusals: Some(2.0), ..NONE };
    let first = Span::First(2 * MINUTE);
    let odd = with(0.985, 1.0);
    // Groq does not use windows. With an upstream that does, only the number of refusals has to stay limited.
    let windows = Target { per_thousand: Some(50.0), ..NONE };
    let bad = |per_thousand| Target { per_thousand_at_least: Some(per_thousand), ..NONE };
    let m = |name, target| Row::new(name, M, 3.0, target);
    let output = |name, target| {
        let row = Row { output: Some(1000), ..Row::new(name, (1000, 250_000), 3.0, target) };
        row.offered(&[("light", 0.15, Sizes::ANSWERS), ("heavy", 2.85, Sizes::ANSWERS)])
    };
    vec![
        Row::new("bucket-3x-S", S, 3.0, BUCKET),
        Row::new("bucket-3x-M", M, 3.0, BUCKET),
        Row::new("bucket-3x-X", X, 3.0, BUCKET),
        Row::new("bucket-10x-S", S, 10.0, BUCKET),
        Row::new("bucket-10x-M", M, 10.0, BUCKET),
        Row::new("bucket-10x-X", X, 10.0, BUCKET),
        Row::new("bucket-1x-M", M, 1.0, Target { per_thousand: Some(0.0), failed: Some(0.0), p99: Some(1.5), ..NONE }),
        Row::new("bucket-0.9x-M", M, 0.9, Target { per_thousand: Some(0.0), failed: Some(0.0), p99: Some(1.5), ..NONE }),
        Row { external: 0.2, ..Row::new("foreign-S", S, 3.0, external(2.0, 0.02)) },
        Row { external: 0.2, ..m("foreign-M", external(0.5, 0.0)) },
        Row { external: 0.2, ..Row::new("foreign-X", X, 3.0, external(0.5, 0.0)) },
        Row { external: 1.0 / 3.0, requests_bind: true, ..m("rpm-foreign-M", with(0.99, 10.0)) }
            .offered(&[("light", 0.15, Sizes::TINY), ("heavy", 2.85, Sizes::TINY)]),
        Row { replicas: 2, ..m("two-replicas-M", Target { jain: Some(0.99), ..with(0.99, 1.0) }) },
        Row { replicas: 8, ..m("eight-replicas-M", with(0.98, 5.0)) },
        Row { charging: Charging::T, ..m("charging-T-M", odd) },
        Row { charging: Charging::P, ..m("charging-P-M", odd) },
        Row { stamp: Stamp::Finish, ..m("stamp-finish-M", odd) },
        Row { way: (10 * MS, 300 * MS), ..m("network-300-M", odd) },
        Row { latency: Latency::LONG, ..m("latency-60-M", odd) },
        Row { bias: 0.75, ..m("estimator-25-M", odd) },
        Row { charging: Charging::N, ..m("charging-N-M", Target { counted: Some(0.99), ..with(0.33, 1.0) }) },
        Row { law: Law::Fixed, ..m("fixed-M", windows) },
        Row { law: Law::Fixed, external: 0.2, ..m("fixed-foreign-M", windows) },
        Row { law: Law::Sliding, ..m("sliding-M", windows) },
        Row { law: Law::Sliding, external: 0.2, ..m("sliding-foreign-M", windows) },
        m("shorts-two-apps-M", shorts).offered(&[("shorts", 0.1, Sizes::SHORT), ("longs", 3.0, Sizes::LONG)]),
        m("shorts-one-app-M", shorts).offered(&[("app", 0.1, Sizes::SHORT), ("app", 3.0, Sizes::LONG)]),
        Row::new("longs-one-app", (1000, M.1), 3.0, longs).offered(&[("app", 0.1, Sizes::LONG), ("app", 3.0, Sizes::SHORT)]),
        Row { span: first, ..m("cold-full-M", cold(0.90, 0.0)) },
        Row { span: first, initial: (0.5, 0.5), ..m("cold-half-M", cold(0.90, 0.0)) },
        Row { span: first, initial: (1.0, 0.0), ..m("cold-hidden-M", cold(0.85, 1.0)) },
        Row { span: first, initial: (0.0, 1.5), ..m("cold-debt-M", cold(0.80, 1.0)) },
        Row {
            span: Span::Burst(3.0),
            max_wait: 10 * MINUTE,
            ..m("burst-M", Target { per_thousand: Some(0.0), failed: Some(0.0), stretch: Some(1.03), ..NONE })
        },
        output("output-3x", Target { watched: Some(Watched { p50: f64::MAX, p99: f64::MAX, failed: 0.0 }), ..with(0.97, 0.0) }),
        Row { span: Span::First(10 * MINUTE), ..output("output-cold", output_first(0.95)) },
        Row { span: Span::First(10 * MINUTE), output_is_configured: true, ..output("output-told", output_first(0.95)) },
        Row { span: Span::First(60 * MINUTE), output_is_configured: true, ..output("output-told-hour", output_first(0.99)) },
        // A restart under load: most of the upstream's limit is used, which the new process does not know.
        Row {
            span: Span::Burst(3.0),
            max_wait: 10 * MINUTE,
            initial: (0.0, 0.9),
            ..m("burst-cold-M", Target { refusals: Some(1.0), failed: Some(0.0), ..NONE })
        },
        Row { unstated: Some(0), ..m("unstated-0-M", with(0.99, 0.0)) },
        Row { unstated: Some(2048), ..Row::new("unstated-2048-S", S, 3.0, with(0.99, 0.0)) },
        // A tenth of the limit each, beside the margin.
        Row { unstated: Some(32_768), ..Row::new("unstated-32768-X", X, 3.0, with(0.98, 0.0)) },
        Row { unstated: Some(0), external: 0.2, ..m("unstated-0-foreign-M", with(0.99, 1.0)) },
        Row { unstated: Some(0), span: first, initial: (0.0, 0.9), ..m("unstated-0-cold-M", cold(0.80, 1.0)) },
        Row { unstated: Some(2048), span: first, initial: (0.0, 0.9), ..m("unstated-2048-cold-M", cold(0.80, 1.0)) },
        Row { front: Kind::Straight, ..Row::new("A-1.5x-M", M, 1.5, bad(600.0)) },
        Row { front: Kind::Straight, ..m("A-3x-M", bad(600.0)) },
        Row { front: Kind::OutputLimits, ..m("C-3x-M", Target { used_at_most: Some(0.62), ..NONE }) },
        Row { front: Kind::Predictions, ..m("D-3x-M", bad(400.0)) },
    ]
}
