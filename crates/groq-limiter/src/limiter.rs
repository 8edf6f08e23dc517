//! The limiter of one organization, model and tier: its quotas and its queue as a pure state machine. The time is an argument,
//! and no method blocks or spawns a task.
//!
//! The caller submits requests with [`Limiter::submit`]. After every change it calls [`Limiter::dispatch`], which reports an
//! [`Event`] for every request that leaves the queue, and calls it again at [`Limiter::wake`] at the latest. A granted request
//! holds a [`Grant`] that ends in exactly one of [`Limiter::settle`] and [`Limiter::refused`].
//!
//! Times are nanoseconds on the limiter's clock. A dimension is referred to by its slot, its index in [`Limiter::quotas`].

use std::{sync::Arc, task::Waker, time::Duration};

pub use self::grant::{Admission, Event, Grant, Requeue};
use self::{
    gate::Gate,
    pricing::Pricing,
    sharing::{SETTLEMENT_DELAY, Sharing, StoreSession},
};
use crate::{
    queue::{
        FairQueue, QueuedRequest, Ticket,
        backfill::{Backfill, backfill},
        forecast::{Forecast, RequestForecast, fitting_max_completion_tokens, forecast},
        service::{service, size_class},
    },
    quota::Quota,
    quota_set::{QuotaSet, Reserved, corrections::Corrections},
    request::{ActualUsage, AdmissionError, AdmissionRequest, Cost, CostEstimate, saturated},
    settings::LimitSettings,
    types::{Ns, Observation, StatedLimit, Unit, UpstreamRefusal},
};

mod gate;
mod grant;
mod pricing;
pub mod sharing;
pub mod status;

/// The result of one step of a dispatch.
enum Step {
    /// A request has left the queue, so there may be a new head.
    Again,
    /// Nothing can be granted now. The head is blocked by this slot if it is a dimension, until this time; `None` if it waits
    /// for another event, for example the store's reply.
    Wait(Option<(Option<usize>, Ns)>),
}

/// The limiter of one organization, model and tier.
#[derive(Debug)]
pub struct Limiter {
    quotas: QuotaSet,
    pricing: Pricing,
    queue: FairQueue,
    gate: Gate,
    /// The session with the store; `None` if quotas are not shared between replicas.
    store: Option<Box<StoreSession>>,
    /// Time of the last submitted or settled request.
    used_at: Ns,
    /// Requests that are granted and not settled.
    in_flight: u32,
    /// Refusals of the upstream so far.
    refusals: u64,
    /// Whether queued requests have to be tested again for their deadlines, because they were queued before the limits were
    /// known, or their cost has changed.
    needs_recheck: bool,
    /// Whether the next dispatch grants all waiting requests.
    releases_all: bool,
    /// The slot that the head of the queue waits for (`None` if it waits for no dimension), and until when it is blocked.
    blocked: Option<(Option<usize>, Ns)>,
    /// The time of the next dispatch. During a dispatch: when a smaller request may be able to overtake the blocked head.
    wake: Option<Ns>,
}

/// Admission.
impl Limiter {
    /// An unused limiter with full buckets, which starts from the configured limits and the plan's table.
    pub fn new(model: Arc<str>, settings: Arc<LimitSettings>, now: Ns) -> Self {
        let mut pricing = Pricing::default();
        pricing.configure(&settings, &model);
        Self {
            quotas: QuotaSet::new(model, settings, now),
            pricing,
            queue: FairQueue::default(),
            gate: Gate::default(),
            store: None,
            used_at: now,
            in_flight: 0,
            refusals: 0,
            needs_recheck: false,
            releases_all: false,
            blocked: None,
            wake: None,
        }
    }

    /// Applies new settings. Used amounts stay. The caller dispatches.
    pub fn reconfigure(&mut self, settings: Arc<LimitSettings>, now: Ns) {
        self.pricing.configure(&settings, &self.quotas.initial.model);
        self.quotas.reconfigure(settings, now);
    }

    /// Grants `request` if it may be sent now, or else queues it. `requeue` is what [`Self::refused`] has returned for an earlier
    /// attempt. `has_room` tells whether the queue may grow. It is called last, and only for a request that has to wait.
    ///
    /// After [`Admission::Queued`] the caller dispatches.
    ///
    /// # Errors
    /// The request is larger than a limit, cannot be sent before its deadline, or finds the queue full.
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
        if let Some(error) = self.pricing.too_large(&queued, &self.quotas, now) {
            return Err(error);
        }
        let open = self.queue.is_empty() && self.closed_until(now) <= now;
        let ready = open && self.quotas.ready(&queued.cost, now).0 <= now;
        if ready && !self.quotas.is_attached() {
            return Ok(Admission::Granted(self.grant(queued, None, None, now)));
        }
        let forecast = self.forecast(&queued, now);
        if forecast.exceeds(deadline.saturating_sub(now)) {
            // Until the probe has a response, the limits are a guess, and a request is not refused because of a guess.
            if !self.gate.is_probing(self.in_flight, now) {
                return Err(forecast.not_in_time(&queued, &self.quotas));
            }
            self.needs_recheck = true;
        }
        // A request that is ready and only has to be charged in the store does not count as waiting.
        if !ready && !has_room() {
            let retry_after = forecast.wait.max(Duration::from_secs(1));
            return Err(AdmissionError::QueueFull { retry_after });
        }
        Ok(Admission::Queued(self.queue.push(queued)))
    }

    /// The usual time from sending to the head of the response; zero before the first response.
    pub fn usual_time_to_head(&self) -> Duration {
        self.pricing.estimates.usual_time_to_head()
    }

    /// The forecast for `request` if it were submitted now.
    pub fn forecast_of(&mut self, request: &AdmissionRequest, now: Ns) -> RequestForecast {
        let now = self.advance(now);
        let queued = self.read(request, now, now, None);
        RequestForecast {
            wait: self.forecast(&queued, now).wait,
            fitting_max_completion_tokens: fitting_max_completion_tokens(&self.quotas, &queued, now),
            completion: self.pricing.estimates.completion.mean().map(|mean| mean as u64),
        }
    }

    /// Sets the task that waits for a queued request. [`Self::take_woken`] returns its waker when the request leaves the queue.
    pub fn set_waker(&mut self, ticket: Ticket, waker: &Waker) {
        if let Some(queued) = self.queue.get_mut(ticket) {
            queued.waker = Some(waker.clone());
        }
    }

    /// Takes the wakers of requests that have left the queue. The caller wakes them after a dispatch.
    pub fn take_woken(&mut self) -> Vec<Waker> {
        std::mem::take(&mut self.queue.woken)
    }

    /// Removes a queued request, because its client has disconnected. The caller dispatches.
    pub fn cancel(&mut self, ticket: Ticket, now: Ns) {
        let now = self.advance(now);
        self.leave(ticket, now);
    }

    /// Advances the clock to `now`, and returns the clock's time. It never goes back.
    fn advance(&mut self, now: Ns) -> Ns {
        self.quotas.tick(now)
    }

    /// Like [`Self::advance`], and notes that the limiter is in use.
    fn use_at(&mut self, now: Ns) -> Ns {
        self.used_at = self.advance(now);
        self.used_at
    }

    /// The queue's entry for a request.
    fn read(&mut self, request: &AdmissionRequest, now: Ns, deadline: Ns, requeue: Option<Requeue>) -> QueuedRequest {
        let app = self.queue.app(&request.app, request.class, request.weight);
        let requested = requeue.and_then(|requeue| requeue.requested);
        let cost = self.pricing.cost(request);
        let cost = requested.map_or(cost, |(unit, units)| cost.corrected(unit, units));
        let (estimated, states_max) = match request.cost {
            CostEstimate::Tokens { prompt, max_completion_tokens } => (saturated(prompt), max_completion_tokens.is_some()),
            CostEstimate::Audio { .. } | CostEstimate::Free => (0, true),
        };
        QueuedRequest {
            app,
            size: size_class(&self.quotas, &cost),
            cost,
            expected: self.pricing.expected(cost.output, states_max),
            ticket: requeue.map_or_else(|| self.queue.ticket(), |requeue| requeue.ticket),
            since: now,
            deadline,
            bypass_budget: Ns::MAX,
            estimated,
            states_max,
            requested,
            waker: None,
        }
    }

    /// The time until which no request may be granted; in the past if requests may be granted now.
    fn closed_until(&self, now: Ns) -> Ns {
        self.gate.closed_until(self.in_flight, now)
    }

    /// The forecast of a queued request, which waits until requests may be granted, and behind a blocked head.
    fn forecast(&self, queued: &QueuedRequest, now: Ns) -> Forecast {
        let Forecast { wait, slot } = forecast(&self.quotas, &self.queue, queued, now);
        let closed = Duration::from_nanos(self.closed_until(now).saturating_sub(now));
        Forecast { wait: wait.max(closed), slot: slot.or(self.bound()) }
    }

    /// The slot that the head of the queue waits for; `None` if it waits for no dimension.
    fn bound(&self) -> Option<usize> {
        self.blocked.and_then(|(slot, _)| slot)
    }

    /// Removes a request from the queue that is not granted. What the store has charged for it is returned.
    fn leave(&mut self, ticket: Ticket, now: Ns) -> Option<QueuedRequest> {
        if let Some(reserved) = self.store.as_mut().and_then(|store| store.take_granted(ticket)) {
            self.quotas.settle(reserved, Cost::default(), now);
            self.report(0, now);
        }
        self.queue.remove(ticket)
    }

    /// Grants a request. `reserved` is what the store has charged for it; `None` if the cost is reserved here. `bound` is
    /// the slot that the request waited for.
    fn grant(&mut self, queued: QueuedRequest, reserved: Option<Reserved>, bound: Option<usize>, now: Ns) -> Grant {
        let service = service(&self.quotas, &queued.usage(), now);
        let reserved = reserved.unwrap_or_else(|| self.quotas.reserve(queued.cost, now));
        self.queue.serve(&queued.app, queued.size, service);
        self.gate.granted(self.in_flight, now);
        self.in_flight += 1;
        Grant {
            reserved,
            service,
            waited: now.saturating_sub(queued.since),
            bound_by: bound.map(|slot| self.quotas()[slot].dimension.clone()),
            queued,
        }
    }
}

/// Dispatch.
impl Limiter {
    /// Grants every request that may be sent now, and refuses those that cannot be sent in time. The outcomes are added to
    /// `events`. [`Self::wake`] returns when to call it again.
    pub fn dispatch(&mut self, now: Ns, events: &mut Vec<Event>) {
        let now = self.advance(now);
        if std::mem::take(&mut self.releases_all) {
            self.tickets().into_iter().for_each(|ticket| self.grant_queued(ticket, now, events));
        }
        // The limits are known now, so requests that cannot be sent in time are refused at once, in the order of arrival.
        if self.needs_recheck && !self.gate.is_probing(self.in_flight, now) {
            self.needs_recheck = false;
            for ticket in self.tickets() {
                self.reject_if_late(ticket, now, events);
            }
        }
        // Grants come first, because a request may still be granted at its deadline. An expired request may have blocked the
        // queue, so grants are tried again after it is removed.
        loop {
            self.grant_ready(now, events);
            if !self.expire(now, events) {
                break;
            }
        }
        let deadline = self.queue.next_deadline().map(|(at, _)| at);
        let report = self.sharing(now).and_then(|sharing| sharing.next_report());
        self.wake = [self.wake, self.blocked_until(), deadline, report].into_iter().flatten().min();
    }

    /// When to dispatch again at the latest; `None` if no time is set, for example with an empty queue.
    pub fn wake(&self) -> Option<Ns> {
        self.wake
    }

    /// Queued requests in the order of arrival.
    fn tickets(&self) -> Vec<Ticket> {
        let mut tickets: Vec<_> = self.queue.iter().map(|queued| queued.ticket).collect();
        tickets.sort_unstable();
        tickets
    }

    /// The request that the store has charged and that can be granted; `None` if there is none.
    fn charged(&self) -> Option<Ticket> {
        self.store.as_ref()?.granted()
    }

    /// Grants requests until the head of the queue is blocked.
    fn grant_ready(&mut self, now: Ns, events: &mut Vec<Event>) {
        self.wake = None;
        self.blocked = loop {
            let Some(head) = self.charged().or_else(|| self.queue.head()) else { break None };
            if let Step::Wait(blocked) = self.step(head, now, events) {
                break blocked;
            }
        };
    }

    /// Grants or refuses the head of the queue, or grants a smaller request that may overtake it.
    fn step(&mut self, head: Ticket, now: Ns, events: &mut Vec<Event>) -> Step {
        let closed_until = self.closed_until(now);
        if closed_until > now {
            return Step::Wait(Some((None, closed_until)));
        }
        let Some(queued) = self.queue.get(head) else { return Step::Wait(None) };
        if let Some(error) = self.pricing.too_large(queued, &self.quotas, now) {
            self.leave(head, now);
            events.push((head, Err(error)));
            return Step::Again;
        }
        let (until, slot) = self.quotas.ready(&queued.cost, now);
        if self.charged() == Some(head) || (until <= now && !self.quotas.is_attached()) {
            self.grant_queued(head, now, events);
            return Step::Again;
        }
        if self.quotas.is_attached() {
            // The quotas of this process may not have been up to date when the head arrived.
            if !self.is_reporting() && self.reject_if_late(head, now, events) {
                return Step::Again;
            }
            return Step::Wait(self.sharing(now).and_then(|mut sharing| sharing.request(head)));
        }
        let blocked = Some((slot, until));
        match backfill(&mut self.queue, &self.quotas, head, until, now) {
            Backfill::Pass(small) => {
                self.blocked = blocked;
                self.grant_queued(small, now, events);
                Step::Again
            }
            Backfill::Wait(wake) => {
                self.wake = Some(wake);
                Step::Wait(blocked)
            }
        }
    }

    /// Grants a queued request. It has waited for what has blocked the queue until now.
    fn grant_queued(&mut self, ticket: Ticket, now: Ns, events: &mut Vec<Event>) {
        let reserved = self.store.as_mut().and_then(|store| store.take_granted(ticket));
        if let Some(queued) = self.queue.remove(ticket) {
            let bound = self.bound();
            events.push((ticket, Ok(self.grant(queued, reserved, bound, now))));
        }
    }

    /// Refuses the requests whose deadline has passed. Returns whether there were any.
    fn expire(&mut self, now: Ns, events: &mut Vec<Event>) -> bool {
        let before = events.len();
        while let Some((_, ticket)) = self.queue.next_deadline().filter(|&(deadline, _)| deadline <= now) {
            let Some(queued) = self.leave(ticket, now) else { break };
            events.push((ticket, Err(self.forecast(&queued, now).not_in_time(&queued, &self.quotas))));
        }
        events.len() > before
    }

    /// Refuses a request if its forecast exceeds its deadline. Returns whether it does.
    fn reject_if_late(&mut self, ticket: Ticket, now: Ns, events: &mut Vec<Event>) -> bool {
        let Some(queued) = self.queue.get(ticket) else { return false };
        let forecast = self.forecast(queued, now);
        let is_late = forecast.exceeds(queued.deadline.saturating_sub(now));
        if is_late {
            let error = forecast.not_in_time(queued, &self.quotas);
            self.leave(ticket, now);
            events.push((ticket, Err(error)));
        }
        is_late
    }
}

/// The steps of a granted request.
impl Limiter {
    /// Marks the request as sent. To be called right before its first byte is written.
    pub fn sent(&mut self, grant: &mut Grant, now: Ns) {
        let now = self.advance(now);
        if !grant.is_sent() {
            self.quotas.sent(&mut grant.reserved, now);
        }
    }

    /// Takes the head of a response, whose headers correct the quotas. The caller dispatches.
    pub fn observe(&mut self, grant: &mut Grant, state: &Observation, now: Ns) {
        let now = self.advance(now);
        self.pricing.estimates.head(now.saturating_sub(grant.reserved.sent_at));
        self.quotas.answered(&grant.reserved);
        self.gate.answered();
        let delay = self.pricing.estimates.one_way();
        Corrections::new(&mut self.quotas, &mut grant.reserved, delay, now).headers(state, true);
        if let Some(shown) = state.tokens.filter(|_| !grant.queued.states_max) {
            // With the lowest possible prompt, the upper bound on the reserved completion tokens holds for any real prompt.
            let prompt = self.pricing.least(&grant.queued).input.into();
            self.learn(|pricing| pricing.estimates.assumed.shown(shown, prompt, now));
        }
        self.report(SETTLEMENT_DELAY, now);
    }

    /// Ends the request, and replaces its reservation by what it has used. The caller dispatches.
    pub fn settle(&mut self, grant: Grant, usage: ActualUsage, now: Ns) {
        let now = self.use_at(now);
        self.learn_usage(&grant, usage, now);
        let used = pricing::used(grant.cost(), usage, self.pricing.estimates.completion.mean());
        let service = service(&self.quotas, &used, now);
        self.queue.serve(&grant.queued.app, grant.queued.size, service - grant.service);
        self.in_flight = self.in_flight.saturating_sub(1);
        if usage != ActualUsage::Unknown {
            self.quotas.answered(&grant.reserved);
        }
        self.quotas.settle(grant.reserved, used, now);
        self.report(SETTLEMENT_DELAY, now);
    }

    /// Updates the estimates by what the request has used. Seconds of audio are known beforehand.
    fn learn_usage(&mut self, grant: &Grant, usage: ActualUsage, now: Ns) {
        if grant.cost().seconds > 0 {
            return;
        }
        if let ActualUsage::Tokens { completion: Some(completion), .. } | ActualUsage::Partial { completion } = usage {
            self.quotas.expected_output.answered(grant.cost().key, saturated(completion), now);
        }
        self.learn(|pricing| pricing.answered(usage, &grant.queued, now));
    }

    /// Takes a refusal of the upstream: its text, or else its headers, correct the quotas, and the reservation is returned.
    /// If they do not tell which quota is exhausted, the limiter pauses. Returns what the request is submitted again with.
    /// The caller dispatches.
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
        if !grant.reserved.is_forced {
            self.quotas.refused(now);
        }
        let QueuedRequest { states_max, ticket, mut requested, .. } = grant.queued;
        let max = states_max.then_some(grant.cost().output);
        let delay = self.pricing.estimates.one_way();
        let text = text.filter(|text| text.limit > 0);
        let mut corrections = Corrections::new(&mut self.quotas, &mut grant.reserved, delay, now);
        let is_explained = match text.map(|text| (text, corrections.refusal_text(text, max))) {
            Some((text, Some(dimension))) => {
                requested = grant.stated(dimension.unit, saturated(text.requested));
                // The text states the sum of prompt and assumed completion tokens. A request that can never succeed is left out,
                // because its prompt may be all of the sum.
                if !states_max && !text.hopeless() && dimension.unit == Unit::Tokens {
                    let prompt = self.pricing.least(&grant.queued).input.into();
                    self.learn(|pricing| pricing.estimates.assumed.at_most(text.requested, prompt, now));
                }
                true
            }
            Some((_, None)) => false,
            None => corrections.refusal_headers(state),
        };
        self.gate.refused(is_explained, retry_after, now);
        self.settle(grant, ActualUsage::Nothing, now);
        Requeue { ticket, requested }
    }

    /// Changes the estimates. If that changes the cost of requests without `max_completion_tokens`, queued ones are repriced.
    fn learn(&mut self, learn: impl FnOnce(&mut Pricing)) {
        let before = self.pricing.assumed();
        learn(&mut self.pricing);
        if self.pricing.assumed() != before {
            for queued in self.queue.iter_mut().filter(|queued| queued.assumes_output()) {
                queued.cost = self.pricing.with_assumed_output(queued.cost);
            }
            // At the new cost, some requests may be too late.
            self.needs_recheck = true;
        }
    }
}

/// Requests that are sent whatever the limits say, and limits that Groq has stated to another limiter.
impl Limiter {
    /// Grants `request` without queueing it, into debt if there is no room. The caller dispatches.
    pub fn take(&mut self, request: &AdmissionRequest, now: Ns) -> Grant {
        let now = self.use_at(now);
        let queued = self.read(request, now, now, None);
        let mut grant = self.grant(queued, None, None, now);
        grant.reserved.is_forced = true;
        self.report(SETTLEMENT_DELAY, now);
        grant
    }

    /// Makes the next dispatch grant all waiting requests, into debt if there is no room. The caller dispatches.
    pub fn release_waiting(&mut self) {
        self.releases_all = !self.queue.is_empty();
    }

    /// The limits that Groq has stated.
    pub(crate) fn stated_limits(&self) -> Vec<StatedLimit> {
        self.quotas.stated()
    }

    /// Adopts limits that Groq has stated to another limiter, or to an earlier process. Used amounts stay.
    pub(crate) fn adopt_limits(&mut self, stated: &[StatedLimit], now: Ns) {
        let now = self.advance(now);
        self.quotas.adopt(stated, now);
        self.quotas.unreported = false;
    }
}

/// Sharing the quotas with other replicas.
impl Limiter {
    /// Shares the quotas from now on, through the store or, without the store, by dividing them by `alone` replicas. The
    /// caller dispatches.
    pub fn share(&mut self, alone: Option<u32>, now: Ns) {
        self.store.get_or_insert_default();
        if let Some(sharing) = self.sharing(now) {
            sharing.share(alone);
        }
    }

    /// The session with the store, as of `now`; `None` if quotas are not shared between replicas.
    pub fn sharing(&mut self, now: Ns) -> Option<Sharing<'_>> {
        let now = self.advance(now);
        let Self { store, quotas, queue, .. } = self;
        Some(Sharing { session: store.as_deref_mut()?, quotas, queue, now })
    }

    /// Makes a transaction with the store due after `delay` ns if there is something to report.
    fn report(&mut self, delay: Ns, now: Ns) {
        if let Some(sharing) = self.sharing(now) {
            sharing.report(delay);
        }
    }

    /// Whether a transaction is under way.
    pub(crate) fn is_reporting(&self) -> bool {
        self.store.as_ref().is_some_and(|session| session.under_way.is_some())
    }
}

/// State and usage.
impl Limiter {
    /// When the limiter was last used; `None` while a request is queued or in flight.
    pub fn unused_since(&self) -> Option<Ns> {
        (self.queue.is_empty() && self.in_flight == 0).then_some(self.used_at)
    }

    /// Whether dropping the limiter would lose nothing: it is unused, its buckets are full, and Groq has stated none of its
    /// limits.
    pub fn is_new(&self, now: Ns) -> bool {
        let is_new = |quota: &Quota| quota.statements.stated.is_none() && quota.bucket().tat() <= now;
        self.unused_since().is_some() && self.quotas().iter().all(is_new)
    }

    /// Number of queued requests.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Requests that are granted and not settled.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// The quotas, by slot.
    pub fn quotas(&self) -> &[Quota] {
        &self.quotas.quotas
    }

    /// The time until which the head of the queue is blocked; `None` if it is not.
    pub fn blocked_until(&self) -> Option<Ns> {
        self.blocked.map(|(_, until)| until)
    }

    /// Restores the used amount of a quota: `used` units less what has refilled in the `passed` seconds since.
    pub(crate) fn restore_usage(&mut self, code: &str, used: f64, passed: f64, now: Ns) {
        let Some(slot) = self.quotas.slot(code) else { return };
        let quota = &mut self.quotas.quotas[slot];
        let refilled = quota.bucket().rate() * passed;
        quota.restore((used - refilled).max(0.0).ceil() as u64, now);
    }
}
