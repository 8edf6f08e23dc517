//! Limits that the operator has set below Groq's.

use std::time::Duration;

use http::Method;
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::Instant};

use crate::kit::{Shield, Simulator, binary};

const MODEL: &str = "openai/gpt-oss-20b";

/// Regression: a configured limit of 2000 tokens per minute with an upstream that allows 100,000.
#[tokio::test(flavor = "multi_thread")]
async fn a_configured_limit_below_groqs_holds_and_status_shows_both() {
    let limits = |tokens: u64| format!("[limits]\nplan = \"none\"\n[limits.model.\"{MODEL}\"]\ntokens_per_minute = {tokens}\n");
    let simulator = Simulator::start(&limits(100_000));
    let shield = Shield::before(simulator.process.address(), &limits(2000));
    let client = shield.process.client();
    let content = "hi [[sim completion=300 head_ms=5]]";
    let body = json!({"model": MODEL, "max_tokens": 400, "messages": [{"role": "user", "content": content}]}).to_string();
    let (start, mut requests) = (Instant::now(), JoinSet::new());
    for _ in 0..40 {
        let request = client
            .request(Method::POST, "/openai/v1/chat/completions")
            .header("content-type", "application/json")
            .header("x-shield-max-wait-ms", "6000")
            .body(Full::from(body.clone()))
            .expect("a valid request");
        requests.spawn(async move { client.send(request).await });
    }
    let answers = requests.join_all().await;
    let took = start.elapsed();
    let served = answers.iter().filter(|answer| answer.status == 200).map(|answer| answer.json());
    let used: u64 = served.map(|answer| answer["usage"]["total_tokens"].as_u64().expect("usage")).sum();
    // The full quota, the refill during the test, and one response.
    let most = 2000 + (took.as_secs_f64() * 2000.0 / 60.0) as u64 + 400;
    assert!((1500..=most).contains(&used), "{used} tokens in {took:?}");
    assert!(took < Duration::from_secs(20), "{took:?}");

    let admin = format!("http://{}", shield.process.admin());
    let status = |arguments: &[&str]| {
        let output = binary().args(["status", "--admin", &admin]).args(arguments).output().expect("status runs");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let report: Value = serde_json::from_str(&status(&["--json"])).expect("JSON");
    let tokens = report["limiters"][0]["dimensions"].as_array().expect("dimensions").iter().find(|d| d["dimension"] == "TPM");
    let tokens = tokens.expect("TPM is listed");
    assert_eq!((&tokens["limit"], &tokens["configured"], &tokens["stated"]), (&json!(2000), &json!(2000), &json!(100_000)));
    assert!(status(&[]).contains("(Groq allows 100000)"), "{}", status(&[]));
}
