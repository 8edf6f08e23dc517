//! One attempt: sends the request once, and derives from its outcome what permit, breaker, retry policy and app get.

use std::time::Duration;

use groq_limiter::{
    ActualUsage, Permit, Requeue,
    types::{Observation, UpstreamRefusal},
};
use http::{Response, StatusCode};
use tokio::time::Instant;

use super::{
    admission::yield_if_busy,
    bill::Bill,
    breaker::Health,
    error::{Rejection, UpstreamError},
    relay::{self, Expected, ValidatedBody},
    request::Call,
    retry::Class,
    shield::Shield,
};
use crate::{
    groq, headers,
    telemetry::{self, Record},
    upstream::{ExchangeError, Failure, UpstreamRequest},
};

/// Maximum bytes of an error body that are read; the rest is ignored.
const MAX_ERROR_BODY: usize = 1 << 20;
/// Maximum time to read an error body; what has arrived by then is used.
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// How one attempt ended.
pub(super) enum Outcome {
    /// A response that can be delivered; nothing of it has been sent to the app yet.
    Validated(Box<Response<ValidatedBody>>),
    /// A status of 400 or more, or a redirect, with its body.
    Error { error: Box<UpstreamError>, upstream_status: StatusCode, state: Observation, text: Option<UpstreamRefusal> },
    /// No complete response.
    Failed(Failure),
}

/// A response for the app, and the permit to settle with its usage.
pub(super) struct Delivered {
    pub(super) response: Box<Response<ValidatedBody>>,
    pub(super) permit: Option<Permit>,
}

/// Sends `call` once, and reads as much of the response as must be known before anything is sent to the app.
pub(super) async fn send(
    shield: &Shield,
    call: &Call,
    upstream_request: &mut UpstreamRequest,
    mut permit: Option<&mut Permit>,
    record: &mut Record,
) -> Outcome {
    record.begins_attempt();
    if !call.streams() {
        yield_if_busy(shield, call).await;
    }
    let mut sent_at = None;
    let sending = || {
        let now = Instant::now();
        sent_at = Some(now);
        if let Some(permit) = &mut permit {
            permit.sent(now);
        }
        now
    };
    let (mut head, body) = match shield.upstream.send(upstream_request, sending).await {
        Ok(response) => response.into_parts(),
        Err(failure) => return Outcome::Failed(failure),
    };
    headers::from_upstream(&mut head.headers);
    let now = Instant::now();
    record.time_to_head = sent_at.map(|sent_at| now - sent_at);
    record.upstream_id = headers::text(&head.headers, headers::REQUEST_ID).map(str::to_owned);
    let state = groq::rate_limits(&head.headers);
    let status = head.status;
    let expected = call.expected(upstream_request);
    // Groq's API does not redirect: `upstream.base_url` is wrong, or a proxy interferes.
    let is_redirect = expected != Expected::Any && status.is_redirection() && status != StatusCode::NOT_MODIFIED;
    if status.is_client_error() || status.is_server_error() || is_redirect {
        let body = relay::error_body(body, MAX_ERROR_BODY, ERROR_BODY_TIMEOUT).await;
        let mut error = Box::new(UpstreamError::new(status, head.headers, &body, shield.wall_clock.now()));
        if let Some(reason) = error.blocks_account() {
            shield.telemetry.account_blocked(&call.admission.organization, reason);
        }
        if error.is_missing_model()
            && let Some(hint) = working_models_hint(shield, call, record, now)
        {
            error.add_to_message(&hint);
        }
        let text = matches!(status.as_u16(), 400 | 413 | 429).then(|| groq::parse_refusal(&error.message)).flatten();
        if status != StatusCode::TOO_MANY_REQUESTS
            && text.is_none()
            && let Some(permit) = &mut permit
        {
            permit.observe(&state, now);
        }
        return Outcome::Error { error, upstream_status: status, state, text };
    }
    if let Some(permit) = &mut permit {
        permit.observe(&state, now);
    }
    match relay::validate(&head, body, expected, call.stream_must_end()).await {
        Ok(body) => {
            if status.is_success() && call.is_limited() {
                shield.telemetry.account_served(&call.admission.organization);
                shield.served_models.add(&call.admission.organization, &call.admission.model, record.endpoint, now);
            }
            Outcome::Validated(Box::new(Response::from_parts(head, body)))
        }
        Err(error) => Outcome::Failed(Failure::after_sending(error)),
    }
}

/// A sentence that names the models which the organization has recently used successfully, except the missing one.
fn working_models_hint(shield: &Shield, call: &Call, record: &Record, now: Instant) -> Option<String> {
    let models = shield.served_models.list(&call.admission.organization, record.endpoint, now);
    let names: Vec<_> = models.iter().filter(|model| **model != call.admission.model).map(|model| format!("`{model}`")).collect();
    (!names.is_empty()).then(|| format!("This organization has recently used these models successfully: {}.", names.join(", ")))
}

impl Outcome {
    /// Its class for the retry policy.
    pub(super) fn class(&self) -> Class {
        match self {
            Self::Validated(..) => Class::Answered,
            // Whatever the status: expected output decays over time, so the request waits, or its output limit is lowered.
            Self::Error { text: Some(text), .. } if text.hopeless() && text.counts_expected_output() => Class::Refused,
            // Waiting does not help a request that can never fit, whatever the status.
            Self::Error { text: Some(text), .. } if text.hopeless() => Class::Answered,
            // Waiting does not unblock an organization either.
            Self::Error { error, .. } if error.blocks_account().is_some() => Class::Answered,
            Self::Error { error, upstream_status, .. } => Class::of(*upstream_status, error.retry_after),
            Self::Failed(Failure { error: ExchangeError::Tls(_), .. }) => Class::Broken,
            Self::Failed(_) => Class::Transient { retry_after: None },
        }
    }

    /// What it says about the upstream's health.
    pub(super) fn health(&self) -> Health {
        match self {
            Self::Validated(..) => Health::Good,
            Self::Error { upstream_status, .. } => match upstream_status.as_u16() {
                429 | 498 => Health::Unknown,
                500.. => Health::Bad { at: Instant::now() },
                _ => Health::Good,
            },
            Self::Failed(_) => Health::Bad { at: Instant::now() },
        }
    }

    /// Its label in the metrics.
    pub(super) fn label(&self) -> telemetry::Outcome {
        match self {
            Self::Validated(..) => telemetry::Outcome::Answered,
            Self::Error { upstream_status: StatusCode::TOO_MANY_REQUESTS, .. } => telemetry::Outcome::Refused,
            Self::Error { upstream_status, .. } if upstream_status.is_client_error() => telemetry::Outcome::Answered,
            Self::Error { .. } => telemetry::Outcome::Failed,
            Self::Failed(_) => telemetry::Outcome::Broken,
        }
    }

    /// What a failed attempt used. Groq charges no tokens for a 5xx or an invalid request, unless it failed after generation.
    fn spent(&self) -> ActualUsage {
        match self {
            Self::Failed(failure) if !failure.sent => ActualUsage::Nothing,
            Self::Failed(_) | Self::Validated(..) => ActualUsage::Unknown,
            Self::Error { error, .. } if error.after_generation() => ActualUsage::Unknown,
            Self::Error { .. } => ActualUsage::Request,
        }
    }

    /// Settles a failed attempt.
    pub(super) fn settle(&self, permit: Option<Permit>, bill: &mut Bill) {
        bill.charge(self.spent());
        if let Some(permit) = permit {
            permit.settle(self.spent(), Instant::now());
        }
    }

    /// The upstream's response, or its error.
    pub(super) fn deliver(self, permit: Option<Permit>, bill: &mut Bill) -> Result<Delivered, Rejection> {
        match self {
            Self::Validated(response) => Ok(Delivered { response, permit }),
            Self::Error { text: Some(ref text), ref state, .. } => {
                bill.charge(ActualUsage::Nothing);
                if let Some(permit) = permit {
                    // The text corrects the limits. The place in the queue is released, because the request can never fit.
                    let _place = permit.refused(Some(text), state, None, Instant::now());
                }
                Err(self.into_rejection())
            }
            failed => {
                failed.settle(permit, bill);
                Err(failed.into_rejection())
            }
        }
    }

    /// Corrects the limits by a refusal. Returns the place at the front of its app's queue that the request may keep; `None` if
    /// the shield does not limit it.
    pub(super) fn refused(&self, permit: Option<Permit>, shield: &Shield, call: &Call) -> Option<Requeue> {
        let Self::Error { error, state, text, .. } = self else { return None };
        let dimension = text.as_ref().and_then(|text| text.dimension.as_ref());
        shield.telemetry.refused(&call.admission.model, dimension.map_or("unknown", |d| d.code.as_ref()));
        permit?.refused(text.as_ref(), state, error.retry_after, Instant::now())
    }

    /// What the response head says about the limits.
    pub(super) fn state(&self) -> Observation {
        match self {
            Self::Validated(response) => groq::rate_limits(response.headers()),
            Self::Error { state, .. } => *state,
            Self::Failed(_) => Observation::default(),
        }
    }

    pub(super) fn into_rejection(self) -> Rejection {
        match self {
            Self::Validated(..) => unreachable!("a validated response is delivered"),
            Self::Error { mut error, text, .. } => {
                if text.is_some_and(|text| text.hopeless()) && error.status == StatusCode::TOO_MANY_REQUESTS {
                    error.status = StatusCode::PAYLOAD_TOO_LARGE;
                    error.retry_after = None;
                }
                Rejection::Upstream(error)
            }
            Self::Failed(failure) => failure.error.into(),
        }
    }
}
