//! One organization × model × tier: its quotas and its queue as a pure state machine. `now` is an argument, nothing waits,
//! nothing is spawned.
//!
//! Whoever drives it calls [`Limiter::submit`], then [`Limiter::dispatch`] after every change, takes the [`Event`]s, and calls
//! `dispatch` again at [`Limiter::wake`] at the latest. A granted request holds a [`Grant`] that ends in exactly one of
//! [`Limiter::settle`] and [`Limiter::refused`].

use std::{sync::Arc, time::Duration};

use self::{
    cold_start::ColdStart,
    grant::Service,
    limits::{Limits, ObservedTokens},
    pause::Pause,
    pricing::{Pricing, stated},
    store_session::StoreSession,
};
pub use self::{grant::Grant, pricing::Requeue};
use crate::{
    ablation::Mechanism,
    bucket::Readiness,
    queue::{
        FairQueue, Id, QueuedRequest,
        backfill::{Backfill, backfill},
        forecast::{Forecast, forecast},
    },
    quota::Quota,
    quota_set::{QuotaSet, Reserved},
    request::{ActualUsage, AdmissionError, AdmissionRequest, Cost, CostEstimate},
    settings::LimitSettings,
    snapshot::LimiterSnapshot,
    store::protocol::{Answer, Learnt, State, Transaction},
    types::{Dimension, Ns, Observation, StatedLimit, Unit, UpstreamRefusal},
};

mod cold_start;
mod grant;
mod limits;
mod pause;
mod pricing;
mod status;
mod store_session;

const SECOND: Ns = 1_000_000_000;

/// What becomes of a request that asks.
#[derive(Debug)]
pub enum Admission {
    /// It goes.
    Granted(Grant),
    /// It waits under this number; an [`Event`] will tell.
    Queued(Id),
    /// It does not.
    Rejected(AdmissionError),
}

/// What happened to a queued request.
#[derive(Debug)]
pub enum Event {
    /// Its turn has come.
    Granted(Id, Grant),
    /// It cannot go in time, or never.
    Rejected(Id, AdmissionError),
}

/// What the head of the queue waits for: a dimension's slot, if it is one, and until when.
type Blocked = (Option<usize>, Ns);

/// One organization × model × tier.
#[derive(Debug)]
pub struct Limiter {
    limits: Limits,
    pricing: Pricing,
    queue: FairQueue,
    cold_start: ColdStart,
    pause: Pause,
    /// With the store, where replicas share quotas.
    store: Option<Box<StoreSession>>,
    clock: Ns,
    used_at: Ns,
    in_flight: u32,
    refusals: u64,
    /// Some of the queue were admitted against a guess: they are looked at again when more is known.
    guessed: bool,
    blocked: Option<Blocked>,
    wake: Option<Ns>,
}

impl Limiter {
    /// An unused limiter: full by its tables, nothing known of the upstream.
    pub fn new(model: Arc<str>, settings: Arc<LimitSettings>, now: Ns) -> Self {
        let mut pricing = Pricing::default();
        pricing.configure(&settings, &model);
        Self {
            limits: Limits::new(model, settings, now),
            pricing,
            queue: FairQueue::default(),
            cold_start: ColdStart::default(),
            pause: Pause::default(),
            store: None,
            clock: now,
            used_at: now,
            in_flight: 0,
            refusals: 0,
            guessed: false,
            blocked: None,
            wake: None,
        }
    }

    /// New settings; quotas and used amounts stay. The caller dispatches.
    pub fn reconfigure(&mut self, settings: Arc<LimitSettings>, now: Ns) {
        self.pricing.configure(&settings, &self.limits.model);
        self.limits.reconfigure(settings, now);
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
        let queued = self.read(request, now, deadline, requeue);
        if let Some(error) = self.too_large(&queued, now) {
            return Admission::Rejected(error);
        }
        let open = self.queue.is_empty() && self.pause.until() <= now && self.is_open(now);
        let ready = open && self.limits.quotas.readiness(&queued.cost, now).0 == Readiness::Now;
        if ready && !self.store_decides() {
            return Admission::Granted(self.grant(queued, None, None, now));
        }
        let forecast = self.forecast(&queued, now);
        if forecast.exceeds(deadline.saturating_sub(now)) {
            // Until the probe's head is here the limits are a guess, and nobody is refused by a guess.
            if self.cold_start.probing_until().is_none() {
                return Admission::Rejected(self.not_in_time(forecast, &queued));
            }
            self.guessed = true;
        }
        // Asking the store is not waiting yet.
        if !ready && !has_room() {
            let retry_after = forecast.wait.max(Duration::from_secs(1));
            return Admission::Rejected(AdmissionError::QueueFull { retry_after });
        }
        Admission::Queued(self.queue.push(queued))
    }

    /// A request as it would be in the queue.
    fn read(&mut self, request: &AdmissionRequest, now: Ns, deadline: Ns, requeue: Option<Requeue>) -> QueuedRequest {
        let app = self.queue.app(&request.app, request.class, request.weight, now);
        let priced = self.pricing.price(request);
        let requested = requeue.and_then(|requeue| requeue.requested);
        let cost = match (requeue, requested) {
            // The refusal gave the sum of both parts.
            (_, Some(requested)) if !priced.states_max => {
                Cost { output: requested.saturating_sub(priced.cost.input), ..priced.cost }
            }
            (Some(requeue), _) => priced.cost.at_least(requeue.least),
            (None, _) => priced.cost,
        };
        let usual = self.queue.app_of(app).and_then(|app| app.completion.mean());
        QueuedRequest {
            app,
            size: self.size_class(&cost),
            cost,
            expected: self.pricing.expected(usual, cost.output, priced.states_max),
            ticket: requeue.map_or_else(|| self.queue.ticket(), |requeue| requeue.ticket),
            since: now,
            deadline,
            bypass_budget: None,
            estimated: priced.estimated,
            states_max: priced.states_max,
            requested,
        }
    }

    /// Size class: by the share of the tightest limit it asks for.
    fn size_class(&self, cost: &Cost) -> u8 {
        if !Mechanism::SizeClasses.is_on() {
            return 0;
        }
        let cost = &self.limits.quotas.expect(*cost);
        let quotas = self.limits.quotas.all().iter().filter(|quota| quota.dimension.unit != Unit::Requests);
        let shares = quotas.filter_map(|quota| Some(quota.units(cost) as f64 / quota.limit()? as f64));
        let share = shares.fold(0.0, f64::max);
        [1.0 / 32.0, 1.0 / 8.0, 0.5].iter().filter(|&&bound| share > bound).count() as u8
    }

    /// The least that it can turn out to take is over a certain limit.
    fn too_large(&self, queued: &QueuedRequest, now: Ns) -> Option<AdmissionError> {
        let (dimension, limit) = self.limits.quotas.never(&self.pricing.least(queued), now)?;
        // What people are told is the estimate itself, not its lower bound.
        let told = stated(queued);
        Some(AdmissionError::TooLarge {
            dimension: dimension.clone(),
            limit,
            requested: told.of(dimension.unit).max(limit + 1),
            parts: (dimension.unit == Unit::Tokens).then_some((told.input.into(), told.output.into())),
        })
    }

    /// What `max_completion_tokens` would have to be lowered to, where it alone is what can never fit.
    pub fn fitting_max_completion_tokens(&self, request: &AdmissionRequest, now: Ns) -> Option<u64> {
        let priced = self.pricing.price(request);
        let quotas = &self.limits.quotas;
        if let (CostEstimate::Tokens { .. }, Some((slot, limit))) = (request.cost, quotas.too_large_answer(&priced.cost)) {
            // The whole limit would have to be free for itself; half of it is sooner.
            let left = quotas.all()[slot].bucket().map_or(0.0, |bucket| bucket.remaining(now));
            return Some((limit / 2).max(left.max(0.0) as u64).max(1));
        }
        let tokens = quotas.all().iter().filter(|quota| quota.dimension.unit == Unit::Tokens && quota.is_certain(now));
        let room = tokens.filter_map(|quota| Some(quota.limit()?.saturating_sub(priced.cost.input.into()))).min()?;
        (priced.states_max && room > 0 && room < priced.cost.output.into()).then_some(room)
    }

    /// Grants whatever can go, refuses whatever cannot any more, and finds out when to be called again.
    pub fn dispatch(&mut self, now: Ns, events: &mut Vec<Event>) {
        let now = self.advance(now);
        self.expire(now, events);
        if self.guessed && self.is_open(now) {
            self.guessed = false;
            self.reject_late(now, events);
        }
        // What makes the head wait is what those who go after it have waited for.
        let mut bound = self.blocked.take().and_then(|(slot, _)| slot);
        self.wake = None;
        while let Some(head) = self.granted().or_else(|| self.queue.head()) {
            match self.step(head, &mut bound, now, events) {
                Step::Again => {}
                Step::Blocked(slot, until) => {
                    self.blocked = Some((slot, until));
                    self.wake = Some(self.wake.map_or(until, |wake| wake.min(until)));
                    break;
                }
                Step::Idle => break,
            }
        }
        let deadline = self.queue.next_deadline().map(|(at, _)| at);
        let flush = self.store.as_ref().and_then(|store| store.flush_at());
        self.wake = self.wake.into_iter().chain(deadline).chain(flush).min();
    }

    /// One step of a dispatch: the head of the queue, or who may pass it.
    fn step(&mut self, head: Id, bound: &mut Option<usize>, now: Ns, events: &mut Vec<Event>) -> Step {
        if self.pause.until() > now {
            return Step::Blocked(None, self.pause.until());
        }
        if !self.is_open(now) {
            return self.cold_start.probing_until().map_or(Step::Idle, |until| Step::Blocked(None, until));
        }
        let Some(queued) = self.queue.get(head) else { return Step::Idle };
        if let Some(error) = self.too_large(queued, now) {
            self.leave(head);
            events.push(Event::Rejected(head, error));
            return Step::Again;
        }
        if self.granted() == Some(head) {
            self.go(head, *bound, now, events);
            return Step::Again;
        }
        if self.store_decides() {
            return self.ask_store(head, bound, now, events);
        }
        let (ready, slot) = self.limits.quotas.readiness(&queued.cost, now);
        let until = match ready {
            Readiness::Now => {
                self.go(head, *bound, now, events);
                return Step::Again;
            }
            Readiness::At(at) => at,
            // Costs are cut to their limits, so a full bucket holds them.
            Readiness::Never => return Step::Blocked(slot, now + SECOND),
        };
        *bound = slot;
        let trial = self.try_unpriced(head, now);
        if trial == Some(now) {
            self.go(head, *bound, now, events);
            return Step::Again;
        }
        match backfill(&mut self.queue, &self.limits.quotas, head, until, now) {
            Backfill::Pass(small) => {
                self.go(small, *bound, now, events);
                Step::Again
            }
            Backfill::Wait(wake) => {
                self.wake = trial.into_iter().chain([wake]).min();
                Step::Blocked(slot, until)
            }
        }
    }

    /// A head that does not fit by a guessed price is sent as if nothing were reserved for its answer, if it fits then and
    /// slow start lets it: `now`. Otherwise when slow start will.
    fn try_unpriced(&mut self, head: Id, now: Ns) -> Option<Ns> {
        let queued = self.queue.get(head).filter(|queued| self.pricing.is_guess(queued))?;
        let cost = Cost { output: 0, ..queued.cost };
        if self.limits.quotas.readiness(&cost, now).0 != Readiness::Now {
            return None;
        }
        match self.pricing.estimates.assumed.try_now(now) {
            Ok(()) => {
                self.queue.reprice(head, cost);
                Some(now)
            }
            Err(at) => Some(at),
        }
    }

    /// Asks the store for the head. Who was denied by it and cannot make it is told at once: these quotas did not know when it
    /// came.
    fn ask_store(&mut self, head: Id, bound: &mut Option<usize>, now: Ns, events: &mut Vec<Event>) -> Step {
        let (Some(store), Some(queued)) = (&mut self.store, self.queue.get(head)) else { return Step::Idle };
        let blocked = store.request(head, queued, &self.limits.quotas, now);
        let denied = store.take_denied();
        if denied.is_some_and(|id| self.reject_if_late(id, now, events)) {
            return Step::Again;
        }
        let Some((slot, until)) = blocked else { return Step::Idle };
        *bound = slot;
        Step::Blocked(slot, until)
    }

    /// When to dispatch again at the latest. `None`: nobody waits.
    pub fn wake(&self) -> Option<Ns> {
        self.wake
    }

    /// A queued request's client has left. The caller dispatches.
    pub fn cancel(&mut self, id: Id, now: Ns) {
        self.advance(now);
        self.leave(id);
    }

    /// Out of the queue, whatever the reason.
    fn leave(&mut self, id: Id) -> Option<QueuedRequest> {
        if let Some(reserved) = self.store.as_mut().and_then(|store| store.take_granted(id)) {
            self.limits.quotas.settle(reserved, Cost::default(), self.clock);
            self.flush_pending(true, self.clock);
        }
        self.queue.remove(id)
    }

    fn go(&mut self, id: Id, bound: Option<usize>, now: Ns, events: &mut Vec<Event>) {
        let reserved = self.store.as_mut().and_then(|store| store.take_granted(id));
        if let Some(queued) = self.queue.remove(id) {
            events.push(Event::Granted(id, self.grant(queued, reserved, bound, now)));
        }
    }

    /// Those whose max wait has ended.
    fn expire(&mut self, now: Ns, events: &mut Vec<Event>) {
        while let Some((_, id)) = self.queue.next_deadline().filter(|&(deadline, _)| deadline <= now) {
            // At its deadline a request may still go if it is its turn.
            if self.is_turn_of(id, now) {
                let bound = self.blocked.and_then(|(slot, _)| slot);
                self.go(id, bound, now, events);
            } else if let Some(queued) = self.leave(id) {
                let error = self.not_in_time(self.forecast(&queued, now), &queued);
                events.push(Event::Rejected(id, error));
            }
        }
    }

    fn is_turn_of(&mut self, id: Id, now: Ns) -> bool {
        let ready = |queued: &QueuedRequest| self.limits.quotas.readiness(&queued.cost, now).0 == Readiness::Now;
        self.pause.until() <= now
            && !self.store_decides()
            && self.queue.head() == Some(id)
            && self.queue.get(id).is_some_and(ready)
            && self.is_open(now)
    }

    /// The limits are known now: whoever cannot make it is told at once, in the order of arrival.
    fn reject_late(&mut self, now: Ns, events: &mut Vec<Event>) {
        let mut waiting: Vec<_> = self.queue.iter().map(|(id, queued)| (queued.ticket, id)).collect();
        waiting.sort_unstable();
        for (_, id) in waiting {
            self.reject_if_late(id, now, events);
        }
    }

    fn reject_if_late(&mut self, id: Id, now: Ns, events: &mut Vec<Event>) -> bool {
        let late = self.queue.get(id).and_then(|queued| {
            let forecast = self.forecast(queued, now);
            forecast.exceeds(queued.deadline.saturating_sub(now)).then(|| self.not_in_time(forecast, queued))
        });
        let Some(error) = late else { return false };
        self.leave(id);
        events.push(Event::Rejected(id, error));
        true
    }

    fn forecast(&self, queued: &QueuedRequest, now: Ns) -> Forecast {
        let cost = self.pricing.forecast_cost(queued);
        let mut forecast = forecast(&self.limits.quotas, &self.queue, queued, &cost, now);
        forecast.wait = forecast.wait.max(Duration::from_nanos(self.pause.until().saturating_sub(now)));
        forecast
    }

    fn not_in_time(&self, forecast: Forecast, queued: &QueuedRequest) -> AdmissionError {
        let slot = forecast.slot.or(self.blocked.and_then(|(slot, _)| slot)).unwrap_or(0);
        let too_large = self.limits.quotas.too_large_answer(&queued.cost).filter(|&(too_large, _)| too_large == slot);
        AdmissionError::NotInTime {
            dimension: self.dimension(slot).cloned().unwrap_or(Dimension::RPM),
            wait: forecast.wait,
            fitting_max_completion_tokens: too_large.map(|(_, limit)| limit),
            retry_after: forecast.retry_after(queued.deadline.saturating_sub(queued.since)),
        }
    }

    fn is_open(&mut self, now: Ns) -> bool {
        self.cold_start.is_open(self.in_flight, now)
    }

    /// The limiter's clock never goes back.
    fn advance(&mut self, now: Ns) -> Ns {
        self.clock = self.clock.max(now);
        self.limits.quotas.tick(self.clock);
        self.clock
    }
}

/// What came of one step of a dispatch.
enum Step {
    /// Somebody has left the queue: there is a new head.
    Again,
    /// The head waits for this slot, until then.
    Blocked(Option<usize>, Ns),
    /// Another event has to come first.
    Idle,
}

/// The life of a granted request.
impl Limiter {
    /// `reserved`: the store has charged it. `bound`: the slot that it waited for.
    fn grant(&mut self, queued: QueuedRequest, reserved: Option<Reserved>, bound: Option<usize>, now: Ns) -> Grant {
        let service = self.service(&queued.cost.with_output(queued.expected), now);
        let reserved = reserved.unwrap_or_else(|| self.limits.quotas.reserve(queued.cost, now));
        self.queue.serve(queued.app, queued.size, service.granted.into(), now);
        if let Some(app) = self.queue.app_mut(queued.app) {
            app.granted();
        }
        self.in_flight += 1;
        Grant {
            reserved,
            app: queued.app,
            size: queued.size,
            probe: self.cold_start.granted(now),
            states_max: queued.states_max,
            requested: queued.requested,
            shown_used: None,
            estimated: queued.estimated,
            service,
            ticket: queued.ticket,
            waited: now.saturating_sub(queued.since),
            bound,
        }
    }

    /// By the dimension in which a cost is dearest, as a share of what is there and comes within a minute.
    fn service(&self, cost: &Cost, now: Ns) -> Service {
        let mut dearest = (Service { slot: 0, price: 0.0, granted: 0.0 }, 0.0);
        for (slot, quota) in self.limits.quotas.all().iter().enumerate() {
            let Some(bucket) = quota.bucket() else { continue };
            let price = 1.0 / (bucket.remaining(now).max(0.0) + 60.0 * bucket.rate());
            let units = quota.units(cost);
            if units as f64 * price > dearest.1 {
                let service = Service { slot, price: price as f32, granted: units as f32 * price as f32 };
                dearest = (service, units as f64 * price);
            }
        }
        dearest.0
    }

    /// Right before the first byte goes out.
    pub fn sent(&mut self, grant: &mut Grant, now: Ns) {
        let now = self.advance(now);
        if !grant.is_sent() {
            self.limits.quotas.sent(&mut grant.reserved, now);
            self.flush_pending(false, now);
        }
    }

    /// An answer's head: its headers correct the quotas. The caller dispatches.
    pub fn observe(&mut self, grant: &mut Grant, state: &Observation, now: Ns) {
        let now = self.advance(now);
        self.pricing.estimates.head(now.saturating_sub(grant.reserved.sent_at));
        self.cold_start.answered();
        self.pause.answered();
        let delay = self.pricing.estimates.one_way();
        let tokens = self.limits.observe(&mut grant.reserved, state, true, delay, now);
        if let Some(tokens) = tokens.filter(|_| !grant.states_max) {
            self.learn_held(grant, tokens, now);
        }
        self.flush_pending(false, now);
    }

    /// If Groq holds more for a request without `max_completion_tokens` than was reserved, the quotas show so from now on, and
    /// the difference comes back when the answer ends.
    fn learn_held(&mut self, grant: &mut Grant, ObservedTokens { slot, used, error }: ObservedTokens, now: Ns) {
        grant.shown_used = Some(used);
        self.learn(|pricing| pricing.estimates.assumed.head(used, grant.estimated.into()));
        let cost = grant.cost();
        let held = self.pricing.held(cost.output, error.and_then(|error| u64::try_from(error).ok()));
        if let Some(held) = held.filter(|&held| held > cost.output) {
            self.limits.quotas.raise(&mut grant.reserved, Cost { output: held, ..cost }, slot, now);
        }
    }

    /// The request has ended and this is the truth. The caller dispatches.
    pub fn settle(&mut self, grant: Grant, usage: ActualUsage, now: Ns) {
        let now = self.advance(now);
        self.learn_usage(&grant, usage, now);
        let used = grant.used(usage, self.pricing.estimates.completion.mean());
        let Service { slot, price, granted } = grant.service;
        let service = match (usage, self.limits.quotas.get(slot)) {
            (ActualUsage::Nothing, _) => 0.0,
            (_, Some(quota)) => quota.of(&used) as f32 * price,
            (_, None) => granted,
        };
        self.queue.serve(grant.app, grant.size, f64::from(service - granted), now);
        if let Some(app) = self.queue.app_mut(grant.app) {
            app.settled();
        }
        if grant.probe {
            self.cold_start.probe_ended(!self.queue.is_empty());
        }
        self.in_flight = self.in_flight.saturating_sub(1);
        self.used_at = now;
        self.limits.quotas.settle(grant.reserved, used, now);
        self.flush_pending(false, now);
    }

    /// Estimates learn from what was really used.
    fn learn_usage(&mut self, grant: &Grant, usage: ActualUsage, now: Ns) {
        if grant.cost().seconds > 0 {
            return;
        }
        if let ActualUsage::Tokens { completion, .. } | ActualUsage::Partial { completion } = usage {
            let completion = u32::try_from(completion).unwrap_or(u32::MAX);
            self.limits.quotas.expected_output().answered(grant.cost().key, completion, now);
        }
        self.learn(|pricing| pricing.answered(usage, grant.estimated, grant.requested, grant.shown_used, now));
        if let (ActualUsage::Tokens { completion, .. }, Some(app)) = (usage, self.queue.app_mut(grant.app)) {
            app.completion.learn(completion as f32);
        }
    }

    /// Groq refused: the text (or the headers) corrects the quotas and everything comes back. What to ask again with. The
    /// caller dispatches.
    pub fn refused(
        &mut self,
        mut grant: Grant,
        text: Option<&UpstreamRefusal>,
        state: &Observation,
        retry_after: Option<Duration>,
        now: Ns,
    ) -> Requeue {
        let now = self.advance(now);
        self.refusals += 1;
        self.limits.quotas.refused(now);
        let dimension = text.and_then(|text| self.limits.dimension_of(text));
        let named = text.zip(dimension.as_ref());
        let least = named.map_or(grant.cost(), |(text, dimension)| grant.cost().raised(dimension.unit, text.requested));
        // Prompt and assumed completion tokens. What can never succeed says nothing of others: its prompt may be all of it.
        let in_all = named.filter(|(text, dimension)| !text.hopeless() && dimension.unit == Unit::Tokens);
        let in_all = in_all.filter(|_| !grant.states_max).map(|(text, _)| u32::try_from(text.requested).unwrap_or(u32::MAX));
        if !self.learn_refusal(&mut grant, text, dimension.as_ref(), in_all, state, now) {
            self.pause.refused(retry_after, now);
        }
        self.cold_start.answered();
        let requeue = Requeue { ticket: grant.ticket, least, requested: in_all.or(grant.requested) };
        self.settle(grant, ActualUsage::Nothing, now);
        requeue
    }

    /// `false`: neither the text nor the headers say which quota is low.
    fn learn_refusal(
        &mut self,
        grant: &mut Grant,
        text: Option<&UpstreamRefusal>,
        dimension: Option<&Dimension>,
        in_all: Option<u32>,
        state: &Observation,
        now: Ns,
    ) -> bool {
        let delay = self.pricing.estimates.one_way();
        let Some(text) = text.filter(|text| text.limit > 0) else {
            return self.limits.refused_by_headers(&mut grant.reserved, state, delay, now);
        };
        let Some(dimension) = dimension else { return false };
        if let Some(requested) = in_all {
            self.learn(|pricing| pricing.refused(requested, grant.estimated, now));
        }
        let max = grant.states_max.then_some(grant.cost().output);
        self.limits.refused(&mut grant.reserved, text, dimension, max, delay, now)
    }

    /// Where the price of requests without `max_completion_tokens` changes, it does so for those that wait, too.
    fn learn(&mut self, learn: impl FnOnce(&mut Pricing)) {
        let before = (self.pricing.assumed(), self.pricing.is_trying());
        learn(&mut self.pricing);
        if (self.pricing.assumed(), self.pricing.is_trying()) == before || self.queue.is_empty() {
            return;
        }
        let unpriced = self.queue.iter().filter(|(_, queued)| !queued.states_max && queued.requested.is_none());
        let repriced: Vec<_> = unpriced.map(|(id, queued)| (id, self.pricing.with_assumed_output(queued.cost))).collect();
        for (id, cost) in repriced {
            self.queue.reprice(id, cost);
        }
        // By another price some may not make it in time.
        self.guessed = true;
    }
}

/// Requests that are sent whatever the limits say, and what a second limiter, which tells what the limits would have said, has to
/// know of this one.
impl Limiter {
    /// Takes what `request` costs without a turn in the queue, into debt if need be. The caller dispatches.
    pub fn take(&mut self, request: &AdmissionRequest, now: Ns) -> Grant {
        let now = self.advance(now);
        self.used_at = now;
        let queued = self.read(request, now, now, None);
        let grant = self.grant(queued, None, None, now);
        self.limits.quotas.settle_unbooked(&grant.reserved);
        self.flush_pending(false, now);
        grant
    }

    /// How long a request like `request` would wait.
    pub fn forecast_of(&mut self, request: &AdmissionRequest, now: Ns) -> Duration {
        let now = self.advance(now);
        let queued = self.read(request, now, now, None);
        self.forecast(&queued, now).wait
    }

    /// Completion tokens that an answer has on average; `None` before the first one.
    pub fn usual_completion(&self) -> Option<u64> {
        self.pricing.estimates.completion.mean().map(|mean| mean as u64)
    }

    /// The limits that Groq has stated.
    pub(crate) fn stated_limits(&self) -> Vec<StatedLimit> {
        self.limits.quotas.stated()
    }

    /// Takes up limits that Groq has stated to another limiter, or to an earlier process. What is used stays.
    pub(crate) fn adopt_limits(&mut self, stated: &[StatedLimit], now: Ns) {
        let now = self.advance(now);
        self.limits.adopt(stated, now);
        self.limits.untold = false;
    }
}

/// The session with the store that replicas share.
impl Limiter {
    /// Shares its quotas between so many replicas from now on. `up`: the store can be reached.
    pub fn share(&mut self, up: bool, replicas: u32, now: Ns) {
        self.limits.quotas.share(replicas, now);
        self.pricing.share();
        self.store = Some(Box::default());
        if up {
            self.reached(now);
        }
    }

    /// Whether its quotas are shared.
    pub fn is_shared(&self) -> bool {
        self.store.is_some()
    }

    /// What the store is to be told or asked now, if anything. One at a time: its end is [`Limiter::answered`] or
    /// [`Limiter::lost`].
    pub fn transaction(&mut self, now: Ns) -> Option<Transaction> {
        let now = self.advance(now);
        let Limits { quotas, untold, .. } = &mut self.limits;
        let learnt = |quotas: &mut QuotaSet| Learnt {
            limits: if std::mem::take(untold) { quotas.stated() } else { Vec::new() },
            answers: quotas.expected_output().take_untold(now),
        };
        self.store.as_mut()?.transaction(quotas, &self.queue, learnt, now)
    }

    /// The store's answer to this transaction. The caller dispatches.
    pub fn answered(&mut self, serial: u64, answer: &Answer, now: Ns) {
        let now = self.advance(now);
        let Some(store) = &mut self.store else { return };
        if store.answered(serial, answer, &mut self.limits.quotas, &self.queue, now) {
            self.limits.hear(&answer.state.learnt, now);
        }
    }

    /// What another replica has changed. The caller dispatches.
    pub fn updated(&mut self, state: &State, now: Ns) {
        let now = self.advance(now);
        let Some(store) = &mut self.store else { return };
        if store.updated(state, &mut self.limits.quotas, now) {
            self.limits.hear(&state.learnt, now);
        }
    }

    /// The store does not answer: alone, among so many replicas. The caller dispatches.
    pub fn lost(&mut self, replicas: u32, now: Ns) {
        let now = self.advance(now);
        if let Some(store) = &mut self.store {
            store.lost(replicas, &mut self.limits.quotas, now);
        }
    }

    /// Whether this transaction is under way.
    pub fn waits_for(&self, serial: u64) -> bool {
        self.store.as_ref().is_some_and(|store| store.waits_for(serial))
    }

    /// The store can be reached. The caller dispatches.
    pub fn reached(&mut self, now: Ns) {
        if let Some(store) = &mut self.store {
            store.reached(&mut self.limits.quotas, now);
        }
    }

    /// What there is to tell is told now, or (`hurry`: not set) soon. The caller dispatches.
    pub fn flush_pending(&mut self, hurry: bool, now: Ns) {
        if let Some(store) = &mut self.store {
            store.flush_pending(hurry, self.limits.has_learnt(), &mut self.limits.quotas, now);
        }
    }

    /// Whether the store knows everything, or cannot be told.
    pub fn is_flushed(&self) -> bool {
        self.store.as_ref().is_none_or(|store| store.is_flushed())
    }

    fn store_decides(&self) -> bool {
        self.store.as_ref().is_some_and(|store| store.decides())
    }

    fn granted(&self) -> Option<Id> {
        self.store.as_ref()?.granted()
    }
}

/// What others want to know of a limiter.
impl Limiter {
    /// Quotas, queue and forecast. The limiter's names are the caller's to give.
    pub fn snapshot(&mut self, organization: &Arc<str>, tier: &Arc<str>, now: Ns) -> LimiterSnapshot {
        let now = self.advance(now);
        let blocked_by = self
            .blocked
            .filter(|_| !self.queue.is_empty())
            .and_then(|(slot, until)| Some((self.dimension(slot?)?.clone(), Duration::from_nanos(until.saturating_sub(now)))));
        // What a request like the last in the queue would wait.
        let last = self.queue.iter().map(|(_, queued)| queued).max_by_key(|queued| queued.ticket).cloned();
        let forecast = last.map(|last| self.forecast(&QueuedRequest { ticket: u64::MAX, ..last }, now).wait);
        LimiterSnapshot {
            organization: organization.clone(),
            model: self.limits.model.clone(),
            tier: tier.clone(),
            dimensions: status::dimensions(&self.limits.quotas, now),
            waiting: status::waiting(&self.queue, now),
            blocked_by,
            forecast: forecast.unwrap_or_else(|| Duration::from_nanos(self.pause.until().saturating_sub(now))),
            in_flight: self.in_flight as usize,
            refusals: self.refusals,
        }
    }

    /// Every dimension that has a limit: the limit, what is left, and the time until it is full.
    pub fn visit_quotas(&self, now: Ns, visit: impl FnMut(&Dimension, u64, f64, Duration)) {
        status::visit(&self.limits.quotas, now, visit);
    }

    /// Nobody waits or runs, and every quota is full again: dropping it loses only what was learnt.
    pub fn is_idle(&mut self, now: Ns) -> bool {
        let now = self.advance(now);
        self.is_unused() && self.quotas().iter().all(|quota| quota.is_full(now))
    }

    /// Nobody waits or runs.
    pub fn is_unused(&self) -> bool {
        self.queue.is_empty() && self.in_flight == 0
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
        self.pricing.estimates.usual_time_to_head()
    }

    /// A dimension by its slot.
    pub fn dimension(&self, slot: usize) -> Option<&Dimension> {
        self.limits.quotas.get(slot).map(|quota| &quota.dimension)
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Requests that are granted and not settled.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// The quotas.
    pub fn quotas(&self) -> &[Quota] {
        self.limits.quotas.all()
    }

    /// Until when the head of the queue is blocked.
    pub fn blocked_until(&self) -> Option<Ns> {
        self.blocked.map(|(_, until)| until)
    }

    /// Takes up a quota of an earlier process: `used` units less what `passed` seconds gave back.
    pub(crate) fn restore_usage(&mut self, dimension: &Dimension, bound: bool, used: f64, passed: f64, now: Ns) {
        self.limits.restore(dimension, bound, used, passed, now);
    }
}
