//! Promises under overload: a dead upstream, little memory, more clients than can be served.

use std::{sync::Arc, time::Duration};

use groq_limiter::{AdmissionError, AdmissionRequest, CostEstimate, Limiters, types::Priority};
use groq_shield::{
    config::{Breaker, ModelLimits, Plan, Settings},
    proxy::Shield,
    server::{self, Listeners},
};
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::{
    client::{KEY, LONGEST_WAIT, ask, request},
    kit::{Kind, Step, Upstream, start},
};

const CHAT: &str = "/openai/v1/chat/completions";

/// A chat call with a body of `bytes` bytes.
fn chat_of(bytes: usize, headers: &str) -> String {
    let frame = r#"{"model":"m","messages":[{"role":"user","content":""}]}"#;
    let body = frame.replace(r#""""#, &format!("\"{}\"", "x".repeat(bytes - frame.len())));
    request("POST", CHAT, &format!("{KEY}content-type: application/json\r\n{headers}"), &body)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_upstream_neither_blocks_clients_nor_uses_up_memory() {
    dead_upstream(500).await;
}

/// `cargo test --test contract -- --ignored ten_thousand --nocapture`; needs 40,000 file descriptors (`ulimit -n`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes 40 000 descriptors"]
async fn ten_thousand_clients_of_a_dead_upstream_use_bounded_memory() {
    dead_upstream(10_000).await;
}

/// `count` clients at once in front of an upstream that accepts every request and never answers: each gets a failure within
/// its time limits, and no memory, connection or queue entry remains.
async fn dead_upstream(count: usize) {
    const BODY: usize = 20_000;
    let upstream = Upstream::start(&Kind::Plain(vec![vec![Step::Hold]])).await;
    let mut settings = upstream.settings();
    settings.server.max_connections = count + 1;
    settings.upstream.response_timeout = Duration::from_secs(1);
    settings.queue.max_wait = Duration::from_secs(4);
    settings.breaker = Breaker::default();
    let cap = settings.queue.max_bytes;
    let listeners = Listeners::open(&settings).expect("free ports");
    let shield = Shield::new(settings).expect("nothing to fail on");
    let running = server::start(shield.clone(), listeners).expect("it starts");
    let (app, before) = (running.app, resident());
    let bytes = Arc::new(chat_of(BODY, ""));
    let mut clients = JoinSet::new();
    for _ in 0..count {
        let bytes = bytes.clone();
        clients.spawn(async move { ask(app, bytes.as_bytes()).await });
    }
    let mut codes = std::collections::BTreeMap::<String, usize>::new();
    while let Some(answer) = timeout(2 * LONGEST_WAIT, clients.join_next()).await.expect("nobody hangs") {
        let answer = answer.expect("it is answered");
        assert_eq!(answer.faults(), [""; 0], "{answer:?}");
        *codes.entry(format!("{} {}", answer.status, answer.header("x-shield-error"))).or_default() += 1;
    }
    let grown = resident().saturating_sub(before);
    println!("{codes:?}, {} MiB more, {} requests reached the upstream", grown >> 20, upstream.seen());
    assert!(
        codes
            .keys()
            .all(|code| ["502 upstream_timeout", "503 upstream_unavailable", "503 shield_overloaded"].contains(&code.as_str())),
        "{codes:?}"
    );
    // Resident memory includes the clients, their copies of what they sent, and the upstream's log.
    assert!(grown < cap + (count * (4 * BODY + (64 << 10))) as u64, "{} MiB", grown >> 20);
    let left = || {
        (
            shield.body_budget.held(),
            shield.limits.waiting(),
            shield.limits.snapshot().iter().map(|limiter| limiter.in_flight).sum::<usize>(),
            shield.connections.len(),
        )
    };
    let deadline = Instant::now() + LONGEST_WAIT;
    while left() != (0, 0, 0, 0) {
        assert!(Instant::now() < deadline, "bytes, waiting, in flight, connections left: {:?}", left());
        sleep(Duration::from_millis(10)).await;
    }
    running.end();
}

/// The order under overload: stop reading new bodies, refuse batch, refuse all with 503 and `retry-after`, refuse connections
/// (`beyond_max_connections_clients_wait_for_a_place`).
#[tokio::test]
async fn overload_refuses_batch_first_and_then_all() {
    let upstream = Upstream::start(&Kind::Plain(vec![vec![Step::Hold]])).await;
    let mut settings = upstream.settings();
    settings.queue.max_bytes = 1_000_000;
    let shield = start(settings);
    let mut running = Vec::new();
    let mut send = async |bytes: usize| {
        let mut socket = TcpStream::connect(shield.app).await.expect("it listens");
        socket.write_all(chat_of(bytes, "").as_bytes()).await.expect("it is taken");
        running.push(socket);
        let deadline = Instant::now() + LONGEST_WAIT;
        while upstream.seen() < running.len() {
            assert!(Instant::now() < deadline, "{} of {} reached the upstream", upstream.seen(), running.len());
            sleep(Duration::from_millis(5)).await;
        }
    };
    for _ in 0..13 {
        send(60_000).await;
    }
    let batch = ask(shield.app, chat_of(1000, "x-shield-class: batch\r\n").as_bytes()).await;
    assert_eq!((batch.status, batch.header("x-shield-error")), (503, "shield_overloaded"), "{batch:?}");
    assert_eq!(batch.faults(), [""; 0]);
    for _ in 0..3 {
        send(60_000).await;
    }
    let all = ask(shield.app, chat_of(60_000, "").as_bytes()).await;
    assert_eq!((all.status, all.header("x-shield-error")), (503, "shield_overloaded"), "{all:?}");
    assert!(all.header("retry-after").parse::<u64>().is_ok_and(|seconds| seconds >= 1), "{all:?}");
    assert_eq!(upstream.seen(), 16);
    shield.end();
}

/// The last quarter of the queue is closed to batch requests.
#[tokio::test(start_paused = true)]
async fn batch_is_refused_first_when_the_queue_is_nearly_full() {
    let mut settings = Settings::default();
    settings.limits.plan = Plan::None;
    settings.limits.model.insert("m".into(), ModelLimits { requests_per_minute: Some(3), ..Default::default() });
    settings.queue.max_waiting = 8;
    let limits = Limiters::new(settings.limiter());
    let ask = |class| AdmissionRequest {
        organization: "o".into(),
        key: 0,
        model: "m".into(),
        tier: "on_demand".into(),
        app: "a".into(),
        weight: 1.0,
        class,
        cost: CostEstimate::Tokens { prompt: 10, max_completion_tokens: Some(10) },
        bytes: 100,
    };
    let deadline = Instant::now() + Duration::from_secs(3600);
    let join = async |class| {
        let (limits, ask) = (limits.clone(), ask(class));
        let mut waiter = Box::pin(async move { limits.reserve(&ask, deadline, None).await });
        match timeout(Duration::from_millis(1), &mut waiter).await {
            Ok(Err(refusal)) => Err(refusal),
            Ok(Ok(_)) => panic!("the queue is served too quickly for this test"),
            Err(_) => Ok(waiter),
        }
    };
    // The first request is dispatched and not settled: those behind it wait for its settlement or for the limit.
    let _first = limits.reserve(&ask(Priority::Interactive), deadline, None).await.expect("it is the first");
    let mut queued = Vec::new();
    let mut refused = None;
    while refused.is_none() {
        match join(Priority::Batch).await {
            Ok(waiter) => queued.push(waiter),
            Err(refusal) => refused = Some(refusal),
        }
    }
    assert!(matches!(refused, Some(AdmissionError::QueueFull { .. })), "{refused:?}");
    assert_eq!(limits.waiting(), 6);
    for _ in 0..2 {
        queued.push(join(Priority::Interactive).await.expect("there is room for interactive requests"));
    }
    assert!(matches!(join(Priority::Interactive).await, Err(AdmissionError::QueueFull { .. })));
    drop(queued);
    assert_eq!(limits.waiting(), 0);
}

/// Resident memory of this process in bytes, the clients' side included.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("this runs on Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it is there");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}
