use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    process::{Command, Stdio},
    sync::{LazyLock, Mutex},
};

use groq_limiter::{DimensionSnapshot, LimiterSnapshot, WaitingSnapshot, types::Dimension};
use tokio::time::Instant;
use tracing::{Dispatch, subscriber::NoSubscriber};
use tracing_subscriber::layer::SubscriberExt;

use super::*;
use crate::{
    config::{Class, FallbackReason},
    groq::Usage,
};

const KEY: &str = "gsk_CanaryCanaryCanary";
const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn limiter(organization: &str, model: &str, tier: &str, remaining: f64) -> LimiterSnapshot {
    let dimension = |dimension| DimensionSnapshot {
        dimension,
        limit: 8000,
        remaining,
        margin: 400,
        source: groq_limiter::Source::Plan,
        configured: None,
        stated: None,
        external: 0.0,
        exhausted_in: None,
        full_in: Duration::ZERO,
    };
    LimiterSnapshot {
        organization: organization.into(),
        model: model.into(),
        tier: tier.into(),
        dimensions: vec![dimension(Dimension::RPM), dimension(Dimension::TPM)],
        waiting: vec![WaitingSnapshot { app: "web".into(), class: Class::Batch, count: 3, oldest: Duration::from_secs(2) }],
        blocked_by: None,
        forecast: Duration::ZERO,
        in_flight: 0,
        refusals: 0,
    }
}

fn record(telemetry: &Arc<Telemetry>) -> Record {
    let mut record = Record::new(telemetry, "/openai/v1/chat/completions", Instant::now());
    record.id = "req-1".into();
    record.endpoint = "chat";
    record.app = "web".into();
    record.model = "openai/gpt-oss-20b".into();
    record.wait = Duration::from_millis(1500);
    record.bound = Some("TPM".into());
    record.attempts = 2;
    record.status = 200;
    record.source = Source::Upstream;
    record.usage = Usage { prompt: 71, completion: Some(30), cached: 64 };
    record.upstream_id = Some("req_up".into());
    record.time_to_head = Some(Duration::from_millis(80));
    record.traceparent = Some(TRACEPARENT.into());
    record
}

/// Parses the exposition into samples, and checks that each belongs to the family described last and occurs once.
fn samples(page: &str) -> BTreeMap<String, f64> {
    let mut family = String::new();
    let mut families = BTreeSet::new();
    let mut samples = BTreeMap::new();
    for line in page.lines() {
        if let Some(described) = line.strip_prefix("# TYPE ") {
            family = described.split(' ').next().expect("a name").to_owned();
            assert!(families.insert(family.clone()), "{family} is described twice");
        } else if !line.starts_with('#') {
            assert!(line.starts_with(&family), "{line} under {family}");
            let (sample, value) = line.rsplit_once(' ').expect("a value");
            assert!(samples.insert(sample.to_owned(), value.parse().expect("a number")).is_none(), "{sample} twice");
        }
    }
    samples
}

fn scrape(telemetry: &Telemetry, limiters: Vec<LimiterSnapshot>) -> BTreeMap<String, f64> {
    samples(&telemetry.metrics(Gauges { limiters, ..Gauges::default() }, Format::Plain))
}

#[test]
fn every_family_of_a_limiter_is_there_from_its_start() {
    let telemetry = Telemetry::default();
    let samples = scrape(&telemetry, vec![limiter("acme", "m", "on_demand", 8000.0)]);
    for sample in [
        r#"wait_seconds_count{model="m"}"#,
        r#"wait_seconds_bucket{le="+Inf",model="m"}"#,
        r#"upstream_seconds_count{model="m"}"#,
        r#"observed_wait_seconds_count{model="m"}"#,
        r#"observed_refusals_total{reason="queue_full"}"#,
        r#"observed_refusals_total{reason="max_wait"}"#,
        r#"observed_refusals_total{reason="app_budget"}"#,
        r#"attempts_total{outcome="answered"}"#,
        r#"attempts_total{outcome="refused"}"#,
        r#"attempts_total{outcome="failed"}"#,
        r#"attempts_total{outcome="broken"}"#,
        r#"upstream_refusals_total{model="m",dimension="RPM"}"#,
        r#"upstream_refusals_total{model="m",dimension="TPM"}"#,
        r#"waiting{model="m",class="interactive"}"#,
        r#"breaker_open{model="m"}"#,
        "store_degraded",
    ] {
        assert_eq!(samples.get(&format!("groq_shield_{sample}")), Some(&0.0), "{sample} of {samples:#?}");
    }
    assert_eq!(samples[r#"groq_shield_waiting{model="m",class="batch"}"#], 3.0);
    assert_eq!(samples[r#"groq_shield_limit{organization="acme",model="m",dimension="TPM"}"#], 8000.0);
    assert_eq!(samples[r#"groq_shield_remaining{organization="acme",model="m",dimension="TPM"}"#], 8000.0);
    assert_eq!(samples[r#"groq_shield_exhaustion_seconds{organization="acme",model="m",dimension="TPM"}"#], f64::INFINITY);
}

#[test]
fn what_observe_mode_counts_is_shown_everywhere() {
    let telemetry = Arc::<Telemetry>::default();
    assert_eq!(telemetry.observed(), ObservedTotals::default());
    telemetry.observed_wait("m", Duration::from_secs(2));
    telemetry.observed_refusal(ObservedRefusal::AppBudget);
    telemetry.observed_fallback("m", "n", FallbackReason::TooLarge);
    let mut refused = record(&telemetry);
    (refused.observed_wait, refused.observed_refusal) = (Some(Duration::from_secs(70)), Some(ObservedRefusal::MaxWait));
    drop(refused);
    let samples = scrape(&telemetry, Vec::new());
    assert_eq!(samples[r#"groq_shield_observed_wait_seconds_sum{model="m"}"#], 2.0);
    assert_eq!(samples[r#"groq_shield_observed_refusals_total{reason="app_budget"}"#], 1.0);
    assert_eq!(samples[r#"groq_shield_observed_fallbacks_total{from="m",to="n",reason="too_large"}"#], 1.0);
    let ObservedTotals { admitted, wait_p50_s, refusals, .. } = telemetry.observed();
    assert_eq!((admitted, refusals[ObservedRefusal::AppBudget as usize]), (1, 1));
    assert!(wait_p50_s.is_some_and(|wait| (1.0..=2.5).contains(&wait)), "{wait_p50_s:?}");
    let request = &telemetry.recent_requests()[0];
    assert_eq!((request.observed_wait_s, request.observed_refusal.as_deref()), (Some(70.0), Some("max_wait")));
}

#[test]
fn a_request_is_counted_once_it_has_ended() {
    let telemetry = Arc::<Telemetry>::default();
    drop(record(&telemetry));
    let mut left = record(&telemetry);
    left.status = 0;
    left.source = Source::Client;
    drop(left);
    telemetry.refused("openai/gpt-oss-20b", "TPM");
    telemetry.attempt(Outcome::Refused);
    telemetry.attempt(Outcome::Answered);
    let samples = scrape(&telemetry, Vec::new());
    let requests = |status, source| {
        let labels = r#"app="web",model="openai/gpt-oss-20b",endpoint="chat""#;
        samples[&format!(r#"groq_shield_requests_total{{{labels},status="{status}",source="{source}"}}"#)]
    };
    assert_eq!(requests("200", "upstream"), 1.0);
    assert_eq!(requests("499", "client"), 1.0);
    assert_eq!(samples[r#"groq_shield_wait_seconds_sum{model="openai/gpt-oss-20b"}"#], 3.0);
    assert_eq!(samples[r#"groq_shield_wait_seconds_bucket{le="1.0",model="openai/gpt-oss-20b"}"#], 0.0);
    assert_eq!(samples[r#"groq_shield_wait_seconds_bucket{le="2.5",model="openai/gpt-oss-20b"}"#], 2.0);
    assert_eq!(samples[r#"groq_shield_tokens_total{app="web",model="openai/gpt-oss-20b",kind="cached"}"#], 128.0);
    assert_eq!(samples[r#"groq_shield_upstream_refusals_total{model="openai/gpt-oss-20b",dimension="TPM"}"#], 1.0);
    assert_eq!(samples[r#"groq_shield_attempts_total{outcome="refused"}"#], 1.0);
    let start = telemetry.since_start();
    assert_eq!((start.requests, start.resends, start.refused_by_groq), (2, 2, 1));
}

#[test]
fn names_that_clients_choose_are_bounded_and_cannot_break_the_page() {
    let telemetry = Arc::<Telemetry>::default();
    let mut limiters = Vec::new();
    for n in 0..400 {
        let mut record = record(&telemetry);
        record.app = format!("app-{n}\n\"}} 1\\").into();
        record.model = format!("model-{n}\n\"}} 1\\").into();
        limiters.push(limiter(&format!("key-{n}"), &record.model, "on_demand", f64::from(n)));
    }
    let samples = scrape(&telemetry, limiters);
    let values = |label: &str| {
        let values = samples.keys().filter_map(|sample| sample.split(&format!("{label}=\"")).nth(1)?.split("\",").next());
        values.collect::<BTreeSet<_>>().len()
    };
    assert_eq!(values("app"), 101);
    assert_eq!(samples.keys().filter(|sample| sample.starts_with("groq_shield_breaker_open")).count(), 201);
    assert_eq!(values("organization"), 101);
    // Of limiters that share labels, the one with the least remaining is shown.
    assert_eq!(samples[r#"groq_shield_remaining{organization="other",model="other",dimension="TPM"}"#], 200.0);
}

#[test]
fn other_tiers_are_told_apart() {
    let limiters = vec![limiter("acme", "m", "on_demand", 1.0), limiter("acme", "m", "flex", 2.0)];
    let samples = scrape(&Telemetry::default(), limiters);
    assert_eq!(samples[r#"groq_shield_remaining{organization="acme",model="m",dimension="TPM"}"#], 1.0);
    assert_eq!(samples[r#"groq_shield_remaining{organization="acme",model="m",dimension="TPM",tier="flex"}"#], 2.0);
}

#[test]
fn both_formats_name_counters_as_documented() {
    let telemetry = Telemetry::default();
    let plain = telemetry.metrics(Gauges::default(), Format::Plain);
    assert!(plain.contains("# TYPE groq_shield_attempts_total counter\n"), "{plain}");
    assert!(!plain.contains("# EOF"));
    let open = telemetry.metrics(Gauges::default(), Format::OpenMetrics);
    assert!(open.contains("# TYPE groq_shield_attempts counter\ngroq_shield_attempts_total{"), "{open}");
    assert!(open.ends_with("# EOF\n"));
    assert_eq!(Format::of("application/openmetrics-text;version=1.0.0,text/plain;q=0.3"), Format::OpenMetrics);
    assert_eq!(Format::of("*/*"), Format::Plain);
}

#[test]
fn promtool_finds_no_fault() {
    let telemetry = Arc::<Telemetry>::default();
    drop(record(&telemetry));
    telemetry.refused("m", "TPM");
    let limiters = vec![limiter("acme", "m", "on_demand", 1.0), limiter("acme", "m", "flex", -2.0)];
    let page = telemetry.metrics(Gauges { limiters, ..Gauges::default() }, Format::Plain);
    let promtool = Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut promtool = match promtool {
        Ok(promtool) => promtool,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return eprintln!("not run: no promtool on this machine"),
        Err(error) => panic!("{error}"),
    };
    promtool.stdin.take().expect("piped").write_all(page.as_bytes()).expect("it reads");
    let output = promtool.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}\n{page}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_trend_holds_what_happened_between_two_readings() {
    let telemetry = Arc::<Telemetry>::default();
    let mut trend = Trend::default();
    drop(record(&telemetry));
    trend.advance(&telemetry);
    let mut refused = record(&telemetry);
    refused.status = 429;
    refused.source = Source::Shield;
    refused.attempts = 0;
    drop(refused);
    // The client is at fault, but the shield refuses it.
    let mut too_large = record(&telemetry);
    too_large.status = 413;
    too_large.source = Source::Client;
    too_large.attempts = 0;
    drop(too_large);
    let slices = trend.slices(&telemetry);
    assert_eq!(slices.len(), 2);
    assert_eq!((slices[0].requests, slices[0].refused_by_shield, slices[0].resends), (1, 0, 1));
    assert_eq!((slices[1].requests, slices[1].refused_by_shield, slices[1].resends), (2, 2, 0));
    assert!(slices[0].wait_p50.is_some_and(|wait| (1.0..=2.5).contains(&wait)));
    (0..1000).for_each(|_| trend.advance(&telemetry));
    assert_eq!(trend.slices(&telemetry).len(), 181);
}

/// Everything logged while `work` runs, in JSON or text.
fn logged(json: bool, work: impl FnOnce()) -> String {
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);
    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("no writer panics").write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    // With a single subscriber, tracing caches per call site whether the first thread had one. A second subscriber disables that
    // cache.
    static SECOND: LazyLock<Dispatch> = LazyLock::new(|| Dispatch::new(NoSubscriber::new()));
    LazyLock::force(&SECOND);
    let lines = Lines::default();
    let to = lines.clone();
    tracing::subscriber::with_default(
        tracing_subscriber::registry().with(filter("info").expect("a level")).with(log::lines(json, false, move || to.clone())),
        work,
    );
    let bytes = lines.0.lock().expect("no writer panics").clone();
    String::from_utf8(bytes).expect("text")
}

#[test]
fn a_thread_without_a_subscriber_does_not_disable_logging_elsewhere() {
    fn say() {
        tracing::info!("said");
    }
    let text = logged(false, || {
        std::thread::spawn(say).join().expect("it says so");
        say();
    });
    assert_eq!(text.lines().count(), 1, "{text}");
}

#[test]
fn the_access_line_has_what_operators_need() {
    let telemetry = Arc::<Telemetry>::default();
    let text = logged(true, || drop(record(&telemetry)));
    assert_eq!(text.lines().count(), 1, "{text}");
    let line: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(line["target"], "groq_shield::access");
    assert_eq!(line["level"], "INFO");
    for (field, value) in [
        ("id", serde_json::json!("req-1")),
        ("app", "web".into()),
        ("class", "interactive".into()),
        ("model", "openai/gpt-oss-20b".into()),
        ("endpoint", "chat".into()),
        ("status", 200.into()),
        ("source", "upstream".into()),
        ("wait_ms", 1500.into()),
        ("bound", "TPM".into()),
        ("attempts", 2.into()),
        ("prompt_tokens", 71.into()),
        ("completion_tokens", 30.into()),
        ("cached_tokens", 64.into()),
        ("upstream_id", "req_up".into()),
        ("head_ms", 80.into()),
        ("trace_id", "4bf92f3577b34da6a3ce929d0e0e4736".into()),
    ] {
        assert_eq!(line[field], value, "{field} in {text}");
    }
    assert!(line["total_ms"].is_u64());
    assert!(line.get("error").is_none());
}

#[test]
fn a_client_cannot_write_lines_of_its_own_nor_have_a_key_written() {
    let telemetry = Arc::<Telemetry>::default();
    for json in [false, true] {
        let text = logged(json, || {
            let mut record = record(&telemetry);
            record.id = "a\r\n2026-01-01 INFO forged\u{1b}[2J\u{9b}31m".into();
            record.model = "m\nforged".into();
            record.app = format!("app {KEY}").into();
            record.endpoint = "other";
            record.path = format!("/{KEY}");
            record.error = Some(format!("TLS: {KEY}\n{}", "x".repeat(10_000)));
        });
        assert_eq!(text.trim_end().lines().count(), 1, "{text}");
        assert!(!text.contains("Canary"), "{text}");
        assert!(!text.trim_end().contains(|c: char| c.is_control()), "{text:?}");
        assert!(text.len() < 3000, "{text}");
    }
}

#[test]
fn a_blocked_account_is_one_line_and_its_return_another() {
    let telemetry = Telemetry::default();
    let text = logged(true, || {
        for _ in 0..3 {
            telemetry.account_blocked(&"acme".into(), "blocked_api_access");
        }
        telemetry.account_served(&"acme".into());
        telemetry.account_served(&"acme".into());
    });
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(lines[0].contains("Groq has blocked this organization") && lines[0].contains("blocked_api_access"), "{text}");
    assert!(lines[1].contains("Groq serves this organization again") && lines[1].contains("acme"), "{text}");
}
