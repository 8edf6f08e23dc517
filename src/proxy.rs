//! What happens to one request? `handle` cannot fail; `forward` tells the whole story.

use std::{future::poll_fn, pin::pin, sync::Arc, task::Poll};

use bytes::Bytes;
use http::{Request, Response, response::Parts};
use tokio::{
    task::yield_now,
    time::{Instant, sleep},
};

use crate::{
    config::Settings,
    error::Rejection,
    limits::Reservation,
    relay::{self, Body, Carried, Ending, Opened},
    retry::{Attempts, Verdict},
    telemetry::Record,
};

mod answer;
mod attempt;
mod read;
mod shield;

use answer::{deliver, reject};
use read::Call;
pub use shield::Shield;

/// Answers one request, whatever happens.
///
/// `ambiguous`: the head's bytes could be read as more than one request; seen by the connection, since hyper hides it.
pub async fn handle<B>(shield: &Arc<Shield>, request: Request<B>, ambiguous: Option<&'static str>) -> Response<Body>
where
    B: http_body::Body<Data = Bytes>,
{
    let mut record = Box::new(Record::new(&shield.telemetry, request.uri().path(), Instant::now()));
    let settings = shield.settings.load_full();
    let call = match shield.read(request, ambiguous, &settings, &mut record).await {
        Ok(call) => call,
        Err(rejection) => return reject(rejection, record),
    };
    let keepalive = settings.queue.stream_keepalive.filter(|_| call.streams());
    let answer = answer(shield.clone(), settings, call, record);
    match keepalive {
        None => answer.await,
        Some(period) => relay::opened_early(Box::pin(answer), period).await,
    }
}

/// The answer to what never became a request, or to one whose story panicked.
pub fn refuse(shield: &Shield, rejection: Rejection) -> Response<Body> {
    reject(rejection, Box::new(Record::new(&shield.telemetry, "", Instant::now())))
}

/// The answer to a call that has been read.
async fn answer(shield: Arc<Shield>, settings: Arc<Settings>, mut call: Box<Call>, mut record: Box<Record>) -> Response<Body> {
    let mut ending = Ending::new(&shield.stop);
    let story = {
        let mut story = pin!(forward(&shield, &settings, &mut call, &mut record));
        poll_fn(|cx| match story.as_mut().poll(cx) {
            Poll::Pending if ending.poll_over(cx) => Poll::Ready(Err(Rejection::ShuttingDown)),
            other => other,
        })
        .await
    };
    // As before sending: this round's answers go out together.
    if !call.streams() {
        yield_now().await;
    }
    match story {
        Ok((head, opened, reservation)) => deliver(head, opened, Carried { reservation, record, ending }, call.fitted),
        Err(rejection) => reject(rejection, record),
    }
}

/// One request's life.
async fn forward(
    shield: &Shield,
    settings: &Settings,
    call: &mut Call,
    record: &mut Record,
) -> Result<(Parts, Opened, Option<Reservation>), Rejection> {
    shield.budget.request(Instant::now());
    shield.fit(settings, call);
    if shield.limits.waiting() > 0 {
        call.settle_down();
    }
    let mut attempts = Attempts::new(settings.retry.clone(), call.deadline);
    let mut place = None;
    loop {
        let (pass, mut reservation) = shield.admit(settings, call, place.take(), record).await?;
        let outcome = Box::pin(shield.attempt(call, reservation.as_mut(), record)).await;
        pass.record(outcome.health());
        shield.telemetry.attempt(outcome.label());
        match attempts.next(outcome.class(), &shield.budget, fastrand::f64(), Instant::now()) {
            Verdict::Deliver => return outcome.deliver(reservation),
            Verdict::Requeue => place = outcome.refused(reservation, shield, call)?,
            Verdict::Again(after) => {
                outcome.settle(reservation);
                sleep(after).await;
            }
            Verdict::GiveUp => {
                outcome.settle(reservation);
                return Err(outcome.into_rejection());
            }
        }
    }
}

#[cfg(test)]
mod tests;
