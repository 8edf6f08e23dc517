//! A limit on output tokens over sockets: before the simulated Groq, which tests the largest answer of the last minutes.

use std::time::Duration;

use http::Method;
use http_body_util::Full;
use serde_json::json;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::kit::{Answer, Client, Shield, Simulator};

const MODEL: &str = "qwen/qwen3.8-27b";

/// 6000 output tokens a minute, of which the shield knows nothing.
fn start(config: &str) -> (Simulator, Shield) {
    let simulator =
        Simulator::start(&format!("[limits]\nplan = \"none\"\n[limits.model.\"{MODEL}\"]\noutput_tokens_per_minute = 6000\n"));
    let shield = Shield::before(simulator.process.address(), &format!("[limits]\nplan = \"none\"\n{config}"));
    (simulator, shield)
}

async fn call(client: Client, ceiling: u64, tokens: u64, max_wait_ms: u64) -> Answer {
    let content = format!("hi [[sim completion={tokens} head_ms=20]]");
    let body = json!({"model": MODEL, "max_completion_tokens": ceiling, "messages": [{"role": "user", "content": content}]});
    let request = client.request(Method::POST, "/openai/v1/chat/completions").header("content-type", "application/json");
    let request = request.header("x-shield-max-wait-ms", max_wait_ms).body(Full::from(body.to_string()));
    client.send(request.expect("a valid request")).await
}

async fn refusals(simulator: &Simulator) -> usize {
    simulator.log().await.iter().filter(|request| request["status"] == 429).count()
}

/// Issue 20, item 1: ceilings above the limit, answers far below it. Today's calls were refused with 413.
#[tokio::test(flavor = "multi_thread")]
async fn ceilings_above_the_limit_are_served() {
    let (simulator, shield) = start("");
    let client = shield.process.client();
    let (begun, mut calls) = (Instant::now(), JoinSet::new());
    for n in 0..9u64 {
        calls.spawn(async move {
            sleep(Duration::from_millis(150 * n)).await;
            call(client, 10_800, 360 + n * 367 % 1201, 50_000).await
        });
    }
    let answers = calls.join_all().await;
    let took = begun.elapsed();
    assert!(answers.iter().all(|answer| answer.status == 200), "{:?}", answers.iter().map(Answer::text).collect::<Vec<_>>());
    assert!(refusals(&simulator).await <= 2, "{}", refusals(&simulator).await);
    // What does not fit at once comes back at 100 a second, of which the largest answer has to be free.
    let used: u64 = answers.iter().filter_map(|answer| answer.json()["usage"]["completion_tokens"].as_u64()).sum();
    let least = used.saturating_sub(6000) as f64 / 100.0;
    assert!(took.as_secs_f64() <= 1.1 * (least + 16.0), "{took:?} for {least} s at least");
}

/// An answer that is larger than the limit keeps others out until it is forgotten: the message names the remedy, and `fit_ceiling` is one.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_answer_is_cured_by_a_lower_ceiling() {
    let (simulator, shield) = start("");
    let client = shield.process.client();
    assert_eq!(call(client, 10_800, 6100, 5000).await.status, 200);
    sleep(Duration::from_secs(3)).await;
    let late = call(client, 10_800, 50, 5000).await;
    assert_eq!((late.status.as_u16(), late.code().as_str()), (429, "rate_limit_exceeded"), "{}", late.text());
    assert!(late.text().contains("Set max_completion_tokens to 6000 or less"), "{}", late.text());
    assert_eq!(call(client, 500, 50, 9000).await.status, 200);
    assert!(refusals(&simulator).await <= 2);

    let (simulator, shield) = start("fit_ceiling = true\n");
    let client = shield.process.client();
    assert_eq!(call(client, 10_800, 6100, 5000).await.status, 200);
    sleep(Duration::from_secs(3)).await;
    // Fitted to half of the limit, for which it waits.
    let fitted = call(client, 10_800, 50, 50_000).await;
    assert_eq!((fitted.status.as_u16(), fitted.header("x-shield-fitted")), (200, "10800>3000"), "{}", fitted.text());
    // While the limit is learnt: the first refusal names it, and a second one may correct what is left of it.
    assert!(refusals(&simulator).await <= 2);
}
