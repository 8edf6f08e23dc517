//! Invariant 10: small requests delay a large one only by a bounded time.

use std::collections::{BTreeMap, BTreeSet};

use groq_limiter::{ActualUsage, limiter::Admission};
use proptest::prelude::*;

use crate::start::{MS, SECOND, START, limits, request, warm};

/// The wait of a request at the head of the queue may grow by this share, plus this many nanoseconds.
const BYPASS_BUDGET: (f64, u64) = (0.25, 50 * MS);

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    /// 10 No starvation: a blocked request at the head of the queue is sent at the latest at its own time, plus a quarter of its
    /// wait, 50 ms, and the time for the units of apps with smaller start tags. The safety margin depends on the usual size of
    /// requests, and its growth may delay the head as well. `before` is what the head's app has used before, so that other apps
    /// come first.
    #[test]
    fn no_starvation(flood in prop::collection::vec((1..5u8, 0..400u64, 1..400u64), 1..250), limit in 10_000..100_000u64,
                     large in 1000..6000u64, before in prop_oneof![Just(0u64), 100..1500u64]) {
        let mut limiter = warm(limits(None, limit));
        let mut events = Vec::new();
        let part = |of_ten_thousand: u64| (limit * of_ten_thousand / 10_000).max(1);
        // Six hundredths each empty the quota.
        while let Ok(Admission::Granted(mut grant)) = limiter.submit(&request(9, 0, part(600)), START, START, None, || true) {
            limiter.sent(&mut grant, START);
            limiter.settle(grant, ActualUsage::Unknown, START);
        }
        let mut now = START;
        if before > 0 {
            let Ok(Admission::Queued(id)) = limiter.submit(&request(8, 0, part(before)), now, now + 3600 * SECOND, None, || true) else {
                panic!("admitted although the quota is used")
            };
            limiter.dispatch(now, &mut events);
            now = limiter.blocked_until().expect("a waiting request");
            limiter.dispatch(now, &mut events);
            let Some((granted, Ok(mut grant))) = events.pop() else { panic!("not admitted at its time") };
            prop_assert_eq!(granted, id);
            limiter.sent(&mut grant, now);
            limiter.settle(grant, ActualUsage::Unknown, now);
        }
        let Ok(Admission::Queued(head)) = limiter.submit(&request(8, 0, part(large)), now, now + 3600 * SECOND, None, || true) else {
            panic!("admitted although the quota is used")
        };
        limiter.dispatch(now, &mut events);
        let blocked_at = now;
        let own_time = limiter.blocked_until().expect("a waiting request");
        prop_assert_eq!(limiter.quotas()[0].peek(part(large), 0, now), own_time);

        // A new app starts at the start tag of the last request served, so it can be ahead by at most the cost of that one; doubled,
        // because costs are estimates.
        let apps = flood.iter().map(|&(app, ..)| app).collect::<BTreeSet<_>>().len() as u64;
        let first = if before > 0 { apps * (2 * part(before) + part(400)) } else { 0 };
        let span = limiter.quotas()[0].bucket().span(first);
        let bypass_budget = ((own_time - blocked_at) as f64 * BYPASS_BUDGET.0) as u64 + BYPASS_BUDGET.1;
        let latest = own_time + bypass_budget + span;
        let margin = limiter.quotas()[0].margin(part(large));
        let mut most = margin;

        let mut arrivals = BTreeMap::new();
        let mut at = now;
        for &(app, gap, units) in flood.iter().cycle().take(4 * flood.len()) {
            at += gap * MS;
            arrivals.insert((at, arrivals.len()), (app, units));
        }
        let mut out = None;
        while out.is_none() {
            let next = arrivals.first_key_value().map(|(&(at, _), _)| at);
            now = next.into_iter().chain(limiter.wake()).min().expect("the head waits");
            most = most.max(limiter.quotas()[0].margin(part(large)));
            let mut grants = Vec::new();
            if next == Some(now) {
                let (_, (app, units)) = arrivals.pop_first().expect("an arrival");
                match limiter.submit(&request(app, 0, part(units)), now, now + 36_000 * SECOND, None, || true) {
                    Ok(Admission::Granted(grant)) => grants.push(grant),
                    Ok(Admission::Queued(_)) => {}
                    Err(refusal) => prop_assert!(false, "rejected before its deadline: {refusal:?}"),
                }
            }
            limiter.dispatch(now, &mut events);
            for event in events.drain(..) {
                let (id, Ok(grant)) = event else { panic!("rejected before its deadline") };
                if id == head {
                    out = Some(now);
                }
                grants.push(grant);
            }
            for mut grant in grants {
                limiter.sent(&mut grant, now);
                limiter.settle(grant, ActualUsage::Unknown, now);
            }
        }
        let grown = limiter.quotas()[0].bucket().span(most - margin);
        let late = out.expect("it went").saturating_sub(latest + grown);
        let own = own_time - blocked_at;
        prop_assert_eq!(late, 0, "own wait {} ms, bypass budget {} ms, {} ms too late", own / MS, bypass_budget / MS, late / MS);
    }
}
