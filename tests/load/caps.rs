//! A cap under load, over sockets: two apps at three times what the limit gives, one of them capped at a tenth of it.
//! `cargo test --test load tenth -- --nocapture` prints the shares.

use std::{collections::HashMap, time::Duration};

use http::Method;
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    client::Client,
    delay::DelayMeter,
    process::{Shield, Simulator},
};

const MODEL: &str = "openai/gpt-oss-20b";
/// 6000 a second, so that half a minute has a hundred and fifty requests of the capped app.
const TPM: u64 = 360_000;
/// Both queues are as long as they get by then.
const START: Duration = Duration::from_secs(8);
const MEASURED: Duration = Duration::from_secs(36);
/// A machine on which no request without limits takes longer keeps the load's schedule, and the figures are asserted.
const ON_SCHEDULE: Duration = Duration::from_millis(100);

/// An app, what it asks, and how often: three times what the limit gives in all. Small requests of the capped one make its share
/// exact, large ones of the other keep a busy machine out of the figures.
struct App {
    name: &'static str,
    content: String,
    every: Duration,
}

/// Asks once; the tokens that were used, or `None` where the shield refuses.
async fn ask(client: Client, app: &str, number: usize, content: &str) -> Option<u64> {
    let body = json!({"model": MODEL, "max_completion_tokens": 60, "messages": [{"role": "user", "content": content}]});
    let request = client.request(Method::POST, "/openai/v1/chat/completions").header("content-type", "application/json");
    let request = request.header("x-shield-app", app).header("x-number", format!("{app} {number}"));
    let answer = client.send(request.body(Full::from(body.to_string())).expect("a valid request")).await;
    match answer.status.as_u16() {
        200 => Some(answer.json()["usage"]["total_tokens"].as_u64().expect("a number")),
        // Too long a wait, or a full queue.
        429 | 503 => None,
        _ => panic!("{}", answer.text()),
    }
}

/// The tokens of each request that was served.
async fn flood(client: Client, app: App) -> HashMap<String, u64> {
    let (began, mut asking, mut number) = (Instant::now(), JoinSet::new(), 0);
    while began.elapsed() < START + MEASURED {
        let content = app.content.clone();
        asking.spawn(async move { (format!("{} {number}", app.name), ask(client, app.name, number, &content).await) });
        number += 1;
        sleep((app.every * u32::try_from(number).expect("few")).saturating_sub(began.elapsed())).await;
    }
    asking.join_all().await.into_iter().filter_map(|(number, tokens)| Some((number, tokens?))).collect()
}

/// What a request had in its header `x-number`.
fn number(request: &Value) -> &str {
    let headers = request["headers"].as_array().expect("a list");
    headers.iter().find(|pair| pair[0] == "x-number").and_then(|pair| pair[1].as_str()).expect("unknown headers pass")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_capped_app_gets_its_tenth_and_the_other_the_rest() {
    let limits = format!("[limits]\nplan = \"none\"\n[limits.model.\"{MODEL}\"]\ntokens_per_minute = {TPM}\n");
    let simulator = Simulator::start(&limits);
    let cap = format!("[queue]\nmax_wait = \"4s\"\n[[app]]\nname = \"capped\"\ntokens_per_minute = {}\n", TPM / 10);
    let shield = Shield::before(simulator.process.address(), &format!("{limits}{cap}"));
    let client = shield.process.client();
    let delay = DelayMeter::start(client, format!("unlimited {}", usize::MAX));
    let large = format!("[[sim completion=40 head_ms=5]] {}", "word ".repeat(800));
    // What the buckets hold at the start is used first, so that what follows is what they give; by as many clients as the machine
    // serves without delay.
    let burst: JoinSet<_> = (0..16)
        .map(|n| {
            let (app, large) = (if n % 10 == 0 { "capped" } else { "free" }, large.clone());
            async move {
                for _ in 0..TPM / 1100 / 16 {
                    ask(client, app, usize::MAX, &large).await;
                }
            }
        })
        .collect();
    burst.join_all().await;

    // 1800 tokens a second in requests of 120, and 16,200 in requests of 1,130.
    let capped =
        App { name: "capped", content: "[[sim completion=40 head_ms=5]] hello".into(), every: Duration::from_secs(120) / 1800 };
    let free = App { name: "free", content: large, every: Duration::from_secs(1130) / 16_200 };
    let (mut tokens, others) = tokio::join!(flood(client, capped), flood(client, free));
    tokens.extend(others);

    // When Groq got each of them, by its clock: clients that are late do not count.
    let log = simulator.log().await;
    let measured = log.iter().filter(|request| !number(request).ends_with(&usize::MAX.to_string()));
    let at = |request: &Value| request["at_ms"].as_f64().expect("a time") / 1000.0;
    let began = measured.clone().map(at).fold(f64::INFINITY, f64::min);
    let window = began + START.as_secs_f64()..began + (START + MEASURED).as_secs_f64();
    let used = |app: &str| -> f64 {
        let of_app = measured.clone().filter(|request| window.contains(&at(request))).map(number).filter(|n| n.starts_with(app));
        of_app.map(|number| tokens.get(number).copied().unwrap_or_default() as f64).sum()
    };
    let given = TPM as f64 / 60.0 * MEASURED.as_secs_f64();
    let [capped, free] = ["capped", "free"].map(used);
    let refused = log.iter().filter(|request| request["status"] != 200).count();
    println!(
        "{:.2} % of the limit used, the capped app {:.2} % of the limit and {:.2} % of what was used, {refused} refused by Groq",
        100.0 * (capped + free) / given,
        100.0 * capped / given,
        100.0 * capped / (capped + free),
    );
    let delayed = delay.longest();
    println!("a request without limits took {delayed:?} at most");
    if delayed > ON_SCHEDULE {
        // A request may then arrive when Groq's bucket is behind the shield's, and be refused; and the limit is not used up while the
        // load itself is starved. The cap holds all the same. `tests/simulation.rs` asserts the figures in virtual time.
        assert!(20 * refused <= log.len(), "{refused} of {} refused by Groq", log.len());
        assert!(capped <= 0.102 * given, "{capped} of {given}");
        assert!((capped / (capped + free) - 0.1).abs() <= 0.01, "{capped} of {}", capped + free);
        return;
    }
    assert_eq!(refused, 0);
    assert!(capped + free >= 0.98 * given, "{capped} + {free} of {given}");
    for whole in [given, capped + free] {
        assert!((capped / whole - 0.1).abs() <= 0.002, "{capped} of {whole}");
    }
}
