//! How full is one limit? A continuously draining bucket: governor's GCRA does the admission arithmetic,
//! this file what governor lacks: peeking with a standing reserve, refunds, debts, corrections, a new quota.
//!
//! The state is one number, `tat`: the instant at which the bucket would be full again if nothing more were
//! taken. Times are nanoseconds on the lane's clock, an argument of every call.

use std::{num::NonZeroU32, time::Duration};

use crate::ablation::Mechanism;
use governor::{
    Quota, RateLimiter,
    clock::Clock,
    middleware::NoOpMiddleware,
    nanos::Nanos,
    state::{NotKeyed, StateStore},
};

/// Nanoseconds: an instant on a lane's clock, or a span.
pub type Ns = u64;

/// Debts beyond so many periods are cut: nobody waits that long, and a limit that was stated by mistake silences nobody for longer.
const DEEPEST_DEBT: u64 = 10;

/// When an amount fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fit {
    /// At once.
    Now,
    /// At this instant and not a nanosecond before, if nothing else happens.
    At(Ns),
    /// More than the limit can ever hold.
    Never,
}

/// One limit's bucket.
#[derive(Debug)]
pub struct Bucket {
    tat: Ns,
    limit: NonZeroU32,
    period: Ns,
    unit: Ns,
}

impl Bucket {
    /// A full bucket of `limit` units that fills in `period`; `None` over `u32::MAX` units, which counts as no limit,
    /// and for a limit or a period of nothing.
    pub fn new(limit: u64, period: Duration) -> Option<Self> {
        let limit = NonZeroU32::new(u32::try_from(limit).ok()?)?;
        let period = Ns::try_from(period.as_nanos()).ok().filter(|&p| p > 0)?;
        // Rounded up: never faster than the upstream.
        let unit = period.div_ceil(u64::from(limit.get()));
        Some(Self { tat: 0, limit, period, unit })
    }

    /// The same used units under another limit: neither a fresh burst nor a lost one.
    pub fn requota(self, limit: u64, now: Ns) -> Option<Self> {
        let mut next = Self::new(limit, Duration::from_nanos(self.period))?;
        let used = u128::from(self.tat.saturating_sub(now)) * u128::from(next.unit) / u128::from(self.unit);
        next.set_tat(now.saturating_add(Ns::try_from(used).unwrap_or(Ns::MAX)), now);
        Some(next)
    }

    /// Whether `asked` fits while `reserve` units stay untouched. Changes nothing.
    pub fn peek(&self, asked: u64, reserve: u64, now: Ns) -> Fit {
        // governor multiplies before it compares: what is over the limit must not reach it.
        let Some(asked) = u32::try_from(asked).ok().filter(|&asked| asked <= self.limit.get()) else { return Fit::Never };
        let Some(asked) = NonZeroU32::new(asked) else { return Fit::Now };
        let Some(quota) = Quota::with_period(Duration::from_nanos(self.unit)) else { return Fit::Never };
        let look = Look { now, tat: self.tat.saturating_add(self.span(reserve)) };
        // Made for this look: what a lane keeps of a limit is a few numbers, and nothing beside it on the heap.
        let limiter: RateLimiter<_, _, _, NoOpMiddleware<Nanos>> = RateLimiter::new(quota.allow_burst(self.limit), look, look);
        match limiter.check_n(asked) {
            Ok(Ok(())) => Fit::Now,
            Ok(Err(until)) => Fit::At(until.earliest_possible().as_u64()),
            Err(_) => Fit::Never,
        }
    }

    /// Takes `amount` units, into debt if need be.
    pub fn charge(&mut self, amount: u64, now: Ns) {
        self.set_tat(self.tat.max(now).saturating_add(self.span(amount)), now);
    }

    /// Gives `amount` units back. More than the limit is never there at once: `charge` starts from now at the earliest.
    pub fn refund(&mut self, amount: u64) {
        self.tat = self.tat.saturating_sub(self.span(amount));
    }

    /// Moves the level by a correction: more used for a positive one.
    pub fn correct(&mut self, by: i64, now: Ns) {
        self.set_tat(self.tat.saturating_add_signed(by), now);
    }

    /// Sets the instant of fullness.
    pub fn set_tat(&mut self, tat: Ns, now: Ns) {
        let deepest = if Mechanism::DebtCut.is_on() { self.period.saturating_mul(DEEPEST_DEBT) } else { u64::MAX };
        self.tat = tat.min(now.saturating_add(deepest));
    }

    /// The instant at which it is full again; in the past for a full one.
    pub fn tat(&self) -> Ns {
        self.tat
    }

    /// The limit, units.
    pub fn limit(&self) -> u64 {
        self.limit.get().into()
    }

    /// Time in which it fills.
    pub fn period(&self) -> Ns {
        self.period
    }

    /// The time in which `amount` units come back.
    pub fn span(&self, amount: u64) -> Ns {
        self.unit.saturating_mul(amount)
    }

    /// What is left, units; below zero in debt.
    pub fn level(&self, now: Ns) -> f64 {
        f64::from(self.limit.get()) - self.tat.saturating_sub(now) as f64 / self.unit as f64
    }

    /// Units that come back each second.
    pub fn rate(&self) -> f64 {
        1e9 / self.unit as f64
    }
}

/// What governor is shown: an instant, and the level as seen through the reserve. governor counts from the instant.
#[derive(Clone, Copy)]
struct Look {
    now: Ns,
    tat: Ns,
}

impl Clock for Look {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        Nanos::new(self.now)
    }
}

impl StateStore for Look {
    type Key = NotKeyed;

    fn measure_and_replace<T, F, E>(&self, _: &NotKeyed, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        // The new state is dropped: a peek. Charging is plain arithmetic under the same lock, so it cannot fail after a peek.
        f(Some(Nanos::new(self.tat.saturating_sub(self.now)))).map(|(outcome, _)| outcome)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The same law in exact integers: `used` in ns, drained by time.
    struct Reference {
        full_at: i128,
        unit: i128,
        limit: i128,
    }

    impl Reference {
        fn used(&self, now: i128) -> i128 {
            (self.full_at - now).max(0)
        }

        fn fits_at(&self, asked: i128, reserve: i128, now: i128) -> Option<i128> {
            if asked > self.limit {
                return None;
            }
            let at = self.full_at + (asked + reserve - self.limit) * self.unit;
            Some(at.max(now))
        }
    }

    #[derive(Clone, Debug)]
    enum Op {
        Wait(u64),
        Peek(u64, u64),
        Charge(u64),
        Refund(u64),
        Correct(i64),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (0..100_000_000_000u64).prop_map(Op::Wait),
            (0..1_200_000u64, 0..1000u64).prop_map(|(a, r)| Op::Peek(a, r)),
            (0..600_000u64).prop_map(Op::Charge),
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
            let mut bucket = Bucket::new(limit, period).expect("a limit");
            bucket.set_tat(now, now);
            let mut exact = Reference { full_at: now.into(), unit: bucket.unit.into(), limit: limit.into() };
            for op in ops {
                match op {
                    Op::Wait(ns) => now += ns,
                    Op::Peek(asked, reserve) => {
                        let reserve = reserve.min(limit.saturating_sub(asked));
                        let fit = bucket.peek(asked, reserve, now);
                        let expected = match exact.fits_at(asked.into(), reserve.into(), now.into()) {
                            _ if asked == 0 => Fit::Now,
                            None => Fit::Never,
                            Some(at) if at == i128::from(now) => Fit::Now,
                            Some(at) => Fit::At(at as Ns),
                        };
                        prop_assert_eq!(fit, expected);
                    }
                    Op::Charge(n) => {
                        bucket.charge(n, now);
                        exact.full_at = (now as i128 + exact.used(now.into())) + i128::from(n) * exact.unit;
                        exact.full_at = exact.full_at.min(now as i128 + i128::from(DEEPEST_DEBT * bucket.period));
                    }
                    Op::Refund(n) => {
                        bucket.refund(n);
                        exact.full_at = (exact.full_at - i128::from(n) * exact.unit).max(0);
                    }
                    Op::Correct(by) => {
                        bucket.correct(by, now);
                        exact.full_at = (exact.full_at + i128::from(by)).max(0).min(now as i128 + i128::from(DEEPEST_DEBT * bucket.period));
                    }
                }
                prop_assert_eq!(i128::from(bucket.tat()), exact.full_at);
            }
        }

        #[test]
        fn saturation_never_more_than_the_limit_at_once(limit in 1..100_000u64, refunds in prop::collection::vec(0..200_000u64, 0..20)) {
            let now = 864_000_000_000_000;
            let mut bucket = Bucket::new(limit, Duration::from_secs(60)).expect("a limit");
            for refund in refunds {
                bucket.refund(refund);
            }
            prop_assert_eq!(bucket.peek(limit, 0, now), Fit::Now);
            bucket.charge(limit, now);
            prop_assert!(matches!(bucket.peek(1, 0, now), Fit::At(_)));
            // Idle for a period: full, whatever happened before.
            prop_assert_eq!(bucket.peek(limit, 0, now + bucket.span(limit)), Fit::Now);
        }

        #[test]
        fn quota_change_keeps_what_was_used(before in 1..1_000_000u64, after in 1..1_000_000u64, share in 0.0..3.0f64) {
            let now = 864_000_000_000_000;
            let mut bucket = Bucket::new(before, Duration::from_secs(60)).expect("a limit");
            let used = (before as f64 * share) as u64;
            bucket.charge(used, now);
            let bucket = bucket.requota(after, now).expect("a limit");
            let kept = after as f64 - bucket.level(now);
            let expected = (used as f64).min(after as f64 * DEEPEST_DEBT as f64);
            // A unit's time is rounded up to whole nanoseconds.
            let rounding = 1.0 + expected / bucket.unit as f64;
            prop_assert!((kept - expected).abs() <= rounding, "{} became {}", used, kept);
        }
    }

    #[test]
    fn over_u32_and_zero_are_no_bucket() {
        assert!(Bucket::new(1 << 32, Duration::from_secs(60)).is_none());
        assert!(Bucket::new(0, Duration::from_secs(60)).is_none());
        assert!(Bucket::new(5, Duration::ZERO).is_none());
    }
}
