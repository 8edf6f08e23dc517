//! Observe mode in front of a simulated Groq. Three times the load that the limit allows is forwarded unchanged, and the counters
//! are close to the effects of enforcing the limit on the same traffic.

use std::time::Duration;

use http::Method;
use http_body_util::Full;
use serde_json::json;
use tokio::{task::JoinSet, time::Instant};

use crate::kit::{Answer, Client, Shield, Simulator};

const MODEL: &str = "openai/gpt-oss-20b";
/// The limit, of which the shield reserves a twentieth as safety margin.
const BURST: u32 = 60;
/// Three requests per second, while one per second is refilled.
const AFTERWARDS: u32 = 24;

async fn ask(client: Client) -> (Answer, Duration) {
    let body =
        json!({"model": MODEL, "max_tokens": 10, "messages": [{"role": "user", "content": "[[sim completion=5 head_ms=5]]"}]});
    let request = client.request(Method::POST, "/openai/v1/chat/completions").header("content-type", "application/json");
    let began = Instant::now();
    (client.send(request.body(Full::from(body.to_string())).expect("a valid request")).await, began.elapsed())
}

/// Sends a burst, then requests at three times the refill rate for eight seconds.
async fn overload(client: Client) -> Vec<(Answer, Duration)> {
    let mut asking = JoinSet::new();
    for n in 0..BURST + AFTERWARDS {
        asking.spawn(async move {
            // The headers of the first response have the limits.
            let after = if n == 0 { 0 } else { 200 + u64::from(n.saturating_sub(BURST)) * 1000 / 3 };
            tokio::time::sleep(Duration::from_millis(after)).await;
            ask(client).await
        });
    }
    asking.join_all().await
}

async fn metric(shield: &Shield, name: &str) -> f64 {
    let page = Client::new(shield.process.admin()).plain("/metrics", None).await.text();
    let samples = page.lines().filter(|line| line.starts_with(&format!("groq_shield_{name}")));
    samples.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn observed_counts_match_what_enforcing_would_do() {
    let table = format!("[limits.model.\"{MODEL}\"]\nrequests_per_minute = {BURST}\n");
    let config = |mode: &str| format!("[queue]\nmax_wait = \"5s\"\n[limits]\nplan = \"none\"\nmode = \"{mode}\"\n{table}");
    let simulators = [(); 2].map(|()| Simulator::start(&format!("[limits]\nplan = \"none\"\n{table}")));
    let observing = Shield::before(simulators[0].process.address(), &config("observe"));
    let enforcing = Shield::before(simulators[1].process.address(), &config("enforce"));
    let (observed, enforced) = tokio::join!(overload(observing.process.client()), overload(enforcing.process.client()));

    // Nothing waits, and every request has reached Groq once.
    for (answer, took) in &observed {
        assert_eq!((answer.header("x-shield-wait-ms"), answer.header("x-shield-attempts")), ("0", "1"), "{}", answer.text());
        assert!(*took < Duration::from_secs(4), "{took:?}");
    }
    let log = simulators[0].log().await;
    assert_eq!(log.len(), observed.len());
    // Groq's refusals reach the app unchanged.
    let refused: Vec<_> = observed.iter().filter(|(answer, _)| answer.status != 200).collect();
    assert_eq!(refused.len(), log.iter().filter(|request| request["status"] == 429).count());
    assert!(refused.len() >= 10, "{} of {}", refused.len(), observed.len());
    for (answer, _) in refused {
        assert!(answer.text().contains("requests per minute (RPM): Limit 60"), "{}", answer.text());
        assert_eq!(answer.header("x-shield-error"), "");
    }

    // Requests that would still be waiting at the end count for five seconds at most.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let served = enforced.iter().filter(|(answer, _)| answer.status == 200).count() as f64;
    let waited =
        enforced.iter().map(|(answer, _)| answer.header("x-shield-wait-ms").parse::<f64>().expect("milliseconds") / 1000.0);
    let waited: f64 = waited.sum();
    let would_serve = metric(&observing, "observed_wait_seconds_count").await;
    let would_refuse = metric(&observing, "observed_refusals_total").await;
    let would_wait = metric(&observing, "observed_wait_seconds_sum").await;
    println!(
        "enforced: {served} served after {waited:.1} s in all; observed: {would_serve} after {would_wait:.1} s, {would_refuse} refused"
    );
    assert_eq!(would_serve + would_refuse, observed.len() as f64);
    assert!((would_serve - served).abs() <= 4.0, "{would_serve} for {served}");
    assert!((would_wait - waited).abs() <= 0.25 * waited, "{would_wait} for {waited}");
    assert_eq!(metric(&enforcing, "observed_refusals_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_enforces_what_is_left() {
    let config =
        |mode: &str| format!("[limits]\nplan = \"none\"\nmode = \"{mode}\"\n[limits.model.\"{MODEL}\"]\nrequests_per_day = 20\n");
    let simulator = Simulator::generous();
    let shield = Shield::before(simulator.process.address(), &config("observe"));
    let client = shield.process.client();
    for _ in 0..22 {
        assert_eq!(ask(client).await.0.status, 200);
    }
    shield.reload(&config("enforce")).await;
    let (refused, _) = ask(client).await;
    assert_eq!((refused.status.as_u16(), refused.header("x-shield-error")), (429, "rate_limit_exceeded"), "{}", refused.text());
    shield.reload(&config("observe")).await;
    assert_eq!(ask(client).await.0.status, 200);
    assert_eq!(simulator.log().await.len(), 23);
    assert!(shield.process.log().contains("observed_refusal"), "the access log has the field");
}
