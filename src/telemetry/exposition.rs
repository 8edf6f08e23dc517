//! The metric families by their documented names, from the counters and a snapshot of the limiters.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use groq_limiter::LimiterSnapshot;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeLabelSet, EncodeMetric, NoLabelSet, text},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};

use super::{
    Fallback, ObservedRefusal, Outcome, Source, Telemetry,
    counts::{OTHER, RequestLabels, Sums},
    histogram::Histogram,
};
use crate::{
    accounts::{Budget, Unit},
    config::Class,
};

/// Maximum number of organizations with labels of their own. Each unlisted key is one, so clients can create any number.
const ORGANIZATIONS: usize = 100;

/// Values that are read at each scrape instead of counted.
#[derive(Clone, Debug, Default)]
pub struct Gauges {
    /// Every limiter that exists.
    pub limiters: Vec<LimiterSnapshot>,
    /// Models whose breaker is not closed.
    pub open_breakers: BTreeSet<Arc<str>>,
    /// The shared store cannot be reached.
    pub store_degraded: bool,
    /// The budgets of apps: app, budget, used amount.
    pub budgets: Vec<(Arc<str>, Budget, u64)>,
    /// Open connections of apps.
    pub connections: usize,
}

/// A text format of Prometheus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `text/plain; version=0.0.4`
    Plain,
    /// `application/openmetrics-text; version=1.0.0`
    OpenMetrics,
}

impl Format {
    /// The format that an `accept` header asks for.
    pub fn of(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") { Self::OpenMetrics } else { Self::Plain }
    }

    /// Its `content-type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Plain => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// All families as text.
pub(super) fn write(telemetry: &Telemetry, gauges: Gauges, format: Format) -> String {
    let mut registry = Registry::with_prefix("groq_shield");
    registry.register_collector(Box::new(Families::new(telemetry, gauges)));
    let mut page = String::new();
    text::encode(&mut page, &registry).expect("a String takes all that is written");
    match format {
        Format::OpenMetrics => page,
        Format::Plain => plain(&page),
    }
}

/// `OpenMetrics` names a counter's family without `_total`; the older format names it with.
fn plain(page: &str) -> String {
    let counters: BTreeSet<&str> =
        page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
    let mut plain = String::with_capacity(page.len() + 512);
    for line in page.lines().filter(|line| *line != "# EOF") {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some(what), Some(name), Some(rest)) if counters.contains(name) => {
                plain.push_str(&format!("# {what} {name}_total {rest}\n"));
            }
            _ => {
                plain.push_str(line);
                plain.push('\n');
            }
        }
    }
    plain
}

/// One dimension of one limiter, in bounded labels.
#[derive(Debug)]
struct Quota {
    limit: u64,
    remaining: f64,
    exhausted_in: f64,
}

#[derive(Debug)]
struct Families {
    sums: Sums,
    config_valid: bool,
    quotas: BTreeMap<[String; 4], Quota>,
    waiting: BTreeMap<(String, Class), u64>,
    breakers: BTreeMap<String, bool>,
    /// Budget and used amount, by app and key of the budget.
    budgets: BTreeMap<(String, String), (Budget, u64)>,
    fallbacks: Vec<(Fallback, u64)>,
    observed_fallbacks: Vec<(Fallback, u64)>,
    /// Organization, reason, whether it is blocked now.
    blocked: Vec<(String, String, bool)>,
    gauges: Gauges,
}

impl Families {
    fn new(telemetry: &Telemetry, gauges: Gauges) -> Self {
        let counts = &telemetry.counts;
        let config_valid = telemetry.configuration().refused.is_none();
        // Labels first: they number the models of limiters, so that the sums include them.
        let label = |model: &str| counts.model_label(model).to_owned();
        let mut quotas = BTreeMap::new();
        let mut waiting = BTreeMap::new();
        let mut breakers: BTreeMap<String, bool> = gauges.open_breakers.iter().map(|model| (label(model), true)).collect();
        let mut organizations = BTreeSet::new();
        let mut sums = counts.sums();
        for limiter in &gauges.limiters {
            let model = label(&limiter.model);
            if organizations.len() < ORGANIZATIONS {
                organizations.insert(&limiter.organization);
            }
            let organization = if organizations.contains(&limiter.organization) { &limiter.organization } else { OTHER };
            // The default tier has no label, as documented.
            let tier = if &*limiter.tier == "on_demand" { "" } else { &limiter.tier };
            let counted = sums.models.entry(model.as_str().into()).or_default();
            for dimension in &limiter.dimensions {
                let code = dimension.dimension.code.to_string();
                counted.refusals.entry(code.clone()).or_default();
                let quota = Quota {
                    limit: dimension.limit,
                    remaining: dimension.remaining,
                    exhausted_in: dimension.exhausted_in.map_or(f64::INFINITY, |time| time.as_secs_f64()),
                };
                // Of limiters that share labels (names beyond the bounds), the one with the least remaining is shown.
                let labels = [organization.to_owned(), model.clone(), code, tier.to_owned()];
                let share = |quota: &Quota| quota.remaining / quota.limit.max(1) as f64;
                match quotas.get(&labels) {
                    Some(other) if share(other) <= share(&quota) => {}
                    _ => drop(quotas.insert(labels, quota)),
                }
            }
            for class in [Class::Interactive, Class::Batch] {
                let here = limiter.waiting.iter().filter(|waiting| waiting.class == class).map(|waiting| waiting.count as u64);
                *waiting.entry((model.clone(), class)).or_default() += here.sum::<u64>();
            }
            breakers.entry(model).or_default();
        }
        let mut budgets: BTreeMap<_, (Budget, u64)> = BTreeMap::new();
        for (app, budget, used) in &gauges.budgets {
            let share = |(budget, used): (Budget, u64)| used as f64 / budget.limit.max(1) as f64;
            // Of apps that share a label, the one that has used the largest part of its budget is shown.
            let row = budgets.entry((counts.app_label(app).to_owned(), budget.key())).or_insert((*budget, *used));
            if share((*budget, *used)) > share(*row) {
                *row = (*budget, *used);
            }
        }
        // The counter of successes exists, at 0, as soon as any counter of its combination does.
        let seen: BTreeSet<_> = sums.requests.keys().map(|row| (row.app.clone(), row.model.clone(), row.endpoint)).collect();
        for (app, model, endpoint) in seen {
            let row = RequestLabels { app, model, endpoint, status: 200, source: Source::Upstream };
            sums.requests.entry(row).or_default();
        }
        Self {
            sums,
            config_valid,
            quotas,
            waiting,
            breakers,
            budgets,
            fallbacks: telemetry.fallbacks(),
            observed_fallbacks: telemetry.observed_fallbacks(),
            blocked: telemetry.blocked.states(),
            gauges,
        }
    }
}

impl Collector for Families {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> fmt::Result {
        let to = &mut to;
        counter(
            to,
            "requests",
            "Finished requests, by the source of the response (status 499: the client disconnected before it was sent)",
            self.sums.requests.iter().map(|(row, n)| {
                let status = row.status.to_string();
                let labels = [
                    ("app", row.app.to_string()),
                    ("model", row.model.to_string()),
                    ("endpoint", row.endpoint.to_owned()),
                    ("status", status),
                    ("source", row.source.as_str().to_owned()),
                ];
                (labels, *n)
            }),
        )?;
        let models = || self.sums.models.iter();
        histogram(to, "wait_seconds", "Time in the queue, over all attempts of a request", models().map(|(m, c)| (m, &c.wait)))?;
        histogram(
            to,
            "upstream_seconds",
            "Time from sending to the head of Groq's response",
            models().map(|(m, c)| (m, &c.upstream)),
        )?;
        histogram(
            to,
            "observed_wait_seconds",
            "Observe mode: time that requests would have waited, except those that would have been refused",
            models().map(|(m, c)| (m, &c.observed_wait)),
        )?;
        counter(
            to,
            "observed_refusals",
            "Observe mode: requests that would have been refused",
            ObservedRefusal::ALL.map(|reason| ([("reason", reason.as_str())], self.sums.observed_refusals[reason as usize])),
        )?;
        counter(
            to,
            "attempts",
            "Attempts at Groq, by outcome",
            Outcome::ALL.map(|outcome| ([("outcome", outcome.as_str())], self.sums.attempts[outcome as usize])),
        )?;
        counter(
            to,
            "upstream_refusals",
            "Refusals by Groq (429), by the dimension that they name",
            models().flat_map(|(m, c)| c.refusals.iter().map(move |(d, n)| ([("model", &**m), ("dimension", d)], *n))),
        )?;
        counter(
            to,
            "tokens",
            "Tokens of requests, estimated where Groq stated none; prompt includes cached ones",
            self.sums.apps.iter().flat_map(|((app, model), used)| {
                [("prompt", used.prompt), ("completion", used.completion), ("cached", used.cached)]
                    .map(|(kind, n)| ([("app", &**app), ("model", &**model), ("kind", kind)], n))
            }),
        )?;
        counter(
            to,
            "truncated",
            "Responses that reached max completion tokens before they had any content (finish_reason length)",
            models().map(|(m, c)| ([("model", &**m)], c.truncated)),
        )?;
        let priced = self.sums.apps.iter().filter(|(_, used)| used.nano_usd > 0);
        counter(
            to,
            "cost_usd",
            "Cost of requests by the prices of [price]",
            priced.map(|((app, model), used)| ([("app", &**app), ("model", &**model)], used.nano_usd as f64 / 1e9)),
        )?;
        let in_unit = |budget: Budget, amount: u64| match budget.unit {
            Unit::Cost => amount as f64 / 1e9,
            Unit::Requests | Unit::Tokens => amount as f64,
        };
        let budgets = |amount: fn(&(Budget, u64)) -> u64| {
            self.budgets
                .iter()
                .map(move |((app, key), row)| ([("app", app.as_str()), ("budget", key.as_str())], in_unit(row.0, amount(row))))
        };
        gauge(to, "app_budget", "The budget of an app, in its unit: requests, tokens or USD", budgets(|row| row.0.limit))?;
        gauge(to, "app_budget_used", "The used part of the budget in the current UTC day or month", budgets(|row| row.1))?;
        let help = "Requests served by a different model than the one they named";
        counter(to, "fallbacks", help, self.fallbacks.iter().map(by_models))?;
        let help = "Observe mode: requests that a different model would have served";
        counter(to, "observed_fallbacks", help, self.observed_fallbacks.iter().map(by_models))?;
        let quotas =
            |value: fn(&Quota) -> f64| self.quotas.iter().map(move |(labels, quota)| (limiter_labels(labels), value(quota)));
        gauge(to, "limit", "The limit of a dimension: requests, tokens or seconds of audio", quotas(|quota| quota.limit as f64))?;
        gauge(to, "remaining", "Remaining units of the limit; negative in debt", quotas(|quota| quota.remaining))?;
        gauge(
            to,
            "exhaustion_seconds",
            "Time until the limit is exhausted at the current rate; infinite if it will not be",
            quotas(|quota| quota.exhausted_in),
        )?;
        gauge(
            to,
            "waiting",
            "Requests in the queue",
            self.waiting.iter().map(|((model, class), n)| ([("model", model.as_str()), ("class", class_name(*class))], *n)),
        )?;
        gauge(
            to,
            "breaker_open",
            "1 while the model's breaker is open or probing",
            self.breakers.iter().map(|(model, open)| ([("model", model.as_str())], u64::from(*open))),
        )?;
        gauge(
            to,
            "account_blocked",
            "1 while Groq blocks or restricts the organization, until its next successful request",
            self.blocked.iter().map(|(organization, reason, blocked)| {
                ([("organization", organization.as_str()), ("reason", reason.as_str())], u64::from(*blocked))
            }),
        )?;
        for (name, help, n) in [
            ("store_degraded", "1 while the shared store is unreachable", u64::from(self.gauges.store_degraded)),
            ("config_valid", "0 if the last reload was rejected", self.config_valid.into()),
            ("connections", "Open connections of apps", self.gauges.connections as u64),
        ] {
            ConstGauge::new(n).encode(to.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        gauge(to, "build_info", "The running version", [([("version", env!("CARGO_PKG_VERSION"))], 1u64)])
    }
}

/// The label value of a class.
pub(super) fn class_name(class: Class) -> &'static str {
    match class {
        Class::Interactive => "interactive",
        Class::Batch => "batch",
    }
}

fn limiter_labels([organization, model, dimension, tier]: &[String; 4]) -> Vec<(&'static str, &str)> {
    let mut labels = vec![("organization", organization.as_str()), ("model", model), ("dimension", dimension)];
    if !tier.is_empty() {
        labels.push(("tier", tier));
    }
    labels
}

fn by_models((fallback, n): &(Fallback, u64)) -> ([(&str, &str); 3], u64) {
    ([("from", &fallback.from), ("to", &fallback.to), ("reason", fallback.reason)], *n)
}

fn counter<L: EncodeLabelSet, N: EncodeCounterValue + Clone>(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    rows: impl IntoIterator<Item = (L, N)>,
) -> fmt::Result
where
    ConstCounter<N>: EncodeMetric,
{
    let mut family = to.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, n) in rows {
        ConstCounter::new(n).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn gauge<L: EncodeLabelSet, N: EncodeGaugeValue + Clone>(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    rows: impl IntoIterator<Item = (L, N)>,
) -> fmt::Result
where
    ConstGauge<N>: EncodeMetric,
{
    let mut family = to.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, n) in rows {
        ConstGauge::new(n).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn histogram<'a>(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    rows: impl IntoIterator<Item = (&'a Arc<str>, &'a Histogram)>,
) -> fmt::Result {
    let mut family = to.encode_descriptor(name, help, None, MetricType::Histogram)?;
    for (model, times) in rows {
        let labels = [("model", &**model)];
        family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(times.sum(), times.count(), &times.buckets(), None)?;
    }
    Ok(())
}
