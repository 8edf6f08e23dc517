//! What a request asks: endpoint, model, what it may cost, how long its client waits. Read once, from head and body.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use bytes::Bytes;
use groq_limiter::CostEstimate;
use http::{HeaderMap, HeaderName, header};

use crate::{
    config::Queue,
    estimate::{Family, audio},
    groq::Endpoint,
    headers,
    proxy::error::Rejection,
};

use super::{form, json};

/// What a request's body says.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The model, empty where none is named.
    pub model: Arc<str>,
    /// The service tier; `auto` shares `on_demand`'s limits.
    pub tier: Arc<str>,
    /// What it draws on.
    pub cost: CostEstimate,
    /// Whether it asks for a stream.
    pub stream: bool,
    /// Whether it asks for an answer that is not JSON (`response_format` of a transcription).
    pub wants_text: bool,
}

// As names, which are not parsed at each look-up.
const READ_TIMEOUT: HeaderName = HeaderName::from_static("x-stainless-read-timeout");
const TIMEOUT: HeaderName = HeaderName::from_static("x-stainless-timeout");
const MAX_WAIT: HeaderName = HeaderName::from_static("x-shield-max-wait-ms");

/// No model's name is longer; more of one is not kept, bytes.
const LONGEST_MODEL: usize = 200;
/// Audio behind a `url` has no length that we can see: taken for so many seconds, until the headers tell.
const SECONDS_BEHIND_URL: u64 = 300;
/// Groq bills no less, seconds.
const LEAST_SECONDS: u64 = 10;

impl Facts {
    /// Reads a request's body.
    ///
    /// A form or an object that lacks what it should have goes to Groq as it is: its answer is better than ours.
    ///
    /// # Errors
    /// [`Rejection::InvalidJson`] where JSON is due and does not parse.
    pub fn of(endpoint: Endpoint, headers: &HeaderMap, body: &Bytes) -> Result<Self, Rejection> {
        let mut facts =
            Self { model: Arc::default(), tier: tier(""), cost: CostEstimate::Free, stream: false, wants_text: false };
        let encoded = headers.get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity");
        if encoded {
            return Ok(facts);
        }
        if endpoint.takes_audio() {
            facts.read_form(headers, body);
        } else if endpoint.takes_json() && (endpoint.spends() || !body.trim_ascii().is_empty()) {
            facts.read_json(endpoint, body)?;
        }
        Ok(facts)
    }

    fn read_json(&mut self, endpoint: Endpoint, body: &[u8]) -> Result<(), Rejection> {
        let members = json::read(endpoint, body).map_err(|why| Rejection::InvalidJson(why.to_string()))?;
        self.model = bounded(&members.model);
        self.tier = tier(&members.tier);
        self.stream = members.stream;
        self.cost = match endpoint {
            _ if self.model.is_empty() || !endpoint.spends() => CostEstimate::Free,
            Endpoint::Embeddings => {
                CostEstimate::Tokens { prompt: members.prompt.tokens(Family::None), max_completion_tokens: Some(0) }
            }
            Endpoint::Speech => CostEstimate::Tokens { prompt: members.prompt.characters(), max_completion_tokens: Some(0) },
            // Groq accepts n = 1 only, so the output limit applies to the whole answer.
            _ => CostEstimate::Tokens {
                prompt: members.prompt.tokens(Family::of(&self.model)),
                max_completion_tokens: members.output_limit.as_ref().map(|c| c.value),
            },
        };
        Ok(())
    }

    fn read_form(&mut self, headers: &HeaderMap, body: &[u8]) {
        let content_type = headers::text(headers, header::CONTENT_TYPE).unwrap_or_default();
        let Some(form) = form::read(content_type, body) else { return };
        self.model = bounded(form.text("model"));
        self.tier = tier(form.text("service_tier"));
        self.stream = form.text("stream").eq_ignore_ascii_case("true");
        self.wants_text = matches!(form.text("response_format"), "text" | "srt" | "vtt");
        if !self.model.is_empty() {
            let seconds = form.file("file").map_or(SECONDS_BEHIND_URL, audio::seconds);
            self.cost = CostEstimate::Audio { seconds: seconds.max(LEAST_SECONDS) };
        }
    }
}

/// The tiers have limits of their own; a name that is none of Groq's must not make a limiter.
fn tier(name: &str) -> Arc<str> {
    static TIERS: LazyLock<[Arc<str>; 3]> = LazyLock::new(|| ["on_demand", "flex", "performance"].map(Arc::from));
    TIERS[match name {
        "flex" => 1,
        "performance" => 2,
        _ => 0,
    }]
    .clone()
}

fn bounded(model: &str) -> Arc<str> {
    let end = (0..=LONGEST_MODEL.min(model.len())).rev().find(|end| model.is_char_boundary(*end));
    Arc::from(&model[..end.unwrap_or(0)])
}

/// `body` with the number of its output limit replaced by `to`, or with an output limit if it has none; no other byte changes.
pub fn with_output_limit(endpoint: Endpoint, body: &Bytes, to: u64) -> Bytes {
    let Ok(members) = json::read(endpoint, body) else { return body.clone() };
    if let Some(output_limit) = members.output_limit.or(members.null_output_limit) {
        return [&body[..output_limit.at.start], to.to_string().as_bytes(), &body[output_limit.at.end..]].concat().into();
    }
    let Some(open) = body.iter().position(|b| *b == b'{') else { return body.clone() };
    let name = output_limit_name(endpoint).unwrap_or("max_completion_tokens");
    let comma = if body[open + 1..].trim_ascii_start().starts_with(b"}") { "" } else { "," };
    [&body[..=open], format!(r#""{name}":{to}{comma}"#).as_bytes(), &body[open + 1..]].concat().into()
}

/// The member of a body that limits the completion; `None` where the endpoint has none.
pub fn output_limit_name(endpoint: Endpoint) -> Option<&'static str> {
    match endpoint {
        Endpoint::Chat => Some("max_completion_tokens"),
        Endpoint::Responses => Some("max_output_tokens"),
        _ => None,
    }
}

/// However little a client says that it waits, less its answer's usual time, it gets this much.
const LEAST_MAX_WAIT: Duration = Duration::from_millis(500);

/// The longest wait of a request, and whether its client set it: the least of `queue.max_wait`, `x-shield-max-wait-ms`, and the
/// client's announced timeout less the `usual` time to a response's head. A header that does not parse is ignored.
pub fn max_wait(headers: &HeaderMap, queue: &Queue, usual: impl FnOnce() -> Duration) -> (Duration, bool) {
    let seconds = |number: f64| Duration::try_from_secs_f64(number).ok();
    let asked = number(headers, MAX_WAIT).and_then(|ms| seconds(ms / 1000.0));
    let announced = [READ_TIMEOUT, TIMEOUT]
        .into_iter()
        .filter_map(|name| number(headers, name).filter(|timeout| *timeout > 0.0).and_then(seconds))
        .min()
        .map(|timeout| timeout.saturating_sub(usual()).max(LEAST_MAX_WAIT));
    match asked.into_iter().chain(announced).min() {
        Some(client) if client < queue.max_wait => (client, true),
        _ => (queue.max_wait, false),
    }
}

fn number(headers: &HeaderMap, name: HeaderName) -> Option<f64> {
    let number: f64 = headers::text(headers, name)?.trim().parse().ok()?;
    (number.is_finite() && number >= 0.0).then_some(number)
}

#[cfg(test)]
#[path = "facts_tests.rs"]
mod tests;
