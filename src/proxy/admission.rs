//! Admission: when may a call be sent? The breaker has to let it pass, and the limits need room for it.

use std::{future::poll_fn, pin::pin, task::Poll, time::Duration};

use tokio::time::Instant;

use super::{
    breaker::{Admission, Pass},
    error::Rejection,
    request::Call,
    shield::Shield,
};
use crate::{
    config::Settings,
    limits::{Place, Reservation},
    telemetry::Record,
};

/// Waits until the breaker lets the call pass and the limits have room for it, at most until its deadline.
///
/// `place`: the place in the queue that the call has kept since Groq refused it.
///
/// # Errors
/// The rejection that the app gets where waiting does not help, or would take too long.
pub(super) async fn admit<'a>(
    shield: &'a Shield,
    settings: &'a Settings,
    call: &'a Call,
    mut place: Option<Place>,
    record: &mut Record,
) -> Result<(Pass<'a>, Option<Reservation>), Rejection> {
    record.waits_from(if record.attempts == 0 { call.read_at } else { Instant::now() });
    loop {
        let pass = pass_breaker(shield, settings, call, record).await?;
        if !call.is_limited() {
            record.waited(Duration::ZERO);
            return Ok((pass, None));
        }
        let reservation = shield.limits.reserve(&call.ask, call.deadline, place.take()).await.map_err(Rejection::from)?;
        record.reserved = call.reserved();
        record.waited(reservation.waited());
        if let Some(bound) = reservation.bound_by() {
            record.bound = Some(bound.code.to_string());
        }
        // The breaker may have opened while the call waited: an upstream that is down gets one probe, not the whole queue.
        if pass.is_probe() || !shield.breakers.is_open(&call.breaker_key) {
            return Ok((pass, Some(reservation)));
        }
        record.waits_from(Instant::now());
    }
}

/// The breaker's permission for one attempt; waits for it where the breaker is open.
async fn pass_breaker<'a>(
    shield: &'a Shield,
    settings: &'a Settings,
    call: &'a Call,
    record: &mut Record,
) -> Result<Pass<'a>, Rejection> {
    if let Admission::Go(pass) = shield.breakers.admit(&call.breaker_key, &settings.breaker, Instant::now) {
        return Ok(pass);
    }
    let began = Instant::now();
    // Boxed: rare, and each waiting request would have room for it.
    let pass = Box::pin(wait_for_breaker(shield, settings, call)).await?;
    record.waited(began.elapsed());
    record.waits_from(Instant::now());
    Ok(pass)
}

/// Waits while the breaker is open, if the call's deadline allows it to see the next probe.
async fn wait_for_breaker<'a>(shield: &'a Shield, settings: &'a Settings, call: &'a Call) -> Result<Pass<'a>, Rejection> {
    loop {
        let now = Instant::now();
        let (until, changed) = match shield.breakers.admit(&call.breaker_key, &settings.breaker, || now) {
            Admission::Go(pass) => return Ok(pass),
            Admission::Wait { until, changed } => (until, changed),
        };
        // Registered before the state is read again, so that no change is missed.
        let mut notified = pin!(changed.notified());
        notified.as_mut().enable();
        if let Admission::Go(pass) = shield.breakers.admit(&call.breaker_key, &settings.breaker, || now) {
            return Ok(pass);
        }
        if now >= call.deadline || until.is_some_and(|until| until >= call.deadline) {
            let retry_after = until.map_or(settings.breaker.open, |until| until - now);
            return Err(Rejection::BreakerOpen { retry_after });
        }
        tokio::select! {
            () = &mut notified => {}
            () = tokio::time::sleep_until(until.unwrap_or(call.deadline)) => {}
        }
    }
}

/// Yields once where other requests are in flight, so that those which the runtime has found ready together write together:
/// a peer is then woken once for a burst, not for each request (−20 % CPU a request at 64 connections; streams cost 10 % more
/// with it, so they do without). Unlike `tokio::task::yield_now` it does not poll the I/O driver first.
pub(super) fn yield_if_busy(shield: &Shield, call: &Call) -> impl Future<Output = ()> + use<> {
    let mut done = shield.bodies.held() <= call.ask.bytes;
    poll_fn(move |cx| {
        if done {
            return Poll::Ready(());
        }
        done = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
}
