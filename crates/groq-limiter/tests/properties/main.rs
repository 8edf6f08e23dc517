//! Invariants of the limiter, tested on thousands of generated histories against an upstream with exact integer arithmetic. The
//! tests call the limiter's core directly, without clock or tasks.

use std::{collections::BTreeMap, time::Duration};

use groq_limiter::{
    ActualUsage, AdmissionError, AdmissionRequest, DimensionSnapshot,
    limiter::{Admission, Grant, Limiter},
    settings::ModelLimits,
    types::{Dimension, Ns, Observation, Priority, RemoteQuota, Unit, UpstreamRefusal},
};
use proptest::prelude::*;

mod history;
mod network;
mod start;
mod starvation;

use history::{Job, Outcome, job, run};
use start::{MS, SECOND, START, limits, request, tables, warm};

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(600) })]

    /// 4 Safety, 5 Wake-ups, 6 Cancellation.
    #[test]
    fn safety_wake_ups_and_cancellation(jobs in prop::collection::vec(job(), 1..120), tokens in 2500..40_000u64,
                                        requests in prop::option::of(5..200u64)) {
        let mut limiter = warm(limits(requests, tokens));
        let outcome = run(&mut limiter, &jobs, requests, tokens, false);
        prop_assert_eq!(outcome.refused_by_groq, 0, "of {} sends", outcome.sends);
        prop_assert_eq!(outcome.sends + outcome.rejected + outcome.cancelled, jobs.len());
        // All jobs have ended: nothing waits, is in flight or reserved, and the quotas refill completely.
        prop_assert_eq!(limiter.waiting(), 0);
        prop_assert_eq!(limiter.in_flight(), 0);
        prop_assert_eq!(limiter.wake(), None);
        let last = START + 4 * 3600 * SECOND;
        limiter.dispatch(last, &mut Vec::new());
        prop_assert!(limiter.unused_since().is_some());
        prop_assert!(DimensionSnapshot::all(&limiter, last).iter().all(|quota| quota.full_in.is_zero()), "{:?}", limiter.quotas());
    }

    /// External usage is learned from headers, so that at most one request is refused because of it.
    #[test]
    fn external_usage_in_the_headers_is_seen(jobs in prop::collection::vec(job(), 60..120), tokens in 4000..40_000u64) {
        let mut limiter = warm(limits(None, tokens));
        let outcome = run(&mut limiter, &jobs, None, tokens, true);
        prop_assert!(outcome.refused_by_groq <= 1, "{} of {}", outcome.refused_by_groq, outcome.sends);
    }

    /// 2 A grant fits into every quota, 3 a refusal changes none.
    #[test]
    fn a_grant_fits_every_dimension_and_a_refusal_changes_none(
        sizes in prop::collection::vec((1..3000u64, 0..3000u64, 0..3000u64), 1..60), tokens in 500..8000u64, requests in 1..40u64) {
        let mut limiter = warm(limits(Some(requests), tokens));
        let mut now = START;
        for (prompt, output_limit, gap) in sizes {
            now += gap * MS;
            let before = limiter.quotas().iter().map(|quota| quota.bucket().tat().max(now)).collect::<Vec<_>>();
            let verdict = limiter.submit(&request(1, prompt, output_limit), now, now, None, || true);
            let after = limiter.quotas().iter().map(|quota| quota.bucket().tat().max(now)).collect::<Vec<_>>();
            match verdict {
                Ok(Admission::Granted(grant)) => {
                    for (slot, quota) in limiter.quotas().iter().enumerate() {
                        let bucket = quota.bucket();
                        let asked = quota.units(&grant.cost());
                        prop_assert_eq!(after[slot], before[slot] + bucket.span(asked));
                        prop_assert!(bucket.remaining(now) >= 0.0, "a grant never causes debt");
                    }
                }
                Err(_) => prop_assert_eq!(before, after),
                Ok(Admission::Queued(_)) => prop_assert!(false, "queued without max wait"),
            }
        }
    }

    /// 7 Order of headers: only the headers of the newest request determine the result, in any order and with duplicates.
    #[test]
    fn only_the_newest_position_counts(sends in prop::collection::vec((1..100u64, 0..8000u64), 1..12), seed in any::<u64>()) {
        let mut straight = warm(limits(None, 8000));
        let mut shuffled = warm(limits(None, 8000));
        let mut grants = Vec::new();
        for (n, &(output_limit, remaining)) in sends.iter().enumerate() {
            // Further apart than network delays differ, so that no request overtakes another.
            let now = START + n as Ns * 150 * MS;
            let [one, other] = [&mut straight, &mut shuffled].map(|limiter| {
                let Ok(Admission::Granted(mut grant)) = limiter.submit(&request(1, 1, output_limit), now, now, None, || true) else { panic!("not admitted") };
                limiter.sent(&mut grant, now);
                grant
            });
            let state = Observation { tokens: Some(RemoteQuota { limit: 8000, remaining }), ..Observation::default() };
            grants.push((one, other, state));
        }
        let later = START + 3 * SECOND;
        let (mut last, _, state) = grants.last().expect("at least one").clone();
        straight.observe(&mut last, &state, later);
        let mut rng = fastrand::Rng::with_seed(seed);
        for round in 0..2 {
            let mut order: Vec<usize> = (0..grants.len()).collect();
            rng.shuffle(&mut order);
            for n in order {
                let (_, mut grant, state) = grants[n].clone();
                shuffled.observe(&mut grant, &state, later);
            }
            let tat = |limiter: &Limiter| limiter.quotas()[0].bucket().tat();
            prop_assert_eq!(tat(&straight), tat(&shuffled), "round {}", round);
        }
    }

    /// 9 Fairness: two backlogged apps are served by their weights, within two requests' cost.
    #[test]
    fn two_backlogged_apps_are_served_by_weight(sizes in prop::collection::vec(100..600u64, 60), weight in 1..4u32) {
        let mut limiter = warm(limits(None, 10_000));
        let mut queued = BTreeMap::new();
        let mut served = [0.0f64; 2];
        let mut events = Vec::new();
        // A third app empties the quota first, so that everybody waits.
        while let Ok(Admission::Granted(mut grant)) = limiter.submit(&request(9, 1, 900), START, START, None, || true) {
            limiter.sent(&mut grant, START);
            limiter.settle(grant, ActualUsage::Unknown, START);
        }
        for &size in &sizes {
            for app in 0..2u8 {
                let weight = if app == 1 { f64::from(weight) } else { 1.0 };
                let request = AdmissionRequest { weight, ..request(app, 0, size) };
                if let Ok(Admission::Queued(id)) = limiter.submit(&request, START, START + 100_000 * SECOND, None, || true) {
                    queued.insert(id, (app, size));
                }
            }
        }
        prop_assert_eq!(queued.len(), 2 * sizes.len());
        let mut count = [0; 2];
        while count.iter().all(|&count| count < sizes.len()) {
            let now = limiter.wake().unwrap_or(START);
            limiter.dispatch(now, &mut events);
            for event in events.drain(..) {
                let (id, Ok(mut grant)) = event else { panic!("rejected before its deadline") };
                let (app, size) = queued.remove(&id).expect("a waiting request");
                limiter.sent(&mut grant, now);
                limiter.settle(grant, ActualUsage::Tokens { prompt: 0, completion: Some(size), prompt_total: 0 }, now);
                served[usize::from(app)] += size as f64;
                count[usize::from(app)] += 1;
                if count.iter().all(|&count| count < sizes.len()) {
                    let gap = (served[0] - served[1] / f64::from(weight)).abs();
                    prop_assert!(gap <= 2.0 * 600.0 * 1.2, "{:?} at weight {}", served, weight);
                }
            }
        }
    }

    /// 11 A clock that goes back is ignored, and one that jumps ahead only refills quotas. 12 Limits from 1 to 2^40 work.
    #[test]
    fn odd_clocks_and_odd_limits(ops in prop::collection::vec((0..4u8, any::<u64>(), 0..u64::from(u32::MAX)), 1..60),
                                 limit in prop_oneof![Just(1u64), Just(2), Just(4_000_000_000), Just(u64::from(u32::MAX)), Just(1 << 40)]) {
        let model = ModelLimits {
            requests_per_minute: Some(limit), requests_per_day: Some(limit),
            tokens_per_minute: Some(limit), tokens_per_day: Some(limit),
            ..ModelLimits::default()
        };
        let mut limiter = Limiter::new("m".into(), tables(model), START);
        let mut held: Vec<Grant> = Vec::new();
        let mut events = Vec::new();
        for (op, number, cost) in ops {
            // Any time between long before the start and a year after it.
            let now = START / 2 + number % (START / 2 + 365 * 86_400 * SECOND);
            match op {
                0 => match limiter.submit(&request(number as u8, cost / 2, cost / 2), now, now + SECOND, None, || true) {
                    Ok(Admission::Granted(grant)) => held.push(grant),
                    Ok(Admission::Queued(_)) | Err(_) => {}
                },
                1 => {
                    if let Some(mut grant) = held.pop() {
                        limiter.sent(&mut grant, now);
                        // Headers with arbitrary values.
                        let arbitrary = |limit, remaining| Some(RemoteQuota { limit, remaining });
                        let state = Observation { tokens: arbitrary(cost, number), requests: arbitrary(number, cost), audio: arbitrary(cost, 0) };
                        limiter.observe(&mut grant, &state, now);
                        held.push(grant);
                    }
                }
                2 => {
                    if let Some(grant) = held.pop() {
                        limiter.settle(grant, ActualUsage::Tokens { prompt: cost, completion: Some(number), prompt_total: number }, now);
                    }
                }
                _ => {
                    if let Some(mut grant) = held.pop() {
                        limiter.sent(&mut grant, now);
                        let text = UpstreamRefusal {
                            dimension: Some(Dimension::TPM),
                            code: Some("TPM".into()),
                            unit: Some(Unit::Tokens),
                            limit: cost,
                            used: Some(number),
                            requested: cost / 2,
                            wait: Some(Duration::from_millis(3_723_500)),
                        };
                        let _place = limiter.refused(grant, Some(&text), &Observation::default(), None, now);
                    }
                }
            }
            limiter.dispatch(now, &mut events);
            for event in events.drain(..) {
                if let (_, Ok(grant)) = event {
                    held.push(grant);
                }
            }
        }
        for grant in held {
            limiter.settle(grant, ActualUsage::Nothing, START);
        }
        prop_assert_eq!(limiter.in_flight(), 0);
    }
}

/// A request of exactly the limit is admitted when the quota is full; a larger one never is.
#[test]
fn a_request_of_exactly_the_limit_is_admitted() {
    let mut limiter = warm(limits(Some(1), 8000));
    assert!(matches!(
        limiter.submit(&request(1, 0, 8001), START, START + SECOND, None, || true),
        Err(AdmissionError::TooLarge { .. })
    ));
    assert!(matches!(limiter.submit(&request(1, 0, 8000), START, START, None, || true), Ok(Admission::Granted(_))));
    for quota in limiter.quotas() {
        assert!(quota.peek(1, 0, START) > START, "{} is empty", quota.dimension.code);
    }
}

/// Batch requests get exactly their share while interactive requests wait.
#[test]
fn batch_gets_its_share() {
    let mut limiter = warm(limits(None, 60_000));
    let mut classes = BTreeMap::new();
    while let Ok(Admission::Granted(mut grant)) = limiter.submit(&request(9, 1, 2000), START, START, None, || true) {
        limiter.sent(&mut grant, START);
        limiter.settle(grant, ActualUsage::Unknown, START);
    }
    for n in 0..800 {
        let class = if n % 2 == 0 { Priority::Batch } else { Priority::Interactive };
        let request = AdmissionRequest { class, ..request(n as u8 % 2, 0, 500) };
        if let Ok(Admission::Queued(id)) = limiter.submit(&request, START, START + 100_000 * SECOND, None, || true) {
            classes.insert(id, class);
        }
    }
    let mut events = Vec::new();
    let (mut batch, mut all) = (0, 0);
    while all < 300 {
        let now = limiter.wake().unwrap_or(START);
        limiter.dispatch(now, &mut events);
        for event in events.drain(..) {
            let (id, Ok(mut grant)) = event else { panic!("rejected before its deadline") };
            limiter.sent(&mut grant, now);
            limiter.settle(grant, ActualUsage::Unknown, now);
            all += 1;
            batch += usize::from(classes[&id] == Priority::Batch);
        }
    }
    assert!((10..=20).contains(&batch), "{batch} of {all}");
}

/// Ten minutes of load at three times a limit of 60 000 tokens per minute.
fn overload() -> Vec<Job> {
    let mut rng = fastrand::Rng::with_seed(7);
    let job = |_| Job {
        app: rng.u8(..3),
        gap_ms: rng.u64(100..470),
        prompt: rng.u64(50..400),
        output_limit: rng.u64(200..2000),
        completion_share: rng.f64() * 0.6,
        latency_ms: rng.u64(500..8000),
        cancelled_after: None,
    };
    (0..2100).map(job).collect()
}

/// Tokens used per minute, from the third to the tenth minute.
fn used_per_minute(outcome: &Outcome) -> f64 {
    let steady = START + 180 * SECOND..START + 600 * SECOND;
    outcome.grants.iter().filter(|(at, _)| steady.contains(at)).map(|&(_, used)| used as f64).sum::<f64>() / 7.0
}

/// Under overload no request is refused, and at least 98.5 % of the limit is used.
#[test]
fn overload_uses_the_limit_without_a_refusal() {
    let mut limiter = warm(limits(None, 60_000));
    let outcome = run(&mut limiter, &overload(), None, 60_000, false);
    assert_eq!(outcome.refused_by_groq, 0);
    assert!(used_per_minute(&outcome) >= 0.985 * 60_000.0, "{}", used_per_minute(&outcome));
}
