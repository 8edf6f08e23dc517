//! Observe mode: requests pass at once, and what would have happened to them is counted.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, StatusCode};
use tokio::time::{Instant, sleep};

use super::{answer, ask, asked, chat, code, good, shield, whole};
use crate::{
    config::{App, Fallback, FallbackReason, Mode, ModelLimits, Plan, Settings},
    headers::text,
    proxy::{Shield, handle},
    telemetry::{ObservedRefusal, ObservedTotals},
};

const REFUSED: &str = r#"{"error":{"message":"Rate limit reached for model `m` in organization `org_x` service tier `on_demand` on requests per minute (RPM): Limit 2, Used 2, Requested 1. Please try again in 30s.","type":"requests","code":"rate_limit_exceeded"}}"#;

fn observing(limits: ModelLimits) -> Settings {
    let mut settings = Settings::default();
    settings.limits.plan = Plan::None;
    settings.limits.mode = Mode::Observe;
    settings.limits.model.insert("m".into(), limits);
    settings
}

fn enforcing(settings: &Settings) -> Settings {
    let mut settings = settings.clone();
    settings.limits.mode = Mode::Enforce;
    settings
}

fn refusals(shield: &Shield, reason: ObservedRefusal) -> u64 {
    shield.telemetry.observed().refusals[reason as usize]
}

async fn ask_for(shield: &Arc<Shield>, app: &str) -> (StatusCode, HeaderMap, String) {
    let mut request = chat(false);
    request.headers_mut().insert("x-shield-app", app.parse().expect("a value"));
    whole(handle(shield, request, None).await).await
}

/// Twelve concurrent requests where ten a minute are allowed, of which two are the safety margin: within a wait of at most ten
/// seconds there is room for one more.
#[tokio::test(start_paused = true)]
async fn nothing_waits_and_hypothetical_waits_are_counted() {
    let mut settings = observing(ModelLimits { requests_per_minute: Some(10), ..Default::default() });
    settings.queue.max_wait = Duration::from_secs(10);
    let (shield, _) = shield(settings, vec![good()]);
    let began = Instant::now();
    for _ in 0..12 {
        let (status, headers, _) = ask(&shield, false).await;
        assert_eq!((status, text(&headers, "x-shield-wait-ms")), (StatusCode::OK, Some("0")));
    }
    assert!(began.elapsed() < Duration::from_millis(10), "{:?}", began.elapsed());
    let ObservedTotals { admitted, .. } = shield.telemetry.observed();
    assert_eq!((admitted, refusals(&shield, ObservedRefusal::MaxWait)), (8, 3), "one still waits");
    sleep(Duration::from_secs(11)).await;
    let ObservedTotals { admitted, wait_p99_s, .. } = shield.telemetry.observed();
    assert_eq!(admitted, 9);
    assert!(wait_p99_s.is_some_and(|wait| (5.0..=10.0).contains(&wait)), "{wait_p99_s:?}");
    let recent = shield.telemetry.recent_requests();
    assert_eq!(recent[0].observed_refusal.as_deref(), Some("max_wait"));
    assert!(recent.iter().any(|request| request.observed_wait_s.is_some_and(|wait| (5.0..=10.0).contains(&wait))), "{recent:?}");
    assert!(recent.iter().all(|request| request.wait_s == 0.0), "{recent:?}");
}

#[tokio::test(start_paused = true)]
async fn a_reload_switches_between_observing_and_enforcing() {
    let settings = observing(ModelLimits { requests_per_day: Some(10), ..Default::default() });
    let (shield, _) = shield(settings.clone(), vec![good()]);
    for _ in 0..13 {
        assert_eq!(ask(&shield, false).await.0, StatusCode::OK);
    }
    let left = shield.limits.snapshot()[0].dimensions[0].remaining;
    assert!((-3.1..=-2.9).contains(&left), "the truth, into debt: {left}");
    shield.reload(enforcing(&settings));
    let (status, headers, body) = ask(&shield, false).await;
    assert_eq!((status, code(&body).as_str()), (StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded"));
    assert_eq!(text(&headers, "x-shield-error"), Some("rate_limit_exceeded"));
    let before = refusals(&shield, ObservedRefusal::MaxWait);
    shield.reload(settings);
    assert_eq!(ask(&shield, false).await.0, StatusCode::OK);
    assert_eq!(refusals(&shield, ObservedRefusal::MaxWait), before + 1, "a day's limit that was spent before still is");
}

/// Two requests wait, for a limit and for a cap, when limits are switched to be observed only.
#[tokio::test(start_paused = true)]
async fn a_reload_to_observing_lets_go_what_waits() {
    let mut settings = observing(ModelLimits { requests_per_minute: Some(1), ..Default::default() });
    settings.queue.max_wait = Duration::from_secs(100);
    settings.app = vec![App { name: "capped".into(), requests_per_minute: Some(1), ..App::default() }];
    let (shield, _) = shield(enforcing(&settings), vec![good()]);
    assert_eq!(ask_for(&shield, "capped").await.0, StatusCode::OK);
    let began = Instant::now();
    let waiting = ["capped", "other"].map(|app| {
        let shield = shield.clone();
        tokio::spawn(async move { ask_for(&shield, app).await })
    });
    sleep(Duration::from_secs(5)).await;
    assert!(waiting.iter().all(|waiting| !waiting.is_finished()));
    shield.reload(settings);
    for waiting in waiting {
        assert_eq!(waiting.await.expect("no panic").0, StatusCode::OK);
    }
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    assert!((-2.0..=-1.9).contains(&shield.limits.snapshot()[0].dimensions[0].remaining), "both are charged");
}

#[tokio::test(start_paused = true)]
async fn caps_and_budgets_refuse_nothing() {
    let mut settings = observing(ModelLimits::default());
    settings.queue.max_wait = Duration::from_secs(1);
    settings.app = vec![
        App { name: "capped".into(), requests_per_minute: Some(2), ..App::default() },
        App { name: "spent".into(), tokens_per_day: Some(20), ..App::default() },
    ];
    let (shield, _) = shield(settings.clone(), vec![good()]);
    for app in ["capped", "spent"] {
        for _ in 0..4 {
            assert_eq!(ask_for(&shield, app).await.0, StatusCode::OK, "{app}");
        }
    }
    assert_eq!(refusals(&shield, ObservedRefusal::AppCap), 2);
    assert_eq!(refusals(&shield, ObservedRefusal::AppBudget), 2, "15 tokens each: the third and the fourth");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    assert_eq!(shield.accounts.ledger().usage("spent", now).day.tokens, 60, "what passes counts");
    shield.reload(enforcing(&settings));
    for (app, code_of) in [("capped", "rate_limit_exceeded"), ("spent", "app_budget_exceeded")] {
        let (status, _, body) = ask_for(&shield, app).await;
        assert_eq!((status, code(&body).as_str()), (StatusCode::TOO_MANY_REQUESTS, code_of));
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_rewritten() {
    let mut settings = observing(ModelLimits { tokens_per_minute: Some(500), requests_per_day: Some(1), ..Default::default() });
    settings.limits.fit_ceiling = true;
    settings.fallback = vec![Fallback { model: "m".into(), to: vec!["b".into()], when: FallbackReason::DEFAULT.to_vec() }];
    let (shield, seen) = shield(settings, vec![good()]);
    for _ in 0..2 {
        let body = r#"{"model":"m","max_completion_tokens":9000,"messages":[{"role":"user","content":"hi"}]}"#;
        let request = asked(http::Method::POST, "/openai/v1/chat/completions", body.into());
        let (status, headers, _) = whole(handle(&shield, request, None).await).await;
        assert_eq!(status, StatusCode::OK);
        assert!(!headers.contains_key("x-shield-fitted") && !headers.contains_key("x-shield-fallback"), "{headers:?}");
    }
    for request in seen.lock().expect("unpoisoned").iter() {
        assert!(request.contains(r#""model":"m","max_completion_tokens":9000"#), "{request}");
    }
    assert_eq!(refusals(&shield, ObservedRefusal::TooLarge), 0, "its output limit would have been lowered");
    assert_eq!(refusals(&shield, ObservedRefusal::MaxWait), 0, "another model would have served it");
    assert_eq!(fallbacks(&shield), ["m>b daily_limit 1"]);
}

fn fallbacks(shield: &Shield) -> Vec<String> {
    let counts = shield.telemetry.observed_fallbacks().into_iter();
    counts.map(|(fallback, n)| format!("{}>{} {} {n}", fallback.from, fallback.to, fallback.reason)).collect()
}

/// `m` has room for one request, `b` for one more; a third would have been refused. All are served by the model that they name.
#[tokio::test(start_paused = true)]
async fn what_another_model_would_have_served_is_counted_under_that_ones_limits() {
    let one = ModelLimits { requests_per_minute: Some(1), ..Default::default() };
    let mut settings = observing(one);
    settings.limits.model.insert("b".into(), one);
    settings.fallback = vec![Fallback { model: "m".into(), to: vec!["b".into()], when: vec![FallbackReason::Wait] }];
    settings.queue.max_wait = Duration::from_secs(1);
    settings.app = vec![App { name: "strict".into(), fallback: false, ..App::default() }];
    let (shield, seen) = shield(settings, vec![good()]);
    for _ in 0..3 {
        let (status, headers, _) = ask(&shield, false).await;
        assert_eq!((status, text(&headers, "x-shield-fallback")), (StatusCode::OK, None));
    }
    assert_eq!(fallbacks(&shield), ["m>b wait 1"]);
    assert_eq!((shield.telemetry.observed().admitted, refusals(&shield, ObservedRefusal::MaxWait)), (2, 1));
    let recent = shield.telemetry.recent_requests();
    assert_eq!((recent[1].observed_fallback.as_deref(), &*recent[1].model), (Some("b"), "m"));
    sleep(Duration::from_secs(120)).await;
    ask_for(&shield, "strict").await;
    ask_for(&shield, "strict").await;
    assert_eq!(refusals(&shield, ObservedRefusal::MaxWait), 2, "an app that declines would have been refused");
    assert!(seen.lock().expect("unpoisoned").iter().all(|request| request.contains(r#""model":"m""#)));
    let observer = shield.observer.load_full().expect("it observes");
    assert_eq!(observer.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_decommissioned_model_would_have_fallen_back() {
    const GONE: &str = r#"{"error":{"message":"gone","type":"invalid_request_error","code":"model_decommissioned"}}"#;
    let mut settings = observing(ModelLimits::default());
    settings.fallback = vec![Fallback { model: "m".into(), to: vec!["b".into()], when: FallbackReason::DEFAULT.to_vec() }];
    let (shield, seen) = shield(settings, vec![answer("400 Bad Request", "application/json", GONE)]);
    let (status, _, body) = ask(&shield, false).await;
    assert_eq!((status.as_u16(), code(&body).as_str()), (400, "model_decommissioned"));
    assert_eq!((fallbacks(&shield), seen.lock().expect("unpoisoned").len()), (vec!["m>b decommissioned 1".into()], 1));
}

/// Nothing is delayed, so the app gets the refusal, from which the observer learns the limit.
#[tokio::test(start_paused = true)]
async fn groqs_refusals_pass_at_once_and_reveal_the_limit() {
    let (shield, seen) = shield(
        observing(ModelLimits::default()),
        vec![good(), answer("429 Too Many Requests", "application/json", REFUSED), good()],
    );
    ask(&shield, false).await;
    let began = Instant::now();
    let (status, headers, body) = ask(&shield, false).await;
    assert_eq!((status, code(&body).as_str()), (StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded"));
    assert!(body.contains("Limit 2, Used 2") && !body.contains("org_x"), "{body}");
    let after: u64 = text(&headers, "retry-after").and_then(|after| after.parse().ok()).expect("seconds");
    assert!((30..=38).contains(&after), "{after}");
    assert_eq!((text(&headers, "x-should-retry"), text(&headers, "x-shield-error")), (Some("true"), None));
    assert_eq!((began.elapsed(), seen.lock().expect("unpoisoned").len()), (Duration::ZERO, 2));
    for _ in 0..6 {
        assert_eq!(ask(&shield, false).await.0, StatusCode::OK);
    }
    assert!(refusals(&shield, ObservedRefusal::MaxWait) > 0, "{:?}", shield.telemetry.observed());
}

#[tokio::test(start_paused = true)]
async fn failures_are_retried_and_no_breaker_delays_requests() {
    let mut settings = observing(ModelLimits::default());
    settings.breaker.failures = 3;
    let failing = answer("500 Internal Server Error", "application/json", r#"{"error":{"message":"m","type":"t"}}"#);
    let (shield, seen) = shield(settings, vec![failing]);
    let (status, headers, _) = ask(&shield, false).await;
    assert_eq!((status.as_u16(), text(&headers, "x-shield-attempts")), (500, Some("4")));
    let began = Instant::now();
    let (status, _, body) = ask(&shield, false).await;
    assert_eq!(status.as_u16(), 500, "{body}");
    assert!(seen.lock().expect("unpoisoned").len() >= 8, "it was sent, the breaker open or not");
    assert!(began.elapsed() < Duration::from_secs(5), "back-off alone: {:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn simulated_waits_are_bounded() {
    let mut settings = observing(ModelLimits { requests_per_minute: Some(10), ..Default::default() });
    settings.queue.max_waiting = 4;
    let (shield, _) = shield(settings, vec![good()]);
    for _ in 0..100 {
        assert_eq!(ask(&shield, false).await.0, StatusCode::OK);
    }
    assert_eq!(shield.limits.waiting(), 0, "nobody waits");
    let refused = [ObservedRefusal::QueueFull, ObservedRefusal::MaxWait].map(|reason| refusals(&shield, reason));
    assert_eq!((refused[0] + refused[1], shield.telemetry.observed().admitted), (88, 8), "{refused:?}");
    assert!(refused[0] > 0, "{refused:?}");
}

/// The usage of a request is settled even if its client disconnects while it waits in the observer.
#[tokio::test(start_paused = true)]
async fn nothing_stays_in_flight() {
    let settings = observing(ModelLimits { requests_per_minute: Some(10), ..Default::default() });
    let (shield, _) = shield(settings, vec![vec![super::Step::UntilClosed]]);
    for _ in 0..20 {
        let left = tokio::time::timeout(Duration::from_millis(5), ask(&shield, false)).await;
        assert!(left.is_err(), "the upstream says nothing");
    }
    sleep(Duration::from_secs(120)).await;
    assert_eq!(shield.limits.snapshot()[0].in_flight, 0);
    let observer = shield.observer.load_full().expect("it observes");
    assert_eq!(observer.in_flight(), 0);
}
