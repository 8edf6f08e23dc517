//! A limit on output tokens in front of the simulated Groq, which tests the largest response of the last minutes.

use std::time::Duration;

use http::Method;
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::kit::{Answer, Client, Shield, Simulator};

const MODEL: &str = "qwen/qwen3.8-27b";

/// Starts a simulated Groq with 6000 output tokens per minute, which is not configured in the shield.
fn start(config: &str) -> (Simulator, Shield) {
    let simulator =
        Simulator::start(&format!("[limits]\nplan = \"none\"\n[limits.model.\"{MODEL}\"]\noutput_tokens_per_minute = 6000\n"));
    let shield = Shield::before(simulator.process.address(), &format!("[limits]\nplan = \"none\"\n{config}"));
    (simulator, shield)
}

async fn call(client: Client, output_limit: u64, tokens: u64, max_wait_ms: u64) -> Answer {
    let content = format!("hi [[sim completion={tokens} head_ms=20]]");
    let body = json!({"model": MODEL, "max_completion_tokens": output_limit, "messages": [{"role": "user", "content": content}]});
    post(client, &body, max_wait_ms).await
}

async fn post(client: Client, body: &Value, max_wait_ms: u64) -> Answer {
    let request = client.request(Method::POST, "/openai/v1/chat/completions").header("content-type", "application/json");
    let request = request.header("x-shield-max-wait-ms", max_wait_ms).body(Full::from(body.to_string()));
    client.send(request.expect("a valid request")).await
}

async fn refusals(simulator: &Simulator) -> usize {
    simulator.log().await.iter().filter(|request| request["status"] == 429).count()
}

/// Regression: requests with max completion tokens above the limit were refused with 413, although responses are much smaller.
#[tokio::test(flavor = "multi_thread")]
async fn max_completion_tokens_above_the_limit_are_served() {
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
    // The limit refills at 100 tokens per second, and the largest recent response has to fit.
    let used: u64 = answers.iter().filter_map(|answer| answer.json()["usage"]["completion_tokens"].as_u64()).sum();
    let least = used.saturating_sub(6000) as f64 / 100.0;
    assert!(took.as_secs_f64() <= 1.1 * (least + 16.0), "{took:?} for {least} s at least");
}

/// A response larger than the limit blocks other requests until it expires. The message names the remedy, and `fit_ceiling`
/// applies it.
#[tokio::test(flavor = "multi_thread")]
async fn lower_max_completion_tokens_end_a_block_by_a_large_response() {
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
    // The max completion tokens are fitted to half of the limit, and the request waits for them.
    let fitted = call(client, 10_800, 50, 50_000).await;
    assert_eq!((fitted.status.as_u16(), fitted.header("x-shield-fitted")), (200, "10800>3000"), "{}", fitted.text());
    assert!(refusals(&simulator).await <= 1, "only the refusal that reports the limit");
}

/// Keys of one organization share the limit, but each has its own largest response.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_response_blocks_only_its_own_key() {
    let simulator = Simulator::start(&format!("[limits.model.\"{MODEL}\"]\noutput_tokens_per_minute = 6000\n"));
    let shield = Shield::with(
        simulator.process.address(),
        "[limits]\nplan = \"none\"\n[[organization]]\nname = \"acme\"\napi_key_env = [\"ONE\", \"OTHER\"]\n",
        &[("ONE", "gsk_test"), ("OTHER", "gsk_other")],
    );
    let client = shield.process.client();
    assert_eq!(call(client, 10_800, 6100, 5000).await.status, 200);
    let late = call(client, 10_800, 50, 1000).await;
    assert_eq!(late.status.as_u16(), 429, "{}", late.text());
    let body = json!({"model": MODEL, "max_completion_tokens": 10_800, "messages": [{"role": "user", "content": "hi [[sim completion=50]]"}]});
    let request = client.request(Method::POST, "/openai/v1/chat/completions").header("content-type", "application/json");
    let mut request = request.body(Full::from(body.to_string())).expect("a valid request");
    request.headers_mut().insert("authorization", "Bearer gsk_other".parse().expect("a header"));
    let other = client.send(request).await;
    assert_eq!(other.status.as_u16(), 200, "{}", other.text());
}

/// The same response complete and streamed, with the given usage.
fn answers(usage: &Value) -> [Value; 2] {
    let whole = json!({"id": "x", "choices": [{"message": {"role": "assistant", "content": "hi"}}], "usage": usage});
    let chunk = json!({"id": "x", "choices": [{"index": 0, "delta": {"content": "hi"}}], "x_groq": {"usage": usage}});
    let stream = format!("data: {chunk}\n\ndata: [DONE]\n\n");
    [
        json!({"action": "status", "status": 200, "body": whole}),
        json!({"action": "status", "status": 200, "content_type": "text/event-stream", "body": stream}),
    ]
}

/// If `usage` has no completion tokens, the expected output counts.
#[tokio::test(flavor = "multi_thread")]
async fn usage_without_completion_tokens_counts_as_expected() {
    let simulator = Simulator::generous();
    for (nth, stream) in [false, true].into_iter().enumerate() {
        let limit = format!("[limits]\nplan = \"none\"\n[limits.model.\"{MODEL}\"]\noutput_tokens_per_minute = 1000\n");
        let shield = Shield::before(simulator.process.address(), &limit);
        let body = json!({"model": MODEL, "max_completion_tokens": 900, "stream": stream, "messages": [{"role": "user", "content": "hi"}]});
        let mut script = vec![answers(&json!({"prompt_tokens": 10, "completion_tokens": 400}))[nth].clone()];
        script.extend(std::iter::repeat_n(answers(&json!({"prompt_tokens": 10}))[nth].clone(), 5));
        for fault in &mut script {
            fault["times"] = 1.into();
        }
        simulator.faults(script.into()).await;
        let client = shield.process.client();
        for n in 0..2 {
            let answer = post(client, &body, 1000).await;
            assert_eq!(answer.status, 200, "stream {stream}, {n}: {}", answer.text());
        }
        // 800 of 1000 tokens are used, and 400 are expected.
        let late = post(client, &body, 1000).await;
        assert_eq!(late.status.as_u16(), 429, "stream {stream}: {}", late.text());
    }
}

/// A response of 100,000 tokens, or a refusal with larger figures than any response: messages are still correct, and a lower output
/// limit or time ends the block.
#[tokio::test(flavor = "multi_thread")]
async fn implausibly_large_figures_are_recovered_from() {
    let simulator = Simulator::generous();
    let limit = format!("[limits]\nplan = \"none\"\n[limits.model.\"{MODEL}\"]\noutput_tokens_per_minute = 1000\n");
    let shield = Shield::before(simulator.process.address(), &limit);
    let client = shield.process.client();
    let [huge, _] = answers(&json!({"prompt_tokens": 10, "completion_tokens": 100_000}));
    simulator.faults(json!([huge])).await;
    assert_eq!(call(client, 131_072, 1, 5000).await.status, 200);
    simulator.faults(json!([])).await;
    let debt = call(client, 400, 50, 2000).await;
    assert_eq!((debt.status.as_u16(), debt.code().as_str()), (429, "rate_limit_exceeded"), "{}", debt.text());
    // Debt counts for at most ten minutes. After that the upstream may refuse again.
    let seconds: u64 = debt.header("retry-after").parse().expect("an integer");
    assert!((500..=720).contains(&seconds), "{seconds}");

    let simulator = Simulator::generous();
    let shield = Shield::before(simulator.process.address(), "[limits]\nplan = \"none\"\n");
    let client = shield.process.client();
    let message = "Request too large for model `m` in organization `o` service tier `on_demand` on output tokens per minute (OTPM): \
                   Limit 1000, Requested 99999999999. The request's expected output tokens exceed the enforced limit; reduce max_tokens.";
    simulator.faults(json!([{"times": 1, "action": "refused", "message": message}])).await;
    let body = json!({"model": MODEL, "messages": [{"role": "user", "content": "hi"}]});
    let late = post(client, &body, 2000).await;
    assert_eq!(late.status.as_u16(), 429, "{}", late.text());
    assert!(late.text().contains("max_completion_tokens to 1000 or less"), "{}", late.text());
    assert_eq!(call(client, 400, 20, 2000).await.status, 200);
}

/// Refusals by an output limit with figures missing or in another order cause no retry storm. Each request gets a response within
/// the client's max wait, and the next one succeeds.
#[tokio::test(flavor = "multi_thread")]
async fn refusals_with_missing_or_reordered_figures() {
    let simulator = Simulator::generous();
    for figures in
        ["Limit 1000.", "Requested 1080.", "", "Used 3.", "Requested 1080, Limit 1000.", "Requested 300, Used 900, Limit 1000."]
    {
        for (status, kind) in [(429, "tokens"), (400, "invalid_request_error")] {
            let shield = Shield::before(simulator.process.address(), "[limits]\nplan = \"none\"\n");
            let client = shield.process.client();
            let before = simulator.log().await.len();
            let message =
                format!("Request too large for model `m` in organization `o` on output tokens per minute (OTPM): {figures}");
            let body = json!({"error": {"message": message, "type": kind, "code": "rate_limit_exceeded"}});
            simulator.faults(json!([{"times": 3, "action": "status", "status": status, "body": body}])).await;
            let answer = call(client, 1800, 20, 3000).await;
            assert!(matches!(answer.status.as_u16(), 200 | 400 | 413 | 429), "{figures} {status}: {}", answer.text());
            let sent = simulator.log().await.len() - before;
            assert!((1..=4).contains(&sent), "{figures} {status}: sent {sent} times");
            simulator.faults(json!([])).await;
            let next = call(client, 200, 20, 20_000).await;
            assert_eq!(next.status, 200, "{figures} {status}: {}", next.text());
        }
    }
}
