//! Budgets of apps: what counts, which requests are refused, and the responses.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use tokio::time::timeout;

use super::{FIRST, GOOD, Step, answer, asked, chat, code, good, shield, stream, whole};
use crate::{
    config::{App, Fallback, FallbackReason, ModelPrice, Settings},
    headers::text,
    proxy::{Shield, handle},
};

/// Settings with these apps.
fn with(apps: impl IntoIterator<Item = App>) -> Settings {
    Settings { app: apps.into_iter().collect(), ..Settings::default() }
}

async fn ask(shield: &Arc<Shield>, app: &str, stream: bool) -> (StatusCode, HeaderMap, String) {
    let mut request = chat(stream);
    request.headers_mut().insert("x-shield-app", app.parse().expect("a value"));
    whole(handle(shield, request, None).await).await
}

fn used(shield: &Shield, app: &str) -> (u64, u64, u64) {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    let usage = shield.accounts.ledger().usage(app, now);
    assert_eq!(usage.reserved, Default::default(), "nothing is in flight");
    (usage.day.requests, usage.day.tokens, usage.day.nano_usd)
}

/// `GOOD` uses 15 tokens.
#[tokio::test(start_paused = true)]
async fn a_spent_budget_refuses_its_app_only() {
    let app = App { name: "a".into(), tokens_per_day: Some(30), ..App::default() };
    let (shield, seen) = shield(with([app]), vec![good()]);
    for _ in 0..2 {
        assert_eq!(ask(&shield, "a", false).await.2, GOOD);
    }
    let (status, headers, body) = ask(&shield, "a", false).await;
    assert_eq!((status, code(&body).as_str()), (StatusCode::TOO_MANY_REQUESTS, "app_budget_exceeded"));
    assert!(body.contains(r#""type":"tokens""#) && body.contains("30 tokens a day is spent (30 tokens used)"), "{body}");
    assert_eq!(text(&headers, "x-should-retry"), Some("false"));
    assert!(text(&headers, "retry-after").is_some_and(|after| after.parse::<u64>().is_ok()), "{headers:?}");
    assert_eq!(ask(&shield, "b", false).await.0, StatusCode::OK);
    assert_eq!(seen.lock().expect("unpoisoned").len(), 3, "the refused request was not sent");
    assert_eq!(used(&shield, "a"), (2, 30, 0));
}

#[tokio::test(start_paused = true)]
async fn apps_without_an_entry_have_the_wildcard_budget_each() {
    let star = App { name: "*".into(), requests_per_day: Some(1), ..App::default() };
    let named = App { name: "named".into(), ..App::default() };
    let (shield, _) = shield(with([star, named]), vec![good()]);
    for (app, served) in [("x", true), ("x", false), ("y", true), ("y", false), ("named", true), ("named", true)] {
        assert_eq!(ask(&shield, app, false).await.0 == StatusCode::OK, served, "{app}");
    }
}

/// Groq charges no tokens for a 500; for a cut stream it charges what it wrote.
#[tokio::test(start_paused = true)]
async fn retries_and_cut_streams_count_what_groq_charges() {
    let failing = answer("500 Internal Server Error", "application/json", r#"{"error":{"message":"m","type":"t"}}"#);
    let cut = [stream(&[FIRST], false), vec![Step::Pause(1)]].concat();
    let app = App { name: "a".into(), tokens_per_day: Some(1_000_000), ..App::default() };
    let (shield, _) = shield(with([app]), vec![failing, good(), cut]);
    assert_eq!(ask(&shield, "a", false).await.0, StatusCode::OK);
    assert_eq!(used(&shield, "a"), (1, 15, 0));
    let body = ask(&shield, "a", true).await.2;
    assert_eq!(code(body.strip_prefix(FIRST).expect("an event")), "upstream_closed");
    let (requests, tokens, _) = used(&shield, "a");
    assert!(requests == 2 && tokens > 15 + 1, "the prompt and what was written: {tokens}");
}

#[tokio::test(start_paused = true)]
async fn a_budget_in_usd_is_charged_by_the_prices() {
    let app = App { name: "a".into(), cost_per_month: Some(0.000_03), ..App::default() };
    let mut settings = with([app]);
    // 10 prompt tokens and 5 completion tokens: 20 millionths of a USD.
    settings.price.insert("m".into(), ModelPrice { input: Some(1.0), output: Some(2.0), ..ModelPrice::default() });
    let (shield, _) = shield(settings, vec![good()]);
    assert_eq!(ask(&shield, "a", false).await.0, StatusCode::OK);
    assert_eq!(ask(&shield, "a", false).await.0, StatusCode::OK, "20 of 30 are used");
    let (status, _, body) = ask(&shield, "a", false).await;
    assert_eq!((status, code(&body).as_str()), (StatusCode::TOO_MANY_REQUESTS, "app_budget_exceeded"));
    assert!(body.contains(r#""type":"cost""#) && body.contains("on the first of next month"), "{body}");
    assert_eq!(used(&shield, "a"), (2, 30, 40_000));
    let metrics = shield.telemetry.metrics(Default::default(), crate::telemetry::Format::Plain);
    assert!(metrics.contains(r#"groq_shield_cost_usd_total{app="a",model="m"} 0.00004"#), "{metrics}");
    assert!(metrics.contains(r#"groq_shield_tokens_total{app="a",model="m",kind="prompt"} 20"#), "{metrics}");
}

/// Two apps use a model without a price; one of them has a budget in USD.
#[tokio::test(start_paused = true)]
async fn a_missing_price_is_reported_for_budgets_in_usd() {
    let in_usd = App { name: "in-usd".into(), cost_per_day: Some(1.0), ..App::default() };
    let in_tokens = App { name: "in-tokens".into(), tokens_per_day: Some(1000), ..App::default() };
    let mut settings = with([in_usd, in_tokens]);
    settings.price.insert("another".into(), ModelPrice { input: Some(1.0), ..ModelPrice::default() });
    let (shield, _) = shield(settings, vec![good()]);
    for app in ["in-usd", "in-tokens"] {
        assert_eq!(ask(&shield, app, false).await.0, StatusCode::OK);
    }
    assert_eq!(shield.telemetry.unpriced_of("in-usd"), [Arc::<str>::from("m")]);
    assert!(shield.telemetry.unpriced_of("in-tokens").is_empty());
}

/// A budget in tokens and USD that these tests do not reach.
fn ample() -> Settings {
    let app = App { name: "a".into(), tokens_per_day: Some(1_000_000), ..App::default() };
    let mut settings = with([app]);
    let price =
        |input| ModelPrice { input: Some(input), output: Some(2.0 * input), audio_hour: Some(3.6), ..ModelPrice::default() };
    settings.price.insert("m".into(), price(1.0));
    settings.price.insert("b".into(), price(10.0));
    settings
}

/// The named model did not serve the request and costs nothing.
#[tokio::test(start_paused = true)]
async fn the_serving_models_price_counts() {
    let gone = r#"{"error":{"message":"gone","type":"invalid_request_error","code":"model_decommissioned"}}"#;
    let mut settings = ample();
    settings.fallback = vec![Fallback { model: "m".into(), to: vec!["b".into()], when: vec![FallbackReason::Decommissioned] }];
    let (shield, _) = shield(settings, vec![answer("404 Not Found", "application/json", gone), good()]);
    assert_eq!(ask(&shield, "a", false).await.0, StatusCode::OK);
    // 10 prompt tokens at 10, 5 completion tokens at 20.
    assert_eq!(used(&shield, "a"), (1, 15, 200_000));
}

/// Groq charges nothing for what it refuses as too large.
#[tokio::test(start_paused = true)]
async fn a_refusal_costs_nothing() {
    let too_large = r#"{"error":{"message":"Request too large for model `m` in organization `o` service tier `on_demand` on tokens per minute (TPM): Limit 8000, Requested 11881, please reduce your message size and try again.","type":"tokens","code":"rate_limit_exceeded"}}"#;
    let (shield, _) = shield(ample(), vec![answer("413 Payload Too Large", "application/json", too_large)]);
    assert_eq!(ask(&shield, "a", false).await.0, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(used(&shield, "a"), (0, 0, 0));
}

/// A request that was sent is charged even if its client has disconnected; one that still waited is not.
#[tokio::test(start_paused = true)]
async fn a_disconnected_client_is_charged_for_what_was_sent() {
    let begun = [stream(&[FIRST], false), vec![Step::UntilClosed]].concat();
    let (shield, _) = shield(ample(), vec![vec![Step::UntilClosed], begun]);
    assert!(timeout(Duration::from_secs(5), ask(&shield, "a", false)).await.is_err(), "the upstream says nothing");
    let (requests, prompt, _) = used(&shield, "a");
    assert!(requests == 1 && prompt > 0, "{requests} requests, {prompt} tokens");
    let mut request = chat(true);
    request.headers_mut().insert("x-shield-app", "a".parse().expect("a value"));
    let mut response = handle(&shield, request, None).await;
    response.body_mut().frame().await.expect("an event").expect("good");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    assert_eq!(shield.accounts.ledger().usage("a", now).reserved.requests, 1, "as long as it runs");
    drop(response);
    // The prompt again, with `stream`, and the one token that had been generated.
    let (requests, tokens, _) = used(&shield, "a");
    assert!(requests == 2 && (2 * prompt + 1..2 * prompt + 4).contains(&tokens), "{tokens} tokens, {prompt} of the first");
    let mut settings = ample();
    settings.app[0].requests_per_minute = Some(1);
    settings.queue.max_wait = Duration::from_secs(120);
    let (shield, _) = super::shield(settings, vec![good()]);
    assert_eq!(ask(&shield, "a", false).await.0, StatusCode::OK);
    assert!(timeout(Duration::from_secs(5), ask(&shield, "a", false)).await.is_err(), "it waits for the cap");
    assert_eq!(used(&shield, "a").0, 1);
}

/// A second of audio is charged as ten, by the price per hour.
#[tokio::test(start_paused = true)]
async fn audio_is_charged_by_the_hour() {
    let wav = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/audio/one.wav")).expect("the corpus");
    let part = |name: &str| format!("--x\r\ncontent-disposition: form-data; name=\"{name}\"");
    let mut body = format!("{}\r\n\r\nm\r\n{}; filename=\"a.wav\"\r\n\r\n", part("model"), part("file")).into_bytes();
    body.extend_from_slice(&wav);
    body.extend_from_slice(b"\r\n--x--\r\n");
    let mut request: Request<Full<Bytes>> = asked(Method::POST, "/openai/v1/audio/transcriptions", String::new());
    request.headers_mut().insert("content-type", "multipart/form-data; boundary=x".parse().expect("a value"));
    request.headers_mut().insert("x-shield-app", "a".parse().expect("a value"));
    *request.body_mut() = Full::from(body);
    let (shield, _) = shield(ample(), vec![answer("200 OK", "application/json", r#"{"text":"hello"}"#)]);
    let (status, _, said) = whole(handle(&shield, request, None).await).await;
    assert_eq!(status, StatusCode::OK, "{said}");
    assert_eq!(used(&shield, "a"), (1, 0, 10_000_000));
}

/// Groq may have generated a response in two of three attempts: both are charged.
#[tokio::test(start_paused = true)]
async fn every_attempt_that_groq_may_have_served_is_charged() {
    let cut = vec![Step::Write("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{".into())];
    let failed = answer("503 Service Unavailable", "application/json", r#"{"error":{"message":"m","type":"t"}}"#);
    let (shield, seen) = shield(ample(), vec![cut, failed, good()]);
    assert_eq!(ask(&shield, "a", false).await.0, StatusCode::OK);
    assert_eq!(seen.lock().expect("unpoisoned").len(), 3);
    let (requests, tokens, _) = used(&shield, "a");
    assert!(requests == 1 && tokens > 15, "the prompt of the first attempt, and what the last one says: {tokens}");
}

/// Calls that were cut, abandoned or never answered have an estimated usage, which is shown as it is charged.
#[tokio::test(start_paused = true)]
async fn the_tokens_and_cost_that_are_shown_are_those_that_are_charged() {
    let cut = vec![Step::Write("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{".into())];
    let cut_stream = [stream(&[FIRST], false), vec![Step::Pause(1)]].concat();
    let begun = [stream(&[FIRST], false), vec![Step::UntilClosed]].concat();
    let scripts = vec![good(), cut, good(), cut_stream, begun, vec![Step::UntilClosed], good()];
    let (shield, seen) = shield(ample(), scripts);
    let mut charged = Vec::new();
    let mut check = |call: &str| {
        let (mut requests, mut tokens, mut nano_usd) = (0, 0, 0);
        for ((app, _), usage) in shield.telemetry.usage() {
            assert_eq!(&*app, "a");
            requests += usage.requests;
            tokens += usage.prompt - usage.cached + usage.completion;
            nano_usd += usage.nano_usd;
        }
        assert_eq!((requests, tokens, nano_usd), used(&shield, "a"), "{call}");
        assert!(charged.last().is_none_or(|&before| before < tokens), "{call}: {tokens} tokens");
        charged.push(tokens);
    };
    assert_eq!(ask(&shield, "a", false).await.0, StatusCode::OK);
    check("an answer");
    assert_eq!(ask(&shield, "a", false).await.0, StatusCode::OK);
    check("an answer after one that was cut");
    ask(&shield, "a", true).await;
    check("a stream that was cut");
    let mut request = chat(true);
    request.headers_mut().insert("x-shield-app", "a".parse().expect("a value"));
    let mut response = handle(&shield, request, None).await;
    response.body_mut().frame().await.expect("an event").expect("good");
    drop(response);
    check("a stream whose client disconnected");
    assert!(timeout(Duration::from_secs(5), ask(&shield, "a", false)).await.is_err(), "the upstream says nothing");
    check("a client that disconnected before the answer");
    assert_eq!(seen.lock().expect("unpoisoned").iter().filter(|line| line.starts_with("POST")).count(), 6);
}

/// An app that is removed from the configuration and added again keeps its usage.
#[tokio::test(start_paused = true)]
async fn a_removed_and_restored_app_keeps_its_account() {
    let app = || App { name: "a".into(), tokens_per_day: Some(30), ..App::default() };
    let (shield, _) = shield(with([app()]), vec![good()]);
    assert_eq!(ask(&shield, "a", false).await.0, StatusCode::OK);
    shield.reload(with([]));
    assert_eq!(ask(&shield, "a", false).await.0, StatusCode::OK, "without an entry nothing is counted");
    shield.reload(with([app()]));
    assert_eq!(used(&shield, "a"), (1, 15, 0));
    assert_eq!(ask(&shield, "a", false).await.0, StatusCode::OK);
    assert_eq!(ask(&shield, "a", false).await.0, StatusCode::TOO_MANY_REQUESTS);
}

/// Client-chosen names with quotes, line breaks or 10 KB are counted and shown under a sanitized name.
#[tokio::test(start_paused = true)]
async fn unusual_app_names_are_budgeted_too() {
    let star = App { name: "*".into(), requests_per_day: Some(1), ..App::default() };
    let (shield, _) = shield(with([star]), vec![good()]);
    let long = "x".repeat(10_000);
    for (name, known_as) in
        [(r#"a"b\"#, "a_b_"), ("a\tb", "a_b"), (long.as_str(), &long[..64]), ("*", "_"), ("(other)", "_other_")]
    {
        assert_eq!(ask(&shield, name, false).await.0, StatusCode::OK, "{known_as}");
        let (status, _, body) = ask(&shield, name, false).await;
        assert_eq!((status, code(&body).as_str()), (StatusCode::TOO_MANY_REQUESTS, "app_budget_exceeded"));
        assert_eq!(used(&shield, known_as).0, 1, "{known_as}");
    }
}

/// Today's usage is kept when a budget is lowered or added.
#[tokio::test(start_paused = true)]
async fn a_reload_changes_budgets_and_keeps_what_was_used() {
    let app = |tokens| App { name: "a".into(), tokens_per_day: Some(tokens), ..App::default() };
    let (shield, _) = shield(with([app(1000)]), vec![good()]);
    assert_eq!(ask(&shield, "a", false).await.0, StatusCode::OK);
    shield.reload(with([app(15)]));
    assert_eq!(ask(&shield, "a", false).await.0, StatusCode::TOO_MANY_REQUESTS);
    shield.reload(with([app(16)]));
    assert_eq!(ask(&shield, "a", false).await.0, StatusCode::OK);
}
