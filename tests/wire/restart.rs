//! `limits.state_file` after `kill -9`, and a truncated state file.

use std::time::Duration;

use http::Method;
use http_body_util::Full;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::kit::{Answer, Client, Shield, Simulator};

const MODEL: &str = "openai/gpt-oss-20b";

/// Sends concurrent requests with a max wait of one second.
async fn burst(client: Client, requests: usize) -> Vec<Answer> {
    let mut asking = JoinSet::new();
    for _ in 0..requests {
        asking.spawn(async move {
            let body = json!({"model": MODEL, "max_tokens": 10, "messages": [{"role": "user", "content": "[[sim completion=5 head_ms=5]]"}]});
            let request = client.request(Method::POST, "/openai/v1/chat/completions").header("content-type", "application/json");
            let request = request.header("x-shield-max-wait-ms", "1000");
            client.send(request.body(Full::from(body.to_string())).expect("a valid request")).await
        });
    }
    asking.join_all().await
}

fn served(answers: &[Answer]) -> usize {
    assert!(answers.iter().all(|answer| matches!(answer.status.as_u16(), 200 | 429)), "only 200 and 429");
    answers.iter().filter(|answer| answer.status == 200).count()
}

/// Without its state file a restarted shield would send a second burst, which Groq would refuse.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_after_kill_9_causes_no_refusals() {
    let table = format!("[limits.model.\"{MODEL}\"]\nrequests_per_minute = 60\n");
    let simulator = Simulator::start(&format!("[limits]\nplan = \"none\"\n{table}"));
    let directory = tempfile::tempdir().expect("a temporary directory");
    let state = directory.path().join("state");
    let config = format!("[limits]\nplan = \"none\"\nstate_file = {state:?}\n{table}");

    let mut first = Shield::before(simulator.process.address(), &config);
    let sent = served(&burst(first.process.client(), 70).await);
    assert!((50..=62).contains(&sent), "most of the limit in a burst: {sent}");
    // The state is saved once a second.
    tokio::time::sleep(Duration::from_secs(2)).await;
    first.process.signal(Signal::SIGKILL);
    first.process.ended(Duration::from_secs(5)).await;

    let second = Shield::before(simulator.process.address(), &config);
    let again = served(&burst(second.process.client(), 70).await);
    assert!(again <= 10, "only the refill of one request per second: {again}");

    let log = simulator.log().await;
    assert!(log.iter().all(|request: &Value| request["status"] == 200), "the simulator refused: {log:#?}");
    assert_eq!(log.len(), sent + again);
}

#[tokio::test]
async fn a_truncated_state_file_is_reported_and_ignored() {
    let simulator = Simulator::generous();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let state = directory.path().join("state");
    std::fs::write(&state, "{\"version\": 1, \"lanes\": [{\"organ").expect("it can be written");
    let shield = Shield::before(simulator.process.address(), &format!("[limits]\nplan = \"none\"\nstate_file = {state:?}\n"));
    assert_eq!(served(&burst(shield.process.client(), 3).await), 3);
    let log = shield.process.log();
    assert!(log.contains(&state.display().to_string()), "the log names the file:\n{log}");
}
