//! Response heads: the headers that the shield adds to upstream responses and to its own error responses.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use hyper::ext::ReasonPhrase;

use crate::{
    headers::REQUEST_ID,
    proxy::error::Rejection,
    proxy::relay::{Body, ResponseContext, ValidatedBody},
    telemetry::{EarlySnapshot, Record, Source},
};

const WAIT: HeaderName = HeaderName::from_static("x-shield-wait-ms");
const ATTEMPTS: HeaderName = HeaderName::from_static("x-shield-attempts");
const FALLBACK: HeaderName = HeaderName::from_static("x-shield-fallback");
const FITTED: HeaderName = HeaderName::from_static("x-shield-fitted");

/// The upstream's response with the shield's headers.
pub(super) fn deliver(answer: Response<ValidatedBody>, mut context: ResponseContext) -> Response<Body> {
    let (mut head, opened) = answer.into_parts();
    if let ValidatedBody::Stream(_) = opened {
        // A stream may end with an additional error frame, so its length is unknown.
        head.headers.remove(header::CONTENT_LENGTH);
    }
    context.record.status = head.status.as_u16();
    context.record.source = Source::Upstream;
    stamp(&mut head.headers, &mut context.record);
    add_fitted(&mut head.headers, context.record.fitted);
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

/// Reason phrases of Groq's non-standard statuses.
fn reason(status: StatusCode) -> &'static [u8] {
    match status.as_u16() {
        498 => b"Flex Tier Capacity Exceeded",
        499 => b"Request Cancelled",
        _ => b"Error",
    }
}

/// A number as a header value, without allocating for common ones.
fn number(number: u64) -> HeaderValue {
    match number {
        0 => HeaderValue::from_static("0"),
        1 => HeaderValue::from_static("1"),
        _ => HeaderValue::from(number),
    }
}

/// Adds the headers of every response. `x-shield-*` headers of the upstream have been removed before.
fn stamp(headers: &mut HeaderMap, record: &mut Record) {
    add_progress(headers, record.wait, record.attempts, record.fallback_header());
    if !headers.contains_key(&REQUEST_ID) {
        record.id = new_request_id();
        headers.append(REQUEST_ID, HeaderValue::from_str(&record.id).expect("letters and digits"));
    }
}

/// The headers of a response that is opened before its outcome is known, with the request's state so far.
pub(super) fn early_headers(early: EarlySnapshot) -> HeaderMap {
    let EarlySnapshot { id, wait, attempts, fallback, fitted, .. } = early;
    let mut headers = HeaderMap::new();
    add_progress(&mut headers, wait, attempts, fallback);
    add_fitted(&mut headers, fitted);
    headers.append(REQUEST_ID, HeaderValue::from_str(&id).expect("letters and digits"));
    headers
}

fn add_progress(headers: &mut HeaderMap, wait: Duration, attempts: u32, fallback: Option<String>) {
    headers.append(WAIT, number(wait.as_millis() as u64));
    headers.append(ATTEMPTS, number(attempts.into()));
    // The configuration only accepts visible ASCII in names of models.
    headers.extend(fallback.and_then(|value| HeaderValue::try_from(value).ok()).map(|value| (FALLBACK, value)));
}

fn add_fitted(headers: &mut HeaderMap, fitted: Option<(u64, u64)>) {
    if let Some((from, to)) = fitted {
        let value = HeaderValue::from_str(&format!("{from}>{to}"));
        headers.append(FITTED, value.expect("two numbers are a header"));
    }
}

/// An `x-request-id` for a response without one from the upstream.
pub(super) fn new_request_id() -> String {
    format!("req_shield_{:032x}", fastrand::u128(..))
}
