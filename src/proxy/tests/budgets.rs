//! Budgets of apps: what counts, who is refused, and what the app is told.

use std::sync::Arc;

use http::{HeaderMap, StatusCode};

use super::{FIRST, GOOD, Step, answer, chat, code, good, shield, stream, whole};
use crate::{
    config::{App, ModelPrice, Settings},
    headers::text,
    proxy::{Shield, handle},
};

/// These apps.
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
async fn a_spent_budget_is_told_and_other_apps_go_on() {
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
async fn each_app_without_an_entry_has_the_budget_of_the_star_by_itself() {
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
async fn a_budget_in_usd_is_spent_by_the_prices() {
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

/// What was used today is not forgotten when the budget is lowered, nor when there was none before.
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
