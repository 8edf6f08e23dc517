//! How long can small requests keep a large one waiting? Invariant 10.

use std::collections::{BTreeMap, BTreeSet};

use groq_limiter::{
    Spent,
    bucket::Fit,
    lane::{Event, Verdict},
};
use proptest::prelude::*;

use crate::start::{MS, SECOND, START, ask, limits, warm};

/// A head's own time may grow by this share, and a little.
const SLACK: (f64, u64) = (0.25, 50 * MS);

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    /// 10 No starvation: a blocked head goes out by its own time, a quarter of its wait, 50 ms, and what apps with
    /// smaller start tags took meanwhile. The standing reserve follows what is usually asked for, and may grow by that.
    /// `before`: what its own app has had before, so that others come first.
    #[test]
    fn no_starvation(flood in prop::collection::vec((1..5u8, 0..400u64, 1..400u64), 1..250), limit in 10_000..100_000u64,
                     large in 1000..6000u64, before in prop_oneof![Just(0u64), 100..1500u64]) {
        let mut lane = warm(limits(None, limit));
        let mut events = Vec::new();
        let part = |of_ten_thousand: u64| (limit * of_ten_thousand / 10_000).max(1);
        // Six hundredths each empty the level.
        while let Verdict::Go(mut charge) = lane.submit(&ask(9, 0, part(600)), START, START, None, true) {
            lane.sent(&mut charge, START);
            lane.settle(*charge, Spent::Charge, START);
        }
        let mut now = START;
        if before > 0 {
            let Verdict::Wait(id) = lane.submit(&ask(8, 0, part(before)), now, now + 3600 * SECOND, None, true) else {
                panic!("the level is empty")
            };
            lane.pump(now, &mut events);
            now = lane.blocked_until().expect("it waits");
            lane.pump(now, &mut events);
            let Some(Event::Go(granted, mut charge)) = events.pop() else { panic!("its time has come") };
            prop_assert_eq!(granted, id);
            lane.sent(&mut charge, now);
            lane.settle(charge, Spent::Charge, now);
        }
        let Verdict::Wait(head) = lane.submit(&ask(8, 0, part(large)), now, now + 3600 * SECOND, None, true) else {
            panic!("the level is empty")
        };
        lane.pump(now, &mut events);
        let blocked_at = now;
        let own_time = lane.blocked_until().expect("it waits");
        prop_assert_eq!(lane.levels()[0].peek(part(large), now), Fit::At(own_time));

        // Each app comes in beside the last one served, so it is behind by what that was at most, twice for prices.
        let apps = flood.iter().map(|&(app, ..)| app).collect::<BTreeSet<_>>().len() as u64;
        let first = if before > 0 { apps * (2 * part(before) + part(400)) } else { 0 };
        let span = lane.levels()[0].bucket().expect("a limit").span(first);
        let slack = ((own_time - blocked_at) as f64 * SLACK.0) as u64 + SLACK.1;
        let latest = own_time + slack + span;
        let reserve = lane.levels()[0].reserve(part(large));
        let mut most = reserve;

        let mut arrivals = BTreeMap::new();
        let mut at = now;
        for &(app, gap, units) in flood.iter().cycle().take(4 * flood.len()) {
            at += gap * MS;
            arrivals.insert((at, arrivals.len()), (app, units));
        }
        let mut out = None;
        while out.is_none() {
            let next = arrivals.first_key_value().map(|(&(at, _), _)| at);
            now = next.into_iter().chain(lane.wake()).min().expect("the head waits");
            most = most.max(lane.levels()[0].reserve(part(large)));
            let mut charges = Vec::new();
            if next == Some(now) {
                let (_, (app, units)) = arrivals.pop_first().expect("there is one");
                match lane.submit(&ask(app, 0, part(units)), now, now + 36_000 * SECOND, None, true) {
                    Verdict::Go(charge) => charges.push(*charge),
                    Verdict::Wait(_) => {}
                    Verdict::No(refusal) => prop_assert!(false, "there is time: {refusal:?}"),
                }
            }
            lane.pump(now, &mut events);
            for event in events.drain(..) {
                let Event::Go(id, charge) = event else { panic!("there is time") };
                if id == head {
                    out = Some(now);
                }
                charges.push(charge);
            }
            for mut charge in charges {
                lane.sent(&mut charge, now);
                lane.settle(charge, Spent::Charge, now);
            }
        }
        let grown = lane.levels()[0].bucket().expect("a limit").span(most - reserve);
        let late = out.expect("it went").saturating_sub(latest + grown);
        let own = own_time - blocked_at;
        prop_assert_eq!(late, 0, "{} ms of its own, {} ms of slack, {} ms too late", own / MS, slack / MS, late / MS);
    }
}
