//! A cap under load, over sockets: two apps at three times what the limit gives, one of them capped at a tenth of it.
//! `cargo test --test wire tenth -- --nocapture` prints the shares.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use http::Method;
use http_body_util::Full;
use serde_json::json;
use tokio::{
    task::JoinSet,
    time::{Instant, interval},
};

use crate::kit::{Client, Shield, Simulator};

const MODEL: &str = "openai/gpt-oss-20b";
/// 6000 a second, so that half a minute has a hundred and fifty requests of the capped app.
const TPM: u64 = 360_000;
const APPS: [&str; 2] = ["capped", "free"];
/// Both queues are as long as they get by then.
const START: Duration = Duration::from_secs(8);
const MEASURED: Duration = Duration::from_secs(36);
/// Three times what the limit gives, by requests of 120 tokens.
const EVERY: Duration = Duration::from_micros(6_667);

/// Asks once; the tokens that were used, or `None` where the shield refuses.
async fn ask(client: Client, app: &str, content: &str) -> Option<u64> {
    let body = json!({"model": MODEL, "max_completion_tokens": 60, "messages": [{"role": "user", "content": content}]});
    let request = client.request(Method::POST, "/openai/v1/chat/completions").header("content-type", "application/json");
    let request = request.header("x-shield-app", app).body(Full::from(body.to_string())).expect("a valid request");
    let answer = client.send(request).await;
    match answer.status.as_u16() {
        200 => Some(answer.json()["usage"]["total_tokens"].as_u64().expect("a number")),
        // Too long a wait, or a full queue.
        429 | 503 => None,
        _ => panic!("{}", answer.text()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_capped_app_gets_its_tenth_and_the_other_the_rest() {
    let limits = format!("[limits]\nplan = \"none\"\n[limits.model.\"{MODEL}\"]\ntokens_per_minute = {TPM}\n");
    let simulator = Simulator::start(&limits);
    let cap = format!("[queue]\nmax_wait = \"4s\"\n[[app]]\nname = \"capped\"\ntokens_per_minute = {}\n", TPM / 10);
    let shield = Shield::before(simulator.process.address(), &format!("{limits}{cap}"));
    let client = shield.process.client();
    // What the buckets hold at the start is used by large requests, so that what follows is what they give.
    let large = format!("[[sim completion=1 head_ms=1]] {}", "word ".repeat(800));
    let burst = TPM / 1100;
    let burst: JoinSet<_> = (0..burst)
        .map(|n| {
            let large = large.clone();
            async move { ask(client, APPS[usize::from(n % 10 != 0)], &large).await }
        })
        .collect();
    burst.join_all().await;

    let used: [Arc<AtomicU64>; 2] = Default::default();
    let (asked, began) = (Arc::new(AtomicUsize::new(0)), Instant::now());
    let (mut ticks, mut asking) = (interval(EVERY), JoinSet::new());
    while began.elapsed() < START + MEASURED {
        ticks.tick().await;
        let number = asked.fetch_add(1, Relaxed);
        let (app, used) = (number % 2, used[number % 2].clone());
        asking.spawn(async move {
            let content = format!("[[sim completion={} head_ms=5]] hello", fastrand::u64(20..=60));
            let tokens = ask(client, APPS[app], &content).await;
            let at = began.elapsed();
            if let Some(tokens) = tokens.filter(|_| at > START && at <= START + MEASURED) {
                used.fetch_add(tokens, Relaxed);
            }
        });
        while asking.try_join_next().is_some() {}
    }
    asking.join_all().await;

    let given = TPM as f64 / 60.0 * MEASURED.as_secs_f64();
    let [capped, free] = used.map(|used| used.load(Relaxed) as f64);
    let refused = simulator.log().await.iter().filter(|request| request["status"] != 200).count();
    println!(
        "{:.2} % of the limit used, the capped app {:.2} % of the limit and {:.2} % of what was used, {refused} refused by Groq",
        100.0 * (capped + free) / given,
        100.0 * capped / given,
        100.0 * capped / (capped + free),
    );
    assert_eq!(refused, 0);
    assert!(capped + free >= 0.98 * given, "{capped} + {free} of {given}");
    for whole in [given, capped + free] {
        assert!((capped / whole - 0.1).abs() <= 0.002, "{capped} of {whole}");
    }
}
