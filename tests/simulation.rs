//! The shield in front of the simulated Groq in virtual time, by seeds: delays, latencies, faults, external usage and clients
//! that disconnect.
//!
//! A failure prints its seed; `SIMULATION_SEED=n cargo test --test simulation` replays it.
#![cfg(feature = "demo")]

use std::{
    cell::Cell,
    future::poll_fn,
    pin::pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use fastrand::Rng;
use groq_shield::{
    config::{self, Plan, Settings},
    proxy::{Shield, handle},
    upstream::{Io, Upstream},
};
use groq_sim::{ExternalTraffic, Sim};
use http::{HeaderName, HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf, duplex, split},
    task::LocalSet,
    time::{Instant, sleep, timeout},
};

const REQUESTS: usize = 60;
const RPM: u64 = 120;
const TPM: u64 = 12_000;

#[derive(Clone, Copy, Debug, Default)]
struct World {
    faults: bool,
    external_usage: bool,
    leaving: bool,
}

/// How the requests ended.
#[derive(Debug, Default)]
struct Ends {
    good: Cell<usize>,
    refused_by_us: Cell<usize>,
    failed: Cell<usize>,
    left: Cell<usize>,
}

#[test]
fn groq_refuses_nothing_without_external_usage() {
    each_seed(World::default(), |sim, ends| {
        assert_eq!(sim.stats().refusals(), 0);
        assert_eq!(ends.failed.get(), 0);
        assert!(ends.good.get() > REQUESTS / 4, "{ends:?}");
    });
}

#[test]
fn clients_that_disconnect_at_any_await_leave_nothing_behind() {
    each_seed(World { leaving: true, ..World::default() }, |sim, ends| {
        assert_eq!(sim.stats().refusals(), 0);
        assert!(ends.left.get() > REQUESTS / 10, "{ends:?}");
    });
}

#[test]
fn faults_external_usage_and_disconnects() {
    each_seed(World { faults: true, external_usage: true, leaving: true }, |sim, ends| {
        let stats = sim.stats();
        assert!(stats.refusals() <= 2 + stats.admitted / 50, "{:?} of {}", stats.refused, stats.admitted);
        assert!(stats.faults > 0 && ends.good.get() > REQUESTS / 10, "{ends:?}");
    });
}

/// Groq's limit on output tokens: three times what it refills is requested, with max completion tokens up to four times the
/// limit. The surplus is refused by the shield with a wait; nothing is too large, and Groq refuses almost nothing.
#[test]
fn a_limit_on_output_is_used_with_any_max_completion_tokens() {
    const OTPM: u64 = 1000;
    const MINUTES: u64 = 10;
    for seed in 1..=3 {
        let seed_on_panic = SeedOnPanic(seed);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime");
        runtime.block_on(LocalSet::new().run_until(async {
            fastrand::seed(seed);
            let mut random = Rng::with_seed(seed);
            let limits = groq_sim::ModelLimits { output_tokens_per_minute: Some(OTPM), ..Default::default() };
            let plan = groq_sim::Plan::uniform(limits);
            let sim = Sim::new(groq_sim::Options { plan, seed, ..Default::default() });
            let limits_of_groq = config::ModelLimits { output_tokens_per_minute: Some(OTPM), ..Default::default() };
            let shield = shield(&sim, seed, limits_of_groq);
            let statuses = Rc::<std::cell::RefCell<Vec<StatusCode>>>::default();
            let began = Instant::now();
            let mut clients = Vec::new();
            while began.elapsed() < Duration::from_secs(60 * MINUTES) {
                // 13 a minute of 230 tokens each.
                sleep(Duration::from_secs_f64(-(1.0 - random.f64()).ln() * 60.0 / 13.0)).await;
                let (shield, statuses) = (shield.clone(), statuses.clone());
                let (completion, output_limit) = (random.u64(60..400), random.u64(900..4000));
                clients.push(tokio::task::spawn_local(async move {
                    let content = format!("[[sim completion={completion}]] hello");
                    let body = json!({"model": "m", "max_completion_tokens": output_limit, "messages": [{"role": "user", "content": content}]});
                    let request = Request::post("/openai/v1/chat/completions").header("authorization", "Bearer gsk_test");
                    let request = request.header("content-type", "application/json").body(Full::new(Bytes::from(body.to_string())));
                    let response = handle(&shield, request.expect("a valid request"), None).await;
                    statuses.borrow_mut().push(response.status());
                }));
            }
            for client in clients {
                client.await.expect("no client panics");
            }
            let stats = sim.stats();
            let charged = stats.scopes[0].limits["OTPM"].charged as f64;
            let given = OTPM as f64 * (1.0 + began.elapsed().as_secs_f64() / 60.0);
            let statuses = statuses.borrow();
            println!("seed {seed}: {:.1} % used, {:?} refused by Groq", 100.0 * charged / given, stats.refused);
            assert!(statuses.iter().all(|status| matches!(status.as_u16(), 200 | 429)), "{statuses:?}");
            assert!(stats.refusals() <= 2, "{:?}", stats.refused);
            assert!(charged > 0.95 * given, "{charged} of {given}");
        }));
        drop(seed_on_panic);
    }
}

/// Two apps at three times what the limit gives, one of them capped at a tenth: it gets that ± 2 %, and the limit is used up.
#[test]
fn a_capped_app_gets_its_cap_and_another_app_the_rest() {
    const MINUTES: u64 = 20;
    /// Until the bursts are used up and both queues have their steady length.
    const START: Duration = Duration::from_secs(120);
    let end = START + Duration::from_secs(60 * MINUTES);
    let seed = 1;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime");
    runtime.block_on(LocalSet::new().run_until(async {
        fastrand::seed(seed);
        let mut random = Rng::with_seed(seed);
        let limits = groq_sim::ModelLimits { tokens_per_minute: Some(TPM), ..Default::default() };
        let sim = Sim::new(groq_sim::Options { plan: groq_sim::Plan::uniform(limits), seed, ..Default::default() });
        let limits_of_groq = config::ModelLimits { tokens_per_minute: Some(TPM), ..Default::default() };
        let limits = config::Limits { plan: Plan::None, default: limits_of_groq, ..Default::default() };
        let capped = config::App { name: "capped".into(), tokens_per_minute: Some(TPM / 10), ..Default::default() };
        let shield = with_settings(&sim, seed, Settings { limits, app: vec![capped], ..Default::default() });
        let used = [(); 2].map(|()| Rc::<Cell<u64>>::default());
        let began = Instant::now();
        let mut clients = Vec::new();
        let mut number = 0;
        while began.elapsed() < end {
            // Nine a second of about 70 tokens, where 200 tokens a second come back.
            sleep(Duration::from_secs_f64(-(1.0 - random.f64()).ln() / 9.0)).await;
            number += 1;
            let (shield, used, completion) = (shield.clone(), used[number % 2].clone(), random.u64(20..80));
            let app = ["capped", "free"][number % 2];
            clients.push(tokio::task::spawn_local(async move {
                let content = format!("[[sim completion={completion}]] hello");
                let body =
                    json!({"model": "m", "max_completion_tokens": 100, "messages": [{"role": "user", "content": content}]});
                let request = Request::post("/openai/v1/chat/completions").header("authorization", "Bearer gsk_test");
                let request = request.header("content-type", "application/json").header("x-shield-app", app);
                let request = request.body(Full::new(Bytes::from(body.to_string()))).expect("a valid request");
                let (head, body) = handle(&shield, request, None).await.into_parts();
                let body = body.collect().await.expect("a body that ends properly").to_bytes();
                if head.status == StatusCode::OK && (START..end).contains(&began.elapsed()) {
                    let answer: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
                    used.set(used.get() + answer["usage"]["total_tokens"].as_u64().expect("usage"));
                }
            }));
        }
        for client in clients {
            client.await.expect("no client panics");
        }
        let given = (TPM * MINUTES) as f64;
        let [capped, free] = used.map(|used| used.get() as f64);
        println!(
            "{:.1} % used, the capped app {:.2} % of what was given",
            100.0 * (capped + free) / given,
            100.0 * capped / given
        );
        assert_eq!(sim.stats().refusals(), 0);
        assert!((capped / given - 0.1).abs() <= 0.002, "{capped} of {given}");
        assert!(capped + free >= 0.98 * given, "{capped} + {free} of {given}");
    }));
}

#[test]
fn a_seed_is_reproducible() {
    let lives = Cell::new(Vec::new());
    for _ in 0..2 {
        one_seed(World { faults: true, external_usage: true, leaving: true }, 7, &|sim, ends| {
            let log = sim.log().into_iter().map(|request| (request.at_ms.to_string(), request.status, request.ended));
            let mut seen = lives.take();
            seen.push((log.collect::<Vec<_>>(), format!("{ends:?}")));
            lives.set(seen);
        });
    }
    let [one, other] = &lives.take()[..] else { panic!("two lives") };
    assert_eq!(one, other);
}

fn each_seed(world: World, check: impl Fn(&Sim, &Ends)) {
    let one = std::env::var("SIMULATION_SEED").ok().map(|text| text.parse::<u64>().expect("a number"));
    for seed in one.map_or(1..=20, |seed| seed..=seed) {
        one_seed(world, seed, &check);
    }
}

fn one_seed(world: World, seed: u64, check: &impl Fn(&Sim, &Ends)) {
    let seed_on_panic = SeedOnPanic(seed);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime");
    runtime.block_on(LocalSet::new().run_until(async {
        let (sim, ends) = run(world, seed).await;
        check(&sim, &ends);
    }));
    drop(seed_on_panic);
}

/// Prints the seed if a check panics.
struct SeedOnPanic(u64);

impl Drop for SeedOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("again with SIMULATION_SEED={}", self.0);
        }
    }
}

/// One run: a burst and more than the limits refill, then until everything has ended and every limit is full again.
async fn run(world: World, seed: u64) -> (Sim, Rc<Ends>) {
    fastrand::seed(seed);
    let mut random = Rng::with_seed(seed);
    let limits = groq_sim::ModelLimits { requests_per_minute: Some(RPM), tokens_per_minute: Some(TPM), ..Default::default() };
    let faults = json!([
        {"probability": 0.03, "action": "status", "status": 503},
        {"probability": 0.03, "action": "close"},
        {"probability": 0.03, "action": "cut", "after": 2},
        {"probability": 0.03, "action": "html", "status": 502},
    ]);
    let sim = Sim::new(groq_sim::Options {
        plan: groq_sim::Plan::uniform(limits),
        external: world.external_usage.then_some(ExternalTraffic { share: 0.2, tokens: 300 }),
        faults: if world.faults { serde_json::from_value(faults).expect("faults") } else { Vec::new() },
        seed,
        ..Default::default()
    });
    let limits_of_groq =
        config::ModelLimits { requests_per_minute: Some(RPM), tokens_per_minute: Some(TPM), ..Default::default() };
    let shield = shield(&sim, seed, limits_of_groq);
    let ends = Rc::<Ends>::default();
    let mut clients = Vec::new();
    for number in 0..REQUESTS {
        sleep(Duration::from_secs_f64(-(1.0 - random.f64()).ln() * 0.3)).await;
        let (shield, ends, random) = (shield.clone(), ends.clone(), random.fork());
        clients.push(tokio::task::spawn_local(client(shield, ends, random, number, world.leaving)));
    }
    for client in clients {
        // Max wait, answer and retries have passed: nothing hangs.
        timeout(Duration::from_secs(600), client).await.expect("every request ends").expect("no client panics");
    }
    let count = ends.good.get() + ends.refused_by_us.get() + ends.failed.get() + ends.left.get();
    assert_eq!(count, REQUESTS, "{ends:?}");
    assert_eq!(shield.limits.waiting(), 0);
    // External usage never ends; without it both sides agree exactly.
    sleep(Duration::from_secs(600)).await;
    let [limiter] = &shield.limits.snapshot()[..] else { panic!("one model, one limiter") };
    assert_eq!((limiter.in_flight, limiter.waiting.len()), (0, 0), "{limiter:?}");
    if !world.external_usage {
        for dimension in &limiter.dimensions {
            assert_eq!(dimension.full_in, Duration::ZERO, "{dimension:?}");
        }
        let stats = sim.stats();
        assert!(stats.scopes.iter().flat_map(|scope| scope.limits.values()).all(|limit| limit.used == 0), "{stats:?}");
    }
    (sim, ends)
}

fn shield(sim: &Sim, seed: u64, limits_of_groq: config::ModelLimits) -> Arc<Shield> {
    let limits = config::Limits { plan: Plan::None, default: limits_of_groq, ..Default::default() };
    with_settings(sim, seed, Settings { limits, ..Default::default() })
}

fn with_settings(sim: &Sim, seed: u64, settings: Settings) -> Arc<Shield> {
    let (sim, connections) = (sim.clone(), AtomicU64::new(0));
    let upstream = Upstream::over(&settings.upstream, move || {
        let mut random = Rng::with_seed(seed ^ (connections.fetch_add(1, Ordering::Relaxed) << 32));
        let (ours, near) = duplex(1 << 16);
        let (far, theirs) = duplex(1 << 16);
        let ((near_in, near_out), (far_in, far_out)) = (split(near), split(far));
        tokio::spawn(way(near_in, far_out, random.fork()));
        tokio::spawn(way(far_in, near_out, random));
        let sim = sim.clone();
        tokio::spawn(async move { sim.serve_connection(theirs).await });
        Ok(Io::Memory(ours))
    });
    Shield::over(settings, upstream)
}

/// One direction of a connection: everything arrives 10 to 50 ms later, in order.
async fn way(mut from: ReadHalf<DuplexStream>, mut to: WriteHalf<DuplexStream>, mut random: Rng) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        sleep(Duration::from_millis(random.u64(10..50))).await;
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
    sleep(Duration::from_millis(random.u64(10..50))).await;
    // The other end may have closed.
    drop(to.shutdown().await);
}

async fn client(shield: Arc<Shield>, ends: Rc<Ends>, mut random: Rng, number: usize, leaving: bool) {
    let began = Instant::now();
    let (stream, latency, completion) = (random.bool(), random.u64(50..3000), random.u64(10..120));
    let content = format!("[[sim completion={completion} head_ms={latency}]] {}", "word ".repeat(random.usize(1..300)));
    let body = json!({"model": "m", "stream": stream, "max_completion_tokens": completion + random.u64(0..800),
                      "messages": [{"role": "user", "content": content}]});
    let app = format!("app{}", number % 3);
    let headers = [("authorization", "Bearer gsk_test"), ("content-type", "application/json"), ("x-shield-app", &app)];
    let headers = headers.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).expect("a value")));
    let mut request =
        Request::post("/openai/v1/chat/completions").body(Full::new(Bytes::from(body.to_string()))).expect("a valid request");
    request.headers_mut().extend(headers);
    let story = async {
        let (head, body) = handle(&shield, request, None).await.into_parts();
        (head.status, head.headers, body.collect().await.map(|body| body.to_bytes()))
    };
    // Some leave after a time, some at the n-th poll: at any await point.
    let (after, polls) = match (leaving, random.u8(..100)) {
        (true, 0..20) => (Duration::from_millis(random.u64(0..10_000)), usize::MAX),
        (true, 20..60) => (Duration::from_secs(3600), random.usize(1..8)),
        _ => (Duration::from_secs(3600), usize::MAX),
    };
    let bump = |count: &Cell<usize>| count.set(count.get() + 1);
    let Ok(Some((status, headers, body))) = timeout(after, at_most(polls, story)).await else { return bump(&ends.left) };
    assert!(began.elapsed() < Duration::from_secs(300), "an answer after {:?}", began.elapsed());
    let body = body.expect("a body that ends properly");
    let text = String::from_utf8_lossy(&body);
    match status {
        StatusCode::OK if !text.contains("\"error\"") => {
            assert!(!stream || text.ends_with("data: [DONE]\n\n"), "{text}");
            bump(&ends.good);
        }
        StatusCode::TOO_MANY_REQUESTS => {
            assert!(headers.contains_key("retry-after"), "{headers:?}");
            bump(&ends.refused_by_us);
        }
        _ => {
            assert!(text.contains("\"message\""), "{status}: {text}");
            bump(&ends.failed);
        }
    }
}

/// Polls at most `polls` times, then drops the future.
async fn at_most<F: Future>(mut polls: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    poll_fn(|cx| {
        polls -= 1;
        match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if polls == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}
