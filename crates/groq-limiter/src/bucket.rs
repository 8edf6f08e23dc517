//! One limit's bucket: a GCRA limiter of governor's that lives as long as the limit.
//!
//! Taking, looking ahead with a margin, and the earliest time come from governor. What it does not know, refunds, debts,
//! corrections and another quota, are operations on the state that it keeps in a store of ours.
//!
//! The state is one number, the theoretical arrival time (`tat`): the instant at which the bucket is full again if nothing
//! more is taken. Times are nanoseconds on the limiter's clock, an argument of every call.

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use governor::{
    Quota, RateLimiter,
    clock::Clock,
    middleware::NoOpMiddleware,
    nanos::Nanos,
    state::{NotKeyed, StateStore},
};

use crate::{ablation::Mechanism, types::Ns};

/// Debts beyond so many periods are cut: nobody waits that long, and a limit that was stated by mistake silences nobody for
/// longer.
const DEEPEST_DEBT: u64 = 10;

/// When an amount fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Readiness {
    /// At once.
    Now,
    /// At this instant and not a nanosecond before, if nothing else happens.
    At(Ns),
    /// More than the limit can ever hold.
    Never,
}

impl Readiness {
    /// The instant, as seen at `now`.
    pub fn instant(self, now: Ns) -> Ns {
        match self {
            Self::Now => now,
            Self::At(at) => at,
            Self::Never => Ns::MAX,
        }
    }
}

/// One limit's bucket.
#[derive(Debug)]
pub struct Bucket {
    /// Its store and its clock are two handles of one [`State`].
    limiter: RateLimiter<NotKeyed, State, State, NoOpMiddleware<Nanos>>,
    limit: NonZeroU32,
    period: Ns,
    /// The time in which one unit comes back.
    unit: Ns,
}

impl Bucket {
    /// The most that governor counts: so many units in a period hold nobody back, and count as no limit.
    const UNLIMITED: NonZeroU32 = NonZeroU32::MAX;

    /// A full bucket of `limit` units that fills in `period`. Without a limit, for one of 0 and for one of more than it can
    /// count, it is [`Self::UNLIMITED`].
    pub fn new(limit: Option<u64>, period: Duration) -> Self {
        let limit = limit.and_then(|limit| NonZeroU32::new(u32::try_from(limit).ok()?)).unwrap_or(Self::UNLIMITED);
        let period = Ns::try_from(period.as_nanos()).unwrap_or(Ns::MAX).max(1);
        // Rounded up: never faster than the upstream.
        let unit = period.div_ceil(u64::from(limit.get()));
        let quota = Quota::with_period(Duration::from_nanos(unit)).expect("a unit takes time").allow_burst(limit);
        let state = State::default();
        Self { limiter: RateLimiter::new(quota, state.clone(), state), limit, period, unit }
    }

    /// The same used units under another limit: neither a fresh burst nor a lost one.
    pub fn requota(&mut self, limit: Option<u64>, now: Ns) {
        let mut next = Self::new(limit, Duration::from_nanos(self.period));
        if next.limit == self.limit {
            return;
        }
        next.set_tat(now.saturating_add(next.rescale(self.tat().saturating_sub(now), self.unit)), now);
        *self = next;
    }

    /// Takes `amount` units if they fit.
    pub fn take(&mut self, amount: u64, now: Ns) -> Readiness {
        self.check(amount, 0, true, now)
    }

    /// Takes `amount` units; what does not fit makes a debt.
    pub fn take_or_debit(&mut self, amount: u64, now: Ns) {
        if self.take(amount, now) != Readiness::Now {
            self.debit(amount, now);
        }
    }

    /// Whether `amount` fits while `margin` units stay untouched. Changes nothing.
    pub fn peek(&self, amount: u64, margin: u64, now: Ns) -> Readiness {
        self.check(amount, margin, false, now)
    }

    fn check(&self, amount: u64, margin: u64, take: bool, now: Ns) -> Readiness {
        // governor multiplies before it compares: what is over the limit must not reach it.
        let Some(amount) = u32::try_from(amount).ok().filter(|&amount| amount <= self.limit.get()) else {
            return Readiness::Never;
        };
        let Some(amount) = NonZeroU32::new(amount) else { return Readiness::Now };
        let Cells { now: clock, margin: seen_margin, take: takes, .. } = &*self.state().0;
        clock.store(now, Relaxed);
        // governor's sums do not saturate, and what is told of other replicas may be any number.
        seen_margin.store(self.span(margin).min(self.period.saturating_mul(DEEPEST_DEBT)), Relaxed);
        takes.store(take, Relaxed);
        match self.limiter.check_n(amount) {
            Ok(Ok(())) => Readiness::Now,
            Ok(Err(until)) => Readiness::At(until.earliest_possible().as_u64()),
            Err(_) => Readiness::Never,
        }
    }

    /// Takes `amount` units, into debt if need be.
    pub fn debit(&mut self, amount: u64, now: Ns) {
        self.drain(self.span(amount), now, now);
    }

    /// Drains what comes back in `span`, from `since` at the earliest, into debt if need be.
    pub fn drain(&mut self, span: Ns, since: Ns, now: Ns) {
        self.set_tat(self.tat().max(since).saturating_add(span), now);
    }

    /// Gives `amount` units back. More than the limit is never there at once: taking starts from now at the earliest.
    pub fn refund(&mut self, amount: u64) {
        self.state().set(self.tat().saturating_sub(self.span(amount)));
    }

    /// `used` units replace `units` that were taken.
    pub fn settle(&mut self, units: u64, used: u64, now: Ns) {
        match used.checked_sub(units) {
            Some(0) => {}
            Some(more) => self.debit(more, now),
            None => self.refund(units - used),
        }
    }

    /// Moves what is used by a correction, ns: more for a positive one. A bucket that was full before `since` counts from then.
    pub fn correct(&mut self, by: i64, since: Ns, now: Ns) {
        self.set_tat(self.tat().max(since).saturating_add_signed(by), now);
    }

    /// Sets the instant at which it is full again.
    pub fn set_tat(&mut self, tat: Ns, now: Ns) {
        let deepest = if Mechanism::DebtCut.is_on() { self.period.saturating_mul(DEEPEST_DEBT) } else { u64::MAX };
        self.state().set(tat.min(now.saturating_add(deepest)));
    }

    /// The instant at which it is full again; in the past for a full one.
    pub fn tat(&self) -> Ns {
        self.state().0.tat.load(Relaxed)
    }

    /// The instant at which a bucket is full again of which `used` units are taken at `at`.
    pub fn tat_of(&self, used: u64, at: Ns) -> Ns {
        at.saturating_add(self.span(used))
    }

    /// A span that was `unit` nanoseconds for each unit, for as many units of this bucket.
    pub fn rescale(&self, span: Ns, unit: Ns) -> Ns {
        let span = (u128::from(span) * u128::from(self.unit)).checked_div(unit.into()).unwrap_or(0);
        Ns::try_from(span).unwrap_or(Ns::MAX)
    }

    /// The most that it holds, units.
    pub fn capacity(&self) -> u64 {
        self.limit.get().into()
    }

    /// The limit, units; `None` if it is unlimited.
    pub fn limit(&self) -> Option<u64> {
        (self.limit != Self::UNLIMITED).then(|| self.capacity())
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
    pub fn remaining(&self, now: Ns) -> f64 {
        f64::from(self.limit.get()) - self.used(now)
    }

    /// What is used, units; more than the limit in debt.
    pub fn used(&self, now: Ns) -> f64 {
        self.tat().saturating_sub(now) as f64 / self.unit as f64
    }

    /// Units that come back each second.
    pub fn rate(&self) -> f64 {
        1e9 / self.unit as f64
    }

    fn state(&self) -> &State {
        self.limiter.clock()
    }
}

/// What a bucket's limiter reads: its store and its clock in one. Both are handed over by value, so they share the cells.
///
/// Whoever owns the bucket holds a lock, so nothing here has to be ordered; the cells are atomic because governor's traits
/// take `&self`.
#[derive(Clone, Debug, Default)]
struct State(Arc<Cells>);

#[derive(Debug, Default)]
struct Cells {
    tat: AtomicU64,
    /// 0 while the limiter is built, which remembers it as the instant that it counts from.
    now: AtomicU64,
    /// What must stay untouched, ns.
    margin: AtomicU64,
    /// Whether what fits is taken.
    take: AtomicBool,
}

impl State {
    fn set(&self, tat: Ns) {
        self.0.tat.store(tat, Relaxed);
    }
}

impl Clock for State {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        Nanos::new(self.0.now.load(Relaxed))
    }
}

impl StateStore for State {
    type Key = NotKeyed;

    fn measure_and_replace<T, F, E>(&self, _: &NotKeyed, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let cells = &*self.0;
        let (outcome, next) = f(Some(Nanos::new(cells.tat.load(Relaxed).saturating_add(cells.margin.load(Relaxed)))))?;
        if cells.take.load(Relaxed) {
            cells.tat.store(next.as_u64(), Relaxed);
        }
        Ok(outcome)
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
                            _ if asked == 0 => Readiness::Now,
                            None => Readiness::Never,
                            Some(at) if at == i128::from(now) => Readiness::Now,
                            Some(at) => Readiness::At(at as Ns),
                        };
                        prop_assert_eq!(fit, expected);
                    }
                    Op::Take(n) => {
                        let fits = exact.fits_at(n.into(), 0, now.into()).is_some_and(|at| at == i128::from(now));
                        prop_assert_eq!(bucket.take(n, now) == Readiness::Now, fits || n == 0);
                        if fits && n > 0 {
                            exact.full_at = now as i128 + exact.used(now.into()) + i128::from(n) * exact.unit;
                        }
                    }
                    Op::Debit(n) => {
                        bucket.debit(n, now);
                        exact.full_at = (now as i128 + exact.used(now.into())) + i128::from(n) * exact.unit;
                        exact.full_at = exact.full_at.min(now as i128 + i128::from(DEEPEST_DEBT * bucket.period));
                    }
                    Op::Refund(n) => {
                        bucket.refund(n);
                        exact.full_at = (exact.full_at - i128::from(n) * exact.unit).max(0);
                    }
                    Op::Correct(by) => {
                        bucket.correct(by, 0, now);
                        exact.full_at = (exact.full_at + i128::from(by)).max(0).min(now as i128 + i128::from(DEEPEST_DEBT * bucket.period));
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
            prop_assert_eq!(bucket.peek(limit, 0, now), Readiness::Now);
            prop_assert_eq!(bucket.take(limit, now), Readiness::Now);
            prop_assert!(matches!(bucket.peek(1, 0, now), Readiness::At(_)));
            // Idle for a period: full, whatever happened before.
            prop_assert_eq!(bucket.peek(limit, 0, now + bucket.span(limit)), Readiness::Now);
        }

        #[test]
        fn quota_change_keeps_what_was_used(before in 1..1_000_000u64, after in 1..1_000_000u64, share in 0.0..3.0f64) {
            let now = 864_000_000_000_000;
            let mut bucket = Bucket::new(Some(before), Duration::from_secs(60));
            let used = (before as f64 * share) as u64;
            bucket.debit(used, now);
            bucket.requota(Some(after), now);
            let kept = after as f64 - bucket.remaining(now);
            let expected = (used as f64).min(after as f64 * DEEPEST_DEBT as f64);
            // A unit's time is rounded up to whole nanoseconds.
            let rounding = 1.0 + expected / bucket.unit as f64;
            prop_assert!((kept - expected).abs() <= rounding, "{} became {}", used, kept);
        }
    }

    /// Found by the fuzz target `redis`: the sum overflowed.
    #[test]
    fn a_margin_may_be_any_number() {
        let now = 864_000_000_000_000;
        let mut bucket = Bucket::new(Some(8000), Duration::from_secs(60));
        bucket.set_tat(now, now);
        for margin in [8001, u64::MAX / bucket.unit, u64::MAX] {
            assert!(matches!(bucket.peek(1, margin, now), Readiness::At(at) if at > now), "{margin}");
        }
    }

    #[test]
    fn none_zero_and_over_u32_are_no_limit() {
        for limit in [None, Some(0), Some(1 << 32)] {
            assert_eq!(Bucket::new(limit, Duration::from_secs(60)).limit(), None, "{limit:?}");
        }
        let mut bucket = Bucket::new(None, Duration::from_secs(60));
        bucket.debit(1_000_000, 1000);
        assert_eq!(bucket.peek(1_000_000, 1_000_000, 1000), Readiness::Now);
    }
}
