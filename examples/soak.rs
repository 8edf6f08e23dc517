//! What is left after minutes of everything at once? Mixed faults and overload against the simulated Groq, then the count.
//!
//! `cargo run --release --example soak -- --minutes 10`. Exit code 1 if a request hung, an answer was off the contract, or
//! anything leaked.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    process::ExitCode,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use clap::Parser;
use groq_shield::{
    config::{self, Settings},
    proxy::Shield,
    server::{self, Listeners},
};
use groq_sim::{Pace, Sim};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

#[path = "../tests/contract/client.rs"]
#[expect(dead_code, reason = "the tests use all of it")]
mod client;

use client::{Answer, KEY, chat_with, request, try_ask};

/// Requests a minute that the limits hold; three times as many are asked for.
const LIMIT: u64 = 600;
/// No request may take longer: patience, attempts and time limits below are well under it.
const HUNG: Duration = Duration::from_secs(90);
/// Clients at once.
const CLIENTS: u64 = 100;

#[derive(Parser)]
struct Arguments {
    /// How long load is made.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
}

/// What became of the requests.
#[derive(Default)]
struct Tally {
    sent: AtomicU64,
    left: AtomicU64,
    hung: AtomicU64,
    answers: Mutex<BTreeMap<String, u64>>,
    off: Mutex<Vec<String>>,
}

/// Everything that Groq and the way to it are known to do, at random.
fn faults() -> Vec<groq_sim::Fault> {
    let faults = [
        json!({"action": "status", "status": 500}),
        json!({"action": "status", "status": 503, "retry_after": "1"}),
        json!({"action": "status", "status": 498}),
        json!({"action": "html", "status": 502}),
        json!({"action": "html", "status": 524}),
        json!({"action": "forbidden"}),
        json!({"action": "empty", "status": 503}),
        json!({"action": "untyped", "status": 403}),
        json!({"action": "refused", "message": "Rate limit reached for model `m` in organization `org_01soak` on requests per minute (RPM): Limit 600, Used 600, Requested 1. Please try again in 200ms."}),
        json!({"action": "close"}),
        json!({"action": "close_in_head"}),
        json!({"action": "close_in_body"}),
        json!({"action": "garbage"}),
        json!({"action": "slow_head", "ms": 5}),
        json!({"action": "wrong_length", "by": 7}),
        json!({"action": "not_json"}),
        json!({"action": "truncated_json"}),
        json!({"action": "stall", "ms": 4000}),
        json!({"action": "cut", "after": 2, "half": true}),
        json!({"action": "cut", "after": 0}),
        json!({"action": "stall_stream", "after": 2, "ms": 4000}),
        json!({"action": "no_done"}),
        json!({"action": "error_frame", "after": 2}),
        json!({"action": "error_event", "after": 2}),
        json!({"action": "x_groq_error", "after": 2}),
    ];
    let read = |mut fault: Value| {
        fault["probability"] = json!(0.015);
        serde_json::from_value(fault).expect("as documented")
    };
    faults.into_iter().map(read).collect()
}

fn settings(upstream: SocketAddr) -> Settings {
    let mut settings = Settings::default();
    settings.server.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    settings.admin.listen = settings.server.listen;
    settings.server.threads = Some(2);
    settings.server.drain_timeout = Duration::from_secs(10);
    settings.upstream.base_url = format!("http://{upstream}").parse().expect("an address");
    settings.upstream.response_timeout = Duration::from_secs(3);
    settings.upstream.idle_timeout = Duration::from_secs(3);
    settings.queue.max_wait = Duration::from_secs(5);
    settings.queue.max_waiting = 60;
    settings.queue.max_bytes = 1 << 20;
    settings.breaker.open = Duration::from_millis(500);
    settings.limits.plan = config::Plan::None;
    settings.limits.model.insert("m".into(), config::ModelLimits { requests_per_minute: Some(LIMIT), ..Default::default() });
    settings
}

/// One client: asks, now and then leaves early or sends nonsense, rests.
async fn ask_on(app: SocketAddr, tally: Arc<Tally>, over: Arc<AtomicBool>) {
    let pause = Duration::from_secs_f64(60.0 * CLIENTS as f64 / (3.0 * LIMIT as f64));
    while !over.load(Relaxed) {
        let bytes = next();
        tally.sent.fetch_add(1, Relaxed);
        let asked = try_ask(app, bytes.as_bytes());
        let patience = if fastrand::u8(..10) == 0 { Duration::from_millis(fastrand::u64(1..2000)) } else { HUNG };
        match timeout(patience, asked).await {
            Err(_) if patience == HUNG => drop(tally.hung.fetch_add(1, Relaxed)),
            Err(_) => drop(tally.left.fetch_add(1, Relaxed)),
            Ok(answered) => tally.judge(&bytes, answered),
        }
        sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
    }
}

/// Calls mostly, streams a third of them; large ones and nonsense between.
fn next() -> String {
    let ceiling = r#","max_completion_tokens":200"#;
    match fastrand::u8(..20) {
        0 => "GET\r\n\r\n".into(),
        1 => request("POST", "/openai/v1/chat/completions", KEY, "{\"model\":"),
        2 => request("GET", "/openai/v1/models", KEY, ""),
        3 => chat_with("x-shield-class: batch\r\n", &format!(r#"{ceiling},"user":"{}""#, "x".repeat(60_000))),
        4 => chat_with("x-shield-max-wait-ms: 700\r\n", ceiling),
        5..=10 => chat_with("", &format!(r#"{ceiling},"stream":true"#)),
        _ => chat_with("", ceiling),
    }
}

impl Tally {
    fn judge(&self, asked: &str, answered: std::io::Result<Answer>) {
        let (kind, faults) = match &answered {
            Err(error) => ("no answer".to_owned(), vec![error.to_string()]),
            Ok(answer) if answer.status >= 400 => {
                let error = answer.error();
                (format!("{} {}", answer.status, error["code"].as_str().unwrap_or("-")), answer.faults())
            }
            Ok(answer) if answer.header("content-type").starts_with("text/event-stream") => ended(&answer.body),
            Ok(answer) => {
                let whole = serde_json::from_str::<Value>(&answer.body).is_ok();
                (answer.status.to_string(), if whole { vec![] } else { vec!["a success that is not JSON".into()] })
            }
        };
        *self.answers.lock().expect("no panic with it").entry(kind).or_default() += 1;
        if !faults.is_empty() {
            let line = asked.lines().next().unwrap_or_default();
            self.off.lock().expect("no panic with it").push(format!("{line}: {faults:?}: {answered:.800?}"));
        }
    }
}

/// A stream ends in `[DONE]` or in a frame that clients raise on.
fn ended(body: &str) -> (String, Vec<String>) {
    let last = body.trim_end().rsplit("data: ").next().unwrap_or_default();
    if last == "[DONE]" {
        return ("200 stream".into(), vec![]);
    }
    let error = serde_json::from_str::<Value>(last).map(|mut frame| frame["error"].take()).unwrap_or_default();
    let documented = error["message"].is_string() && error["type"].is_string() && error["status_code"].is_u64();
    let code = error["code"].as_str().unwrap_or("-");
    (format!("200 stream, then {code}"), if documented { vec![] } else { vec![format!("it ends in {last:?}")] })
}

/// Waits for 0, a while.
async fn settled(count: impl Fn() -> u64) -> u64 {
    let deadline = Instant::now() + Duration::from_secs(15);
    while count() > 0 && Instant::now() < deadline {
        sleep(Duration::from_millis(20)).await;
    }
    count()
}

fn descriptors() -> u64 {
    std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64)
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let limits = groq_sim::ModelLimits { requests_per_minute: Some(LIMIT), ..Default::default() };
    let pace = Pace { head: Duration::from_millis(100), completion: 40.0, ..Pace::default() };
    let groq =
        Sim::new(groq_sim::Options { plan: groq_sim::Plan::uniform(limits), pace, faults: faults(), ..Default::default() });
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let upstream = listener.local_addr().expect("it is bound");
    let serving = tokio::spawn({
        let groq = groq.clone();
        async move { groq.serve(listener).await }
    });
    let before = descriptors();
    let settings = settings(upstream);
    let listeners = Listeners::open(&settings).expect("free ports");
    let shield = Shield::new(settings).expect("nothing to fail on");
    let running = server::start(shield.clone(), listeners).expect("it starts");

    let (tally, over) = (Arc::<Tally>::default(), Arc::<AtomicBool>::default());
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        clients.spawn(ask_on(running.app, tally.clone(), over.clone()));
    }
    let began = Instant::now();
    let time = Duration::from_secs_f64(60.0 * arguments.minutes);
    while began.elapsed() < time {
        sleep(Duration::from_secs(10).min(time)).await;
        eprintln!(
            "{:>4.0} s  {} sent, {} waiting",
            began.elapsed().as_secs_f64(),
            tally.sent.load(Relaxed),
            shield.limits.waiting()
        );
    }
    over.store(true, Relaxed);
    let gone = clients.join_all().await.len();

    let bytes = settled(|| shield.bodies.held()).await;
    let places =
        settled(|| (shield.limits.waiting() + shield.limits.snapshot().iter().map(|l| l.in_flight).sum::<usize>()) as u64).await;
    let connections = settled(|| shield.connections.len() as u64).await;
    let rest = Arc::downgrade(&shield);
    drop(shield);
    running.drained().await;
    let tasks = settled(|| rest.strong_count() as u64).await;
    let sockets = settled(|| descriptors().saturating_sub(before)).await;
    serving.abort();

    let (sent, left, hung) = (tally.sent.load(Relaxed), tally.left.load(Relaxed), tally.hung.load(Relaxed));
    let answers = tally.answers.lock().expect("nobody else is left");
    let off = tally.off.lock().expect("nobody else is left");
    let answered: u64 = answers.values().sum();
    let stats = groq.stats();
    println!(
        "{gone} clients, {:.0} s; the upstream saw {} requests and played {} faults",
        began.elapsed().as_secs_f64(),
        stats.requests,
        stats.faults
    );
    for (kind, count) in answers.iter() {
        println!("{count:>8}  {kind}");
    }
    println!("requests sent             {sent}");
    println!("answered as contracted    {}", answered - off.len() as u64);
    println!("left by their clients     {left}");
    println!("off the contract          {}", off.len());
    println!("hung                      {hung}");
    println!("leaked tasks              {tasks}");
    println!("leaked places in line     {places}");
    println!("leaked connections        {}", connections + sockets);
    println!("leaked bytes              {bytes}");
    off.iter().take(10).for_each(|fault| println!("off the contract: {fault}"));
    let whole = answered + left + hung == sent;
    let clean = off.is_empty() && hung + tasks + places + connections + sockets + bytes == 0;
    if whole && clean { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
