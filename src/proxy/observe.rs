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
    observer::{Observed, Observer, Reservations},
    request::Call,
    shield::Shield,
};
use crate::{
    config::Settings,
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
    if breaker_wait > call.breaker_max_wait(settings).min(call.deadline.saturating_duration_since(Instant::now())) {
        refuse(&shield.telemetry, record, ObservedRefusal::BreakerOpen);
    }
    record.waited(Duration::ZERO);
    if !call.is_limited() {
        return Admitted { cap: None, pass, permit: None, observed: None };
    }
    record.reserved = call.reserved();
    // Before the attempt is charged: in a new limiter it is the first request there, too.
    let observed = record.observed_refusal.is_none().then(|| observe(shield, settings, call, observer, breaker_wait, record));
    let cap = call.is_capped.then(|| {
        let mut cap = shield.caps.take(&call.cap_admission());
        nothing_to_learn(&mut cap);
        cap
    });
    Admitted { cap, pass, permit: Some(shield.limits.take(&call.admission)), observed: observed.flatten() }
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

type Admission = Pin<Box<dyn Future<Output = Result<Reservations, ObservedRefusal>> + Send>>;

/// Asks the observer's limiters for a turn. `None`: they refuse it.
fn observe(
    shield: &Shield,
    settings: &Settings,
    call: &Call,
    observer: &Arc<Observer>,
    before: Duration,
    record: &mut Record,
) -> Option<Observed> {
    observer.limits.adopt_limits(&shield.limits, &call.admission);
    let mut limits = call.admission.clone();
    if settings.limits.fit_ceiling
        && let CostEstimate::Tokens { max_completion_tokens, .. } = &mut limits.cost
        && let Some(fitting) = observer.limits.fitting_max_completion_tokens(&call.admission)
    {
        *max_completion_tokens = Some(fitting);
    }
    let forecast = observer.limits.forecast(&limits);
    let usual_completion = observer.limits.usual_completion(&limits).unwrap_or(0);
    let asked = Asked { limits, cap: call.is_capped.then(|| call.cap_admission()), deadline: call.deadline };
    let model = call.admission.model.clone();
    let mut admission: Admission = Box::pin(admission(observer.clone(), asked, usual_completion));
    match admission.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(reservations)) => {
            *record.observed_wait.get_or_insert_default() += before;
            shield.telemetry.observed_wait(&model, before);
            Some(Observed::Admitted(Box::new(reservations)))
        }
        Poll::Ready(Err(reason)) => {
            refuse(&shield.telemetry, record, reason);
            None
        }
        Poll::Pending => {
            *record.observed_wait.get_or_insert_default() += before + forecast;
            let (used, receiver) = oneshot::channel();
            tokio::spawn(wait(admission, receiver, before, model, shield.telemetry.clone()));
            Some(Observed::Waiting { used, usual_completion })
        }
    }
}

/// Waits for a turn as a request does where limits are enforced: first under its app's cap, then under Groq's limits.
async fn admission(observer: Arc<Observer>, asked: Asked, usual_completion: u64) -> Result<Reservations, ObservedRefusal> {
    let cap = match &asked.cap {
        Some(ask) => {
            let reserved = observer.caps.reserve(ask, asked.deadline, None).await;
            let mut cap = reserved.map_err(|refusal| match refusal {
                AdmissionError::QueueFull { .. } => ObservedRefusal::QueueFull,
                AdmissionError::TooLarge { .. } | AdmissionError::NotInTime { .. } => ObservedRefusal::AppCap,
            })?;
            nothing_to_learn(&mut cap);
            Some(cap)
        }
        None => None,
    };
    let reserved = observer.limits.reserve(&asked.limits, asked.deadline, None).await;
    let mut limits = reserved.map_err(|refusal| match refusal {
        AdmissionError::QueueFull { .. } => ObservedRefusal::QueueFull,
        AdmissionError::TooLarge { .. } => ObservedRefusal::TooLarge,
        AdmissionError::NotInTime { .. } => ObservedRefusal::MaxWait,
    })?;
    limits.sent(Instant::now());
    Ok(Reservations { cap, limits, usual_completion })
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
        Err(reason) => telemetry.observed_refusal(reason),
    }
}

/// Marks it as sent and answered: there is no response to learn from, and none that others wait for.
fn nothing_to_learn(permit: &mut Permit) {
    let now = Instant::now();
    permit.sent(now);
    permit.observe(&Observation::default(), now);
}
