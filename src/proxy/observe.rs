//! Observe mode: requests pass as they come, while limiters of their own tell what would have become of them.
//!
//! The limiters in force keep the truth: every request is charged as it is sent, into debt if need be, and corrected by headers
//! and refusals as ever, so that limits can be enforced at any moment. Beside them stand copies, through which each request passes
//! once more as if the limits were enforced. There it waits while its response may have been delivered long ago, and settles
//! with what that response has used. What Groq refuses would have been served later: it settles with what is usual.

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

/// What an attempt holds where nothing waits.
pub(super) struct Admitted<'a> {
    pub(super) cap: Option<Permit>,
    /// `None`: the breaker is open, and the attempt is no probe.
    pub(super) pass: Option<Pass<'a>>,
    pub(super) permit: Option<Permit>,
    pub(super) observed: Option<Observed>,
}

/// Lets an attempt pass at once, and asks what would have become of it.
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
            refuse(&shield.telemetry, record, refused.reason);
        }
        return Admitted { cap: None, pass, permit: None, observed: None };
    }
    record.reserved = call.reserved();
    // Before the attempt is charged: in a new limiter it is the first request there, too.
    let observed = record.observed_refusal.is_none().then(|| observe(shield, settings, call, observer, breaker, record));
    let cap = call.is_capped.then(|| {
        let mut cap = shield.caps.take(&call.cap_admission());
        nothing_to_learn(&mut cap);
        cap
    });
    Admitted { cap, pass, permit: Some(shield.limits.take(&call.admission)), observed: observed.flatten() }
}

/// A failure of the upstream's that this attempt has met: whether another model would have served the call.
pub(super) fn failed(shield: &Shield, settings: &Settings, call: &Call, rejection: &Rejection, record: &mut Record) {
    // All others are refusals, which would have waited for their turn.
    let reason = fallback::reason(rejection).filter(|reason| *reason == FallbackReason::Decommissioned);
    if let Some(reason) = reason.filter(|_| record.observed_refusal.is_none())
        && let Some(to) = others(settings, call, Some(reason)).first()
    {
        fall_back(shield, call, to, reason, record);
    }
}

/// Counts a request that another model would have served, once.
fn fall_back(shield: &Shield, call: &Call, to: &str, reason: FallbackReason, record: &mut Record) {
    if record.observed_fallback.is_none() {
        record.observed_fallback = Some(to.into());
        shield.telemetry.observed_fallback(&call.admission.model, to, reason);
    }
}

/// The models that would be tried instead.
fn others<'s>(settings: &'s Settings, call: &Call, reason: Option<FallbackReason>) -> &'s [String] {
    let reason = reason.filter(|_| call.may_fall_back);
    reason.map_or(&[], |reason| fallback::candidates(&settings.fallback, &call.admission.model, reason))
}

/// Counts a request that would have been refused. Only the first refusal counts: after it there would have been no attempt.
pub(super) fn refuse(telemetry: &Telemetry, record: &mut Record, reason: ObservedRefusal) {
    if record.observed_refusal.is_none() {
        record.observed_refusal = Some(reason);
        telemetry.observed_refusal(reason);
    }
}

/// What an attempt asks of the observer's limiters.
struct Asked {
    limits: AdmissionRequest,
    cap: Option<AdmissionRequest>,
    deadline: Instant,
}

type Admission = Pin<Box<dyn Future<Output = Result<Reservations, Refused>> + Send>>;

/// Why the observer's limiters refuse an attempt, and whether another model might take it.
#[derive(Clone, Copy, Debug)]
struct Refused {
    reason: ObservedRefusal,
    fallback: Option<FallbackReason>,
}

const BREAKER_OPEN: Refused = Refused { reason: ObservedRefusal::BreakerOpen, fallback: Some(FallbackReason::Unavailable) };

/// Asks the observer's limiters for a turn: those of the model that the call names, or else those of the first fallback that can
/// take it. `None`: they refuse it. `breaker`: how long it would wait for the breaker before that.
fn observe(
    shield: &Shield,
    settings: &Settings,
    call: &Call,
    observer: &Arc<Observer>,
    breaker: Result<Duration, Refused>,
    record: &mut Record,
) -> Option<Observed> {
    let own = &call.admission.model;
    let refused = match breaker.and_then(|before| begin(shield, settings, call, observer, own, before, record)) {
        Ok(observed) => return Some(observed),
        Err(refused) => refused,
    };
    for to in others(settings, call, refused.fallback) {
        match begin(shield, settings, call, observer, &to.as_str().into(), Duration::ZERO, record) {
            // It cannot take the request either.
            Err(Refused { fallback: Some(_), .. }) => {}
            Err(_) => break,
            Ok(observed) => {
                fall_back(shield, call, to, refused.fallback?, record);
                return Some(observed);
            }
        }
    }
    refuse(&shield.telemetry, record, refused.reason);
    None
}

/// Asks the observer's limiters for a turn under the limits of `model`.
fn begin(
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
        && let Some(fitting) = observer.limits.fitting_max_completion_tokens(&own)
    {
        *max_completion_tokens = Some(fitting);
    }
    let forecast = observer.limits.forecast(&limits);
    let usual_completion = observer.limits.usual_completion(&limits).unwrap_or(0);
    let asked = Asked { limits, cap: call.is_capped.then(|| call.cap_admission()), deadline: call.deadline };
    let is_elsewhere = *model != call.admission.model;
    let mut admission: Admission = Box::pin(admission(observer.clone(), asked, usual_completion, is_elsewhere));
    match admission.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(reservations)) => {
            *record.observed_wait.get_or_insert_default() += before;
            shield.telemetry.observed_wait(model, before);
            Ok(Observed::Admitted(Box::new(reservations)))
        }
        Poll::Ready(Err(refused)) => Err(refused),
        Poll::Pending => {
            *record.observed_wait.get_or_insert_default() += before + forecast;
            let (used, receiver) = oneshot::channel();
            tokio::spawn(wait(admission, receiver, before, model.clone(), shield.telemetry.clone()));
            Ok(Observed::Waiting { used, usual_completion })
        }
    }
}

/// Waits for a turn as a request does where limits are enforced: first under its app's cap, then under Groq's limits.
async fn admission(
    observer: Arc<Observer>,
    asked: Asked,
    usual_completion: u64,
    is_elsewhere: bool,
) -> Result<Reservations, Refused> {
    let cap = match &asked.cap {
        Some(ask) => {
            let reserved = observer.caps.reserve(ask, asked.deadline, None).await;
            Some(Unsent::new(reserved.map_err(|refusal| Refused { reason: of_cap(&refusal), fallback: None })?))
        }
        None => None,
    };
    let mut limits = observer.limits.reserve(&asked.limits, asked.deadline, None).await.map_err(|refusal| of_limits(&refusal))?;
    limits.sent(Instant::now());
    if is_elsewhere {
        limits.observe(&Observation::default(), Instant::now());
    }
    Ok(Reservations { is_elsewhere, cap: cap.and_then(Unsent::send), limits, usual_completion })
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
        AdmissionError::NotInTime { dimension, .. } => (ObservedRefusal::MaxWait, Some(fallback::by_period(dimension))),
    };
    Refused { reason, fallback }
}

/// The rest of a wait. There are `queue.max_waiting` of these at most, and one for each attempt that runs.
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
            // The headers of its response are older than its turn here.
            nothing_to_learn(&mut reservations.limits);
            // The sender is gone without a word only if the attempt's task has panicked.
            let spent = used.await.unwrap_or(ActualUsage::Unknown);
            reservations.settle(spent);
        }
        Err(refused) => telemetry.observed_refusal(refused.reason),
    }
}

/// Marks it as sent and answered: there is no response to learn from, and none that others wait for.
fn nothing_to_learn(permit: &mut Permit) {
    let now = Instant::now();
    permit.sent(now);
    permit.observe(&Observation::default(), now);
}
