//! What is asked? The head is judged first, then the body is read, once; every attempt replays it for free.

use bytes::Bytes;
use http::{Method, Request, Uri, uri::PathAndQuery};
use tokio::time::Instant;

use super::{Shield, body_buffer};
use crate::{
    config::Settings,
    groq::{Endpoint, map_path},
    headers,
    limits::{Ask, Pool},
    proxy::breaker::Key,
    proxy::error::Rejection,
    proxy::relay::Expected,
    telemetry::Record,
    upstream::Outgoing,
};

pub mod facts;
mod form;
pub mod identity;
mod json;

use facts::Facts;

/// One request, read.
pub(super) struct Call {
    pub(super) ask: Ask,
    pub(super) lane: Key,
    /// When all of it was there.
    pub(super) read_at: Instant,
    /// When its client's patience ends.
    pub(super) deadline: Instant,
    /// The ceiling it came with and the one it goes with.
    pub(super) fitted: Option<(u64, u64)>,
    endpoint: Endpoint,
    facts: Facts,
    /// Gives its bytes back to the budget when the request is over.
    _held: body_buffer::Held,
}

impl Shield {
    /// Reads a request to its end.
    pub(super) fn read<'a, B>(
        &'a self,
        request: Request<B>,
        settings: &'a Settings,
        record: &'a mut Record,
    ) -> impl Future<Output = Result<(Box<Call>, Outgoing), Rejection>>
    where
        B: http_body::Body<Data = Bytes> + 'a,
    {
        let (http::request::Parts { method, uri, mut headers, .. }, body) = request.into_parts();
        async move {
            self.check_destination(&method, &uri)?;
            let path = mapped(&uri)?;
            let endpoint = Endpoint::of(&method, path.path());
            record.endpoint = endpoint.label();
            record.traceparent = headers::text(&headers, "traceparent").map(str::to_owned);
            let identity = self.identities.load().resolve(&method, &headers)?;
            record.app = identity.app.clone();
            record.class = identity.class;

            let (most, pause) = (settings.server.max_body, settings.server.body_timeout);
            let (body, held) = body_buffer::collect(body, record.started, identity.class, most, pause, &self.bodies).await?;
            let facts = Facts::of(endpoint, &headers, &body)?;
            record.model = facts.model.clone();
            let ask = Ask {
                organisation: identity.organisation.clone(),
                model: facts.model.clone(),
                tier: facts.tier.clone(),
                app: identity.app.clone(),
                weight: identity.weight,
                class: identity.class,
                pool: facts.pool,
                bytes: body.len() as u64,
                fingerprint: facts.fingerprint,
                client_retry: facts::is_client_retry(&headers),
            };
            let patience = facts::patience(&headers, &settings.queue, || self.limits.usual_time_to_head(&ask));
            headers::to_upstream(&mut headers, endpoint.answers_json() || endpoint.takes_audio());
            identity.authorise(&mut headers);
            let lane = (identity.organisation, facts.model.clone());
            let read_at = Instant::now();
            let deadline = read_at + patience;
            let call = Call { ask, lane, read_at, deadline, fitted: None, endpoint, facts, _held: held };
            Ok((Box::new(call), Outgoing::new(method, path, headers, body)))
        }
    }

    /// The absolute form is served for the upstream's own authority; CONNECT never is.
    fn check_destination(&self, method: &Method, uri: &Uri) -> Result<(), Rejection> {
        if method == Method::CONNECT {
            return Err(Rejection::Destination("CONNECT is not served.".into()));
        }
        let Some(authority) = uri.authority() else { return Ok(()) };
        let ours: http::uri::Authority = self.upstream.authority().parse().expect("checked by the configuration");
        let default_port = |port: Option<u16>| port.filter(|port| !matches!(port, 80 | 443));
        let same = authority.host().eq_ignore_ascii_case(ours.host())
            && default_port(authority.port_u16()) == default_port(ours.port_u16());
        if same { Ok(()) } else { Err(Rejection::Destination("This authority is not the upstream's.".into())) }
    }
}

/// The path as Groq knows it.
fn mapped(uri: &Uri) -> Result<PathAndQuery, Rejection> {
    let Some(path) = uri.path_and_query() else { return Ok(PathAndQuery::from_static("/")) };
    match map_path(path.as_str()) {
        std::borrow::Cow::Borrowed(same) if same.len() == path.as_str().len() => Ok(path.clone()),
        mapped => mapped.parse().map_err(|_| Rejection::Malformed("the path")),
    }
}

impl Call {
    /// Whether it draws on a model's limits.
    pub(super) fn draws(&self) -> bool {
        self.ask.pool != Pool::Free && !self.ask.model.is_empty()
    }

    /// Whether the app asked for a stream.
    pub(super) fn streams(&self) -> bool {
        self.facts.stream
    }

    /// What its endpoint answers with.
    pub(super) fn expected(&self, outgoing: &Outgoing) -> Expected {
        if outgoing.is_head() || !self.endpoint.answers_json() {
            Expected::Any
        } else if self.facts.wants_text {
            Expected::Text
        } else {
            Expected::Json
        }
    }

    /// Whether a stream that ends without a last event was cut.
    pub(super) fn stream_must_end(&self) -> bool {
        matches!(self.endpoint, Endpoint::Chat | Endpoint::Responses)
    }

    /// Goes with a lower ceiling.
    pub(super) fn fit(&mut self, to: u64, outgoing: &mut Outgoing) {
        if let Pool::Tokens { ceiling, .. } = &mut self.ask.pool {
            let from = ceiling.replace(to).unwrap_or(to);
            self.fitted = Some((from, to));
            outgoing.replace_body(|body| facts::with_ceiling(self.endpoint, body, to));
        }
    }
}
