//! The real binary, several of it, before one simulated Groq.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    kit::Redis,
    process::{Process, Shield, Simulator},
};

const MODEL: &str = "openai/gpt-oss-20b";
const LIMITS: &str =
    "[limits]\nplan = \"none\"\n[limits.model.\"openai/gpt-oss-20b\"]\nrequests_per_minute = 6000\ntokens_per_minute = 60000\n";
/// A full level, in tokens: the load takes it within seconds and then waits for what comes back.
const FULL: u64 = 60_000;
const CLIENTS: usize = 24;

/// Requests of one replica's clients until `end`: tokens used, and every status but 200.
async fn flood(process: &Process, clients: usize, end: Instant) -> JoinSet<(u64, Vec<u16>)> {
    let client = process.client();
    let mut tasks = JoinSet::new();
    for number in 0..clients {
        tasks.spawn(async move {
            let (mut used, mut others) = (0, Vec::new());
            let body = json!({
                "model": MODEL, "max_completion_tokens": 600,
                "messages": [{"role": "user", "content": format!("Tell me of the number {number}.")}],
            });
            while Instant::now() < end {
                let answer = client.post("/openai/v1/chat/completions", &body).await;
                match answer.status.as_u16() {
                    200 => used += answer.json()["usage"]["total_tokens"].as_u64().expect("usage"),
                    other => {
                        others.push(other);
                        sleep(Duration::from_millis(100)).await;
                    }
                }
            }
            (used, others)
        });
    }
    tasks
}

async fn status(process: &Process) -> Value {
    let answer = crate::client::Client::new(process.admin()).plain("/status", None).await;
    answer.json()
}

fn shields(count: usize, simulator: &Simulator, redis: &Redis) -> Vec<Shield> {
    let config =
        format!("{LIMITS}[store]\nkind = \"redis\"\nurl = \"{}\"\ntimeout = \"2s\"\n[queue]\nmax_wait = \"5s\"\n", redis.url());
    (0..count).map(|_| Shield::before(simulator.process.address(), &config)).collect()
}

async fn run(count: usize, kill: bool) {
    let redis = Redis::start(&[]).await;
    let simulator = Simulator::start(LIMITS);
    let shields = shields(count, &simulator, &redis);
    for shield in &shields {
        while status(&shield.process).await["store"]["degraded"] != json!(false) {
            sleep(Duration::from_millis(50)).await;
        }
    }
    let end = Instant::now() + Duration::from_secs(8);
    let mut floods = Vec::new();
    for shield in &shields {
        floods.push(flood(&shield.process, CLIENTS / count, end).await);
    }
    if kill {
        sleep(Duration::from_secs(3)).await;
        shields[0].process.signal(Signal::SIGKILL);
        drop(floods.remove(0));
    }
    let (mut used, mut others) = (0, Vec::new());
    for mut flood in floods {
        while let Some(ended) = flood.join_next().await {
            let (tokens, more) = ended.expect("a client");
            used += tokens;
            others.extend(more);
        }
    }
    let refused = simulator.log().await.iter().filter(|request| request["status"] == json!(429)).count();
    println!("{count} processes: {used} tokens, {} answers that are not 200, {refused} refusals of Groq's", others.len());
    assert_eq!(refused, 0, "Groq refused");
    assert!(others.iter().all(|&status| status == 429), "{others:?}");
    if !kill {
        assert!(used >= FULL * 6 / 10, "{used} tokens");
    }
    for shield in shields.iter().skip(usize::from(kill)) {
        assert_eq!(status(&shield.process).await["store"]["kind"], "redis");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes() {
    run(2, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_processes() {
    run(8, false).await;
}

/// What it had reserved comes back with time: the other one goes on, and Groq refuses nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_is_killed_with_requests_in_flight() {
    run(2, true).await;
}
