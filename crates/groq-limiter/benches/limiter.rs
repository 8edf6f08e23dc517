//! Time of a dispatch with 0, 100 and 10 000 waiting requests, time of the operations of one request, and memory per limiter and
//! per waiting request. Run with `cargo bench -p groq-limiter --bench limiter`.

use std::{fs, hint::black_box, pin::Pin, sync::Arc, task::Context, time::Duration};

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use groq_limiter::{
    ActualUsage, AdmissionRequest, CostEstimate, Limiters,
    limiter::{Admission, Event, Limiter},
    settings::{LimitSettings, ModelLimits, Plan, QueueSettings, Settings},
    types::{Ns, Observation, Priority, RemoteQuota},
};
use tokio::time::Instant;

const START: Ns = 8_640_000_000_000_000;
const HOUR: Ns = 3_600_000_000_000;

fn limits() -> LimitSettings {
    let model = ModelLimits {
        requests_per_minute: Some(1000),
        requests_per_day: Some(500_000),
        tokens_per_minute: Some(250_000),
        tokens_per_day: Some(50_000_000),
        ..ModelLimits::default()
    };
    LimitSettings { plan: Plan::None, default: model, ..LimitSettings::default() }
}

fn request(app: usize, output_limit: u64) -> AdmissionRequest {
    AdmissionRequest {
        organization: "organization".into(),
        key: 0,
        model: "openai/gpt-oss-20b".into(),
        tier: "on_demand".into(),
        app: format!("app{app}").into(),
        weight: 1.0,
        class: Priority::Interactive,
        cost: CostEstimate::Tokens { prompt: 200, max_completion_tokens: Some(output_limit) },
        bytes: 0,
    }
}

/// A limiter after its cold start, with `waiting` queued requests of ten apps and four sizes.
fn limiter(waiting: usize) -> Limiter {
    let mut limiter = Limiter::new("m".into(), Arc::new(limits()), START);
    if let Ok(Admission::Granted(mut probe)) = limiter.submit(&request(0, 1), START, START + HOUR, None, || true) {
        limiter.sent(&mut probe, START);
        limiter.observe(&mut probe, &Observation::default(), START);
        limiter.settle(probe, ActualUsage::Nothing, START);
    }
    let mut n = 0;
    while limiter.waiting() < waiting {
        let sizes = [100, 4000, 20_000, 120_000];
        match limiter.submit(&request(n % 10, sizes[n % 4]), START, START + 1_000_000 * HOUR, None, || true) {
            Ok(Admission::Granted(mut grant)) => {
                limiter.sent(&mut grant, START);
                limiter.settle(grant, ActualUsage::Unknown, START);
            }
            Ok(Admission::Queued(_)) => {}
            Err(refusal) => panic!("rejected before its deadline: {refusal:?}"),
        }
        n += 1;
    }
    limiter
}

fn dispatch(bench: &mut Criterion) {
    for waiting in [0, 100, 10_000] {
        let mut limiter = limiter(waiting);
        let mut events = Vec::<Event>::new();
        limiter.dispatch(START, &mut events);
        events.clear();
        bench.bench_function(&format!("dispatch, {waiting} waiting, head blocked"), |bench| {
            bench.iter(|| {
                limiter.dispatch(black_box(START), &mut events);
                assert!(events.is_empty());
            });
        });
    }
    bench.bench_function("grant, settle and dispatch, 10000 waiting", |bench| {
        let mut events = Vec::new();
        let new_state = || {
            let mut limiter = limiter(10_000);
            let mut none = Vec::new();
            limiter.dispatch(START, &mut none);
            (limiter, START)
        };
        let mut state = new_state();
        bench.iter(|| {
            if state.0.waiting() < 5000 {
                state = new_state();
            }
            let (limiter, now) = &mut state;
            *now = limiter.wake().unwrap_or(*now);
            limiter.dispatch(*now, &mut events);
            for event in events.drain(..) {
                if let (_, Ok(mut grant)) = event {
                    limiter.sent(&mut grant, *now);
                    limiter.settle(grant, ActualUsage::Unknown, *now);
                }
            }
        });
    });
    bench.bench_function("submit and cancel, 10000 waiting", |bench| {
        let mut limiter = limiter(10_000);
        let request = request(3, 4000);
        bench.iter(|| {
            let Ok(Admission::Queued(id)) = limiter.submit(black_box(&request), START, START + 1_000_000 * HOUR, None, || true)
            else {
                panic!("not queued")
            };
            limiter.cancel(id, START);
        });
    });
}

fn request_operations(bench: &mut Criterion) {
    let state = Observation { tokens: Some(RemoteQuota { limit: 250_000, remaining: 249_000 }), ..Observation::default() };
    let request = request(1, 10);
    bench.bench_function("core: submit, sent, observe, settle, no queue", |bench| {
        let mut limiter = limiter(0);
        let mut now = START;
        bench.iter(|| {
            now += 1_000_000_000;
            let Ok(Admission::Granted(mut grant)) = limiter.submit(black_box(&request), now, now, None, || true) else {
                panic!("not admitted")
            };
            limiter.sent(&mut grant, now);
            limiter.observe(&mut grant, &state, now);
            limiter.settle(grant, ActualUsage::Tokens { prompt: 200, completion: Some(10), prompt_total: 200 }, now);
        });
    });
    bench.bench_function("core: settle alone", |bench| {
        let mut limiter = limiter(0);
        let mut now = START;
        bench.iter_custom(|count| {
            let mut total = Duration::ZERO;
            for _ in 0..count {
                now += 1_000_000_000;
                let Ok(Admission::Granted(mut grant)) = limiter.submit(&request, now, now, None, || true) else {
                    panic!("not admitted")
                };
                limiter.sent(&mut grant, now);
                let start = Instant::now();
                limiter.settle(
                    grant,
                    black_box(ActualUsage::Tokens { prompt: 200, completion: Some(10), prompt_total: 200 }),
                    now,
                );
                total += start.elapsed();
            }
            total
        });
    });
    bench.bench_function("handle: reserve, sent, settle, no queue", |bench| {
        let limits = Limiters::new(Settings { limits: Arc::new(limits()), ..Settings::default() });
        let mut context = Context::from_waker(std::task::Waker::noop());
        bench.iter_batched(
            Instant::now,
            |now| {
                let mut future = Box::pin(limits.reserve(&request, now, None));
                if let std::task::Poll::Ready(Ok(mut reservation)) = Pin::as_mut(&mut future).poll(&mut context) {
                    reservation.sent(now);
                    reservation.settle(ActualUsage::Nothing, now);
                }
            },
            BatchSize::SmallInput,
        );
    });
}

/// Resident bytes of this process.
fn resident() -> u64 {
    let pages = fs::read_to_string("/proc/self/statm").ok();
    pages.and_then(|text| text.split(' ').nth(1)?.parse::<u64>().ok()).unwrap_or(0) * 4096
}

fn memory(_: &mut Criterion) {
    // Kept alive, so that the waiting requests do not reuse the memory of the limiters.
    let _limiters = limiters(100_000);
    waiters(10_000);
    waiters(100_000);
}

/// `count` limiters with four limits each. Every limiter has completed one request, including its response headers.
fn limiters(count: usize) -> Limiters {
    let limits = Limiters::new(Settings { limits: Arc::new(limits()), ..Settings::default() });
    let mut context = Context::from_waker(std::task::Waker::noop());
    let shown = RemoteQuota { limit: 250_000, remaining: 249_700 };
    let state = Observation { tokens: Some(shown), ..Observation::default() };
    let before = resident();
    for n in 0..count {
        let request = AdmissionRequest { organization: format!("key-{n:012x}").into(), ..request(1, 100) };
        let now = Instant::now();
        let mut future = Box::pin(limits.reserve(&request, now, None));
        let std::task::Poll::Ready(Ok(mut permit)) = Pin::as_mut(&mut future).poll(&mut context) else { panic!("not admitted") };
        permit.sent(now);
        permit.observe(&state, now);
        permit.settle(ActualUsage::Tokens { prompt: 200, completion: Some(10), prompt_total: 200 }, now);
    }
    let bytes = resident() - before;
    println!("memory: {} MB of {count} limiters, {} bytes each", bytes / 1_000_000, bytes / count as u64);
    limits
}

/// Prints the memory per waiting request, without and with its future.
fn waiters(count: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(async {
        let queue = QueueSettings { max_waiting: count, ..QueueSettings::default() };
        let limits = Limiters::new(Settings { limits: Arc::new(limits()), queue, ..Settings::default() });
        let requests: Vec<AdmissionRequest> = (0..20).map(|n| request(n % 10, 120_000)).collect();
        let deadline = Instant::now() + Duration::from_secs(10_000_000);
        let mut context = Context::from_waker(std::task::Waker::noop());
        // Allocated before the measurement, because in the proxy the futures are part of the connections' tasks.
        let mut futures: Vec<_> = (0..count + 20).map(|n| Box::pin(limits.reserve(&requests[n % 20], deadline, None))).collect();
        let before = resident();
        // The first requests are admitted at once. Their permits are kept, so that no others are admitted.
        let polled = futures.iter_mut().map(|future| Pin::as_mut(future).poll(&mut context));
        let permits: Vec<_> = polled.filter(std::task::Poll::is_ready).collect();
        let after = resident();
        println!(
            "memory: {} bytes per waiting request at {} waiting",
            (after - before) / limits.waiting() as u64,
            limits.waiting()
        );
        println!("memory: {} bytes of its future in addition", size_of_val(&*futures[0]));
        drop(permits);
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(500));
    targets = memory, dispatch, request_operations
}
criterion_main!(benches);
