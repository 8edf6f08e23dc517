//! One organization × model × tier: its quotas and its queue as a pure state machine. `now` is an argument, nothing waits,
//! nothing is spawned.
//!
//! Whoever drives it calls [`Limiter::submit`], then [`Limiter::dispatch`] after every change, takes the [`Event`]s, and calls
//! `dispatch` again at [`Limiter::wake`] at the latest. A granted request holds a [`Grant`] that ends in exactly one of
//! [`Limiter::settle`] and [`Limiter::refused`].

use std::{sync::Arc, time::Duration};

use self::{core::Core, limits::Limits, pass::Pass};
pub use self::{grant::Grant, pass::Event, pricing::Requeue};
use crate::{
    bucket::Readiness,
    queue::{QueuedRequest, Ticket},
    quota::Quota,
    request::{ActualUsage, AdmissionError, AdmissionRequest},
    settings::LimitSettings,
    snapshot::LimiterSnapshot,
    store::protocol::{Answer, State, Transaction},
    types::{Dimension, Ns, Observation, StatedLimit, UpstreamRefusal},
};

mod cold_start;
mod core;
mod grant;
mod limits;
mod pass;
mod pause;
mod pricing;
mod status;
mod store_session;

/// What becomes of a request that asks.
#[derive(Debug)]
pub enum Admission {
    /// It goes.
    Granted(Grant),
    /// It waits under this number; an [`Event`] will tell.
    Queued(Ticket),
    /// It does not.
    Rejected(AdmissionError),
}

/// One organization × model × tier.
#[derive(Debug)]
pub struct Limiter {
    core: Core,
    clock: Ns,
    used_at: Ns,
    refusals: u64,
    wake: Option<Ns>,
}

impl Limiter {
    /// An unused limiter: full by its tables, nothing known of the upstream.
    pub fn new(model: Arc<str>, settings: Arc<LimitSettings>, now: Ns) -> Self {
        Self { core: Core::new(model, settings, now), clock: now, used_at: now, refusals: 0, wake: None }
    }

    /// New settings; quotas and used amounts stay. The caller dispatches.
    pub fn reconfigure(&mut self, settings: Arc<LimitSettings>, now: Ns) {
        self.core.pricing.configure(&settings, &self.core.limits.model);
        self.core.limits.reconfigure(settings, now);
    }

    /// Asks for a turn. `requeue`: it was here before. `has_room`: whether the queue may grow; asked last, and only for a request that
    /// would have to wait.
    ///
    /// After [`Admission::Queued`] the caller dispatches.
    pub fn submit(
        &mut self,
        request: &AdmissionRequest,
        now: Ns,
        deadline: Ns,
        requeue: Option<Requeue>,
        has_room: impl FnOnce() -> bool,
    ) -> Admission {
        let now = self.advance(now);
        self.used_at = now;
        let queued = self.core.read(request, now, deadline, requeue);
        if let Some(error) = self.core.too_large(&queued, now) {
            return Admission::Rejected(error);
        }
        let open = self.core.queue.is_empty() && self.core.pause.until() <= now && self.core.is_open(now);
        let ready = open && self.core.limits.quotas.readiness(&queued.cost, now).0 == Readiness::Now;
        if ready && !self.core.store_decides() {
            return Admission::Granted(self.core.grant(queued, None, None, now));
        }
        let forecast = self.core.forecast(&queued, now);
        if forecast.exceeds(deadline.saturating_sub(now)) {
            // Until the probe's head is here the limits are a guess, and nobody is refused by a guess.
            if self.core.cold_start.probing_until().is_none() {
                return Admission::Rejected(self.core.not_in_time(forecast, &queued));
            }
            self.core.guessed = true;
        }
        // Asking the store is not waiting yet.
        if !ready && !has_room() {
            let retry_after = forecast.wait.max(Duration::from_secs(1));
            return Admission::Rejected(AdmissionError::QueueFull { retry_after });
        }
        Admission::Queued(self.core.queue.push(queued))
    }

    /// What `max_completion_tokens` would have to be lowered to, where it alone is what can never fit.
    pub fn fitting_max_completion_tokens(&self, request: &AdmissionRequest, now: Ns) -> Option<u64> {
        self.core.fitting_max_completion_tokens(request, now)
    }

    /// Grants whatever can go, refuses whatever cannot any more, and finds out when to be called again.
    pub fn dispatch(&mut self, now: Ns, events: &mut Vec<Event>) {
        let now = self.advance(now);
        self.wake = Pass::new(&mut self.core, events, now).run();
    }

    /// When to dispatch again at the latest. `None`: nobody waits.
    pub fn wake(&self) -> Option<Ns> {
        self.wake
    }

    /// A queued request's client has left. The caller dispatches.
    pub fn cancel(&mut self, ticket: Ticket, now: Ns) {
        let now = self.advance(now);
        self.core.leave(ticket, now);
    }

    /// The limiter's clock never goes back.
    fn advance(&mut self, now: Ns) -> Ns {
        self.clock = self.clock.max(now);
        self.core.limits.quotas.tick(self.clock);
        self.clock
    }
}

/// The life of a granted request.
impl Limiter {
    /// Right before the first byte goes out.
    pub fn sent(&mut self, grant: &mut Grant, now: Ns) {
        let now = self.advance(now);
        if !grant.is_sent() {
            self.core.limits.quotas.sent(&mut grant.reserved, now);
            self.flush_pending(false, now);
        }
    }

    /// An answer's head: its headers correct the quotas. The caller dispatches.
    pub fn observe(&mut self, grant: &mut Grant, state: &Observation, now: Ns) {
        let now = self.advance(now);
        self.core.pricing.estimates.head(now.saturating_sub(grant.reserved.sent_at));
        self.core.limits.quotas.answered(&grant.reserved);
        self.core.cold_start.answered();
        self.core.pause.answered();
        let delay = self.core.pricing.estimates.one_way();
        let tokens = self.core.limits.observe(&mut grant.reserved, state, true, delay, now);
        if let Some(tokens) = tokens.filter(|_| !grant.queued.states_max) {
            self.core.learn_held(grant, tokens, now);
        }
        self.flush_pending(false, now);
    }

    /// The request has ended and this is the truth. The caller dispatches.
    pub fn settle(&mut self, grant: Grant, usage: ActualUsage, now: Ns) {
        let now = self.advance(now);
        self.used_at = now;
        self.core.settle(grant, usage, now);
    }

    /// Groq refused: the text (or the headers) corrects the quotas and everything comes back. What to ask again with. The
    /// caller dispatches.
    pub fn refused(
        &mut self,
        grant: Grant,
        text: Option<&UpstreamRefusal>,
        state: &Observation,
        retry_after: Option<Duration>,
        now: Ns,
    ) -> Requeue {
        let now = self.advance(now);
        self.refusals += 1;
        self.used_at = now;
        self.core.refused(grant, text, state, retry_after, now)
    }
}

/// Requests that are sent whatever the limits say, and what a second limiter, which tells what the limits would have said, has to
/// know of this one.
impl Limiter {
    /// Takes what `request` costs without a turn in the queue, into debt if need be. The caller dispatches.
    pub fn take(&mut self, request: &AdmissionRequest, now: Ns) -> Grant {
        let now = self.advance(now);
        self.used_at = now;
        let queued = self.core.read(request, now, now, None);
        let grant = self.core.grant(queued, None, None, now);
        self.flush_pending(false, now);
        grant
    }

    /// Lets all go that wait, into debt if need be. The caller dispatches.
    pub fn release_waiting(&mut self) {
        self.core.releases = true;
    }

    /// How long a request like `request` would wait.
    pub fn forecast_of(&mut self, request: &AdmissionRequest, now: Ns) -> Duration {
        let now = self.advance(now);
        let queued = self.core.read(request, now, now, None);
        self.core.forecast(&queued, now).wait
    }

    /// Completion tokens that an answer has on average; `None` before the first one.
    pub fn usual_completion(&self) -> Option<u64> {
        self.core.pricing.estimates.completion.mean().map(|mean| mean as u64)
    }

    /// The limits that Groq has stated.
    pub(crate) fn stated_limits(&self) -> Vec<StatedLimit> {
        self.core.limits.quotas.stated()
    }

    /// Takes up limits that Groq has stated to another limiter, or to an earlier process. What is used stays.
    pub(crate) fn adopt_limits(&mut self, stated: &[StatedLimit], now: Ns) {
        let now = self.advance(now);
        self.core.limits.adopt(stated, now);
        self.core.limits.untold = false;
    }
}

/// The session with the store that replicas share.
impl Limiter {
    /// Shares its quotas between so many replicas from now on. `up`: the store can be reached.
    pub fn share(&mut self, up: bool, replicas: u32, now: Ns) {
        self.core.limits.quotas.detach(replicas, now);
        self.core.pricing.share();
        self.core.store = Some(Box::default());
        if up {
            self.reached(now);
        }
    }

    /// Whether its quotas are shared.
    pub fn is_shared(&self) -> bool {
        self.core.store.is_some()
    }

    /// What the store is to be told or asked now, if anything. One at a time: its end is [`Limiter::answered`] or
    /// [`Limiter::lost`].
    pub fn transaction(&mut self, now: Ns) -> Option<Transaction> {
        let now = self.advance(now);
        let Limits { quotas, untold, .. } = &mut self.core.limits;
        self.core.store.as_mut()?.transaction(quotas, &self.core.queue, untold, now)
    }

    /// The store's answer to this transaction. The caller dispatches.
    pub fn answered(&mut self, serial: u64, answer: &Answer, now: Ns) {
        let now = self.advance(now);
        let Some(store) = &mut self.core.store else { return };
        if store.answered(serial, answer, &mut self.core.limits.quotas, &self.core.queue, now) {
            self.core.limits.hear(&answer.state.learnt, now);
        }
    }

    /// What another replica has changed. The caller dispatches.
    pub fn updated(&mut self, state: &State, now: Ns) {
        let now = self.advance(now);
        let Some(store) = &mut self.core.store else { return };
        if store.updated(state, &mut self.core.limits.quotas, now) {
            self.core.limits.hear(&state.learnt, now);
        }
    }

    /// The store does not answer: alone, among so many replicas. The caller dispatches.
    pub fn lost(&mut self, replicas: u32, now: Ns) {
        let now = self.advance(now);
        if let Some(store) = &mut self.core.store {
            store.lost(replicas, &mut self.core.limits.quotas, now);
        }
    }

    /// Whether this transaction is under way.
    pub fn waits_for(&self, serial: u64) -> bool {
        self.core.store.as_ref().is_some_and(|store| store.waits_for(serial))
    }

    /// The store can be reached. The caller dispatches.
    pub fn reached(&mut self, now: Ns) {
        if let Some(store) = &mut self.core.store {
            store.reached(&mut self.core.limits.quotas, now);
        }
    }

    /// What there is to tell is told now, or (`hurry`: not set) soon. The caller dispatches.
    pub fn flush_pending(&mut self, hurry: bool, now: Ns) {
        self.core.flush_pending(hurry, now);
    }

    /// Whether the store knows everything, or cannot be told.
    pub fn is_flushed(&self) -> bool {
        self.core.store.as_ref().is_none_or(|store| store.is_flushed())
    }
}

/// What others want to know of a limiter.
impl Limiter {
    /// Quotas, queue and forecast. The limiter's names are the caller's to give.
    pub fn snapshot(&mut self, organization: &Arc<str>, tier: &Arc<str>, now: Ns) -> LimiterSnapshot {
        let now = self.advance(now);
        let blocked_by =
            self.core.blocked.filter(|_| !self.core.queue.is_empty()).and_then(|(slot, until)| {
                Some((self.dimension(slot?)?.clone(), Duration::from_nanos(until.saturating_sub(now))))
            });
        // What a request like the last in the queue would wait.
        let last = self.core.queue.iter().max_by_key(|queued| queued.ticket).cloned();
        let forecast = last.map(|last| self.core.forecast(&QueuedRequest { ticket: u64::MAX, ..last }, now).wait);
        LimiterSnapshot {
            organization: organization.clone(),
            model: self.core.limits.model.clone(),
            tier: tier.clone(),
            dimensions: status::dimensions(&self.core.limits.quotas, now),
            waiting: status::waiting(&self.core.queue, now),
            blocked_by,
            forecast: forecast.unwrap_or_else(|| Duration::from_nanos(self.core.pause.until().saturating_sub(now))),
            in_flight: self.core.in_flight as usize,
            refusals: self.refusals,
        }
    }

    /// Every dimension that has a limit: the limit, what is left, and the time until it is full.
    pub fn visit_quotas(&self, now: Ns, visit: impl FnMut(&Dimension, u64, f64, Duration)) {
        status::visit(&self.core.limits.quotas, now, visit);
    }

    /// Nobody waits or runs, and every quota is full again: dropping it loses only what was learnt.
    pub fn is_idle(&mut self, now: Ns) -> bool {
        let now = self.advance(now);
        self.is_unused() && self.quotas().iter().all(|quota| quota.bucket().is_none_or(|bucket| bucket.tat() <= now))
    }

    /// Nobody waits or runs.
    pub fn is_unused(&self) -> bool {
        self.core.queue.is_empty() && self.core.in_flight == 0
    }

    /// Whether Groq has said anything about its limits.
    pub fn has_learnt(&self) -> bool {
        self.quotas().iter().any(|quota| quota.statements().stated.is_some())
    }

    /// When it was last used.
    pub fn used_at(&self) -> Ns {
        self.used_at
    }

    /// The usual time from sending to an answer's head.
    pub fn usual_time_to_head(&self) -> Duration {
        self.core.pricing.estimates.usual_time_to_head()
    }

    /// A dimension by its slot.
    pub fn dimension(&self, slot: usize) -> Option<&Dimension> {
        self.core.limits.quotas.all().get(slot).map(|quota| &quota.dimension)
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.core.queue.len()
    }

    /// Requests that are granted and not settled.
    pub fn in_flight(&self) -> u32 {
        self.core.in_flight
    }

    /// The quotas.
    pub fn quotas(&self) -> &[Quota] {
        self.core.limits.quotas.all()
    }

    /// Until when the head of the queue is blocked.
    pub fn blocked_until(&self) -> Option<Ns> {
        self.core.blocked.map(|(_, until)| until)
    }

    /// Takes up a quota of an earlier process: `used` units less what `passed` seconds gave back.
    pub(crate) fn restore_usage(&mut self, dimension: &Dimension, bound: bool, used: f64, passed: f64, now: Ns) {
        self.core.limits.restore(dimension, bound, used, passed, now);
    }
}
