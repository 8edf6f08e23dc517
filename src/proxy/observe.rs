//! Observe mode: requests pass at once, and a separate set of limiters computes what would have happened to them.
//!
//! The real limiters track the actual usage: every request is charged when it is sent, into debt if necessary, and corrected by
//! headers and refusals, so limits can be enforced at any moment. The observer holds copies of them, which admit each request
//! again as if the limits were enforced. It may wait there long after its response has been delivered, and settles with the usage
//! of that response. A request that Groq refused would have been served later, so it settles with the model's usual usage.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use groq_limiter::{ActualUsage, AdmissionError, AdmissionRequest, CostEstimate, Permit, types::Observation};
use tokio::{sync::oneshot, time::Instant};

use super::{
    breaker::{self, Pass},
    caps::Unsent,
    error::Rejection,
    fallback,
    observer::{Observed, Observer, Reservations},
    request::Call,
    shield::Shield,
};
use crate::{
    config::{FallbackReason, Settings},
    telemetry::{ObservedRefusal, Record, Telemetry},
};

/// What an attempt holds in observe mode.
pub(super) struct Admitted<'a> {
    pub(super) cap: Option<Permit>,
    /// `None` if the breaker is open and the attempt is not the probe.
    pub(super) pass: Option<Pass<'a>>,
    pub(super) permit: Option<Permit>,
    pub(super) observed: Option<Observed>,
}

/// Lets an attempt pass at once, and starts to observe it.
pub(super) fn admit<'a>(
    shield: &'a Shield,
    settings: &'a Settings,
    call: &Call,
    observer: &Arc<Observer>,
    breaker_key: &'a breaker::Key,
    record: &mut Record,
) -> Admitted<'a> {
    let (pass, breaker_wait) = match shield.breakers.pass(breaker_key, &settings.breaker, Instant::now) {
        Ok(pass) => (Some(pass), Duration::ZERO),
        Err(opened) => {
            let wait = opened.until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()));
            (None, wait)
        }
    };
    let longest = call.breaker_max_wait(settings).min(call.deadline.saturating_duration_since(Instant::now()));
    let breaker = if breaker_wait > longest { Err(BREAKER_OPEN) } else { Ok(breaker_wait) };
    record.waited(Duration::ZERO);
    if !call.is_limited() {
        if let Err(refused) = breaker {
            count_refusal(&shield.telemetry, record, refused.reason);
        }
        return Admitted { cap: None, pass, permit: None, observed: None };
    }
    record.reserved = call.reserved();
    // Before the attempt is charged, so that it is the first request of a new limiter in the observer, too.
    let observed = record.observed_refusal.is_none().then(|| observe(shield, settings, call, observer, breaker, record));
    let cap = call.is_capped.then(|| {
        let mut cap = shield.caps.take(&call.cap_admission());
        mark_observed(&mut cap);
        cap
    });
    Admitted { cap, pass, permit: Some(shield.limits.take(&call.admission)), observed: observed.flatten() }
}

/// After a failure of the upstream, counts whether another model would have served the call.
pub(super) fn failed(shield: &Shield, settings: &Settings, call: &Call, rejection: &Rejection, record: &mut Record) {
    // All other reasons are refusals, which would have waited in the queue.
    let reason = fallback::reason(rejection).filter(|reason| *reason == FallbackReason::Decommissioned);
    if let Some(reason) = reason.filter(|_| record.observed_refusal.is_none())
        && let Some(to) = candidates(settings, call, Some(reason)).first()
    {
        count_fallback(shield, call, to, reason, record);
    }
}

/// Counts, once, a request that another model would have served.
fn count_fallback(shield: &Shield, call: &Call, to: &str, reason: FallbackReason, record: &mut Record) {
    if record.observed_fallback.is_none() {
        record.observed_fallback = Some(to.into());
        shield.telemetry.observed_fallback(&call.admission.model, to, reason);
    }
}

/// The models that would be tried instead.
fn candidates<'s>(settings: &'s Settings, call: &Call, reason: Option<FallbackReason>) -> &'s [String] {
    let reason = reason.filter(|_| call.may_fall_back);
    reason.map_or(&[], |reason| fallback::candidates(&settings.fallback, &call.admission.model, reason))
}

/// Counts a request that would have been refused. Only the first refusal counts, because no attempt would have followed.
pub(super) fn count_refusal(telemetry: &Telemetry, record: &mut Record, reason: ObservedRefusal) {
    if record.observed_refusal.is_none() {
        record.observed_refusal = Some(reason);
        telemetry.observed_refusal(reason);
    }
}

/// What an attempt asks of the observer's limiters.
struct ObservedRequest {
    limits: AdmissionRequest,
    cap: Option<AdmissionRequest>,
    deadline: Instant,
}

type Admission = Pin<Box<dyn Future<Output = Result<Reservations, Refused>> + Send>>;

/// Why the observer's limiters refuse an attempt, and for which reason another model might serve it.
#[derive(Clone, Copy, Debug)]
struct Refused {
    reason: ObservedRefusal,
    fallback: Option<FallbackReason>,
}

const BREAKER_OPEN: Refused = Refused { reason: ObservedRefusal::BreakerOpen, fallback: Some(FallbackReason::Unavailable) };

/// Admits an attempt to the observer's limiters: those of its own model, or else of the first fallback model with room. `None` if
/// all refuse it. `breaker` is how long it would wait for the breaker first.
fn observe(
    shield: &Shield,
    settings: &Settings,
    call: &Call,
    observer: &Arc<Observer>,
    breaker: Result<Duration, Refused>,
    record: &mut Record,
) -> Option<Observed> {
    let own = &call.admission.model;
    let refused = match breaker.and_then(|before| admit_observed(shield, settings, call, observer, own, before, record)) {
        Ok(observed) => return Some(observed),
        Err(refused) => refused,
    };
    for to in candidates(settings, call, refused.fallback) {
        match admit_observed(shield, settings, call, observer, &to.as_str().into(), Duration::ZERO, record) {
            // This model has no room either.
            Err(Refused { fallback: Some(_), .. }) => {}
            Err(_) => break,
            Ok(observed) => {
                count_fallback(shield, call, to, refused.fallback?, record);
                return Some(observed);
            }
        }
    }
    count_refusal(&shield.telemetry, record, refused.reason);
    None
}

/// Admits an attempt to the observer's limiters for `model`, at once or after a wait in the background.
fn admit_observed(
    shield: &Shield,
    settings: &Settings,
    call: &Call,
    observer: &Arc<Observer>,
    model: &Arc<str>,
    before: Duration,
    record: &mut Record,
) -> Result<Observed, Refused> {
    let own = AdmissionRequest { model: model.clone(), ..call.admission.clone() };
    observer.limits.adopt_limits(&shield.limits, &own);
    let mut limits = own.clone();
    if settings.limits.fit_ceiling
        && let CostEstimate::Tokens { max_completion_tokens, .. } = &mut limits.cost
        && let Some(fitting) = observer.limits.forecast(&own).fitting_max_completion_tokens
    {
        *max_completion_tokens = Some(fitting);
    }
    let forecast = observer.limits.forecast(&limits);
    let usual_completion = forecast.completion.unwrap_or(0);
    let request = ObservedRequest { limits, cap: call.is_capped.then(|| call.cap_admission()), deadline: call.deadline };
    let is_other_model = *model != call.admission.model;
    let mut admission: Admission = Box::pin(reserve(observer.clone(), request, usual_completion, is_other_model));
    match admission.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(reservations)) => {
            *record.observed_wait.get_or_insert_default() += before;
            shield.telemetry.observed_wait(model, before);
            Ok(Observed::Admitted(Box::new(reservations)))
        }
        Poll::Ready(Err(refused)) => Err(refused),
        Poll::Pending => {
            *record.observed_wait.get_or_insert_default() += before + forecast.wait;
            let (used, receiver) = oneshot::channel();
            tokio::spawn(wait(admission, receiver, before, model.clone(), shield.telemetry.clone()));
            Ok(Observed::Waiting { used, usual_completion })
        }
    }
}

/// Waits as a request does in enforce mode: first for its app's cap, then for Groq's limits.
async fn reserve(
    observer: Arc<Observer>,
    request: ObservedRequest,
    usual_completion: u64,
    is_other_model: bool,
) -> Result<Reservations, Refused> {
    let cap = match &request.cap {
        Some(cap) => {
            let reserved = observer.caps.reserve(cap, request.deadline, None).await;
            Some(Unsent::new(reserved.map_err(|refusal| Refused { reason: of_cap(&refusal), fallback: None })?))
        }
        None => None,
    };
    let mut limits =
        observer.limits.reserve(&request.limits, request.deadline, None).await.map_err(|refusal| of_limits(&refusal))?;
    limits.sent(Instant::now());
    if is_other_model {
        limits.observe(&Observation::default(), Instant::now());
    }
    Ok(Reservations { is_other_model, cap: cap.and_then(Unsent::send), limits, usual_completion })
}

fn of_cap(refusal: &AdmissionError) -> ObservedRefusal {
    match refusal {
        AdmissionError::QueueFull { .. } => ObservedRefusal::QueueFull,
        AdmissionError::TooLarge { .. } | AdmissionError::NotInTime { .. } => ObservedRefusal::AppCap,
    }
}

fn of_limits(refusal: &AdmissionError) -> Refused {
    let (reason, fallback) = match refusal {
        AdmissionError::QueueFull { .. } => (ObservedRefusal::QueueFull, None),
        AdmissionError::TooLarge { .. } => (ObservedRefusal::TooLarge, Some(FallbackReason::TooLarge)),
        AdmissionError::NotInTime { dimension, .. } => (ObservedRefusal::MaxWait, Some(fallback::reason_of_wait(dimension))),
    };
    Refused { reason, fallback }
}

/// The rest of a wait, as a background task. There are at most `queue.max_waiting` of these, plus one for each running attempt.
async fn wait(
    admission: Admission,
    used: oneshot::Receiver<ActualUsage>,
    before: Duration,
    model: Arc<str>,
    telemetry: Arc<Telemetry>,
) {
    let since = Instant::now();
    match admission.await {
        Ok(mut reservations) => {
            telemetry.observed_wait(&model, before + since.elapsed());
            // The headers of its response are older than its admission here.
            mark_observed(&mut reservations.limits);
            // The sender is dropped without a value only if the attempt's task has panicked.
            let spent = used.await.unwrap_or(ActualUsage::Unknown);
            reservations.settle(spent);
        }
        Err(refused) => telemetry.observed_refusal(refused.reason),
    }
}

/// Marks a permit as sent and observed, because no response will correct its limiter.
fn mark_observed(permit: &mut Permit) {
    let now = Instant::now();
    permit.sent(now);
    permit.observe(&Observation::default(), now);
}
