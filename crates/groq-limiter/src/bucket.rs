//! The bucket of one limit: a GCRA rate limiter from the crate governor, with the operations that governor lacks.
//!
//! The state is one number, the theoretical arrival time (`tat`): the time at which the bucket is full again if nothing more
//! is taken. A bucket that is full has a `tat` in the past. Taking `n` units moves `tat` by `n` times the time in which one
//! unit comes back.
//!
//! governor decides whether an amount fits and when it will. Its state is kept in a store that this module implements, so
//! refunds, debts, corrections and a changed limit are operations on that state.
//!
//! Times are nanoseconds on the limiter's clock. Every call takes the current time as an argument.

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

/// The largest debt, in periods; a larger one is cut. No request waits longer than that, and a limit that was stated by
/// mistake cannot block the limiter for longer.
const MAX_DEBT_PERIODS: u64 = 10;

/// Returned for an amount that is larger than the limit: it never fits.
pub const NEVER: Ns = Ns::MAX;

/// The bucket of one limit.
#[derive(Debug)]
pub struct Bucket {
    /// Both its store and its clock are handles of the same [`GcraState`].
    limiter: RateLimiter<NotKeyed, GcraState, GcraState, NoOpMiddleware<Nanos>>,
    /// Units per period; [`Self::UNLIMITED`] without a limit.
    limit: NonZeroU32,
    /// The time in which an empty bucket fills, ns.
    period: Ns,
    /// The time in which one unit comes back, ns.
    unit: Ns,
}

impl Bucket {
    /// Stands for no limit: the largest limit that governor can count, which delays no request.
    const UNLIMITED: NonZeroU32 = NonZeroU32::MAX;

    /// Returns a full bucket of `limit` units that fills in `period`. There is no limit if `limit` is `None`, 0 or more than
    /// governor can count.
    pub fn new(limit: Option<u64>, period: Duration) -> Self {
        let limit = limit.and_then(|limit| NonZeroU32::new(u32::try_from(limit).ok()?)).unwrap_or(Self::UNLIMITED);
        let period = Ns::try_from(period.as_nanos()).unwrap_or(Ns::MAX).max(1);
        // Rounded up, so that the bucket never fills faster than the upstream's.
        let unit = period.div_ceil(u64::from(limit.get()));
        let quota = Quota::with_period(Duration::from_nanos(unit)).expect("a unit takes time").allow_burst(limit);
        let state = GcraState::default();
        Self { limiter: RateLimiter::new(quota, state.clone(), state), limit, period, unit }
    }

    /// Changes the limit. The number of used units stays the same, so the change neither allows an additional burst nor
    /// takes one away.
    pub fn requota(&mut self, limit: Option<u64>, now: Ns) {
        let mut next = Self::new(limit, Duration::from_nanos(self.period));
        if next.limit == self.limit {
            return;
        }
        next.set_tat(now.saturating_add(next.rescale(self.tat().saturating_sub(now), self.unit)), now);
        *self = next;
    }

    /// Takes `amount` units if they fit now. Returns the first time at which they fit, like [`Bucket::peek`].
    pub fn take(&mut self, amount: u64, now: Ns) -> Ns {
        self.check(amount, 0, true, now)
    }

    /// Takes `amount` units. If they do not fit, the bucket goes into debt.
    pub fn take_or_debit(&mut self, amount: u64, now: Ns) {
        if self.take(amount, now) > now {
            self.debit(amount, now);
        }
    }

    /// Returns the first time at which `amount` units fit in addition to `margin` units that must stay available, if nothing
    /// else is taken or given back until then: `now` if they fit now, [`NEVER`] if they are more than the limit.
    pub fn peek(&self, amount: u64, margin: u64, now: Ns) -> Ns {
        self.check(amount, margin, false, now)
    }

    fn check(&self, amount: u64, margin: u64, take: bool, now: Ns) -> Ns {
        // governor multiplies before it compares, which could overflow, so it must not see amounts over the limit.
        let Some(amount) = u32::try_from(amount).ok().filter(|&amount| amount <= self.limit.get()) else {
            return NEVER;
        };
        let Some(amount) = NonZeroU32::new(amount) else { return now };
        let Cells { now: clock, margin: seen_margin, take: takes, .. } = &*self.state().0;
        clock.store(now, Relaxed);
        // governor's sums do not saturate, and a margin that includes figures from the store may be any number.
        seen_margin.store(self.span(margin).min(self.period.saturating_mul(MAX_DEBT_PERIODS)), Relaxed);
        takes.store(take, Relaxed);
        match self.limiter.check_n(amount) {
            Ok(Ok(())) => now,
            Ok(Err(until)) => until.earliest_possible().as_u64(),
            Err(_) => NEVER,
        }
    }

    /// Takes `amount` units whether they fit or not. The bucket may go into debt.
    pub fn debit(&mut self, amount: u64, now: Ns) {
        self.set_tat(self.tat().max(now).saturating_add(self.span(amount)), now);
    }

    /// Gives `amount` units back. A refund cannot fill the bucket beyond its limit, because taking counts from now if `tat`
    /// is in the past.
    pub fn refund(&mut self, amount: u64) {
        self.state().set(self.tat().saturating_sub(self.span(amount)));
    }

    /// Replaces the `units` that were taken by the `used` units that turned out to be right.
    pub fn settle(&mut self, units: u64, used: u64, now: Ns) {
        match used.checked_sub(units) {
            Some(0) => {}
            Some(more) => self.debit(more, now),
            None => self.refund(units - used),
        }
    }

    /// Adds a correction of `by` ns to what is used; a negative one frees units. A bucket that was full before `since`
    /// counts as full until then.
    pub fn correct(&mut self, by: i64, since: Ns, now: Ns) {
        self.set_tat(self.tat().max(since).saturating_add_signed(by), now);
    }

    /// Sets the time at which the bucket is full again. A debt of more than ten periods is cut.
    pub fn set_tat(&mut self, tat: Ns, now: Ns) {
        let deepest = if Mechanism::DebtCut.is_on() { self.period.saturating_mul(MAX_DEBT_PERIODS) } else { u64::MAX };
        self.state().set(tat.min(now.saturating_add(deepest)));
    }

    /// Returns the time at which the bucket is full again; in the past if it is full.
    pub fn tat(&self) -> Ns {
        self.state().0.tat.load(Relaxed)
    }

    /// Returns the time at which the bucket would be full again if `used` units were in use at the time `at`.
    pub fn tat_of(&self, used: u64, at: Ns) -> Ns {
        at.saturating_add(self.span(used))
    }

    /// Converts a span of another bucket, in which one unit takes `unit` ns, to the span that the same number of units takes
    /// here.
    pub fn rescale(&self, span: Ns, unit: Ns) -> Ns {
        let span = (u128::from(span) * u128::from(self.unit)).checked_div(unit.into()).unwrap_or(0);
        Ns::try_from(span).unwrap_or(Ns::MAX)
    }

    /// Returns the number of units that a full bucket holds.
    pub fn capacity(&self) -> u64 {
        self.limit.get().into()
    }

    /// Returns the limit in units; `None` if there is none.
    pub fn limit(&self) -> Option<u64> {
        (self.limit != Self::UNLIMITED).then(|| self.capacity())
    }

    /// Returns the time in which an empty bucket fills, ns.
    pub fn period(&self) -> Ns {
        self.period
    }

    /// Returns the time in which `amount` units come back, ns.
    pub fn span(&self, amount: u64) -> Ns {
        self.unit.saturating_mul(amount)
    }

    /// Returns the time in which `amount` units come back, as a correction, ns.
    pub fn signed_span(&self, amount: u64) -> i64 {
        i64::try_from(self.span(amount)).unwrap_or(i64::MAX)
    }

    /// Returns the remaining units; negative if the bucket is in debt.
    pub fn remaining(&self, now: Ns) -> f64 {
        f64::from(self.limit.get()) - self.used(now)
    }

    /// Returns the used units; more than the limit if the bucket is in debt.
    pub fn used(&self, now: Ns) -> f64 {
        self.tat().saturating_sub(now) as f64 / self.unit as f64
    }

    /// Returns the number of units that come back per second.
    pub fn rate(&self) -> f64 {
        1e9 / self.unit as f64
    }

    fn state(&self) -> &GcraState {
        self.limiter.clock()
    }
}

/// The state of a bucket at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BucketState {
    /// The time at which the bucket is full again.
    pub tat: Ns,
    /// Sum of all corrections by headers and refusals, ns.
    pub corrections: i64,
}

/// The store and the clock of a bucket's governor limiter. governor takes each of them by value, so they share their cells.
///
/// The cells are atomic because governor's traits take `&self`. Relaxed ordering is enough, because buckets are used under a
/// lock.
#[derive(Clone, Debug, Default)]
struct GcraState(Arc<Cells>);

#[derive(Debug, Default)]
struct Cells {
    /// The time at which the bucket is full again.
    tat: AtomicU64,
    /// The time of the current call. It is 0 while the limiter is built, because governor counts from the time of its
    /// creation.
    now: AtomicU64,
    /// The units that must stay available in the current call, as the time in which they come back, ns.
    margin: AtomicU64,
    /// Whether the current call takes what fits.
    take: AtomicBool,
}

impl GcraState {
    fn set(&self, tat: Ns) {
        self.0.tat.store(tat, Relaxed);
    }
}

impl Clock for GcraState {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        Nanos::new(self.0.now.load(Relaxed))
    }
}

impl StateStore for GcraState {
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
mod tests;
