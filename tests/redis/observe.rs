//! Observe mode with replicas that share a Redis: usage is counted together, and reloads switch to enforcing and back.

use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::{
    client::{Answer, Client},
    kit::{LONG_TIMEOUT, Redis},
    process::{Process, Shield, Simulator},
};

const MODEL: &str = "openai/gpt-oss-20b";
const A_DAY: u32 = 20;

async fn ask(process: &Process) -> Answer {
    let messages = json!([{"role": "user", "content": "[[sim completion=5 head_ms=1]]"}]);
    process.client().post("/openai/v1/chat/completions", &json!({"model": MODEL, "max_tokens": 10, "messages": messages})).await
}

async fn metrics(process: &Process) -> String {
    Client::new(process.admin()).plain("/metrics", None).await.text()
}

/// The remaining daily quota, according to the metrics of this replica.
async fn left(process: &Process) -> Option<f64> {
    let metrics = metrics(process).await;
    let line = metrics.lines().find(|line| line.starts_with("groq_shield_remaining{") && line.contains(r#"dimension="RPD""#));
    line?.rsplit_once(' ')?.1.parse().ok()
}

async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !so().await {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_observe_together_and_a_reload_enforces_what_is_left() {
    let (redis, simulator) = (Redis::start(&[]).await, Simulator::generous());
    let config = |mode: &str| {
        format!(
            "[limits]\nplan = \"none\"\nmode = \"{mode}\"\n[limits.model.\"{MODEL}\"]\nrequests_per_day = {A_DAY}\n\
             [store]\nkind = \"redis\"\nurl = \"{}\"\ntimeout = \"{}ms\"\nreplicas = 2\n",
            redis.url(),
            LONG_TIMEOUT.as_millis(),
        )
    };
    let shields = [(); 2].map(|()| Shield::before(simulator.process.address(), &config("observe")));
    for shield in &shields {
        let status = async || Client::new(shield.process.admin()).plain("/status", None).await.json();
        until("both are with their Redis", async || status().await["store"]["degraded"] == false).await;
    }
    // Each replica sends slightly more than half of the daily limit, without waiting.
    for n in 0..A_DAY + 4 {
        let answer = ask(&shields[n as usize % 2].process).await;
        assert_eq!((answer.status.as_u16(), answer.header("x-shield-wait-ms")), (200, "0"), "{}", answer.text());
    }
    for shield in &shields {
        until("both know what they have used together", async || left(&shield.process).await.is_some_and(|left| left < 1.0))
            .await;
        let metrics = metrics(&shield.process).await;
        let refused =
            metrics.lines().find_map(|line| line.strip_prefix(r#"groq_shield_observed_refusals_total{reason="max_wait"} "#));
        assert!(refused.is_some_and(|count| count != "0"), "half of the limit was not enough: {metrics}");
    }
    for shield in &shields {
        shield.reload(&config("enforce")).await;
        let refused = ask(&shield.process).await;
        assert_eq!(
            (refused.status.as_u16(), refused.header("x-shield-error")),
            (429, "rate_limit_exceeded"),
            "{}",
            refused.text()
        );
    }
    for shield in &shields {
        shield.reload(&config("observe")).await;
        assert_eq!(ask(&shield.process).await.status, 200);
        shield.reload(&config("enforce")).await;
        assert_eq!(ask(&shield.process).await.status, 429, "usage in observe mode counts");
    }
    assert_eq!(simulator.log().await.len(), A_DAY as usize + 6);
}
