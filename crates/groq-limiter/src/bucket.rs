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
mod tests;
