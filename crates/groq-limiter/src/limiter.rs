//! One organization × model × tier: its quotas and its queue as a pure state machine. `now` is an argument, nothing waits,
//! nothing is spawned.
//!
//! Whoever drives it calls [`Limiter::submit`], then [`Limiter::dispatch`] after every change, takes the [`Event`]s, and calls
//! `dispatch` again at [`Limiter::wake`] at the latest. A granted request holds a [`Grant`] that ends in exactly one of
//! [`Limiter::settle`] and [`Limiter::refused`].

use std::{sync::Arc, task::Waker, time::Duration};

pub use self::pricing::Requeue;
use self::{cold_start::ColdStart, pause::Pause, pricing::Pricing, store_session::StoreSession};
use crate::{
    ablation::Mechanism,
    bucket::Readiness,
    estimate::default_output::AssumedOutput,
    queue::{
        FairQueue, QueuedRequest, Ticket,
        forecast::{Forecast, forecast},
    },
    quota::Quota,
    quota_set::{QuotaSet, Reserved},
    request::{ActualUsage, AdmissionError, AdmissionRequest, Cost, CostEstimate},
    settings::LimitSettings,
    types::{Dimension, Ns, Observation, RemoteQuota, StatedLimit, Unit, UpstreamRefusal},
};

mod cold_start;
mod dispatch;
mod pause;
mod pricing;
mod sharing;
pub mod status;
mod store_session;

/// What becomes of a request that asks.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "it is taken apart where it is returned")]
pub enum Admission {
    /// It goes.
    Granted(Grant),
    /// It waits under this number; an [`Event`] will tell.
    Queued(Ticket),
}

/// A queued request's turn has come, or it cannot go in time, or never.
pub type Event = (Ticket, Result<Grant, AdmissionError>);

/// What a granted request holds.
#[derive(Clone, Debug)]
pub struct Grant {
    reserved: Reserved,
    /// As it was in the queue.
    queued: QueuedRequest,
    /// Whether it is the probe of the cold start.
    probe: bool,
    /// Tokens in use as its answer's head has shown, itself included; of a request without `max_completion_tokens` only.
    shown_used: Option<u64>,
    /// What it counts in its app's fair share so far.
    service: f64,
    /// How long it waited, ns.
    pub waited: Ns,
    /// What made it wait.
    pub bound_by: Option<Dimension>,
}

impl Grant {
    /// Whether it has been sent.
    pub fn is_sent(&self) -> bool {
        self.reserved.is_sent()
    }

    /// What it took.
    pub fn cost(&self) -> Cost {
        self.reserved.cost
    }
}

/// What can be said of a request before it asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestForecast {
    /// How long it would wait.
    pub wait: Duration,
    /// What its `max_completion_tokens` would have to be lowered to, where it alone is what can never fit.
    pub fitting_max_completion_tokens: Option<u64>,
    /// The usual time from sending to an answer's head; zero before the first one.
    pub time_to_head: Duration,
    /// Completion tokens that an answer has on average; `None` before the first one.
    pub completion: Option<u64>,
}

/// One organization × model × tier.
#[derive(Debug)]
pub struct Limiter {
    quotas: QuotaSet,
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
    /// The next dispatch lets all go that wait.
    releases: bool,
    /// What the head of the queue waits for: a dimension's slot, if it is one, and until when.
    blocked: Option<(Option<usize>, Ns)>,
    wake: Option<Ns>,
}

/// Asking for a turn.
impl Limiter {
    /// An unused limiter: full by its tables, nothing known of the upstream.
    pub fn new(model: Arc<str>, settings: Arc<LimitSettings>, now: Ns) -> Self {
        let mut pricing = Pricing::default();
        pricing.configure(&settings, &model);
        Self {
            quotas: QuotaSet::new(model, settings, now),
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
            releases: false,
            blocked: None,
            wake: None,
        }
    }

    /// New settings; quotas and used amounts stay. The caller dispatches.
    pub fn reconfigure(&mut self, settings: Arc<LimitSettings>, now: Ns) {
        self.pricing.configure(&settings, &self.quotas.model);
        self.quotas.reconfigure(settings, now);
    }

    /// Asks for a turn. `requeue`: it was here before. `has_room`: whether the queue may grow; asked last, and only for a request that
    /// would have to wait.
    ///
    /// After [`Admission::Queued`] the caller dispatches.
    ///
    /// # Errors
    /// Why it gets no turn.
    pub fn submit(
        &mut self,
        request: &AdmissionRequest,
        now: Ns,
        deadline: Ns,
        requeue: Option<Requeue>,
        has_room: impl FnOnce() -> bool,
    ) -> Result<Admission, AdmissionError> {
        let now = self.use_at(now);
        let queued = self.read(request, now, deadline, requeue);
        if let Some(error) = self.too_large(&queued, now) {
            return Err(error);
        }
        let open = self.queue.is_empty() && self.pause.until <= now && self.cold_start.is_open(self.in_flight, now);
        let ready = open && self.quotas.readiness(&queued.cost, now).0 == Readiness::Now;
        if ready && !self.quotas.is_attached() {
            return Ok(Admission::Granted(self.grant(queued, None, None, now)));
        }
        let forecast = self.forecast(&queued, now);
        if forecast.exceeds(deadline.saturating_sub(now)) {
            // Until the probe's head is here the limits are a guess, and nobody is refused by a guess.
            if self.cold_start.probing_until().is_none() {
                return Err(self.not_in_time(forecast, &queued));
            }
            self.guessed = true;
        }
        // Asking the store is not waiting yet.
        if !ready && !has_room() {
            let retry_after = forecast.wait.max(Duration::from_secs(1));
            return Err(AdmissionError::QueueFull { retry_after });
        }
        Ok(Admission::Queued(self.queue.push(queued)))
    }

    /// What can be said of `request` before it asks.
    pub fn forecast_of(&mut self, request: &AdmissionRequest, now: Ns) -> RequestForecast {
        let now = self.advance(now);
        let queued = self.read(request, now, now, None);
        let estimates = &self.pricing.estimates;
        RequestForecast {
            wait: self.forecast(&queued, now).wait,
            fitting_max_completion_tokens: self.fitting_max_completion_tokens(request, now),
            time_to_head: estimates.usual_time_to_head(),
            completion: estimates.completion.mean().map(|mean| mean as u64),
        }
    }

    /// What `max_completion_tokens` would have to be lowered to, where it alone is what can never fit.
    fn fitting_max_completion_tokens(&self, request: &AdmissionRequest, now: Ns) -> Option<u64> {
        let priced = self.pricing.price(request);
        if let (CostEstimate::Tokens { .. }, Some((slot, limit))) = (request.cost, self.quotas.too_large_answer(&priced.cost)) {
            // The whole limit would have to be free for itself; half of it is sooner.
            let left = self.quotas()[slot].bucket().remaining(now);
            return Some((limit / 2).max(left.max(0.0) as u64).max(1));
        }
        let tokens = self.quotas().iter().filter(|quota| quota.dimension.unit == Unit::Tokens && quota.is_certain(now));
        let room = tokens.filter_map(|quota| Some(quota.limit()?.saturating_sub(priced.cost.input.into()))).min()?;
        (priced.states_max && room > 0 && room < priced.cost.output.into()).then_some(room)
    }

    /// The task that waits for a queued request: it is to be woken when [`Self::take_woken`] gives it, after a dispatch.
    pub fn set_waker(&mut self, ticket: Ticket, waker: &Waker) {
        if let Some(queued) = self.queue.get_mut(ticket) {
            queued.waker = Some(waker.clone());
        }
    }

    /// The tasks of requests that have left the queue.
    pub fn take_woken(&mut self) -> Vec<Waker> {
        std::mem::take(&mut self.queue.woken)
    }

    /// A queued request's client has left. The caller dispatches.
    pub fn cancel(&mut self, ticket: Ticket, now: Ns) {
        let now = self.advance(now);
        self.leave(ticket, now);
    }

    /// The limiter's clock never goes back.
    fn advance(&mut self, now: Ns) -> Ns {
        self.clock = self.clock.max(now);
        self.quotas.tick(self.clock);
        self.clock
    }

    fn use_at(&mut self, now: Ns) -> Ns {
        self.used_at = self.advance(now);
        self.used_at
    }

    /// A request as it would be in the queue.
    fn read(&mut self, request: &AdmissionRequest, now: Ns, deadline: Ns, requeue: Option<Requeue>) -> QueuedRequest {
        let app = self.queue.app(&request.app, request.class, request.weight);
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
        QueuedRequest {
            app,
            size: self.size_class(&cost),
            cost,
            expected: self.pricing.expected(cost.output, priced.states_max),
            ticket: requeue.map_or_else(|| self.queue.ticket(), |requeue| requeue.ticket),
            since: now,
            deadline,
            bypass_budget: Ns::MAX,
            estimated: priced.estimated,
            states_max: priced.states_max,
            requested,
            waker: None,
        }
    }

    /// Size class: by the share of the tightest limit it asks for.
    fn size_class(&self, cost: &Cost) -> u8 {
        if !Mechanism::SizeClasses.is_on() {
            return 0;
        }
        let cost = &self.quotas.expect(*cost);
        let quotas = self.quotas().iter().filter(|quota| quota.dimension.unit != Unit::Requests);
        let shares = quotas.map(|quota| quota.units(cost) as f64 / quota.bucket().capacity() as f64);
        let share = shares.fold(0.0, f64::max);
        [1.0 / 32.0, 1.0 / 8.0, 0.5].iter().filter(|&&bound| share > bound).count() as u8
    }

    /// The least that it can turn out to take is over a certain limit.
    fn too_large(&self, queued: &QueuedRequest, now: Ns) -> Option<AdmissionError> {
        let (dimension, limit) = self.quotas.never(&self.pricing.least(queued), now)?;
        // What people are told is the estimate itself, not its lower bound.
        let told = pricing::stated(queued);
        Some(AdmissionError::TooLarge {
            dimension: dimension.clone(),
            limit,
            requested: told.of(dimension.unit).max(limit + 1),
            parts: (dimension.unit == Unit::Tokens).then_some((told.input.into(), told.output.into())),
        })
    }

    fn forecast(&self, queued: &QueuedRequest, now: Ns) -> Forecast {
        let mut forecast = forecast(&self.quotas, &self.queue, queued, now);
        forecast.wait = forecast.wait.max(Duration::from_nanos(self.pause.until.saturating_sub(now)));
        forecast
    }

    fn not_in_time(&self, forecast: Forecast, queued: &QueuedRequest) -> AdmissionError {
        let slot = forecast.slot.or(self.blocked.and_then(|(slot, _)| slot)).unwrap_or(0);
        let too_large = self.quotas.too_large_answer(&queued.cost).filter(|&(too_large, _)| too_large == slot);
        AdmissionError::NotInTime {
            dimension: self.quotas().get(slot).map_or(Dimension::RPM, |quota| quota.dimension.clone()),
            wait: forecast.wait,
            fitting_max_completion_tokens: too_large.map(|(_, limit)| limit),
            retry_after: forecast.retry_after(queued.deadline.saturating_sub(queued.since)),
        }
    }

    /// Out of the queue, whatever the reason.
    fn leave(&mut self, ticket: Ticket, now: Ns) -> Option<QueuedRequest> {
        if let Some(reserved) = self.store.as_mut().and_then(|store| store.take_granted(ticket)) {
            self.quotas.settle(reserved, Cost::default(), now);
            self.flush_pending(true, now);
        }
        self.queue.remove(ticket)
    }

    /// `reserved`: the store has charged it. `bound`: the slot that it waited for.
    fn grant(&mut self, queued: QueuedRequest, reserved: Option<Reserved>, bound: Option<usize>, now: Ns) -> Grant {
        let service = self.service(&queued.cost.with_output(queued.expected), now);
        let reserved = reserved.unwrap_or_else(|| self.quotas.reserve(queued.cost, now));
        self.queue.serve(&queued.app, queued.size, service);
        self.in_flight += 1;
        Grant {
            reserved,
            probe: self.cold_start.granted(now),
            shown_used: None,
            service,
            waited: now.saturating_sub(queued.since),
            bound_by: bound.map(|slot| self.quotas()[slot].dimension.clone()),
            queued,
        }
    }

    /// What a cost counts in its app's fair share: in the dimension in which it is dearest, as a share of what is there and comes
    /// within a minute.
    fn service(&self, cost: &Cost, now: Ns) -> f64 {
        let each = self.quotas().iter().map(|quota| {
            let bucket = quota.bucket();
            quota.units(cost) as f64 / (bucket.remaining(now).max(0.0) + 60.0 * bucket.rate())
        });
        each.fold(0.0, f64::max)
    }
}

/// The life of a granted request.
impl Limiter {
    /// Right before the first byte goes out.
    pub fn sent(&mut self, grant: &mut Grant, now: Ns) {
        let now = self.advance(now);
        if !grant.is_sent() {
            self.quotas.sent(&mut grant.reserved, now);
            self.flush_pending(false, now);
        }
    }

    /// An answer's head: its headers correct the quotas. The caller dispatches.
    pub fn observe(&mut self, grant: &mut Grant, state: &Observation, now: Ns) {
        let now = self.advance(now);
        self.pricing.estimates.head(now.saturating_sub(grant.reserved.sent_at));
        self.quotas.answered(&grant.reserved);
        self.cold_start.answered();
        self.pause.answered();
        let delay = self.pricing.estimates.one_way();
        self.quotas.observe(&mut grant.reserved, state, true, delay, now);
        if let Some(RemoteQuota { limit, remaining, .. }) = state.tokens.filter(|_| !grant.queued.states_max) {
            let used = limit.saturating_sub(remaining);
            // What is reserved stays below a bound whatever the prompt turns out to be.
            let prompt = self.pricing.least(&grant.queued).input.into();
            if AssumedOutput::is_shown(used, prompt, limit) {
                grant.shown_used = Some(used);
                self.learn(|pricing| pricing.estimates.assumed.at_most(used, prompt, now));
            }
        }
        self.flush_pending(false, now);
    }

    /// The request has ended and this is the truth. The caller dispatches.
    pub fn settle(&mut self, grant: Grant, usage: ActualUsage, now: Ns) {
        let now = self.use_at(now);
        self.learn_usage(&grant, usage, now);
        let used = pricing::used(grant.cost(), usage, self.pricing.estimates.completion.mean());
        let service = self.service(&used, now);
        self.queue.serve(&grant.queued.app, grant.queued.size, service - grant.service);
        if grant.probe {
            self.cold_start.probe_ended(!self.queue.is_empty());
        }
        self.in_flight = self.in_flight.saturating_sub(1);
        if usage != ActualUsage::Unknown {
            self.quotas.answered(&grant.reserved);
        }
        self.quotas.settle(grant.reserved, used, now);
        self.flush_pending(false, now);
    }

    /// Estimates learn from what was really used.
    fn learn_usage(&mut self, grant: &Grant, usage: ActualUsage, now: Ns) {
        if grant.cost().seconds > 0 {
            return;
        }
        if let ActualUsage::Tokens { completion: Some(completion), .. } | ActualUsage::Partial { completion } = usage {
            let completion = u32::try_from(completion).unwrap_or(u32::MAX);
            self.quotas.expected_output.answered(grant.cost().key, completion, now);
        }
        self.learn(|pricing| pricing.answered(usage, &grant.queued, grant.shown_used, now));
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
        self.quotas.refused(now);
        let QueuedRequest { states_max, ticket, requested, .. } = grant.queued;
        let max = states_max.then_some(grant.cost().output);
        let delay = self.pricing.estimates.one_way();
        let text = text.filter(|text| text.limit > 0);
        let mut requeue = Requeue { ticket, least: grant.cost(), requested };
        let is_told = match text.and_then(|text| Some((text, self.quotas.dimension_of(text, max)?))) {
            Some((text, dimension)) => {
                requeue.least = requeue.least.raised(dimension.unit, text.requested);
                // Prompt and assumed completion tokens. What can never succeed says nothing of others: its prompt may be all of it.
                if !states_max && !text.hopeless() && dimension.unit == Unit::Tokens {
                    requeue.requested = Some(u32::try_from(text.requested).unwrap_or(u32::MAX));
                    let prompt = self.pricing.least(&grant.queued).input.into();
                    self.learn(|pricing| pricing.estimates.assumed.at_most(text.requested, prompt, now));
                }
                self.quotas.refused_by_text(&mut grant.reserved, text, &dimension, max, delay, now)
            }
            None => text.is_none() && self.quotas.refused_by_headers(&mut grant.reserved, state, delay, now),
        };
        if !is_told {
            self.pause.refused(retry_after, now);
        }
        self.cold_start.answered();
        self.settle(grant, ActualUsage::Nothing, now);
        requeue
    }

    /// Where the price of requests without `max_completion_tokens` changes, it does so for those that wait, too.
    fn learn(&mut self, learn: impl FnOnce(&mut Pricing)) {
        let before = self.pricing.assumed();
        learn(&mut self.pricing);
        if self.pricing.assumed() == before || self.queue.is_empty() {
            return;
        }
        let unpriced = self.queue.iter().filter(|queued| !queued.states_max && queued.requested.is_none());
        let repriced: Vec<_> = unpriced.map(|queued| (queued.ticket, self.pricing.with_assumed_output(queued.cost))).collect();
        for (ticket, cost) in repriced {
            self.queue.reprice(ticket, cost);
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
        let now = self.use_at(now);
        let queued = self.read(request, now, now, None);
        let grant = self.grant(queued, None, None, now);
        self.flush_pending(false, now);
        grant
    }

    /// Lets all go that wait, into debt if need be. The caller dispatches.
    pub fn release_waiting(&mut self) {
        self.releases = true;
    }

    /// The limits that Groq has stated.
    pub(crate) fn stated_limits(&self) -> Vec<StatedLimit> {
        self.quotas.stated()
    }

    /// Takes up limits that Groq has stated to another limiter, or to an earlier process. What is used stays.
    pub(crate) fn adopt_limits(&mut self, stated: &[StatedLimit], now: Ns) {
        let now = self.advance(now);
        self.quotas.adopt(stated, now);
        self.quotas.untold = false;
    }
}

/// What others want to know of a limiter.
impl Limiter {
    /// When it was last used, if nobody waits or runs.
    pub fn unused_since(&self) -> Option<Ns> {
        (self.queue.is_empty() && self.in_flight == 0).then_some(self.used_at)
    }

    /// Whether it is as it was made: unused, full, and Groq has stated none of its limits.
    pub fn is_new(&mut self, now: Ns) -> bool {
        let now = self.advance(now);
        let is_new = |quota: &Quota| quota.statements.stated.is_none() && quota.bucket().tat() <= now;
        self.unused_since().is_some() && self.quotas().iter().all(is_new)
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
        &self.quotas.quotas
    }

    /// Until when the head of the queue is blocked.
    pub fn blocked_until(&self) -> Option<Ns> {
        self.blocked.map(|(_, until)| until)
    }

    /// Takes up a quota of an earlier process: `used` units less what `passed` seconds gave back.
    pub(crate) fn restore_usage(&mut self, code: &str, used: f64, passed: f64, now: Ns) {
        let Some(slot) = self.quotas.slot(code) else { return };
        let quota = &mut self.quotas.quotas[slot];
        let back = quota.bucket().rate() * passed;
        quota.restore((used - back).max(0.0).ceil() as u64, now);
    }
}
