use std::time::Duration;

use super::*;
use crate::types::Source;

const NOW: Ns = 1_000_000_000_000;

fn configured(limit: u64) -> Statements {
    Statements { configured: Some(limit), ..Statements::default() }
}

fn quota(dimension: Dimension, statements: Statements, now: Ns) -> Quota {
    let mut quota = Quota::new(dimension, 0.0, now);
    quota.set_statements(statements, 0, now);
    quota
}

/// A quota of 6000 a minute that two replicas share through the store.
fn attached() -> Quota {
    let mut quota = quota(Dimension::TPM, configured(6000), NOW);
    quota.share(None, NOW);
    quota
}

/// The units that the store would release if this replica crashed.
fn outstanding(quota: &mut Quota) -> u64 {
    let unit = quota.bucket().span(1);
    quota.cell(None, NOW).expect("it has a limit").outstanding as u64 * 1000 / unit
}

/// What is outstanding is kept in ns. Unless it were converted, it would be another number of units under another limit, and
/// the store could release too much.
#[test]
fn what_is_outstanding_stays_the_same_number_of_units_under_another_limit() {
    let mut quota = attached();
    quota.booked(100, NOW);
    quota.booked(50, NOW);
    assert_eq!(outstanding(&mut quota), 150);
    for limit in [12_000, 250, 6000] {
        quota.set_statements(configured(limit), 0, NOW);
        assert_eq!(outstanding(&mut quota), 150, "limit {limit}");
    }
    quota.ended(100);
    assert_eq!(outstanding(&mut quota), 50);
}

/// Ten requests are booked of a limit of sixty per minute, and for five seconds no answer shows that they have arrived.
#[test]
fn requests_that_may_not_have_arrived_are_reported_to_the_store() {
    const SECOND: Ns = 1_000_000_000;
    let mut quota = quota(Dimension::RPM, configured(60), NOW);
    quota.share(None, NOW);
    let told = |quota: &mut Quota, at| {
        quota.tick(at);
        quota.cell(None, at).expect("it has a limit").settled
    };
    quota.follow(BucketState { tat: NOW + 10 * SECOND, corrections: 0 }, false, NOW);
    quota.booked(10, NOW);
    quota.sent(1, 10, true, NOW);
    assert_eq!(told(&mut quota, NOW), 0);
    // The safety margin covers a delay of one second, so only four are reported.
    assert_eq!(told(&mut quota, NOW + 5 * SECOND), 4_000_000);
    quota.answered(NOW);
    assert_eq!(told(&mut quota, NOW + 20 * SECOND), 0);
}

#[test]
fn without_a_limit_nothing_is_reported_to_the_store() {
    let mut quota = attached();
    quota.booked(100, NOW);
    quota.set_statements(Statements::default(), 0, NOW);
    assert!(quota.cell(None, NOW).is_none());
    quota.ended(60);
    quota.set_statements(configured(6000), 0, NOW + Duration::from_secs(1).as_nanos() as Ns);
    assert_eq!(outstanding(&mut quota), 40);
}

#[test]
fn use_before_our_first_request_is_no_external_usage() {
    let statements = Statements { stated: Some((60_000, Source::Headers)), ..Statements::default() };
    let mut quota = quota(Dimension::TPM, statements, 0);
    let reported = |quota: &Quota, position, used| Reported { position, snapshot: quota.send_snapshot(), used, at: 0 };
    quota.observe(reported(&quota, 1, 57_000), 0);
    assert_eq!((quota.external(), quota.bucket().tat() > 0), (0.0, true), "only the quota is corrected");
    quota.observe(reported(&quota, 2, 60_000), 0);
    assert!((0.04..0.06).contains(&quota.external()), "others took a twentieth of a minute's limit since then");
}

/// 110,000 units of one a day take longer than a signed number of nanoseconds counts. They must not become a refund.
#[test]
fn a_settlement_beyond_all_bounds_is_no_refund() {
    let mut quota = quota(Dimension::TPD, configured(1), NOW);
    quota.share(None, NOW);
    quota.settle(1, 110_000, NOW);
    assert!(quota.cell(None, NOW).expect("it has a limit").settled > 0);
}
