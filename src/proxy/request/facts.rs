//! What the shield reads from a request: model, service tier, cost estimate, and how long its client waits.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use bytes::Bytes;
use groq_limiter::CostEstimate;
use http::{HeaderMap, HeaderValue, header};

use crate::{
    config::Queue,
    estimate::{Family, audio},
    groq::Endpoint,
    headers,
    proxy::error::Rejection,
};

use super::{form, json};

/// What the body of a request says.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The model; empty if none is named.
    pub model: Arc<str>,
    /// The service tier; `auto` counts as `on_demand`.
    pub tier: Arc<str>,
    /// The estimated cost.
    pub cost: CostEstimate,
    /// Whether it asks for a stream.
    pub stream: bool,
    /// Whether it asks for a text response instead of JSON (`response_format` of a transcription).
    pub wants_text: bool,
}

const READ_TIMEOUT: &str = "x-stainless-read-timeout";
const TIMEOUT: &str = "x-stainless-timeout";
const MAX_WAIT: &str = "x-shield-max-wait-ms";

/// Maximum bytes of a model name; longer ones are cut.
const MAX_MODEL_NAME: usize = 200;
/// Assumed seconds of audio behind a `url`, whose length is unknown until the response headers correct it.
const SECONDS_BEHIND_URL: u64 = 300;
/// Minimum seconds that Groq bills.
const MIN_BILLED_SECONDS: u64 = 10;

impl Facts {
    /// Reads a request's body.
    ///
    /// A form or object without the expected members goes to Groq unchanged, because Groq's own error is more precise.
    ///
    /// # Errors
    /// [`Rejection::InvalidJson`] if the endpoint takes JSON and the body is not valid.
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
            // Groq only accepts n = 1, so the output limit applies to the whole response.
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
            self.cost = CostEstimate::Audio { seconds: seconds.max(MIN_BILLED_SECONDS) };
        }
    }
}

/// Maps the names of tiers to those with limits of their own. An unknown name must not create a limiter.
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
    let end = (0..=MAX_MODEL_NAME.min(model.len())).rev().find(|end| model.is_char_boundary(*end));
    Arc::from(&model[..end.unwrap_or(0)])
}

/// `body` with its output limit replaced by `to`, or added if it has none. No other byte changes.
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

/// The member that limits the completion; `None` if the endpoint has none.
pub fn output_limit_name(endpoint: Endpoint) -> Option<&'static str> {
    match endpoint {
        Endpoint::Chat => Some("max_completion_tokens"),
        Endpoint::Responses => Some("max_output_tokens"),
        _ => None,
    }
}

/// Minimum of a max wait that is derived from the client's timeout.
const MIN_MAX_WAIT: Duration = Duration::from_millis(500);

/// The max wait of a request, and whether its client set it: the minimum of `queue.max_wait`, `x-shield-max-wait-ms`, and the
/// client's announced timeout minus the `usual` time to a response head. Invalid headers are ignored.
pub fn max_wait(headers: &HeaderMap, queue: &Queue, usual: impl FnOnce() -> Duration) -> (Duration, bool) {
    let seconds = |number: f64| Duration::try_from_secs_f64(number).ok();
    let [asked, read_timeout, timeout] = headers::first(headers, [MAX_WAIT, READ_TIMEOUT, TIMEOUT]).map(number);
    let asked = asked.and_then(|ms| seconds(ms / 1000.0));
    let announced = [read_timeout, timeout]
        .into_iter()
        .filter_map(|timeout| timeout.filter(|timeout| *timeout > 0.0).and_then(seconds))
        .min()
        .map(|timeout| timeout.saturating_sub(usual()).max(MIN_MAX_WAIT));
    match asked.into_iter().chain(announced).min() {
        Some(client) if client < queue.max_wait => (client, true),
        _ => (queue.max_wait, false),
    }
}

fn number(value: Option<&HeaderValue>) -> Option<f64> {
    let number: f64 = value?.to_str().ok()?.trim().parse().ok()?;
    (number.is_finite() && number >= 0.0).then_some(number)
}

#[cfg(test)]
#[path = "facts_tests.rs"]
mod tests;
