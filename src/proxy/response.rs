//! What does the app see of it? The answer's or the rejection's head, stamped; the record goes on with the body.

use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use hyper::ext::ReasonPhrase;

use crate::{
    proxy::error::Rejection,
    proxy::relay::{Body, Carried, Opened},
    telemetry::{Record, Source},
};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const WAIT: HeaderName = HeaderName::from_static("x-shield-wait-ms");
const ATTEMPTS: HeaderName = HeaderName::from_static("x-shield-attempts");
const FITTED: HeaderName = HeaderName::from_static("x-shield-fitted");

/// An answer that has begun well: the upstream's, and what the shield has to add.
pub(super) fn deliver(answer: Response<Opened>, mut carried: Carried, fitted: Option<(u64, u64)>) -> Response<Body> {
    let (mut head, opened) = answer.into_parts();
    if let Opened::Stream(_) = opened {
        // A stream that breaks gets a frame that no length announced has room for.
        head.headers.remove(header::CONTENT_LENGTH);
    }
    carried.record.status = head.status.as_u16();
    carried.record.source = Source::Upstream;
    stamp(&mut head.headers, &mut carried.record);
    if let Some((from, to)) = fitted {
        let value = HeaderValue::from_str(&format!("{from}>{to}"));
        head.headers.append(FITTED, value.expect("two numbers are a header"));
    }
    Response::from_parts(head, Body::new(opened, carried))
}

/// A failure as the documented object.
pub(super) fn reject(rejection: Rejection, mut record: Box<Record>) -> Response<Body> {
    record.source = match &rejection {
        Rejection::Upstream(_) => Source::Upstream,
        rejection if rejection.is_clients() => Source::Client,
        _ => Source::Shield,
    };
    record.status = rejection.status().as_u16();
    record.error = Some(rejection.summary());
    record.stop_waiting();
    let (mut head, body) = rejection.into_response().into_parts();
    stamp(&mut head.headers, &mut record);
    if head.status.canonical_reason().is_none() {
        head.extensions.insert(ReasonPhrase::from_static(reason(head.status)));
    }
    Response::from_parts(head, Body::failure(body, record))
}

/// Groq's words for the statuses of its own.
fn reason(status: StatusCode) -> &'static [u8] {
    match status.as_u16() {
        498 => b"Flex Tier Capacity Exceeded",
        499 => b"Request Cancelled",
        _ => b"Error",
    }
}

/// A number as a header; the usual ones need no memory.
fn number(number: u64) -> HeaderValue {
    match number {
        0 => HeaderValue::from_static("0"),
        1 => HeaderValue::from_static("1"),
        _ => HeaderValue::from(number),
    }
}

/// What is added to every answer. None of ours is there: those of the upstream's that look so have gone.
fn stamp(headers: &mut HeaderMap, record: &mut Record) {
    headers.append(WAIT, number(record.wait.as_millis() as u64));
    headers.append(ATTEMPTS, number(record.attempts.into()));
    if !headers.contains_key(&REQUEST_ID) {
        record.id = format!("req_shield_{:032x}", fastrand::u128(..));
        headers.append(REQUEST_ID, HeaderValue::from_str(&record.id).expect("letters and digits"));
    }
}
