//! What did one attempt come to? An answer that has begun well, an error of Groq's, or nothing whole; and what each
//! means for the charge, the breaker, the retry and the app.

use std::time::{Duration, SystemTime};

use http::{Response, StatusCode};
use tokio::time::Instant;

use super::{Shield, request::Call};
use crate::{
    groq::{RateState, RefusalText},
    headers,
    limits::{Place, Reservation, Spent},
    proxy::breaker::Health,
    proxy::error::{Rejection, UpstreamError},
    proxy::relay::{self, Opened},
    proxy::retry::Class,
    telemetry::{self, Record},
    upstream::{Failure, Outgoing, Why},
};

/// Of an error's body no more is read, bytes.
const LARGEST_ERROR: usize = 1 << 20;
/// An error's body that drips in more slowly is taken as far as it has come.
const LONGEST_ERROR: Duration = Duration::from_secs(10);

/// How one attempt ended.
pub(super) enum Outcome {
    /// To be delivered; nothing of it has gone out.
    Opened(Box<Response<Opened>>),
    /// A status of 400 or more, its body read.
    Error { error: Box<UpstreamError>, upstream_status: StatusCode, state: RateState, text: Option<RefusalText> },
    /// No whole answer.
    Failed(Failure),
}

impl Shield {
    /// Sends `call` once and reads as much of the answer as must be known before anything goes out.
    pub(super) async fn attempt(
        &self,
        call: &Call,
        outgoing: &Outgoing,
        mut reservation: Option<&mut Reservation>,
        record: &mut Record,
    ) -> Outcome {
        record.attempts += 1;
        // The others of this round get as far first, and then all go out together: a burst wakes its peer once, where one by
        // one woke it for each. It bought a fifth of the CPU of a request; streams do better one by one, by a tenth.
        if !call.streams() {
            self.round_ends(call).await;
        }
        let mut sent_at = None;
        let sending = || {
            let now = Instant::now();
            sent_at = Some(now);
            if let Some(reservation) = &mut reservation {
                reservation.sent(now);
            }
            now
        };
        let mut answer = match self.upstream.send(outgoing, sending).await {
            Ok(answer) => answer,
            Err(failure) => return Outcome::Failed(failure),
        };
        // Of every answer, before anybody reads it: an error's framing is as little the app's as any other's.
        headers::from_upstream(&mut answer.head.headers);
        let now = Instant::now();
        record.time_to_head = sent_at.map(|sent_at| now - sent_at);
        record.upstream_id = headers::text(&answer.head.headers, "x-request-id").map(str::to_owned);
        let state = RateState::of(&answer.head.headers);
        let status = answer.head.status;
        if status.is_client_error() || status.is_server_error() {
            let body = relay::error_body(answer.body, LARGEST_ERROR, LONGEST_ERROR).await;
            let error = Box::new(UpstreamError::new(status, answer.head.headers, &body, SystemTime::now()));
            let text = matches!(status.as_u16(), 400 | 413 | 429).then(|| RefusalText::parse(&error.message)).flatten();
            if status != StatusCode::TOO_MANY_REQUESTS
                && text.is_none()
                && let Some(reservation) = &mut reservation
            {
                reservation.observe(&state, now);
            }
            return Outcome::Error { error, upstream_status: status, state, text };
        }
        if let Some(reservation) = &mut reservation {
            reservation.observe(&state, now);
        }
        match relay::open(&answer.head, answer.body, call.expected(outgoing), call.stream_must_end()).await {
            Ok(opened) => Outcome::Opened(Box::new(Response::from_parts(answer.head, opened))),
            Err(why) => Outcome::Failed(Failure::after_sending(why)),
        }
    }
}

impl Outcome {
    pub(super) fn class(&self) -> Class {
        match self {
            Self::Opened(..) => Class::Answered,
            // What can never fit is no matter of waiting, whatever its status.
            Self::Error { text: Some(text), .. } if text.hopeless() => Class::Answered,
            Self::Error { error, upstream_status, .. } => Class::of(*upstream_status, error.retry_after),
            Self::Failed(Failure { why: Why::Tls(_), .. }) => Class::Broken,
            Self::Failed(_) => Class::Transient { retry_after: None },
        }
    }

    pub(super) fn health(&self) -> Health {
        match self {
            Self::Opened(..) => Health::Good,
            Self::Error { upstream_status, .. } => match upstream_status.as_u16() {
                429 | 498 => Health::Unknown,
                500.. => Health::Bad { at: Instant::now() },
                _ => Health::Good,
            },
            Self::Failed(_) => Health::Bad { at: Instant::now() },
        }
    }

    pub(super) fn label(&self) -> telemetry::Outcome {
        match self {
            Self::Opened(..) => telemetry::Outcome::Answered,
            Self::Error { upstream_status: StatusCode::TOO_MANY_REQUESTS, .. } => telemetry::Outcome::Refused,
            Self::Error { upstream_status, .. } if upstream_status.is_client_error() => telemetry::Outcome::Answered,
            Self::Error { .. } => telemetry::Outcome::Failed,
            Self::Failed(_) => telemetry::Outcome::Broken,
        }
    }

    /// What a failed attempt cost. Groq does not charge tokens for 5xx and for requests that it found faulty; it does
    /// for what failed after generation.
    fn spent(&self) -> Spent {
        match self {
            Self::Failed(failure) if !failure.sent => Spent::Nothing,
            Self::Failed(_) | Self::Opened(..) => Spent::Charge,
            Self::Error { error, .. } if error.after_generation() => Spent::Charge,
            Self::Error { .. } => Spent::Request,
        }
    }

    /// Settles a failed attempt.
    pub(super) fn settle(&self, reservation: Option<Reservation>) {
        if let Some(reservation) = reservation {
            reservation.settle(self.spent(), Instant::now());
        }
    }

    /// The app's answer: the upstream's own, or its error.
    pub(super) fn deliver(
        self,
        reservation: Option<Reservation>,
    ) -> Result<(Box<Response<Opened>>, Option<Reservation>), Rejection> {
        match self {
            Self::Opened(answer) => Ok((answer, reservation)),
            Self::Error { text: Some(ref text), ref state, .. } => {
                if let Some(reservation) = reservation {
                    // The text teaches the levels; what can never fit leaves the line.
                    let _place = reservation.refused(Some(text), state, None, Instant::now());
                }
                Err(self.into_rejection())
            }
            failed => {
                failed.settle(reservation);
                Err(failed.into_rejection())
            }
        }
    }

    /// A refusal corrects the levels; the request goes back to the front of its app's line, unless it comes too late for that.
    pub(super) fn refused(
        self,
        reservation: Option<Reservation>,
        shield: &Shield,
        call: &Call,
        late: bool,
    ) -> Result<Option<Place>, Rejection> {
        let Self::Error { ref error, ref state, ref text, .. } = self else { return Err(self.into_rejection()) };
        let dimension = text.as_ref().and_then(|text| text.dimension.as_ref());
        shield.telemetry.refused(&call.ask.model, dimension.map_or("unknown", |d| d.code.as_ref()));
        let refused = |held: Reservation| held.refused(text.as_ref(), state, error.retry_after, Instant::now());
        match reservation.and_then(refused).filter(|_| !late) {
            Some(place) => Ok(Some(place)),
            // Nothing that the shield keeps levels of: the upstream's word is all there is.
            None => Err(self.into_rejection()),
        }
    }

    pub(super) fn into_rejection(self) -> Rejection {
        match self {
            Self::Opened(..) => unreachable!("an answer that is delivered"),
            Self::Error { mut error, text, .. } => {
                if text.is_some_and(|text| text.hopeless()) && error.status == StatusCode::TOO_MANY_REQUESTS {
                    error.status = StatusCode::PAYLOAD_TOO_LARGE;
                    error.retry_after = None;
                }
                Rejection::Upstream(error)
            }
            Self::Failed(failure) => failure.why.into(),
        }
    }
}
