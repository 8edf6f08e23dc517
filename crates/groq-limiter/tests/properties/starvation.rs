//! How long can small requests keep a large one waiting? Invariant 10.

use std::collections::{BTreeMap, BTreeSet};

use groq_limiter::{ActualUsage, bucket::Readiness, limiter::Admission};
use proptest::prelude::*;

use crate::start::{MS, SECOND, START, limits, request, warm};

/// A head's own time may grow by this share, and a little.
const BYPASS_BUDGET: (f64, u64) = (0.25, 50 * MS);

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    /// 10 No starvation: a blocked head goes out by its own time, a quarter of its wait, 50 ms, and what apps with
    /// smaller start tags took meanwhile. The standing margin follows what is usually asked for, and may grow by that.
    /// `before`: what its own app has had before, so that others come first.
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
                panic!("the quota is empty")
            };
            limiter.dispatch(now, &mut events);
            now = limiter.blocked_until().expect("it waits");
            limiter.dispatch(now, &mut events);
            let Some((granted, Ok(mut grant))) = events.pop() else { panic!("its time has come") };
            prop_assert_eq!(granted, id);
            limiter.sent(&mut grant, now);
            limiter.settle(grant, ActualUsage::Unknown, now);
        }
        let Ok(Admission::Queued(head)) = limiter.submit(&request(8, 0, part(large)), now, now + 3600 * SECOND, None, || true) else {
            panic!("the quota is empty")
        };
        limiter.dispatch(now, &mut events);
        let blocked_at = now;
        let own_time = limiter.blocked_until().expect("it waits");
        prop_assert_eq!(limiter.quotas()[0].peek(part(large), 0, now), Readiness::At(own_time));

        // Each app comes in beside the last one served, so it is behind by what that was at most, twice for prices.
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
                let (_, (app, units)) = arrivals.pop_first().expect("there is one");
                match limiter.submit(&request(app, 0, part(units)), now, now + 36_000 * SECOND, None, || true) {
                    Ok(Admission::Granted(grant)) => grants.push(grant),
                    Ok(Admission::Queued(_)) => {}
                    Err(refusal) => prop_assert!(false, "there is time: {refusal:?}"),
                }
            }
            limiter.dispatch(now, &mut events);
            for event in events.drain(..) {
                let (id, Ok(grant)) = event else { panic!("there is time") };
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
        prop_assert_eq!(late, 0, "{} ms of its own, {} ms of bypass_budget, {} ms too late", own / MS, bypass_budget / MS, late / MS);
    }
}
