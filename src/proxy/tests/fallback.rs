//! Fallback to another model: for which reasons, and what the app and the upstream get.

use std::sync::{Arc, Mutex};

use http::{HeaderMap, Request, StatusCode};
use http_body_util::Full;

use super::{FIRST, GOOD, Step, answer, chat, good, shield, stream, whole};
use crate::{
    config::{App, Fallback, FallbackReason, ModelLimits, Plan, Settings},
    headers::text,
    proxy::{Shield, handle},
};

const DECOMMISSIONED: &str = r#"{"error":{"message":"The model `m` has been decommissioned","type":"invalid_request_error","code":"model_decommissioned"}}"#;

/// Model `m` has `limits`, and falls back to `b`, then `c`, which have none.
fn settings(limits: ModelLimits, when: &[FallbackReason]) -> Settings {
    let mut settings = Settings::default();
    settings.limits.plan = Plan::None;
    settings.limits.model.insert("m".into(), limits);
    settings.fallback = vec![Fallback { model: "m".into(), to: vec!["b".into(), "c".into()], when: when.to_vec() }];
    settings
}

async fn ask(shield: &Arc<Shield>, request: Request<Full<bytes::Bytes>>) -> (StatusCode, HeaderMap, String) {
    whole(handle(shield, request, None).await).await
}

/// The bodies that the upstream got.
fn bodies(seen: &Mutex<Vec<String>>) -> Vec<String> {
    let seen = seen.lock().expect("unpoisoned");
    seen.iter().map(|request| request.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()).collect()
}

fn one_a_day() -> ModelLimits {
    ModelLimits { requests_per_day: Some(1), ..Default::default() }
}

#[tokio::test(start_paused = true)]
async fn a_spent_daily_limit_falls_back() {
    let (shield, seen) = shield(settings(one_a_day(), &FallbackReason::DEFAULT), vec![good()]);
    let (status, headers, _) = ask(&shield, chat(false)).await;
    assert_eq!((status, text(&headers, "x-shield-fallback")), (StatusCode::OK, None));
    let (status, headers, body) = ask(&shield, chat(false)).await;
    assert_eq!((status, body.as_str()), (StatusCode::OK, GOOD));
    assert_eq!(text(&headers, "x-shield-fallback"), Some("m>b; reason=daily_limit"));
    let bodies = bodies(&seen);
    assert_eq!(bodies[1], bodies[0].replace(r#""model":"m""#, r#""model":"b""#), "nothing but the model changes");
    let metrics = shield.telemetry.metrics(Default::default(), crate::telemetry::Format::Plain);
    assert!(metrics.contains(r#"groq_shield_fallbacks_total{from="m",to="b",reason="daily_limit"} 1"#), "{metrics}");
}

#[tokio::test(start_paused = true)]
async fn a_stream_falls_back_like_any_other_answer() {
    let done = "data: [DONE]\n\n";
    let (shield, _) = shield(settings(one_a_day(), &FallbackReason::DEFAULT), vec![good(), stream(&[FIRST, done], true)]);
    ask(&shield, chat(false)).await;
    let (status, headers, body) = ask(&shield, chat(true)).await;
    assert_eq!((status, body), (StatusCode::OK, [FIRST, done].concat()));
    assert_eq!(text(&headers, "x-shield-fallback"), Some("m>b; reason=daily_limit"));
}

/// `b` is decommissioned, too, so the next model serves the request.
#[tokio::test(start_paused = true)]
async fn the_second_fallback_serves_what_the_first_cannot() {
    let gone = answer("404 Not Found", "application/json", DECOMMISSIONED);
    let (shield, seen) = shield(settings(ModelLimits::default(), &FallbackReason::DEFAULT), vec![gone.clone(), gone, good()]);
    let (status, headers, _) = ask(&shield, chat(false)).await;
    assert_eq!((status, text(&headers, "x-shield-fallback")), (StatusCode::OK, Some("m>c; reason=decommissioned")));
    let models: Vec<_> = bodies(&seen).iter().map(|body| body.contains(r#""model":"c""#)).collect();
    assert_eq!(models, [false, false, true]);
}

/// The app gets the failure of the model that it named, not that of the last fallback.
#[tokio::test(start_paused = true)]
async fn the_first_failure_is_reported_if_no_model_can_serve() {
    let gone = answer("404 Not Found", "application/json", DECOMMISSIONED);
    let (shield, seen) = shield(settings(ModelLimits::default(), &FallbackReason::DEFAULT), vec![gone]);
    let (status, headers, body) = ask(&shield, chat(false)).await;
    assert_eq!((status, text(&headers, "x-shield-fallback")), (StatusCode::NOT_FOUND, None));
    assert!(body.contains("model_decommissioned"), "{body}");
    assert_eq!(bodies(&seen).len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_can_never_fit_falls_back() {
    let small = ModelLimits { tokens_per_minute: Some(10), ..Default::default() };
    let (shield, seen) = shield(settings(small, &FallbackReason::DEFAULT), vec![good()]);
    let (status, headers, _) = ask(&shield, chat(false)).await;
    assert_eq!((status, text(&headers, "x-shield-fallback")), (StatusCode::OK, Some("m>b; reason=too_large")));
    assert_eq!(bodies(&seen).len(), 1, "the model itself was not asked");
}

#[tokio::test(start_paused = true)]
async fn a_wait_beyond_the_deadline_falls_back_if_asked_for() {
    let one = ModelLimits { requests_per_minute: Some(1), ..Default::default() };
    for (when, expected) in [(&FallbackReason::DEFAULT[..], None), (&[FallbackReason::Wait], Some("m>b; reason=wait"))] {
        let (shield, _) = shield(settings(one, when), vec![good()]);
        ask(&shield, chat(false)).await;
        let (status, headers, body) = ask(&shield, chat(false)).await;
        assert_eq!(text(&headers, "x-shield-fallback"), expected);
        assert_eq!(status == StatusCode::OK, expected.is_some(), "{body}");
    }
}

/// An open breaker of `m` says nothing about `b`.
#[tokio::test(start_paused = true)]
async fn an_open_breaker_falls_back() {
    let mut settings = settings(ModelLimits::default(), &FallbackReason::DEFAULT);
    settings.retry.attempts = 1;
    settings.breaker.failures = 1;
    settings.queue.max_wait = std::time::Duration::from_secs(1);
    let failing = answer("500 Internal Server Error", "application/json", r#"{"error":{"message":"m","type":"t"}}"#);
    let (shield, _) = shield(settings, vec![failing, good()]);
    let (status, headers, _) = ask(&shield, chat(false)).await;
    assert_eq!((status.as_u16(), text(&headers, "x-shield-fallback")), (500, None), "a failure alone is no reason");
    let (status, headers, body) = ask(&shield, chat(false)).await;
    assert_eq!((status, text(&headers, "x-shield-fallback")), (StatusCode::OK, Some("m>b; reason=unavailable")), "{body}");
}

#[tokio::test(start_paused = true)]
async fn an_app_or_a_request_can_decline() {
    let mut settings = settings(one_a_day(), &FallbackReason::DEFAULT);
    settings.app = vec![App { name: "strict".into(), fallback: false, ..App::default() }];
    let (shield, _) = shield(settings, vec![good()]);
    ask(&shield, chat(false)).await;
    for (name, value, served) in [
        ("x-shield-app", "strict", false),
        ("x-shield-app", "other", true),
        ("x-shield-fallback", "off", false),
        ("x-shield-fallback", "on", true),
    ] {
        let mut request = chat(false);
        request.headers_mut().insert(name, value.parse().expect("a value"));
        assert_eq!(ask(&shield, request).await.0 == StatusCode::OK, served, "{name}: {value}");
    }
}

/// The response was opened for the named model, and its headers can no longer be changed.
#[tokio::test(start_paused = true)]
async fn a_stream_that_was_opened_early_does_not_fall_back() {
    let mut settings = settings(ModelLimits::default(), &FallbackReason::DEFAULT);
    settings.queue.stream_keepalive = Some(std::time::Duration::from_secs(1));
    let late = [vec![Step::Pause(3)], answer("404 Not Found", "application/json", DECOMMISSIONED)].concat();
    let (shield, seen) = shield(settings, vec![late, good()]);
    let (_, _, body) = ask(&shield, chat(true)).await;
    assert!(body.starts_with(": waiting\n\n") && body.contains("model_decommissioned"), "{body}");
    assert_eq!(bodies(&seen).len(), 1);
}

/// An output limit that was fitted to the first model's limit must not follow the request to another model.
#[tokio::test(start_paused = true)]
async fn a_fitted_output_limit_does_not_apply_to_the_next_model() {
    let mut settings = settings(ModelLimits { tokens_per_minute: Some(500), ..one_a_day() }, &FallbackReason::DEFAULT);
    settings.limits.fit_ceiling = true;
    let (shield, seen) = shield(settings, vec![good()]);
    let request = || {
        let body = r#"{"model":"m","max_completion_tokens":9000,"messages":[{"role":"user","content":"hi"}]}"#;
        super::asked(http::Method::POST, "/openai/v1/chat/completions", body.into())
    };
    let (_, headers, _) = ask(&shield, request()).await;
    assert!(headers.contains_key("x-shield-fitted"));
    let (_, headers, _) = ask(&shield, request()).await;
    assert_eq!((text(&headers, "x-shield-fallback"), text(&headers, "x-shield-fitted")), (Some("m>b; reason=daily_limit"), None));
    let bodies = bodies(&seen);
    assert!(!bodies[0].contains("9000") && bodies[1].contains("9000"), "{bodies:?}");
}

/// The breaker opens again at once, and the probe is served by the next model like the requests after it.
#[tokio::test(start_paused = true)]
async fn a_failed_probe_falls_back() {
    let mut settings = settings(ModelLimits::default(), &FallbackReason::DEFAULT);
    settings.retry.attempts = 1;
    settings.breaker.failures = 1;
    let failing = answer("500 Internal Server Error", "application/json", r#"{"error":{"message":"m","type":"t"}}"#);
    let open = settings.breaker.open;
    let (shield, seen) = shield(settings, vec![failing.clone(), failing, good()]);
    assert_eq!(ask(&shield, chat(false)).await.0.as_u16(), 500);
    tokio::time::sleep(open).await;
    let (status, headers, body) = ask(&shield, chat(false)).await;
    assert_eq!((status, text(&headers, "x-shield-fallback")), (StatusCode::OK, Some("m>b; reason=unavailable")), "{body}");
    assert_eq!(bodies(&seen).len(), 3, "the probe went out");
}

/// Both top-level members `model` are replaced, so it does not matter which one counts; the nested one is not.
#[tokio::test(start_paused = true)]
async fn a_model_named_twice_or_in_a_nested_member() {
    let gone = answer("404 Not Found", "application/json", DECOMMISSIONED);
    let (shield, seen) = shield(settings(ModelLimits::default(), &FallbackReason::DEFAULT), vec![gone, good()]);
    let body = r#"{"model":"x","metadata":{"model":"m"},"messages":[{"role":"user","content":"{\"model\":\"m\"}"}],"model":"m"}"#;
    let request = super::asked(http::Method::POST, "/openai/v1/chat/completions", body.into());
    let (status, headers, _) = ask(&shield, request).await;
    assert_eq!((status, text(&headers, "x-shield-fallback")), (StatusCode::OK, Some("m>b; reason=decommissioned")));
    let expected = body.replace(r#""model":"x""#, r#""model":"b""#).replace(r#"],"model":"m""#, r#"],"model":"b""#);
    assert_eq!(bodies(&seen)[1], expected);
}

/// The limits of the next model apply: `b` has no room for the request, `c` has.
#[tokio::test(start_paused = true)]
async fn a_fallback_model_has_limits_of_its_own() {
    let mut settings = settings(one_a_day(), &FallbackReason::DEFAULT);
    settings.limits.model.insert("b".into(), ModelLimits { tokens_per_minute: Some(10), ..Default::default() });
    let (shield, _) = shield(settings, vec![good()]);
    ask(&shield, chat(false)).await;
    let (_, headers, _) = ask(&shield, chat(false)).await;
    assert_eq!(text(&headers, "x-shield-fallback"), Some("m>c; reason=daily_limit"));
}
