//! Properties that hold in any interleaving of threads. shuttle runs each test in some hundred orders of the threads. When
//! an order fails, shuttle prints the name of the file in which it keeps that order.
//!
//! `SCHEDULES=20000 cargo test -p schedules schedules` tries more orders; `SCHEDULE=FILE cargo test -p schedules NAME` runs
//! a kept order again.

use std::{sync::Arc, time::Duration};

use shuttle::{
    Config, FailurePersistence, Runner,
    future::block_on,
    scheduler::{PctScheduler, RandomScheduler, ReplayScheduler, Scheduler},
    thread::{self, JoinHandle},
};
use tokio::{
    runtime::Runtime,
    sync::mpsc::UnboundedReceiver,
    time::{Instant, advance},
};

use crate::{
    ActualUsage, AdmissionError, AdmissionRequest, CostEstimate, Limiters, Permit,
    registry::Registry,
    request::Scope,
    settings::{LimitSettings, ModelLimits, Plan, QueueSettings, Settings},
    shared::Submitted,
    store::{
        Command, StoreHandle,
        protocol::{Answer, SharedQuota, State, Transaction},
    },
    sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    types::{Observation, Priority},
};

/// The number of orders that each test tries with each scheduler.
const SCHEDULES: usize = 300;
/// The PCT scheduler looks for failures that need threads to be interrupted at up to this number of places.
const DEPTH: usize = 3;

/// Runs `threads` in many orders, in virtual time. Runs only the order in the file `SCHEDULE`, if it is set.
fn in_any_order(threads: impl Fn(&Arc<Runtime>) + Send + Sync + 'static) {
    let threads = Arc::new(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
        let runtime = Arc::new(runtime);
        let _entered = runtime.enter();
        threads(&runtime);
    });
    let mut config = Config::new();
    config.failure_persistence = FailurePersistence::File(Some(std::env::temp_dir()));
    config.silence_warnings = true;
    config.stack_size = 1 << 20;
    if let Ok(file) = std::env::var("SCHEDULE") {
        let scheduler = ReplayScheduler::new_from_file(file).expect("a schedule that was kept");
        Runner::new(scheduler, config).run(move || threads());
        return;
    }
    let _hint = ReplayHint;
    let count = std::env::var("SCHEDULES").map_or(SCHEDULES, |count| count.parse().expect("SCHEDULES is a number"));
    let schedulers: [Box<dyn Scheduler + Send>; 2] =
        [Box::new(RandomScheduler::new(count)), Box::new(PctScheduler::new(DEPTH, count))];
    for scheduler in schedulers {
        let threads = threads.clone();
        Runner::new(scheduler, config.clone()).run(move || threads());
    }
}

/// Prints on panic how to run the failing order again. shuttle has printed the name of the file before.
struct ReplayHint;

impl Drop for ReplayHint {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "again with SCHEDULE=(that file) cargo test -p schedules {}",
                std::thread::current().name().unwrap_or_default()
            );
        }
    }
}

fn settings(default: ModelLimits) -> Settings {
    let limits = LimitSettings { plan: Plan::None, default, ..LimitSettings::default() };
    Settings { limits: limits.into(), ..Settings::default() }
}

fn request(model: &str) -> AdmissionRequest {
    AdmissionRequest {
        organization: "o".into(),
        key: 0,
        model: model.into(),
        tier: "t".into(),
        app: "a".into(),
        weight: 1.0,
        class: Priority::Interactive,
        cost: CostEstimate::Tokens { prompt: 100, max_completion_tokens: Some(300) },
        bytes: 100,
    }
}

/// Ends the cold start with one request, which uses `usage`.
fn warm(limiters: &Limiters, model: &str, usage: ActualUsage) {
    let mut permit = block_on(limiters.reserve(&request(model), Instant::now(), None)).expect("the first one goes");
    permit.sent(Instant::now());
    permit.observe(&Observation::default(), Instant::now());
    permit.settle(usage, Instant::now());
}

fn tokens(completion: u64) -> ActualUsage {
    ActualUsage::Tokens { prompt: 100, completion: Some(completion), prompt_total: 100 }
}

fn in_days() -> Instant {
    Instant::now() + Duration::from_secs(10 * 86_400)
}

fn in_a_minute() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn join<T>(threads: Vec<JoinHandle<T>>) -> Vec<T> {
    threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
}

/// Starts two threads: one advances the virtual time until `over` is set, the other drives the timer of these limiters.
fn clock(registry: &Arc<Registry>, runtime: &Arc<Runtime>, over: &Arc<AtomicBool>) -> [JoinHandle<()>; 2] {
    let task = registry.common.timer.try_drive().expect("the timer is not driven yet");
    let (runtime, over) = (runtime.clone(), over.clone());
    let time = thread::spawn(move || {
        while !over.load(SeqCst) {
            block_on(advance(Duration::from_millis(500)));
            // Lets the runtime process its timers.
            runtime.block_on(tokio::task::yield_now());
            thread::yield_now();
        }
    });
    [time, thread::spawn(move || block_on(task))]
}

/// Drops the limiters, which ends their timer, and joins the threads of `clock`.
fn end(limiters: Limiters, clock: [JoinHandle<()>; 2], over: &AtomicBool) {
    over.store(true, SeqCst);
    drop(limiters);
    join(clock.into());
}

/// Several threads check the bounds of the queue and take a place in it at the same time.
#[test]
fn no_more_wait_than_may_in_all_limiters_together() {
    in_any_order(|_| {
        let queue = QueueSettings { max_waiting: 3, max_bytes: 250 };
        let limits = ModelLimits { requests_per_day: Some(1), ..ModelLimits::default() };
        let limiters = Limiters::new(Settings { queue, ..settings(limits) });
        ["m", "n"].iter().for_each(|model| warm(&limiters, model, ActualUsage::Unknown));
        let waiters = ["m", "n", "m", "n"].map(|model| {
            let limiters = limiters.clone();
            thread::spawn(move || {
                let request = request(model);
                let submitted = limiters.0.limiter(&request).submit(&request, in_days(), None);
                assert!(limiters.waiting() <= 2, "{} wait with 100 bytes each, of 250", limiters.waiting());
                match submitted {
                    Ok(Submitted::Later(waiting)) => drop(waiting),
                    Err(AdmissionError::QueueFull { .. }) => {}
                    Ok(Submitted::Now(_)) | Err(_) => panic!("it has to wait"),
                }
            })
        });
        join(waiters.into());
        assert_eq!(limiters.waiting(), 0);
    });
}

/// Threads settle, drop and get refusals for permits at the same time, and some leave the queue. What is given back is
/// granted to the next request, no request is forgotten, and at the end exactly what was used is in use.
#[test]
fn what_comes_back_goes_to_the_next_and_the_sum_is_right() {
    in_any_order(|runtime| {
        // Two requests fit at the same time, together with the safety margin.
        let limits = ModelLimits { tokens_per_day: Some(1300), ..ModelLimits::default() };
        let limiters = Limiters::new(settings(limits));
        let (began, over) = (Instant::now(), Arc::new(AtomicBool::new(false)));
        // The limiter pauses for a second after a refusal, so time must pass.
        let clock = clock(&limiters.0, runtime, &over);
        warm(&limiters, "m", ActualUsage::Nothing);
        let reserve = |limiters: &Limiters| {
            let mut permit = block_on(limiters.reserve(&request("m"), in_days(), None)).expect("two others give back enough");
            permit.sent(Instant::now());
            permit
        };
        let settles = |completion: u64| {
            let limiters = limiters.clone();
            thread::spawn(move || reserve(&limiters).settle(tokens(completion), Instant::now()))
        };
        let drops = thread::spawn({
            let limiters = limiters.clone();
            move || drop(block_on(limiters.reserve(&request("m"), in_days(), None)).expect("as above"))
        });
        let leaves = thread::spawn({
            let limiters = limiters.clone();
            move || {
                let request = request("m");
                let limiter = limiters.0.limiter(&request);
                match limiter.submit(&request, in_days(), None).expect("as above") {
                    Submitted::Now(grant) => drop(Permit::new(limiter, grant)),
                    Submitted::Later(waiting) => {
                        thread::yield_now();
                        drop(waiting);
                    }
                }
            }
        });
        let refused = thread::spawn({
            let limiters = limiters.clone();
            move || {
                let again = reserve(&limiters).refused(None, &Observation::default(), None, Instant::now());
                drop(block_on(limiters.reserve(&request("m"), in_days(), again)).expect("as above"));
            }
        });
        join(vec![settles(50), settles(20), drops, leaves, refused]);
        let limiter = limiters.snapshot().remove(0);
        assert_eq!((limiters.waiting(), limiter.in_flight, limiter.waiting.len()), (0, 0, 0));
        let (used, drained) = (1300.0 - limiter.dimensions[0].remaining, began.elapsed().as_secs_f64() * 1300.0 / 86_400.0);
        assert!((269.0 - drained..271.0).contains(&used), "{used} are in use, at most {drained} have come back");
        end(limiters, clock, &over);
    });
}

/// Each waiting request is granted when there is room for it, whatever threads do between the timer's firing and its effect.
#[test]
fn the_timer_forgets_nobody() {
    in_any_order(|runtime| {
        let limits = ModelLimits { requests_per_minute: Some(3), ..ModelLimits::default() };
        let limiters = Limiters::new(settings(limits));
        let over = Arc::new(AtomicBool::new(false));
        let clock = clock(&limiters.0, runtime, &over);
        warm(&limiters, "m", ActualUsage::Unknown);
        let waiters = (0..4).map(|_| {
            let limiters = limiters.clone();
            thread::spawn(move || {
                let reserved = block_on(limiters.reserve(&request("m"), in_days(), None));
                reserved.expect("in time").settle(ActualUsage::Unknown, Instant::now());
            })
        });
        join(waiters.collect());
        let at_once = block_on(limiters.reserve(&request("m"), Instant::now(), None));
        assert!(at_once.is_err(), "nothing is left");
        end(limiters, clock, &over);
    });
}

/// A limiter is evicted, swept, saved and created again while other threads use it: there are never two limiters of the same
/// scope, and what was used is remembered.
#[test]
fn an_evicted_limiter_comes_back_as_it_was() {
    in_any_order(|_| {
        let limits = ModelLimits { requests_per_day: Some(3), ..ModelLimits::default() };
        let limiters = Limiters::new(settings(limits));
        limiters.forecast(&request("m"));
        // The limiter has been idle for long enough to be swept.
        block_on(advance(Duration::from_secs(61)));
        let granted = Arc::new(AtomicU64::new(0));
        let spends = || {
            let (limiters, granted) = (limiters.clone(), granted.clone());
            thread::spawn(move || {
                for _ in 0..2 {
                    if let Ok(mut permit) = block_on(limiters.reserve(&request("m"), Instant::now(), None)) {
                        permit.sent(Instant::now());
                        permit.observe(&Observation::default(), Instant::now());
                        granted.fetch_add(1, SeqCst);
                    }
                }
            })
        };
        // Under cfg(shuttle), at most two limiters are kept.
        let crowds = |models: [&'static str; 2]| {
            let limiters = limiters.clone();
            thread::spawn(move || models.map(|model| limiters.forecast(&request(model))))
        };
        let sweeps = thread::spawn({
            let limiters = limiters.clone();
            move || limiters.0.sweep()
        });
        let threads = vec![spends(), spends()];
        let others = vec![crowds(["n", "o"]), crowds(["o", "p"])];
        join(threads);
        join(others);
        join(vec![sweeps]);
        limiters.forecast(&request("m"));
        let used = 3.0 - limiters.dimensions(&request("m"))[0].remaining;
        let granted = granted.load(SeqCst);
        assert!((1..=3).contains(&granted), "{granted} of three");
        assert!((used - granted as f64).abs() < 0.01, "{granted} were granted, {used} are in use");
    });
}

/// The saved state contains each limiter that was ever used, including one that is evicted or created again at that moment.
#[test]
fn what_is_saved_is_complete() {
    in_any_order(|_| {
        let limits = ModelLimits { requests_per_day: Some(3), ..ModelLimits::default() };
        let limiters = Limiters::new(settings(limits));
        warm(&limiters, "m", ActualUsage::Unknown);
        warm(&limiters, "n", ActualUsage::Unknown);
        let asks = ["o", "m", "p"].map(|model| {
            let limiters = limiters.clone();
            thread::spawn(move || limiters.forecast(&request(model)))
        });
        for _ in 0..2 {
            let saved = limiters.0.saved();
            for model in ["m", "n"] {
                let scope = Scope::of(&request(model));
                assert!(saved.iter().any(|(key, _)| *key == scope), "{model} is not saved");
            }
        }
        join(asks.into());
    });
}

/// The store answers, is lost and comes back while threads reserve: each request is granted or refused, and none waits
/// beyond its deadline.
#[test]
fn a_store_that_comes_and_goes_leaves_nobody_waiting() {
    in_any_order(|runtime| {
        let limits = ModelLimits { requests_per_minute: Some(60), ..ModelLimits::default() };
        let (store, commands) = StoreHandle::new(2);
        let registry = Arc::new(Registry::new(settings(limits), Some(store)));
        let limiters = Limiters(registry.clone());
        let over = Arc::new(AtomicBool::new(false));
        let clock = clock(&registry, runtime, &over);
        let store = thread::spawn({
            let over = over.clone();
            move || serve(&registry, commands, &over)
        });
        let askers = (0..3).map(|_| {
            let limiters = limiters.clone();
            thread::spawn(move || {
                let deadline = in_a_minute();
                if let Ok(mut permit) = block_on(limiters.reserve(&request("m"), deadline, None)) {
                    permit.sent(Instant::now());
                    permit.observe(&Observation::default(), Instant::now());
                }
            })
        });
        join(askers.collect());
        over.store(true, SeqCst);
        join(vec![store]);
        assert_eq!((limiters.waiting(), limiters.snapshot()[0].in_flight), (0, 0));
        end(limiters, clock, &over);
    });
}

/// Simulates a store that makes every reservation. With each transaction, it is lost with a probability of 20 %.
fn serve(registry: &Arc<Registry>, mut commands: UnboundedReceiver<Command>, over: &AtomicBool) {
    let (mut tat, mut version, mut position) = (0_i64, 0, 0);
    while !over.load(SeqCst) {
        registry.store_is(true);
        while let Ok(Command::Transact(scope, transaction)) = commands.try_recv() {
            let limiter = registry.get(&scope).expect("it is in use");
            let Transaction { serial, asks: granted, cells, .. } = transaction;
            if shuttle::rand::Rng::gen_bool(&mut shuttle::rand::thread_rng(), 0.2) {
                registry.store_is(false);
                limiter.answered(serial, None);
                break;
            }
            (version, position) = (version + 1, position + u64::from(granted));
            let quotas = cells.into_iter().map(|cell| {
                tat = cell.known.max(tat).saturating_add(if granted { cell.units } else { 0 });
                (cell.code, SharedQuota { tat: tat as f64, corrections: 0.0 })
            });
            let mut state = State::default();
            (state.epoch, state.version, state.position, state.quotas) = ("1".into(), version, position, quotas.collect());
            limiter.answered(serial, Some(&Answer { granted, wait: 0, state }));
        }
        thread::yield_now();
    }
}
