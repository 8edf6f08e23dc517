//! What one limiter knows and holds: limits, prices and queue, and how a request passes through them.

use std::{sync::Arc, time::Duration};

use super::{
    cold_start::ColdStart,
    grant::{Grant, Service},
    limits::{Limits, ObservedTokens},
    pause::Pause,
    pricing::{Pricing, Requeue, stated},
    store_session::StoreSession,
};
use crate::{
    ablation::Mechanism,
    queue::{
        FairQueue, QueuedRequest, Ticket,
        forecast::{Forecast, forecast},
    },
    quota_set::Reserved,
    request::{ActualUsage, AdmissionError, AdmissionRequest, Cost, CostEstimate},
    settings::LimitSettings,
    types::{Dimension, Ns, Observation, Unit, UpstreamRefusal},
};

/// What the head of the queue waits for: a dimension's slot, if it is one, and until when.
pub(super) type Blocked = (Option<usize>, Ns);

/// The state of one limiter.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) limits: Limits,
    pub(super) pricing: Pricing,
    pub(super) queue: FairQueue,
    pub(super) cold_start: ColdStart,
    pub(super) pause: Pause,
    /// With the store, where replicas share quotas.
    pub(super) store: Option<Box<StoreSession>>,
    pub(super) in_flight: u32,
    /// Some of the queue were admitted against a guess: they are looked at again when more is known.
    pub(super) guessed: bool,
    /// The next pass lets all go that wait.
    pub(super) releases: bool,
    pub(super) blocked: Option<Blocked>,
}

impl Core {
    pub(super) fn new(model: Arc<str>, settings: Arc<LimitSettings>, now: Ns) -> Self {
        let mut pricing = Pricing::default();
        pricing.configure(&settings, &model);
        Self {
            limits: Limits::new(model, settings, now),
            pricing,
            queue: FairQueue::default(),
            cold_start: ColdStart::default(),
            pause: Pause::default(),
            store: None,
            in_flight: 0,
            guessed: false,
            releases: false,
            blocked: None,
        }
    }

    /// What there is to tell the store is told now, or (`hurry`: not set) soon.
    pub(super) fn flush_pending(&mut self, hurry: bool, now: Ns) {
        if let Some(store) = &mut self.store {
            store.flush_pending(hurry, self.limits.has_learnt(), &mut self.limits.quotas, now);
        }
    }

    /// A request as it would be in the queue.
    pub(super) fn read(&mut self, request: &AdmissionRequest, now: Ns, deadline: Ns, requeue: Option<Requeue>) -> QueuedRequest {
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
        let usual = self.queue.apps.get(app).and_then(|app| app.completion.mean());
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
    pub(super) fn too_large(&self, queued: &QueuedRequest, now: Ns) -> Option<AdmissionError> {
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
    pub(super) fn fitting_max_completion_tokens(&self, request: &AdmissionRequest, now: Ns) -> Option<u64> {
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

    pub(super) fn forecast(&self, queued: &QueuedRequest, now: Ns) -> Forecast {
        let cost = self.pricing.forecast_cost(queued);
        let mut forecast = forecast(&self.limits.quotas, &self.queue, queued, &cost, now);
        forecast.wait = forecast.wait.max(Duration::from_nanos(self.pause.until().saturating_sub(now)));
        forecast
    }

    pub(super) fn not_in_time(&self, forecast: Forecast, queued: &QueuedRequest) -> AdmissionError {
        let slot = forecast.slot.or(self.blocked.and_then(|(slot, _)| slot)).unwrap_or(0);
        let too_large = self.limits.quotas.too_large_answer(&queued.cost).filter(|&(too_large, _)| too_large == slot);
        AdmissionError::NotInTime {
            dimension: self.limits.quotas.all().get(slot).map_or(Dimension::RPM, |quota| quota.dimension.clone()),
            wait: forecast.wait,
            fitting_max_completion_tokens: too_large.map(|(_, limit)| limit),
            retry_after: forecast.retry_after(queued.deadline.saturating_sub(queued.since)),
        }
    }

    pub(super) fn is_open(&mut self, now: Ns) -> bool {
        self.cold_start.is_open(self.in_flight, now)
    }

    /// Out of the queue, whatever the reason.
    pub(super) fn leave(&mut self, ticket: Ticket, now: Ns) -> Option<QueuedRequest> {
        if let Some(reserved) = self.store.as_mut().and_then(|store| store.take_granted(ticket)) {
            self.limits.quotas.settle(reserved, Cost::default(), now);
            self.flush_pending(true, now);
        }
        self.queue.remove(ticket)
    }

    /// Those that wait, in the order of arrival.
    pub(super) fn tickets(&self) -> Vec<Ticket> {
        let mut tickets: Vec<_> = self.queue.iter().map(|queued| queued.ticket).collect();
        tickets.sort_unstable();
        tickets
    }

    /// `reserved`: the store has charged it. `bound`: the slot that it waited for.
    pub(super) fn grant(&mut self, queued: QueuedRequest, reserved: Option<Reserved>, bound: Option<usize>, now: Ns) -> Grant {
        let service = self.service(&queued.cost.with_output(queued.expected), now);
        let reserved = reserved.unwrap_or_else(|| self.limits.quotas.reserve(queued.cost, now));
        self.queue.serve(queued.app, queued.size, service.granted.into(), now);
        if let Some(app) = self.queue.apps.get_mut(queued.app) {
            app.granted();
        }
        self.in_flight += 1;
        Grant {
            reserved,
            probe: self.cold_start.granted(now),
            shown_used: None,
            service,
            waited: now.saturating_sub(queued.since),
            bound,
            queued,
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

    /// If Groq holds more for a request without `max_completion_tokens` than was reserved, the quotas show so from now on, and
    /// the difference comes back when the answer ends.
    pub(super) fn learn_held(&mut self, grant: &mut Grant, ObservedTokens { slot, used, error }: ObservedTokens, now: Ns) {
        grant.shown_used = Some(used);
        self.learn(|pricing| pricing.estimates.assumed.head(used, grant.queued.estimated.into()));
        let cost = grant.cost();
        let held = self.pricing.held(cost.output, error.and_then(|error| u64::try_from(error).ok()));
        if let Some(held) = held.filter(|&held| held > cost.output) {
            self.limits.quotas.raise(&mut grant.reserved, Cost { output: held, ..cost }, slot, now);
        }
    }

    /// A request has ended and this is the truth.
    pub(super) fn settle(&mut self, grant: Grant, usage: ActualUsage, now: Ns) {
        self.learn_usage(&grant, usage, now);
        let used = grant.used(usage, self.pricing.estimates.completion.mean());
        let Service { slot, price, granted } = grant.service;
        let service = match (usage, self.limits.quotas.all().get(slot)) {
            (ActualUsage::Nothing, _) => 0.0,
            (_, Some(quota)) => quota.of(&used) as f32 * price,
            (_, None) => granted,
        };
        self.queue.serve(grant.queued.app, grant.queued.size, f64::from(service - granted), now);
        if let Some(app) = self.queue.apps.get_mut(grant.queued.app) {
            app.settled();
        }
        if grant.probe {
            self.cold_start.probe_ended(!self.queue.is_empty());
        }
        self.in_flight = self.in_flight.saturating_sub(1);
        if usage != ActualUsage::Unknown {
            self.limits.quotas.answered(&grant.reserved);
        }
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
        self.learn(|pricing| pricing.answered(usage, &grant.queued, grant.shown_used, now));
        if let (ActualUsage::Tokens { completion, .. }, Some(app)) = (usage, self.queue.apps.get_mut(grant.queued.app)) {
            app.completion.learn(completion as f32);
        }
    }

    /// Groq refused: the text (or the headers) corrects the quotas and everything comes back. What to ask again with.
    pub(super) fn refused(
        &mut self,
        mut grant: Grant,
        text: Option<&UpstreamRefusal>,
        state: &Observation,
        retry_after: Option<Duration>,
        now: Ns,
    ) -> Requeue {
        self.limits.quotas.refused(now);
        let QueuedRequest { estimated, states_max, ticket, requested, .. } = grant.queued;
        let max = states_max.then_some(grant.cost().output);
        let delay = self.pricing.estimates.one_way();
        let text = text.filter(|text| text.limit > 0);
        let named = text.and_then(|text| Some((text, self.limits.dimension_of(text, max)?)));
        let least = named.as_ref().map_or(grant.cost(), |(text, dimension)| grant.cost().raised(dimension.unit, text.requested));
        // Prompt and assumed completion tokens. What can never succeed says nothing of others: its prompt may be all of it.
        let in_all = named.as_ref().filter(|(text, dimension)| !states_max && !text.hopeless() && dimension.unit == Unit::Tokens);
        let in_all = in_all.map(|(text, _)| u32::try_from(text.requested).unwrap_or(u32::MAX));
        if let Some(requested) = in_all {
            self.learn(|pricing| pricing.estimates.assumed.refused(requested.into(), estimated.into(), now));
        }
        let is_told = match &named {
            Some((text, dimension)) => self.limits.refused(&mut grant.reserved, text, dimension, max, delay, now),
            None => text.is_none() && self.limits.refused_by_headers(&mut grant.reserved, state, delay, now),
        };
        if !is_told {
            self.pause.refused(retry_after, now);
        }
        self.cold_start.answered();
        self.settle(grant, ActualUsage::Nothing, now);
        Requeue { ticket, least, requested: in_all.or(requested) }
    }

    /// Where the price of requests without `max_completion_tokens` changes, it does so for those that wait, too.
    fn learn(&mut self, learn: impl FnOnce(&mut Pricing)) {
        let before = (self.pricing.assumed(), self.pricing.is_trying());
        learn(&mut self.pricing);
        if (self.pricing.assumed(), self.pricing.is_trying()) == before || self.queue.is_empty() {
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

    pub(super) fn store_decides(&self) -> bool {
        self.store.as_ref().is_some_and(|store| store.decides())
    }

    pub(super) fn granted(&self) -> Option<Ticket> {
        self.store.as_ref()?.granted()
    }
}
