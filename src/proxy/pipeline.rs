//! The pipeline of one request: [`handle`], which always responds, around `forward`, which may fail.

use std::{future::poll_fn, pin::pin, sync::Arc, task::Poll};

use bytes::Bytes;
use groq_limiter::AdmissionRequest;
use http::{Request, Response};
use tokio::time::{Instant, sleep};

use super::{
    admission::{BreakerWait, admit, pass_caps, yield_if_busy},
    attempt::{self, Delivered},
    breaker::{Health, Pass},
    caps::Unsent,
    error::Rejection,
    fallback,
    observe::{self, Admitted},
    observer::Observer,
    rate_limit::Limited,
    relay::{self, Body, ResponseContext},
    request::{self, Call},
    response::{deliver, early_headers, new_request_id, reject},
    retry::{Attempts, Class, Verdict},
    shield::Shield,
};
use crate::{
    config::{FallbackReason, Settings},
    shutdown::Cutoff,
    telemetry::{ObservedRefusal, Record},
    upstream::UpstreamRequest,
};

/// Responds to one request, whatever happens to it.
///
/// `ambiguous` is set by the connection if servers could disagree about the framing of the request, which is refused then.
///
/// The futures of the phases are boxed, because a request may wait in the queue for a minute: unboxed, it would take the memory
/// of the largest phase all that time (1 KB per phase). Their arguments are boxed, because a future stores its arguments twice.
pub fn handle<B>(
    shield: &Arc<Shield>,
    request: Request<B>,
    ambiguous: Option<&'static str>,
) -> impl Future<Output = Response<Body>> + use<B>
where
    B: http_body::Body<Data = Bytes>,
{
    let shield = shield.clone();
    let settings = shield.settings.load_full();
    let mut record = Box::new(Record::new(&shield.telemetry, request.uri().path(), Instant::now()));
    async move {
        let read = match ambiguous {
            Some(reason) => Err(Rejection::Malformed(reason)),
            None => Box::pin(request::read(&shield, request, &settings, &mut record)).await,
        };
        let (call, upstream_request) = match read {
            Ok(read) => read,
            Err(rejection) => return reject(rejection, record),
        };
        let keep_alive = settings.queue.stream_keepalive.filter(|_| call.streams());
        let Some(period) = keep_alive else {
            return respond(shield, settings, call, upstream_request, record).await;
        };
        let early = record.may_open_early(new_request_id());
        let (admission, is_capped, budgets) = (call.admission.clone(), call.is_capped, call.budgets.clone());
        let limits = shield.clone();
        let response = Box::pin(respond(shield, settings, call, upstream_request, record));
        let headers = || {
            let early = early.open(Instant::now());
            // The call may have been given to another model by now.
            let model = early.model.clone().unwrap_or_else(|| admission.model.clone());
            let admission = AdmissionRequest { model, ..admission };
            let mut headers = early_headers(early);
            Limited { admission: &admission, is_capped, budgets: budgets.as_deref() }.add_to(&mut headers, &limits);
            headers
        };
        relay::open_early(response, period, headers).await
    }
}

/// The response if no request could be read, or if its pipeline panicked.
pub fn refuse(shield: &Shield, rejection: Rejection) -> Response<Body> {
    reject(rejection, Box::new(Record::new(&shield.telemetry, "", Instant::now())))
}

/// The response to a call: what `forward` delivers, or its failure as the error object.
async fn respond(
    shield: Arc<Shield>,
    settings: Arc<Settings>,
    mut call: Box<Call>,
    mut upstream_request: Box<UpstreamRequest>,
    mut record: Box<Record>,
) -> Response<Body> {
    let mut cutoff = Cutoff::new(&shield.shutdown);
    let mut unfinished = Unfinished { call: &mut call, record: &mut record, is_delivered: false };
    let outcome = {
        let (call, record) = (&mut *unfinished.call, &mut *unfinished.record);
        let mut forward = pin!(forward(&shield, &settings, call, &mut upstream_request, record));
        poll_fn(|cx| match forward.as_mut().poll(cx) {
            Poll::Pending if cutoff.poll_reached(cx) => Poll::Ready(Err(Rejection::ShuttingDown)),
            other => other,
        })
        .await
    };
    if !unfinished.call.streams() {
        yield_if_busy(&shield, unfinished.call).await;
    }
    unfinished.is_delivered = outcome.is_ok();
    drop(unfinished);
    let Call { admission, is_capped, budgets, bill, .. } = *call;
    let mut response = match outcome {
        Ok(Delivered { response, permit }) => {
            deliver(*response, ResponseContext { permit, bill, record, cutoff, settled: false })
        }
        Err(rejection) => reject(rejection, record),
    };
    // Added last, because the usage of a complete body has been settled by now.
    let limited = Limited { admission: &admission, is_capped, budgets: budgets.as_deref() };
    limited.add_to(response.headers_mut(), &shield);
    response
}

/// A call without a response yet. On drop, what it is charged without one is recorded: if it fails, or its client disconnects.
struct Unfinished<'a> {
    call: &'a mut Call,
    record: &'a mut Record,
    is_delivered: bool,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if !self.is_delivered {
            self.call.bill.end();
            self.record.usage = self.call.bill.usage();
            self.record.nano_usd = self.call.bill.nano_usd();
        }
    }
}

/// Serves the call by the model that it names, or else by the first of its fallback models that can serve it.
async fn forward(
    shield: &Shield,
    settings: &Settings,
    call: &mut Call,
    upstream_request: &mut UpstreamRequest,
    record: &mut Record,
) -> Result<Delivered, Rejection> {
    shield.budget.request(call.read_at);
    let observer = shield.observer.load_full();
    if let Some(budgets) = &call.budgets {
        let app = call.admission.app.clone();
        let now = shield.wall_clock.unix_seconds();
        // Boxed: rarely taken, and its future would otherwise enlarge every waiting request.
        if let Err(exceeded) = Box::pin(call.bill.reserve(&shield.accounts, &app, budgets, now)).await {
            if observer.is_none() {
                return Err(Rejection::BudgetSpent(exceeded));
            }
            observe::count_refusal(&shield.telemetry, record, ObservedRefusal::AppBudget);
            // Observe mode sends it anyway, so its usage counts.
            Box::pin(call.bill.reserve(&shield.accounts, &app, &[], now)).await.map_err(Rejection::BudgetSpent)?;
        }
    }
    let falls_back = call.may_fall_back && observer.is_none() && !settings.fallback.is_empty();
    // Kept before the output limit is fitted: each fallback model starts from the original body.
    let body = falls_back.then(|| upstream_request.body().clone());
    let rejection = match serve(shield, settings, call, observer.as_ref(), upstream_request, record).await {
        Err(rejection) => rejection,
        delivered => return delivered,
    };
    if observer.is_some() {
        observe::failed(shield, settings, call, &rejection, record);
    }
    let (Some(body), Some(reason)) =
        (body, fallback::reason(&rejection).or(call.probe_failed.then_some(FallbackReason::Unavailable)))
    else {
        return Err(rejection);
    };
    let from = record.model.clone();
    for to in fallback::candidates(&settings.fallback, &from, reason) {
        if record.is_opened_early() || !call.switch_model(to, &body, settings, upstream_request) {
            break;
        }
        record.falls_back(&from, &call.admission.model, reason);
        match Box::pin(serve(shield, settings, call, None, upstream_request, record)).await {
            // This model cannot serve it either.
            Err(rejection) if fallback::reason(&rejection).is_some() => record.stays(&from),
            outcome => {
                shield.telemetry.fell_back(&from, to, reason);
                return outcome;
            }
        }
    }
    Err(rejection)
}

/// Admits and sends the call until there is a response to deliver or this model has failed for good. With an `observer`, only
/// retries wait, and nothing is rewritten.
async fn serve(
    shield: &Shield,
    settings: &Settings,
    call: &mut Call,
    observer: Option<&Arc<Observer>>,
    upstream_request: &mut UpstreamRequest,
    record: &mut Record,
) -> Result<Delivered, Rejection> {
    if call.lacks_price() {
        shield.telemetry.unpriced(&call.admission.app, &call.admission.model);
    }
    if observer.is_none() {
        call.fit_ceiling(shield, settings, upstream_request);
        record.is_fitted(call.fitted);
    }
    if shield.limits.waiting() > 0 {
        upstream_request.compact();
    }
    let mut attempts = Attempts::new(settings.retry.clone(), call.deadline);
    let mut breaker_wait = BreakerWait::new(call.breaker_max_wait(settings));
    let breaker_key = call.breaker_key.clone();
    let mut place = None;
    let mut failed = None;
    loop {
        // The block drops the outcome before the pause: it is large, and the future would hold it meanwhile.
        let pause = {
            let admitted = match observer {
                None => {
                    let cap = pass_caps(shield, call, record).await;
                    let cap = cap.map_err(|refusal| cause(failed.take(), refusal, settings, call))?;
                    let admitted = admit(shield, settings, call, &breaker_key, place.take(), &mut breaker_wait, record).await;
                    let (pass, permit) = admitted.map_err(|refusal| cause(failed.take(), refusal, settings, call))?;
                    Admitted { cap: cap.and_then(Unsent::send), pass: Some(pass), permit, observed: None }
                }
                Some(observer) => observe::admit(shield, settings, call, observer, &breaker_key, record),
            };
            let Admitted { cap, pass, mut permit, observed } = admitted;
            call.bill.begin_attempt(cap, observed);
            let outcome = Box::pin(attempt::send(shield, call, upstream_request, permit.as_mut(), record)).await;
            let health = outcome.health();
            // The breaker is open again. A retry would be the next probe, and its app would learn of the outage only after four
            // attempts.
            let probe_failed = matches!(health, Health::Bad { .. }) && pass.as_ref().is_some_and(Pass::is_probe);
            call.probe_failed = probe_failed;
            let class = match health {
                _ if probe_failed => Class::Broken,
                _ => outcome.class(),
            };
            if let Some(pass) = pass {
                pass.record(health);
            }
            call.bill.head(|| outcome.state());
            shield.telemetry.attempt(outcome.label());
            match attempts.next(class, &shield.budget, fastrand::f64(), Instant::now) {
                Verdict::Deliver => return outcome.deliver(permit, &mut call.bill),
                Verdict::Requeue(pause) => {
                    call.bill.refused();
                    failed = None;
                    place = outcome.refused(permit, shield, call);
                    // Not limited by the shield, too late, or observe mode: the app gets the upstream's response.
                    if place.is_none() || pause.is_none() || observer.is_some() {
                        return Err(outcome.into_rejection());
                    }
                    if call.fitted.is_none() {
                        call.fit_ceiling(shield, settings, upstream_request);
                        record.is_fitted(call.fitted);
                    }
                    match pause {
                        Some(pause) if !pause.is_zero() => pause,
                        _ => continue,
                    }
                }
                Verdict::Again(pause) => {
                    outcome.settle(permit, &mut call.bill);
                    failed = Some(Box::new(outcome.into_rejection()));
                    pause
                }
                Verdict::GiveUp => {
                    outcome.settle(permit, &mut call.bill);
                    return Err(outcome.into_rejection());
                }
            }
        };
        sleep(pause).await;
    }
}

/// What the app is told when a retry is refused by the limits: the `failed` attempt that made it necessary, unless another model can
/// serve the call.
fn cause(failed: Option<Box<Rejection>>, refusal: Rejection, settings: &Settings, call: &Call) -> Rejection {
    let Some(failed) = failed.filter(|_| matches!(refusal, Rejection::NotInTime { .. } | Rejection::Overloaded { .. })) else {
        return refusal;
    };
    let others = fallback::reason(&refusal).filter(|_| call.may_fall_back);
    let others = others.map(|reason| fallback::candidates(&settings.fallback, &call.admission.model, reason));
    if others.is_some_and(|others| !others.is_empty()) { refusal } else { *failed }
}
