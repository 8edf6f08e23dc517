use proptest::prelude::*;

use super::*;

/// The same bucket in exact integers. What is used is a time in ns, which shrinks as time passes.
struct Reference {
    full_at: i128,
    unit: i128,
    limit: i128,
}

impl Reference {
    fn used(&self, now: i128) -> i128 {
        (self.full_at - now).max(0)
    }

    fn fits_at(&self, asked: i128, margin: i128, now: i128) -> Option<i128> {
        if asked > self.limit {
            return None;
        }
        let at = self.full_at + (asked + margin - self.limit) * self.unit;
        Some(at.max(now))
    }
}

#[derive(Clone, Debug)]
enum Op {
    Wait(u64),
    Peek(u64, u64),
    Take(u64),
    Debit(u64),
    Refund(u64),
    Correct(i64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        (0..100_000_000_000u64).prop_map(Op::Wait),
        (0..1_200_000u64, 0..1000u64).prop_map(|(a, r)| Op::Peek(a, r)),
        (0..600_000u64).prop_map(Op::Take),
        (0..600_000u64).prop_map(Op::Debit),
        (0..600_000u64).prop_map(Op::Refund),
        (-1_000_000_000_000..1_000_000_000_000i64).prop_map(Op::Correct),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn equals_an_exact_bucket(limit in prop_oneof![Just(1u64), 2..500_000u64, Just(u64::from(u32::MAX))],
                              day in any::<bool>(), ops in prop::collection::vec(op(), 1..60)) {
        let period = Duration::from_secs(if day { 86_400 } else { 60 });
        let mut now: Ns = 864_000_000_000_000;
        let mut bucket = Bucket::new(Some(limit), period);
        bucket.set_tat(now, now);
        let mut exact = Reference { full_at: now.into(), unit: bucket.unit.into(), limit: limit.into() };
        for op in ops {
            match op {
                Op::Wait(ns) => now += ns,
                Op::Peek(asked, margin) => {
                    let margin = margin.min(limit.saturating_sub(asked));
                    let fit = bucket.peek(asked, margin, now);
                    let expected = match exact.fits_at(asked.into(), margin.into(), now.into()) {
                        _ if asked == 0 => now,
                        None => NEVER,
                        Some(at) => at as Ns,
                    };
                    prop_assert_eq!(fit, expected);
                }
                Op::Take(n) => {
                    let fits = exact.fits_at(n.into(), 0, now.into()).is_some_and(|at| at == i128::from(now));
                    prop_assert_eq!(bucket.take(n, now) == now, fits || n == 0);
                    if fits && n > 0 {
                        exact.full_at = now as i128 + exact.used(now.into()) + i128::from(n) * exact.unit;
                    }
                }
                Op::Debit(n) => {
                    bucket.debit(n, now);
                    exact.full_at = (now as i128 + exact.used(now.into())) + i128::from(n) * exact.unit;
                    exact.full_at = exact.full_at.min(now as i128 + i128::from(MAX_DEBT_PERIODS * bucket.period));
                }
                Op::Refund(n) => {
                    bucket.refund(n);
                    exact.full_at = (exact.full_at - i128::from(n) * exact.unit).max(0);
                }
                Op::Correct(by) => {
                    bucket.correct(by, 0, now);
                    exact.full_at = (exact.full_at + i128::from(by)).max(0).min(now as i128 + i128::from(MAX_DEBT_PERIODS * bucket.period));
                }
            }
            prop_assert_eq!(i128::from(bucket.tat()), exact.full_at);
        }
    }

    #[test]
    fn saturation_never_more_than_the_limit_at_once(limit in 1..100_000u64, refunds in prop::collection::vec(0..200_000u64, 0..20)) {
        let now = 864_000_000_000_000;
        let mut bucket = Bucket::new(Some(limit), Duration::from_secs(60));
        for refund in refunds {
            bucket.refund(refund);
        }
        prop_assert_eq!(bucket.peek(limit, 0, now), now);
        prop_assert_eq!(bucket.take(limit, now), now);
        prop_assert!(bucket.peek(1, 0, now) > now);
        // After an idle period the bucket is full, whatever happened before.
        prop_assert_eq!(bucket.peek(limit, 0, now + bucket.span(limit)), now + bucket.span(limit));
    }

    #[test]
    fn quota_change_keeps_what_was_used(before in 1..1_000_000u64, after in 1..1_000_000u64, share in 0.0..3.0f64) {
        let now = 864_000_000_000_000;
        let mut bucket = Bucket::new(Some(before), Duration::from_secs(60));
        let used = (before as f64 * share) as u64;
        bucket.debit(used, now);
        bucket.requota(Some(after), now);
        let kept = after as f64 - bucket.remaining(now);
        let expected = (used as f64).min(after as f64 * MAX_DEBT_PERIODS as f64);
        // The time of one unit is rounded up to whole nanoseconds.
        let rounding = 1.0 + expected / bucket.unit as f64;
        prop_assert!((kept - expected).abs() <= rounding, "{} became {}", used, kept);
    }
}

/// Found by the fuzz target `redis`: governor's sum overflowed.
#[test]
fn a_margin_may_be_any_number() {
    let now = 864_000_000_000_000;
    let mut bucket = Bucket::new(Some(8000), Duration::from_secs(60));
    bucket.set_tat(now, now);
    for margin in [8001, u64::MAX / bucket.unit, u64::MAX] {
        assert!((now + 1..NEVER).contains(&bucket.peek(1, margin, now)), "{margin}");
    }
}

#[test]
fn none_zero_and_over_u32_are_no_limit() {
    for limit in [None, Some(0), Some(1 << 32)] {
        assert_eq!(Bucket::new(limit, Duration::from_secs(60)).limit(), None, "{limit:?}");
    }
    let mut bucket = Bucket::new(None, Duration::from_secs(60));
    bucket.debit(1_000_000, 1000);
    assert_eq!(bucket.peek(1_000_000, 1_000_000, 1000), 1000);
}
