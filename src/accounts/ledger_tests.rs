//! Reservations, refusals, settlement and saved state of the ledger, at given times.

use proptest::prelude::*;

use super::*;
use crate::accounts::{Unit, account::MAX_ACCOUNTS};

pub(super) const DAY: u64 = 86_400;

pub(super) fn tokens(tokens: u64) -> Amounts {
    Amounts { requests: 1, tokens, nano_usd: tokens * 50 }
}

pub(super) fn per_day(limit: u64) -> [Budget; 1] {
    [Budget { unit: Unit::Tokens, period: Period::Day, limit }]
}

pub(super) fn app() -> Arc<str> {
    "a".into()
}

#[test]
fn a_spent_budget_refuses_until_the_next_day() {
    let ledger = Arc::<Ledger>::default();
    let reserve = |now| ledger.reserve(&app(), &per_day(100), tokens(60), now, 1);
    let mut first = reserve(10 * DAY + 5).expect("nothing is used");
    first.used(tokens(90));
    drop(first);
    reserve(10 * DAY + 6).expect("10 are left, and nothing is in flight").used(tokens(30));
    let exceeded = reserve(10 * DAY + 7).expect_err("120 of 100 are used");
    assert_eq!((exceeded.used, exceeded.resets_in.as_secs()), (120, DAY - 7));
    assert_eq!(ledger.usage("a", 10 * DAY + 8).reserved, Amounts::default(), "a refusal reserves nothing");
    reserve(11 * DAY).expect("a new day");
    let month = ledger.usage("a", 11 * DAY);
    assert_eq!((month.day.tokens, month.month.tokens), (0, 120));
}

#[test]
fn what_is_in_flight_is_reserved() {
    let ledger = Arc::<Ledger>::default();
    let reserve = || ledger.reserve(&app(), &per_day(100), tokens(60), DAY, 1);
    let (first, second) = (reserve().expect("0 of 100"), reserve().expect("60 of 100"));
    let exceeded = reserve().expect_err("120 are reserved");
    assert_eq!(exceeded.used, 0);
    drop((first, second));
    reserve().expect("nothing was used");
}

#[test]
fn a_clock_that_goes_back_grants_nothing_twice() {
    let ledger = Arc::<Ledger>::default();
    let spend = |now| ledger.reserve(&app(), &per_day(100), tokens(100), now, 1).map(|mut permit| permit.used(tokens(100)));
    spend(40 * DAY).expect("the first day");
    spend(41 * DAY).expect("the next day");
    for now in [40 * DAY, 41 * DAY, 0] {
        assert!(spend(now).is_err(), "at {now}");
    }
    spend(42 * DAY).expect("a later day");
}

/// A clock that was wrong must not cause refusals until the day that it showed.
#[test]
fn a_clock_that_goes_forward_and_back_grants_each_day_once() {
    const YEARS: u64 = 10_000 * DAY;
    let ledger = Arc::<Ledger>::default();
    let spend = |now| ledger.reserve(&app(), &per_day(100), tokens(100), now, 1).map(|mut permit| permit.used(tokens(100)));
    spend(40 * DAY).expect("the first day");
    spend(40 * DAY + YEARS).expect("another day by that clock");
    assert!(spend(40 * DAY).is_err(), "back again");
    spend(41 * DAY).expect("the next day");
    // The same where the process began with the wrong clock.
    let ledger = Arc::<Ledger>::default();
    let spend = |now| ledger.reserve(&app(), &per_day(100), tokens(100), now, 1).map(|mut permit| permit.used(tokens(100)));
    spend(40 * DAY + YEARS).expect("the first day");
    assert!(spend(40 * DAY).is_err(), "nothing is granted twice");
    spend(41 * DAY).expect("the next day");
}

/// It counts for the day in which it was reserved, and not for the new day.
#[test]
fn what_is_in_flight_at_midnight_counts_for_the_day_in_which_it_was_reserved() {
    let ledger = Arc::<Ledger>::default();
    let reserve = |now| ledger.reserve(&app(), &per_day(100), tokens(60), now, 1);
    let mut before = vec![reserve(11 * DAY - 1).expect("nothing is used"), reserve(11 * DAY - 1).expect("60 are reserved")];
    assert!(reserve(11 * DAY - 1).is_err(), "120 are reserved");
    let after = [reserve(11 * DAY).expect("a new day"), reserve(11 * DAY).expect("60 are reserved")];
    before.iter_mut().for_each(|permit| permit.used(tokens(90)));
    drop(before);
    assert_eq!(ledger.usage("a", 11 * DAY).day, Amounts::default());
    assert_eq!((ledger.usage("a", 11 * DAY - 1).day.tokens, ledger.usage("a", 11 * DAY).month.tokens), (180, 180));
    assert_eq!(ledger.usage("a", 11 * DAY).reserved.tokens, 120);
    drop(after);
}

/// Under constant load each day grants its budget exactly once.
#[test]
fn every_day_grants_its_budget_once() {
    let ledger = Arc::<Ledger>::default();
    let mut in_flight = std::collections::VecDeque::new();
    let mut admitted = [0; 3];
    for now in (100 * DAY..103 * DAY).step_by(600) {
        if let Ok(mut permit) = ledger.reserve(&app(), &per_day(1000), tokens(50), now, 1) {
            permit.used(tokens(50));
            admitted[(now / DAY - 100) as usize] += 50;
            in_flight.push_back(permit);
        }
        // Each request takes fifty minutes.
        if in_flight.len() > 5 {
            in_flight.pop_front();
        }
    }
    assert_eq!(admitted, [1000; 3]);
}

#[test]
fn a_budget_lowered_below_what_is_used_refuses_at_once() {
    let ledger = Arc::<Ledger>::default();
    ledger.reserve(&app(), &per_day(1000), tokens(10), DAY, 1).expect("0 of 1000").used(tokens(500));
    assert!(ledger.reserve(&app(), &per_day(400), tokens(10), DAY, 1).is_err());
    assert!(ledger.reserve(&app(), &per_day(501), tokens(10), DAY, 1).is_ok());
    assert!(ledger.reserve(&app(), &[], tokens(10), DAY, 1).is_ok(), "without budgets");
    assert!(ledger.reserve(&app(), &per_day(2000), tokens(10), DAY, 1).is_ok(), "a budget that is raised");
}

#[test]
fn apps_beyond_the_bound_share_an_account_and_named_ones_do_not() {
    let ledger = Arc::<Ledger>::default();
    ledger.name_apps(["named"]);
    let spend =
        |app: &str, now| ledger.reserve(&app.into(), &per_day(100), tokens(1), now, 1).map(|mut permit| permit.used(tokens(1)));
    for n in 0..MAX_ACCOUNTS {
        spend(&format!("app-{n}"), DAY).expect("nothing is used");
    }
    for n in 0..100 {
        spend(&format!("more-{n}"), DAY).expect("less than 100 are used");
    }
    assert_eq!(spend("more-0", DAY).expect_err("all of them share one budget").used, 100);
    assert_eq!(spend("another", DAY).expect_err("whoever comes next").used, 100);
    spend("app-0", DAY).expect("it has its own");
    spend("named", DAY).expect("so has an app with an entry");
    assert_eq!(ledger.list(DAY).len(), MAX_ACCOUNTS + 2);
    // Next month nobody has used anything.
    spend("another", 40 * DAY).expect("a new month");
    assert_eq!(ledger.list(40 * DAY).len(), 1);
}

#[test]
fn what_is_saved_counts_what_was_in_flight() {
    let ledger = Arc::<Ledger>::default();
    assert_eq!(ledger.take_changes(), None);
    ledger.reserve(&app(), &[], tokens(1), DAY, 1).expect("no budget").used(tokens(7));
    let in_flight = ledger.reserve(&app(), &[], tokens(30), DAY, 1).expect("no budget");
    let saved = ledger.take_changes().expect("it has changed");
    assert_eq!(ledger.take_changes(), None);
    let text = serde_json::to_string(&saved).expect("JSON");
    let restored = Arc::<Ledger>::default();
    restored.restore(serde_json::from_str(&text).expect("the same"));
    assert_eq!(restored.usage("a", DAY).day.tokens, 37);
    assert_eq!(
        restored.usage("a", 2 * DAY),
        AppUse { month: tokens(37).plus(Amounts { requests: 1, ..Amounts::default() }), ..AppUse::default() }
    );
    drop(in_flight);
    assert_eq!(ledger.usage("a", DAY).day.tokens, 7, "the running process settles what it had in flight");
}

proptest! {
    /// However requests overlap, one is admitted if and only if what was used and reserved is below the limit, so a budget is
    /// exceeded by at most what was in flight.
    #[test]
    fn a_budget_is_exceeded_by_at_most_what_was_in_flight(
        steps in proptest::collection::vec((any::<bool>(), 1..200_u64, 0..200_u64), 1..100),
    ) {
        const LIMIT: u64 = 1000;
        let ledger = Arc::<Ledger>::default();
        let mut in_flight: Vec<(u64, Permit)> = Vec::new();
        let mut used_so_far = 0;
        for (ends, estimate, used) in steps {
            let reserved: u64 = in_flight.iter().map(|(estimate, _)| estimate).sum();
            if ends && !in_flight.is_empty() {
                in_flight.remove(0).1.used(tokens(used));
                used_so_far += used;
            } else {
                let permit = ledger.reserve(&app(), &per_day(LIMIT), tokens(estimate), DAY, 1);
                prop_assert_eq!(permit.is_ok(), used_so_far + reserved < LIMIT);
                in_flight.extend(permit.ok().map(|permit| (estimate, permit)));
            }
            prop_assert_eq!(ledger.usage("a", DAY).day.tokens, used_so_far);
        }
        in_flight.clear();
        prop_assert_eq!(ledger.usage("a", DAY).reserved, Amounts::default());
    }
}
