//! How does the shield stand, in JSON? For the page, for `groq-shield status`, for scripts.

use std::{
    sync::{Arc, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use groq_limiter::{
    LimiterSnapshot, Source,
    types::{Priority, Unit},
};
use serde::Serialize;
use tokio::time::Instant;

use super::Desk;
use crate::{config::StoreKind, telemetry::Slice};

#[derive(Serialize)]
struct Status<'a> {
    version: &'static str,
    uptime_s: f64,
    /// `running` or `draining`
    state: &'static str,
    /// Unix time, seconds.
    now: f64,
    upstream: String,
    /// Where apps connect, `null` where the system chose the port.
    app_url: Option<String>,
    connections: usize,
    config: Config,
    store: Store,
    totals: Totals,
    blocked_accounts: Vec<BlockedAccount>,
    truncated: Vec<Truncated>,
    lanes: Vec<Lane<'a>>,
    history: History,
}

/// The configuration in force.
#[derive(Serialize)]
struct Config {
    file: Option<String>,
    loaded_at: Option<f64>,
    loads: u64,
    /// Why the last one was refused, `null` once one took effect.
    error: Option<ConfigError>,
}

#[derive(Serialize)]
struct ConfigError {
    at: f64,
    message: String,
}

#[derive(Serialize)]
struct Store {
    /// `local` or `redis`
    kind: &'static str,
    degraded: bool,
    /// Why it is out of reach, as last heard; `null` where it is not.
    why: Option<String>,
    /// How many share it, as last heard; `null` where it is local.
    replicas: Option<u32>,
}

/// Since the start.
#[derive(Serialize)]
struct Totals {
    requests: u64,
    failed: u64,
    refused_by_shield: u64,
    refused_by_groq: u64,
    resends: u64,
}

/// An organization that Groq has blocked or restricted, until one of its requests succeeds.
#[derive(Serialize)]
struct BlockedAccount {
    organization: String,
    /// The code of Groq's error.
    reason: String,
    /// Unix time, seconds.
    since: f64,
}

/// A model with answers that max completion tokens ended before they had any content.
#[derive(Serialize)]
struct Truncated {
    model: String,
    /// Since the start.
    count: u64,
    /// When the last one ended, Unix time in seconds.
    last: f64,
}

#[derive(Serialize)]
struct Lane<'a> {
    organization: &'a str,
    model: &'a str,
    tier: &'a str,
    dimensions: Vec<Dimension<'a>>,
    waiting: Vec<Waiting<'a>>,
    blocked_by: Option<Blocked<'a>>,
    /// Wait that a typical new request would see.
    forecast_s: f64,
    in_flight: usize,
    refusals: u64,
    breaker: Breaker,
}

#[derive(Serialize)]
struct Dimension<'a> {
    dimension: &'a str,
    /// `requests`, `tokens`, `input tokens`, `output tokens`, `seconds of audio`
    unit: &'static str,
    period_s: f64,
    limit: u64,
    level: f64,
    reserve: u64,
    /// `configured`, `plan`, `headers`, `refusal`
    source: &'static str,
    /// The operator's bound, where there is one.
    configured: Option<u64>,
    /// The limit that Groq states, where it has.
    stated: Option<u64>,
    foreign: f64,
    exhausted_in_s: Option<f64>,
    full_in_s: f64,
}

#[derive(Serialize)]
struct Waiting<'a> {
    app: &'a str,
    class: &'static str,
    count: usize,
    oldest_s: f64,
}

#[derive(Serialize)]
struct Blocked<'a> {
    dimension: &'a str,
    for_s: f64,
}

#[derive(Serialize)]
struct Breaker {
    open: bool,
    /// Time until the next probe.
    probe_in_s: Option<f64>,
}

/// The last quarter of an hour, oldest first; the last entry is the running one.
#[derive(Default, Serialize)]
struct History {
    slice_s: f64,
    requests: Vec<u64>,
    failed: Vec<u64>,
    refused_by_shield: Vec<u64>,
    refused_by_groq: Vec<u64>,
    resends: Vec<u64>,
    wait_p50_s: Vec<Option<f64>>,
    wait_p99_s: Vec<Option<f64>>,
}

impl Desk {
    /// The whole status.
    pub(super) fn status(&self) -> String {
        let shield = &self.shield;
        let settings = shield.settings.load();
        let configuration = shield.telemetry.configuration();
        let total = shield.telemetry.since_start();
        let lanes = shield.limits.snapshot();
        let store = shield.limits.store();
        let open_breakers = shield.breakers.open(Instant::now());
        let slices = self.trend.lock().unwrap_or_else(PoisonError::into_inner).slices(&shield.telemetry);
        let status = Status {
            version: env!("CARGO_PKG_VERSION"),
            uptime_s: seconds(self.started.elapsed()),
            state: if shield.shutdown.draining.is_cancelled() { "draining" } else { "running" },
            now: unix(SystemTime::now()),
            upstream: settings.upstream.base_url.host().unwrap_or_default().to_owned(),
            app_url: (settings.server.listen.port() != 0).then(|| {
                let scheme = if settings.server.tls.is_some() { "https" } else { "http" };
                format!("{scheme}://{}", settings.server.listen)
            }),
            connections: shield.connections.len(),
            config: Config {
                file: configuration.file.map(|file| file.display().to_string()),
                loaded_at: configuration.loaded.map(unix),
                loads: configuration.loads,
                error: configuration.refused.map(|(at, message)| ConfigError { at: unix(at), message }),
            },
            store: Store {
                kind: match settings.store.kind {
                    StoreKind::Local => "local",
                    StoreKind::Redis => "redis",
                },
                degraded: store.as_ref().is_some_and(|store| store.degraded),
                why: store.as_ref().and_then(|store| store.why.as_deref().map(Into::into)),
                replicas: store.map(|store| store.replicas),
            },
            totals: Totals {
                requests: total.requests,
                failed: total.failed,
                refused_by_shield: total.refused_by_shield,
                refused_by_groq: total.refused_by_groq,
                resends: total.resends,
            },
            blocked_accounts: shield
                .telemetry
                .blocked_accounts()
                .into_iter()
                .map(|account| BlockedAccount {
                    organization: account.organization,
                    reason: account.reason,
                    since: unix(account.since),
                })
                .collect(),
            truncated: shield
                .telemetry
                .truncated()
                .into_iter()
                .map(|(model, count, last)| Truncated { model: model.to_string(), count, last: unix(last) })
                .collect(),
            lanes: lanes.iter().map(|of| lane(of, &open_breakers)).collect(),
            history: history(slices),
        };
        serde_json::to_string(&status).expect("numbers and texts are JSON")
    }
}

fn lane<'a>(lane: &'a LimiterSnapshot, open_breakers: &[(Arc<str>, Arc<str>, Duration)]) -> Lane<'a> {
    let dimensions = lane.dimensions.iter().map(|dimension| Dimension {
        dimension: &dimension.dimension.code,
        unit: match dimension.dimension.unit {
            Unit::Requests => "requests",
            Unit::Tokens => "tokens",
            Unit::InputTokens => "input tokens",
            Unit::OutputTokens => "output tokens",
            Unit::AudioSeconds => "seconds of audio",
        },
        period_s: seconds(dimension.dimension.period),
        limit: dimension.limit,
        level: rounded(dimension.remaining),
        reserve: dimension.margin,
        source: match dimension.source {
            Source::Configured => "configured",
            Source::Plan => "plan",
            Source::Headers => "headers",
            Source::UpstreamRefusal => "refusal",
        },
        configured: dimension.configured,
        stated: dimension.stated,
        foreign: rounded(dimension.external),
        exhausted_in_s: dimension.exhausted_in.map(seconds),
        full_in_s: seconds(dimension.full_in),
    });
    let waiting = lane.waiting.iter().map(|waiting| Waiting {
        app: &waiting.app,
        class: match waiting.class {
            Priority::Interactive => "interactive",
            Priority::Batch => "batch",
        },
        count: waiting.count,
        oldest_s: seconds(waiting.oldest),
    });
    let open = open_breakers.iter().find(|(organization, model, _)| *organization == lane.organization && *model == lane.model);
    Lane {
        organization: &lane.organization,
        model: &lane.model,
        tier: &lane.tier,
        dimensions: dimensions.collect(),
        waiting: waiting.collect(),
        blocked_by: lane.blocked_by.as_ref().map(|(by, time)| Blocked { dimension: &by.code, for_s: seconds(*time) }),
        forecast_s: seconds(lane.forecast),
        in_flight: lane.in_flight,
        refusals: lane.refusals,
        breaker: Breaker { open: open.is_some(), probe_in_s: open.map(|(_, _, left)| seconds(*left)) },
    }
}

fn history(slices: Vec<Slice>) -> History {
    let mut history = History { slice_s: seconds(crate::telemetry::Trend::SLICE), ..History::default() };
    for slice in slices {
        history.requests.push(slice.requests);
        history.failed.push(slice.failed);
        history.refused_by_shield.push(slice.refused_by_shield);
        history.refused_by_groq.push(slice.refused_by_groq);
        history.resends.push(slice.resends);
        history.wait_p50_s.push(slice.wait_p50.map(rounded));
        history.wait_p99_s.push(slice.wait_p99.map(rounded));
    }
    history
}

fn unix(time: SystemTime) -> f64 {
    seconds(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn seconds(time: Duration) -> f64 {
    rounded(time.as_secs_f64())
}

/// Thousandths are enough for anyone who reads this.
fn rounded(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}
