//! Fills the schema of `/status` from the running shield.

use std::{
    sync::{Arc, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use groq_limiter::{
    LimiterSnapshot, Source, StoreHandle,
    types::{Priority, Unit},
};
use tokio::time::Instant;

use super::{
    AdminServer, apps,
    numbers::{rounded, seconds},
    schema::{
        BlockedAccount, BlockedBy, Breaker, Config, ConfigError, Dimension, Fallback, History, Limiter, Observed, Status, Store,
        Totals, Truncated, Waiting,
    },
};
use crate::{
    config::{Mode, StoreKind},
    telemetry::{self, ObservedRefusal, Slice, Telemetry},
};

impl AdminServer {
    /// The whole status.
    pub(super) fn status(&self) -> Status {
        let shield = &self.shield;
        let settings = shield.settings.load();
        let configuration = shield.telemetry.configuration();
        let total = shield.telemetry.since_start();
        let limiters = shield.limits.snapshot();
        let store = shield.limits.store();
        let open_breakers = shield.breakers.open(Instant::now());
        let slices = self.trend.lock().unwrap_or_else(PoisonError::into_inner).slices(&shield.telemetry);
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            uptime_s: seconds(self.started.elapsed()),
            state: if shield.shutdown.draining.is_cancelled() { "draining" } else { "running" }.into(),
            mode: match settings.limits.mode {
                Mode::Enforce => "enforce",
                Mode::Observe => "observe",
            }
            .into(),
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
                }
                .into(),
                degraded: store.as_ref().is_some_and(StoreHandle::is_degraded),
                why: store.as_ref().and_then(StoreHandle::why),
                replicas: store.map(|store| store.replicas()),
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
                .map(|(model, count, last)| Truncated { model, count, last: unix(last) })
                .collect(),
            limiters: limiters.into_iter().map(|snapshot| limiter(snapshot, &open_breakers)).collect(),
            apps: apps::list(shield),
            fallbacks: fallbacks(shield.telemetry.fallbacks()),
            observed: observed(&shield.telemetry),
            history: history(slices),
        }
    }
}

fn limiter(snapshot: LimiterSnapshot, open_breakers: &[(Arc<str>, Arc<str>, Duration)]) -> Limiter {
    let dimensions = snapshot.dimensions.into_iter().map(|quota| Dimension {
        dimension: quota.dimension.code,
        unit: match quota.dimension.unit {
            Unit::Requests => "requests",
            Unit::Tokens => "tokens",
            Unit::InputTokens => "input tokens",
            Unit::OutputTokens => "output tokens",
            Unit::AudioSeconds => "seconds of audio",
        }
        .into(),
        period_s: seconds(quota.dimension.period),
        limit: quota.limit,
        remaining: rounded(quota.remaining),
        safety_margin: quota.margin,
        source: match quota.source {
            Source::Configured => "configured",
            Source::Plan => "plan",
            Source::Headers => "headers",
            Source::UpstreamRefusal => "refusal",
        }
        .into(),
        configured: quota.configured,
        stated: quota.stated,
        external: rounded(quota.external),
        exhausted_in_s: quota.exhausted_in.map(seconds),
        full_in_s: seconds(quota.full_in),
    });
    let waiting = snapshot.waiting.into_iter().map(|waiting| Waiting {
        app: waiting.app,
        class: match waiting.class {
            Priority::Interactive => "interactive",
            Priority::Batch => "batch",
        }
        .into(),
        count: waiting.count,
        oldest_s: seconds(waiting.oldest),
    });
    let open =
        open_breakers.iter().find(|(organization, model, _)| *organization == snapshot.organization && *model == snapshot.model);
    Limiter {
        dimensions: dimensions.collect(),
        waiting: waiting.collect(),
        blocked_by: snapshot.blocked_by.map(|(by, time)| BlockedBy { dimension: by.code, for_s: seconds(time) }),
        forecast_s: seconds(snapshot.forecast),
        in_flight: snapshot.in_flight,
        refusals: snapshot.refusals,
        breaker: Breaker { open: open.is_some(), probe_in_s: open.map(|(_, _, left)| seconds(*left)) },
        organization: snapshot.organization,
        model: snapshot.model,
        tier: snapshot.tier,
    }
}

fn fallbacks(counts: Vec<(telemetry::Fallback, u64)>) -> Vec<Fallback> {
    let row = |(fallback, count): (telemetry::Fallback, u64)| Fallback {
        from: fallback.from,
        to: fallback.to,
        reason: fallback.reason.into(),
        count,
    };
    counts.into_iter().map(row).collect()
}

fn observed(telemetry: &Telemetry) -> Observed {
    let totals = telemetry.observed();
    let refusals = ObservedRefusal::ALL.iter().zip(totals.refusals).filter(|(_, n)| *n > 0);
    Observed {
        admitted: totals.admitted,
        wait_p50_s: totals.wait_p50_s.map(rounded),
        wait_p99_s: totals.wait_p99_s.map(rounded),
        refusals: refusals.map(|(reason, n)| (reason.as_str().into(), n)).collect(),
        fallbacks: fallbacks(telemetry.observed_fallbacks()),
    }
}

fn history(slices: Vec<Slice>) -> History {
    let mut history = History { slice_s: seconds(telemetry::Trend::SLICE), ..History::default() };
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
