//! `groq-shield status`: limits, queue, apps, forecast and breaker of a running shield as a table.

use std::{
    fmt::Write,
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{
    apps,
    ask::{self, Whom},
    output::{failed, print},
    requests::{self, Filter},
    table::{bar, cut, time},
};
use crate::{
    admin::schema::{self, Fallback, Limiter, Observed, Truncated},
    telemetry::RecentRequest,
};

const LIMIT: Duration = Duration::from_secs(5);
const EVERY: Duration = Duration::from_secs(1);
/// Maximum characters of a model's name.
const NAME: usize = 60;
const CLEAR: &str = "\x1b[H\x1b[2J";

/// `groq-shield status`
#[derive(Debug, clap::Args)]
pub(super) struct Status {
    #[command(flatten)]
    whom: Whom,
    /// Repeat every second until interrupted
    #[arg(long)]
    watch: bool,
    /// Print the JSON of /status, or of /requests, unchanged
    #[arg(long)]
    json: bool,
    /// Show the last requests instead, newest first
    #[arg(long)]
    requests: bool,
    #[command(flatten)]
    filter: Filter,
}

/// Shows the status. Exit code 1 if no shield responds.
pub(super) fn run(arguments: &Status) -> ExitCode {
    let address = arguments.whom.address();
    if !arguments.watch {
        return match shown(&address, arguments) {
            Ok(text) => print(text.as_bytes()),
            Err(why) => failed(&why),
        };
    }
    loop {
        let text = shown(&address, arguments).unwrap_or_else(|why| format!("{why}\n"));
        let clear = if arguments.json { "" } else { CLEAR };
        if print(format!("{clear}{text}").as_bytes()) != ExitCode::SUCCESS {
            return ExitCode::FAILURE;
        }
        #[expect(clippy::disallowed_methods, reason = "a separate command, without a runtime to block")]
        std::thread::sleep(EVERY);
    }
}

fn shown(address: &str, arguments: &Status) -> Result<String, String> {
    let path = if arguments.requests { "/requests" } else { "/status" };
    let (code, body) = ask::get(address, path, LIMIT)?;
    let text = String::from_utf8_lossy(&body);
    if !code.is_success() {
        return Err(format!("http://{address}{path}: {code}"));
    }
    if arguments.json {
        return Ok(format!("{}\n", text.trim_end()));
    }
    let unknown = |why| format!("http://{address}{path} is not what groq-shield {} writes: {why}", env!("CARGO_PKG_VERSION"));
    if arguments.requests {
        let requests: Vec<RecentRequest> = serde_json::from_str(&text).map_err(unknown)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        return Ok(requests::table(&requests, &arguments.filter, now));
    }
    let status: schema::Status = serde_json::from_str(&text).map_err(unknown)?;
    Ok(table(&status))
}

fn table(status: &schema::Status) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_table(status, &mut out);
    out
}

fn write_table(status: &schema::Status, out: &mut String) -> std::fmt::Result {
    let schema::Status { version, state, upstream, totals, store, .. } = status;
    let file = status.config.file.as_deref().unwrap_or("no file");
    let degraded = if store.degraded { " DEGRADED" } else { "" };
    writeln!(
        out,
        "groq-shield {version} {state} for {}, before {upstream}, {file}, store {}{degraded}",
        time(status.uptime_s),
        store.kind
    )?;
    writeln!(
        out,
        "{} requests, {} failed, {} refused by the shield, {} refused by Groq, {} retries",
        totals.requests, totals.failed, totals.refused_by_shield, totals.refused_by_groq, totals.resends
    )?;
    if let Some(why) = &store.why {
        writeln!(out, "the store is unreachable, each replica uses its share of every limit: {why}")?;
    }
    if let Some(refused) = &status.config.error {
        writeln!(out, "the changed configuration has faults, the previous one is in effect:")?;
        for line in refused.message.lines() {
            writeln!(out, "  {line}")?;
        }
    }
    for account in &status.blocked_accounts {
        writeln!(out, "Groq has BLOCKED the organization {}: {}", account.organization, account.reason)?;
    }
    for Truncated { model, count, .. } in &status.truncated {
        writeln!(
            out,
            "{count} responses of {model} had no content: they reached max_completion_tokens; raise it or lower reasoning_effort"
        )?;
    }
    write_counts(status, out)?;
    if status.limiters.is_empty() {
        writeln!(out, "no model has been used yet")?;
    }
    for limiter in &status.limiters {
        write_limiter(limiter, out)?;
    }
    apps::write(&status.apps, out)
}

/// Requests served by other models, and the counts of observe mode.
fn write_counts(status: &schema::Status, out: &mut String) -> std::fmt::Result {
    for Fallback { from, to, reason, count } in &status.fallbacks {
        writeln!(out, "{count} requests for {} were served by {} ({reason})", cut(from, NAME), cut(to, NAME))?;
    }
    let Observed { admitted, wait_p50_s, wait_p99_s, refusals, fallbacks } = &status.observed;
    if status.mode == "observe" {
        writeln!(out, "observe mode: nothing is delayed or refused")?;
    }
    if *admitted > 0 || !refusals.is_empty() {
        write!(out, "observed: {admitted} requests would have been sent")?;
        if let (Some(half), Some(most)) = (wait_p50_s, wait_p99_s) {
            write!(out, " (half within {}, 99 % within {})", time(*half), time(*most))?;
        }
        let refusals: Vec<_> = refusals.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
        let refusals = if refusals.is_empty() { "none".into() } else { refusals.join(", ") };
        writeln!(out, ", would have been refused: {refusals}")?;
    }
    for Fallback { from, to, reason, count } in fallbacks {
        let (from, to) = (cut(from, NAME), cut(to, NAME));
        writeln!(out, "observed: {count} requests for {from} would have been served by {to} ({reason})")?;
    }
    Ok(())
}

fn write_limiter(limiter: &Limiter, out: &mut String) -> std::fmt::Result {
    write!(out, "\n{} ({}, {})  {} in flight", limiter.model, limiter.organization, limiter.tier, limiter.in_flight)?;
    if limiter.breaker.open {
        let probe = limiter.breaker.probe_in_s.map_or_else(|| "now".into(), |after| format!("in {}", time(after)));
        write!(out, "  BREAKER OPEN, probe {probe}")?;
    }
    writeln!(out, "  a new request waits {}", time(limiter.forecast_s))?;
    writeln!(
        out,
        "  {:<6} {:<20} {:>12} {:>12}  {:<11} {:>9} {:>9}",
        "", "used", "left", "limit", "from", "empty in", "full in"
    )?;
    for dimension in &limiter.dimensions {
        let used = 1.0 - dimension.remaining / (dimension.limit.max(1) as f64);
        let stated = dimension.stated.filter(|&stated| stated != dimension.limit);
        writeln!(
            out,
            "  {:<6} {} {:>3.0} % {:>12.0} {:>12}  {:<11} {:>9} {:>9}{}",
            dimension.dimension,
            bar(used),
            used * 100.0,
            dimension.remaining,
            dimension.limit,
            dimension.source,
            dimension.exhausted_in_s.map_or_else(|| "-".into(), time),
            time(dimension.full_in_s),
            stated.map_or_else(String::new, |stated| format!("  (Groq allows {stated})")),
        )?;
    }
    for waiting in &limiter.waiting {
        let app = if waiting.app.is_empty() { "(no app)" } else { &waiting.app };
        writeln!(out, "  waiting: {} of {app}, {}, the oldest for {}", waiting.count, waiting.class, time(waiting.oldest_s))?;
    }
    if let Some(blocked) = &limiter.blocked_by {
        writeln!(out, "  the queue waits for {}, {} more", blocked.dimension, time(blocked.for_s))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter() -> Limiter {
        Limiter {
            organization: "acme".into(),
            model: "openai/gpt-oss-20b".into(),
            tier: "on_demand".into(),
            dimensions: vec![schema::Dimension {
                dimension: "TPM".into(),
                limit: 8000,
                remaining: 2000.0,
                source: "headers".into(),
                exhausted_in_s: Some(75.0),
                full_in_s: 45.0,
                ..schema::Dimension::default()
            }],
            waiting: vec![schema::Waiting { app: "chat".into(), class: "interactive".into(), count: 3, oldest_s: 1.25 }],
            blocked_by: Some(schema::BlockedBy { dimension: "TPM".into(), for_s: 0.5 }),
            forecast_s: 2.5,
            in_flight: 1,
            refusals: 0,
            breaker: schema::Breaker { open: true, probe_in_s: Some(3.0) },
        }
    }

    #[test]
    fn a_status_as_a_table() {
        let status = schema::Status {
            version: "0.1.0".into(),
            uptime_s: 7384.2,
            state: "running".into(),
            mode: "observe".into(),
            upstream: "api.groq.com".into(),
            config: schema::Config {
                file: Some("groq-shield.toml".into()),
                error: Some(schema::ConfigError { at: 1.0, message: "error: no\n  here".into() }),
                ..schema::Config::default()
            },
            store: schema::Store { kind: "local".into(), ..schema::Store::default() },
            totals: schema::Totals { requests: 12, failed: 1, refused_by_shield: 2, refused_by_groq: 3, resends: 4 },
            blocked_accounts: vec![schema::BlockedAccount {
                organization: "acme".into(),
                reason: "blocked_api_access".into(),
                since: 1.0,
            }],
            truncated: vec![Truncated { model: "openai/gpt-oss-20b".into(), count: 2, last: 1.0 }],
            limiters: vec![limiter()],
            fallbacks: vec![Fallback { from: "m".into(), to: "n".into(), reason: "daily_limit".into(), count: 5 }],
            observed: Observed {
                admitted: 9,
                wait_p50_s: Some(0.5),
                wait_p99_s: Some(7.0),
                refusals: [("app_budget".into(), 2), ("max_wait".into(), 1)].into(),
                fallbacks: vec![Fallback { from: "m".into(), to: "n".into(), reason: "too_large".into(), count: 3 }],
            },
            ..schema::Status::default()
        };
        assert_eq!(
            table(&status),
            "\
groq-shield 0.1.0 running for 2h03m, before api.groq.com, groq-shield.toml, store local
12 requests, 1 failed, 2 refused by the shield, 3 refused by Groq, 4 retries
the changed configuration has faults, the previous one is in effect:
  error: no
    here
Groq has BLOCKED the organization acme: blocked_api_access
2 responses of openai/gpt-oss-20b had no content: they reached max_completion_tokens; raise it or lower reasoning_effort
5 requests for m were served by n (daily_limit)
observe mode: nothing is delayed or refused
observed: 9 requests would have been sent (half within 0.5s, 99 % within 7.0s), would have been refused: 2 app_budget, 1 max_wait
observed: 3 requests for m would have been served by n (too_large)

openai/gpt-oss-20b (acme, on_demand)  1 in flight  BREAKER OPEN, probe in 3.0s  a new request waits 2.5s
         used                         left        limit  from         empty in   full in
  TPM    ###########...  75 %         2000         8000  headers         1m15s       45s
  waiting: 3 of chat, interactive, the oldest for 1.2s
  the queue waits for TPM, 0.5s more
"
        );
    }

    #[test]
    fn debt_and_long_times_fit() {
        assert_eq!((bar(1.7), bar(-0.1)), ("#".repeat(14), ".".repeat(14)));
        assert_eq!([time(-1.0), time(59.9), time(90_000.0)], ["0.0s", "59s", "1d01h"]);
    }
}
