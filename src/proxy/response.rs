//! Response heads: what the shield adds to the upstream's response and to its own error responses.

use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use hyper::ext::ReasonPhrase;

use crate::{
    proxy::error::Rejection,
    proxy::relay::{Body, ResponseContext, ValidatedBody},
    telemetry::{Record, Source},
};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const WAIT: HeaderName = HeaderName::from_static("x-shield-wait-ms");
const ATTEMPTS: HeaderName = HeaderName::from_static("x-shield-attempts");
const FALLBACK: HeaderName = HeaderName::from_static("x-shield-fallback");
const FITTED: HeaderName = HeaderName::from_static("x-shield-fitted");

/// The upstream's response with the shield's headers.
pub(super) fn deliver(
    answer: Response<ValidatedBody>,
    mut context: ResponseContext,
    fitted: Option<(u64, u64)>,
) -> Response<Body> {
    let (mut head, opened) = answer.into_parts();
    if let ValidatedBody::Stream(_) = opened {
        // A stream may get an error frame at its end, which a stated length leaves no room for.
        head.headers.remove(header::CONTENT_LENGTH);
    }
    context.record.status = head.status.as_u16();
    context.record.source = Source::Upstream;
    stamp(&mut head.headers, &mut context.record);
    if let Some((from, to)) = fitted {
        let value = HeaderValue::from_str(&format!("{from}>{to}"));
        head.headers.append(FITTED, value.expect("two numbers are a header"));
    }
    Response::from_parts(head, Body::new(opened, context))
}

/// The error response of `rejection`.
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

/// Reason phrases of Groq's own statuses.
fn reason(status: StatusCode) -> &'static [u8] {
    match status.as_u16() {
        498 => b"Flex Tier Capacity Exceeded",
        499 => b"Request Cancelled",
        _ => b"Error",
    }
}

/// A number as a header value; the usual ones are not allocated.
fn number(number: u64) -> HeaderValue {
    match number {
        0 => HeaderValue::from_static("0"),
        1 => HeaderValue::from_static("1"),
        _ => HeaderValue::from(number),
    }
}

/// Adds the headers of every response. The upstream's `x-shield-*` have been removed before.
fn stamp(headers: &mut HeaderMap, record: &mut Record) {
    headers.append(WAIT, number(record.wait.as_millis() as u64));
    headers.append(ATTEMPTS, number(record.attempts.into()));
    if let Some((from, reason)) = &record.fallback {
        let value = format!("{from}>{}; reason={}", record.model, reason.as_str());
        // The configuration takes visible ASCII only for the names of models.
        headers.extend(HeaderValue::try_from(value).ok().map(|value| (FALLBACK, value)));
    }
    if !headers.contains_key(&REQUEST_ID) {
        record.id = format!("req_shield_{:032x}", fastrand::u128(..));
        headers.append(REQUEST_ID, HeaderValue::from_str(&record.id).expect("letters and digits"));
    }
}
