//! Fallback of requests with bodies of 100 MB and more and several `model` members.

use bytes::Bytes;
use http::Method;
use http_body_util::Full;
use sha2::{Digest as _, Sha256};

use crate::kit::{Answer, Client, Shield, Simulator};

const MODEL: &str = "openai/gpt-oss-120b";
const OTHER: &str = "openai/gpt-oss-20b";
const FALLBACK: &str = "[[fallback]]\nmodel = \"openai/gpt-oss-120b\"\nto = [\"openai/gpt-oss-20b\"]\n";
const HUNDRED_MB: usize = 100_000_000;

/// A chat of about `bytes` bytes, which is too large for the limits of `MODEL`. `model` is named at the beginning and at the end;
/// within a message another one is named, which has no effect.
fn chat(bytes: usize, model: &str) -> Bytes {
    let before = format!(
        r#"{{"model":"{model}","max_completion_tokens":9000,"messages":[{{"role":"user","content":"{{\"model\":\"{MODEL}\"}} [[sim completion=1]]"}}],"metadata":{{"model":"{MODEL}","x":""#
    );
    let after = format!(r#""}},"model":"{model}"}}"#);
    [before.as_bytes(), &vec![b'a'; bytes], after.as_bytes()].concat().into()
}

async fn ask(client: Client, body: Bytes) -> Answer {
    let request = client.request(Method::POST, "/openai/v1/chat/completions").header("content-type", "application/json");
    client.send(request.body(Full::from(body)).expect("a valid request")).await
}

/// A request that is too large for its model fails without a fallback. With one, the other model serves it.
#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_megabytes_fall_back_and_nothing_but_the_model_changes() {
    let simulator = Simulator::generous();
    let limits = format!("[limits]\nplan = \"none\"\n[limits.model.\"{MODEL}\"]\ntokens_per_minute = 8000\n");
    let shields = ["", FALLBACK].map(|fallback| Shield::before(simulator.process.address(), &format!("{limits}{fallback}")));
    let body = chat(HUNDRED_MB, MODEL);

    let refused = ask(shields[0].process.client(), body.clone()).await;
    assert_eq!((refused.status.as_u16(), refused.code().as_str()), (413, "request_too_large_for_limit"), "{}", refused.text());
    assert_eq!(simulator.log().await.len(), 0);

    let served = ask(shields[1].process.client(), body.clone()).await;
    assert_eq!(served.status, 200, "{}", served.text());
    assert_eq!(served.header("x-shield-fallback"), format!("{MODEL}>{OTHER}; reason=too_large"));
    assert_eq!(served.json()["model"], OTHER);
    let log = simulator.log().await;
    // Both top-level members are replaced, because parsers differ in which one they use. Those within messages are not.
    let expected: String = Sha256::digest(chat(HUNDRED_MB, OTHER)).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(log[0]["body_sha256"], expected);

    // A body larger than `server.max_body` is neither read completely nor sent.
    let refused = ask(shields[1].process.client(), chat(100 << 20, MODEL)).await;
    assert_eq!((refused.status.as_u16(), refused.code().as_str()), (413, "request_too_large"), "{}", refused.text());
    assert_eq!(simulator.log().await.len(), 1);
}

/// If neither model exists any more, the app gets the failure of the requested one.
#[tokio::test]
async fn a_fallback_that_is_decommissioned_too() {
    let simulator = Simulator::generous();
    let gone = serde_json::json!({"error": {
        "message": "The model has been decommissioned.", "type": "invalid_request_error", "code": "model_decommissioned"
    }});
    simulator.faults(serde_json::json!([{"times": 2, "action": "status", "status": 400, "body": gone}])).await;
    let shield = Shield::before(simulator.process.address(), &format!("[limits]\nplan = \"none\"\n{FALLBACK}"));
    let answer = ask(shield.process.client(), chat(1000, MODEL)).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (400, "model_decommissioned"), "{}", answer.text());
    assert_eq!(answer.header("x-shield-fallback"), "");
    let log = simulator.log().await;
    let models = log.iter().map(|request| request["model"].as_str().unwrap_or_default().to_owned());
    assert_eq!(models.collect::<Vec<_>>(), [MODEL, OTHER], "one request for each model");
}
