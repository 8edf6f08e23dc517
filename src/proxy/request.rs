//! Reads one request: the head first, then the whole body, which every attempt sends again.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use groq_limiter::{AdmissionError, AdmissionRequest, CostEstimate};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, header, uri::PathAndQuery};
use tokio::time::Instant;

use super::{
    bill::Bill,
    body_buffer, breaker, caps,
    error::{CompletionLimit, Rejection},
    fallback,
    relay::Expected,
    shield::Shield,
};
use crate::{
    accounts::{Budget, Unit},
    config::{FallbackReason, Settings},
    groq::{Endpoint, map_path},
    headers,
    telemetry::Record,
    upstream::UpstreamRequest,
};

pub mod facts;
mod form;
pub mod identity;
mod json;
mod model;

use facts::Facts;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// A request that has been read.
pub(super) struct Call {
    /// The request for admission by the limits.
    pub(super) admission: AdmissionRequest,
    pub(super) breaker_key: breaker::Key,
    /// When it had been read completely.
    pub(super) read_at: Instant,
    /// End of its max wait.
    pub(super) deadline: Instant,
    /// Whether its client set the max wait, and not `queue.max_wait`.
    deadline_by_client: bool,
    /// The original `max_completion_tokens` and the lower value that is sent, if it was lowered.
    pub(super) fitted: Option<(u64, u64)>,
    /// Whether it was the probe of an open breaker, and failed.
    pub(super) probe_failed: bool,
    /// Its usage so far.
    pub(super) bill: Bill,
    /// Whether its app has caps.
    pub(super) is_capped: bool,
    /// The budgets of its app.
    pub(super) budgets: Option<Arc<[Budget]>>,
    /// Whether another model may serve it.
    pub(super) may_fall_back: bool,
    endpoint: Endpoint,
    /// Set for multipart forms, whose boundary is needed to replace the model.
    content_type: Option<HeaderValue>,
    facts: Facts,
    /// Returns the body's bytes to the budget when the request ends.
    _body_permit: body_buffer::BodyPermit,
}

/// Reads a whole request. The head is checked before the body is read.
///
/// # Errors
/// Why the request is rejected.
pub(super) async fn read<B>(
    shield: &Shield,
    request: Request<B>,
    settings: &Settings,
    record: &mut Record,
) -> Result<(Box<Call>, Box<UpstreamRequest>), Rejection>
where
    B: http_body::Body<Data = Bytes>,
{
    let (http::request::Parts { method, uri, version, mut headers, .. }, body) = request.into_parts();
    check_destination(shield, &method, &uri)?;
    let path = mapped(&uri)?;
    let endpoint = Endpoint::of(&method, path.path());
    record.endpoint = endpoint.label();
    record.traceparent = headers::text(&headers, TRACEPARENT).map(str::to_owned);
    if shield.via.is_in(&headers) {
        return Err(Rejection::Loop);
    }
    let identity = shield.identities.load().resolve(&method, &headers)?;
    record.app = identity.app.clone();
    record.class = identity.class;

    let (max_body, timeout) = (settings.server.max_body, settings.server.body_timeout);
    let (body, body_permit) =
        body_buffer::collect(body, record.started, identity.class, max_body, timeout, &shield.body_budget).await?;
    let facts = Facts::of(endpoint, &headers, &body)?;
    record.model = facts.model.clone();
    let admission = AdmissionRequest {
        organization: identity.organization.clone(),
        key: identity.key_number,
        model: facts.model.clone(),
        tier: facts.tier.clone(),
        app: identity.app.clone(),
        weight: identity.weight,
        class: identity.class,
        cost: facts.cost,
        bytes: body.len() as u64,
    };
    let (max_wait, deadline_by_client) =
        facts::max_wait(&headers, &settings.queue, || shield.limits.usual_time_to_head(&admission));
    let content_type = headers.get(header::CONTENT_TYPE).filter(|_| endpoint.takes_audio()).cloned();
    let may_fall_back = identity.fallback;
    let bill = Bill::new(admission.cost, settings.price_of(&facts.model));
    let (is_capped, budgets) = (identity.is_capped, identity.budgets.clone());
    headers::to_upstream(&mut headers, endpoint.answers_json() || endpoint.takes_audio());
    shield.via.add_to(&mut headers, version);
    identity.authorize(&mut headers);
    let breaker_key = (identity.organization, Arc::clone(&facts.model));
    let read_at = Instant::now();
    let deadline = read_at + max_wait;
    let call = Call {
        admission,
        breaker_key,
        read_at,
        deadline,
        deadline_by_client,
        fitted: None,
        probe_failed: false,
        bill,
        is_capped,
        budgets,
        may_fall_back,
        endpoint,
        content_type,
        facts,
        _body_permit: body_permit,
    };
    Ok((Box::new(call), Box::new(UpstreamRequest::new(method, path, headers, body))))
}

/// Rejects CONNECT, TRACE, and absolute-form targets other than the upstream's own authority.
fn check_destination(shield: &Shield, method: &Method, uri: &Uri) -> Result<(), Rejection> {
    if method == Method::CONNECT {
        return Err(Rejection::Destination("CONNECT is not served.".into()));
    }
    if method == Method::TRACE {
        // RFC 9110 §9.3.8: TRACE must not carry credentials, and the shield may add some.
        return Err(Rejection::Destination("TRACE is not served, because its response would show the API key.".into()));
    }
    let Some(authority) = uri.authority() else { return Ok(()) };
    let ours: http::uri::Authority = shield.upstream.authority().parse().expect("checked by the configuration");
    let default_port = |port: Option<u16>| port.filter(|port| !matches!(port, 80 | 443));
    let same =
        authority.host().eq_ignore_ascii_case(ours.host()) && default_port(authority.port_u16()) == default_port(ours.port_u16());
    if same { Ok(()) } else { Err(Rejection::Destination("This authority is not the upstream's.".into())) }
}

/// The path at Groq.
fn mapped(uri: &Uri) -> Result<PathAndQuery, Rejection> {
    let Some(path) = uri.path_and_query() else { return Ok(PathAndQuery::from_static("/")) };
    match map_path(path.as_str()) {
        std::borrow::Cow::Borrowed(same) if same.len() == path.as_str().len() => Ok(path.clone()),
        mapped => mapped.parse().map_err(|_| Rejection::Malformed("the path")),
    }
}

impl Call {
    /// Whether it counts under a model's limits.
    pub(super) fn is_limited(&self) -> bool {
        self.admission.cost != CostEstimate::Free && !self.admission.model.is_empty()
    }

    /// Whether its app has a budget in USD but its model has no price.
    pub(super) fn lacks_price(&self) -> bool {
        let in_usd = |budgets: &[Budget]| budgets.iter().any(|budget| budget.unit == Unit::Cost);
        self.budgets.as_deref().is_some_and(in_usd) && !self.bill.has_price() && self.is_limited()
    }

    /// Tokens or seconds of audio that it reserves.
    pub(super) fn reserved(&self) -> Option<u64> {
        match self.admission.cost {
            CostEstimate::Tokens { prompt, max_completion_tokens } => {
                Some(prompt.saturating_add(max_completion_tokens.unwrap_or(0)))
            }
            CostEstimate::Audio { seconds } => Some(seconds),
            CostEstimate::Free => None,
        }
    }

    /// The rejection for the app if the limits refuse the call.
    pub(super) fn rejection(&self, refusal: AdmissionError) -> Rejection {
        match refusal {
            AdmissionError::TooLarge { dimension, limit, requested: asked, parts } => {
                let stated = matches!(self.admission.cost, CostEstimate::Tokens { max_completion_tokens: Some(_), .. });
                let lower = match facts::output_limit_name(self.endpoint) {
                    Some(name) if stated => CompletionLimit::Stated(name),
                    Some(name) => CompletionLimit::Unstated(name),
                    None => CompletionLimit::None,
                };
                Rejection::NeverFits { dimension, limit, asked, parts, lower }
            }
            AdmissionError::NotInTime { dimension, wait, fitting_max_completion_tokens: fits, retry_after } => {
                let fits = fits.zip(facts::output_limit_name(self.endpoint));
                Rejection::NotInTime { dimension, wait, fits, retry_after, by_client: self.deadline_by_client }
            }
            AdmissionError::QueueFull { retry_after } => Rejection::Overloaded { retry_after },
        }
    }

    /// The request for admission by its app's caps.
    pub(super) fn cap_admission(&self) -> AdmissionRequest {
        caps::admission(&self.admission)
    }

    /// The rejection for the app if its caps refuse the call.
    pub(super) fn cap_rejection(&self, refusal: AdmissionError) -> Rejection {
        let mut rejection = self.rejection(refusal);
        if let Rejection::NeverFits { dimension, .. } | Rejection::NotInTime { dimension, .. } = &mut rejection {
            dimension.code = caps::code(dimension);
        }
        rejection
    }

    /// How long it may wait for an open breaker: not at all if another model can serve it.
    pub(super) fn breaker_max_wait(&self, settings: &Settings) -> Duration {
        let others = fallback::candidates(&settings.fallback, &self.admission.model, FallbackReason::Unavailable);
        if self.may_fall_back && !others.is_empty() { Duration::ZERO } else { settings.breaker.max_wait() }
    }

    /// Whether the app asked for a stream.
    pub(super) fn streams(&self) -> bool {
        self.facts.stream
    }

    /// The kind of response body that its endpoint sends.
    pub(super) fn expected(&self, upstream_request: &UpstreamRequest) -> Expected {
        if upstream_request.is_head() || !self.endpoint.answers_json() {
            Expected::Any
        } else if self.facts.wants_text {
            Expected::Text
        } else {
            Expected::Json
        }
    }

    /// Whether a stream that ends without a final event counts as truncated.
    pub(super) fn stream_must_end(&self) -> bool {
        matches!(self.endpoint, Endpoint::Chat | Endpoint::Responses)
    }

    /// Lowers `max_completion_tokens` to what the limit can hold if the call could otherwise never be sent and
    /// `limits.fit_ceiling` allows it.
    pub(super) fn fit_ceiling(&mut self, shield: &Shield, settings: &Settings, upstream_request: &mut UpstreamRequest) {
        if !settings.limits.fit_ceiling {
            return;
        }
        let Some(to) = shield.limits.forecast(&self.admission).fitting_max_completion_tokens else { return };
        if let CostEstimate::Tokens { max_completion_tokens, .. } = &mut self.admission.cost {
            let from = max_completion_tokens.replace(to).unwrap_or(to);
            self.fitted = Some((from, to));
            upstream_request.replace_body(|body| facts::with_output_limit(self.endpoint, body, to));
        }
    }

    /// Switches to another model and its limits. Nothing else in the body changes.
    ///
    /// `body` is the original body. Returns whether the model could be replaced.
    pub(super) fn switch_model(
        &mut self,
        to: &str,
        body: &Bytes,
        settings: &Settings,
        upstream_request: &mut UpstreamRequest,
    ) -> bool {
        let mut headers = HeaderMap::new();
        headers.extend(self.content_type.clone().map(|content_type| (header::CONTENT_TYPE, content_type)));
        let Some(body) = model::replace(self.endpoint, &headers, body, to) else { return false };
        let Ok(facts) = Facts::of(self.endpoint, &headers, &body) else { return false };
        self.admission.model = facts.model.clone();
        self.admission.cost = facts.cost;
        self.bill.switch_model(facts.cost, settings.price_of(&facts.model));
        self.admission.bytes = body.len() as u64;
        self.breaker_key.1 = facts.model.clone();
        self.fitted = None;
        self.probe_failed = false;
        self.facts = facts;
        upstream_request.replace_body(|_| body);
        true
    }
}
