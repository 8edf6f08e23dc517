//! What happens to one request? `handle` cannot fail; `forward` tells the whole story.

use std::{future::poll_fn, pin::pin, sync::Arc, task::Poll};

use bytes::Bytes;
use http::{Request, Response};
use tokio::time::{Instant, sleep};

use crate::{
    config::Settings,
    limits::Reservation,
    proxy::error::Rejection,
    proxy::relay::{self, Body, Carried, Opened},
    proxy::retry::{Attempts, Verdict},
    shutdown::Ending,
    telemetry::Record,
    upstream::Outgoing,
};

use super::{
    request::Call,
    response::{deliver, reject},
    shield::Shield,
};

/// Answers one request, whatever happens.
///
/// `ambiguous`: the head's bytes could be read as more than one request; seen by the connection.
pub fn handle<B>(
    shield: &Arc<Shield>,
    request: Request<B>,
    ambiguous: Option<&'static str>,
) -> impl Future<Output = Response<Body>> + use<B>
where
    B: http_body::Body<Data = Bytes>,
{
    // On the heap until it is read: a request that waits in line keeps no room for it, 1 KB.
    let read = Box::pin(read(shield.clone(), request, ambiguous));
    async {
        let asked = match read.await {
            Ok(asked) => asked,
            Err(answer) => return *answer,
        };
        let keepalive = asked.settings.queue.stream_keepalive.filter(|_| asked.call.streams());
        let answer = answer(asked);
        match keepalive {
            None => answer.await,
            Some(period) => relay::opened_early(Box::pin(answer), period).await,
        }
    }
}

/// A request that has been read, and what it is answered by.
struct Asked {
    shield: Arc<Shield>,
    settings: Arc<Settings>,
    call: Box<Call>,
    outgoing: Outgoing,
    record: Box<Record>,
}

/// Reads a request to its end; if that cannot be, its answer.
fn read<B>(
    shield: Arc<Shield>,
    request: Request<B>,
    ambiguous: Option<&'static str>,
) -> impl Future<Output = Result<Asked, Box<Response<Body>>>>
where
    B: http_body::Body<Data = Bytes>,
{
    let mut record = Box::new(Record::new(&shield.telemetry, request.uri().path(), Instant::now()));
    let settings = shield.settings.load_full();
    async move {
        let read = match ambiguous {
            Some(why) => Err(Rejection::Malformed(why)),
            None => shield.read(request, &settings, &mut record).await,
        };
        match read {
            Ok((call, outgoing)) => Ok(Asked { shield, settings, call, outgoing, record }),
            Err(rejection) => Err(Box::new(reject(rejection, record))),
        }
    }
}

/// The answer to what never became a request, or to one whose story panicked.
pub fn refuse(shield: &Shield, rejection: Rejection) -> Response<Body> {
    reject(rejection, Box::new(Record::new(&shield.telemetry, "", Instant::now())))
}

/// The answer to a call that has been read. Not an `async fn`, as `read` is none: those keep room for their arguments twice.
fn answer(Asked { shield, settings, mut call, mut outgoing, mut record }: Asked) -> impl Future<Output = Response<Body>> {
    let mut ending = Ending::new(&shield.stop);
    async move {
        let story = {
            let mut story = pin!(forward(&shield, &settings, &mut call, &mut outgoing, &mut record));
            poll_fn(|cx| match story.as_mut().poll(cx) {
                Poll::Pending if ending.poll_over(cx) => Poll::Ready(Err(Rejection::ShuttingDown)),
                other => other,
            })
            .await
        };
        // As before sending: this round's answers go out together.
        if !call.streams() {
            shield.round_ends(&call).await;
        }
        match story {
            Ok((answer, reservation)) => deliver(*answer, Carried { reservation, record, ending }, call.fitted),
            Err(rejection) => reject(rejection, record),
        }
    }
}

/// One request's life.
async fn forward(
    shield: &Shield,
    settings: &Settings,
    call: &mut Call,
    outgoing: &mut Outgoing,
    record: &mut Record,
) -> Result<(Box<Response<Opened>>, Option<Reservation>), Rejection> {
    shield.budget.request(call.read_at);
    shield.fit(settings, call, outgoing);
    if shield.limits.waiting() > 0 {
        outgoing.settle_down();
    }
    let mut attempts = Attempts::new(settings.retry.clone(), call.deadline);
    let mut place = None;
    loop {
        // In a block of their own: who waits keeps no room for an outcome.
        let after = {
            let (pass, mut reservation) = shield.admit(settings, call, place.take(), record).await?;
            // On the heap: who waits in line keeps no room for it, 1 KB.
            let outcome = Box::pin(shield.attempt(call, outgoing, reservation.as_mut(), record)).await;
            pass.record(outcome.health());
            shield.telemetry.attempt(outcome.label());
            match attempts.next(outcome.class(), &shield.budget, fastrand::f64(), Instant::now) {
                Verdict::Deliver => return outcome.deliver(reservation),
                Verdict::Requeue(pause) => {
                    place = outcome.refused(reservation, shield, call, pause.is_none())?;
                    match pause {
                        Some(pause) if !pause.is_zero() => pause,
                        // Not past the sleep below: who waits in line would keep room for all that is here.
                        _ => continue,
                    }
                }
                Verdict::Again(after) => {
                    outcome.settle(reservation);
                    after
                }
                Verdict::GiveUp => {
                    outcome.settle(reservation);
                    return Err(outcome.into_rejection());
                }
            }
        };
        sleep(after).await;
    }
}
