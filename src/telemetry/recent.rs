//! The last requests, for `/requests`: app, model, wait and its reason, usage. No content.

use std::{
    borrow::Cow,
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use super::{Record, access};

/// Number of requests that are kept.
pub const KEPT: usize = 100;

/// A request that has ended. The schema of `/requests`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RecentRequest {
    /// Its `x-request-id`.
    pub id: String,
    /// When it ended, Unix time in seconds.
    pub ended_at: f64,
    /// The app.
    pub app: Arc<str>,
    /// `interactive` or `batch`
    pub class: Cow<'static, str>,
    /// The model that served it; empty if the endpoint has none.
    pub model: Arc<str>,
    /// The model that it named, if another one served it.
    pub fallback_from: Option<Arc<str>>,
    /// Why another model served it: `daily_limit`, `too_large`, `decommissioned`, `unavailable`, `wait`.
    pub fallback_reason: Option<Cow<'static, str>>,
    /// `chat`, `responses`, `embeddings`, …
    pub endpoint: Cow<'static, str>,
    /// The status of the response; 499 if the client disconnected before it was sent.
    pub status: u16,
    /// Who made the response: `client` (the request was at fault), `shield`, `upstream`.
    pub source: Cow<'static, str>,
    /// What went wrong.
    pub error: Option<String>,
    /// Time in the queue over all attempts, seconds.
    pub wait_s: f64,
    /// What it waited for: a dimension's code (`TPM`, …).
    pub waited_for: Option<String>,
    /// Observe mode: how long it would have waited, seconds.
    #[serde(default)]
    pub observed_wait_s: Option<f64>,
    /// Observe mode: why it would have been refused: `queue_full`, `too_large`, `max_wait`, `app_cap`, `app_budget`,
    /// `breaker_open`.
    #[serde(default)]
    pub observed_refusal: Option<Cow<'static, str>>,
    /// Observe mode: the model that would have served it instead.
    #[serde(default)]
    pub observed_fallback: Option<String>,
    /// Attempts at Groq.
    pub attempts: u32,
    /// From the last attempt's start to the response head, seconds.
    pub head_s: Option<f64>,
    /// From the request's head to the end of the response, seconds.
    pub total_s: f64,
    /// Tokens (audio: seconds) reserved under the limits.
    pub reserved: Option<u64>,
    /// Prompt tokens used, cached ones included.
    pub prompt_tokens: u64,
    /// Prompt tokens that came from the cache.
    pub cached_tokens: u64,
    /// Completion tokens used.
    pub completion_tokens: u64,
    /// Whether the response reached max completion tokens before it had any content.
    #[serde(default)]
    pub truncated: bool,
}

/// The last [`KEPT`] requests, with raw texts that are cleaned when read.
#[derive(Debug, Default)]
pub(super) struct Recent(Mutex<VecDeque<RecentRequest>>);

impl Recent {
    /// Adds a request that has ended.
    pub(super) fn add(&self, record: &Record) {
        let request = RecentRequest::of(record);
        let mut requests = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if requests.len() == KEPT {
            requests.pop_back();
        }
        requests.push_front(request);
    }

    /// The requests, newest first.
    pub(super) fn list(&self) -> Vec<RecentRequest> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().map(RecentRequest::cleaned).collect()
    }
}

impl RecentRequest {
    fn of(record: &Record) -> Self {
        Self {
            id: record.request_id().to_owned(),
            ended_at: millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()),
            app: record.app.clone(),
            class: record.class_name().into(),
            model: record.model.clone(),
            fallback_from: record.fallback.as_ref().map(|(from, _)| from.clone()),
            fallback_reason: record.fallback.as_ref().map(|(_, reason)| reason.as_str().into()),
            endpoint: record.endpoint.into(),
            status: record.status(),
            source: record.source.as_str().into(),
            error: record.error.clone(),
            wait_s: millis(record.wait.as_secs_f64()),
            waited_for: record.bound.clone().filter(|_| !record.wait.is_zero()),
            observed_wait_s: record.observed_wait.map(|wait| millis(wait.as_secs_f64())),
            observed_refusal: record.observed_refusal.map(|reason| reason.as_str().into()),
            observed_fallback: record.observed_fallback.as_ref().map(|to| to.as_ref().to_owned()),
            attempts: record.attempts,
            head_s: record.time_to_head.map(|time| millis(time.as_secs_f64())),
            total_s: millis(record.started.elapsed().as_secs_f64()),
            reserved: record.reserved,
            prompt_tokens: record.usage.prompt,
            cached_tokens: record.usage.cached,
            completion_tokens: record.usage.completion.unwrap_or(0),
            truncated: record.truncated,
        }
    }

    /// Cleans client-chosen text: cut, without control characters, keys or organization ids.
    fn cleaned(mut self) -> Self {
        for name in [&mut self.app, &mut self.model].into_iter().chain(&mut self.fallback_from) {
            *name = access::clean(name, access::NAME).into();
        }
        for name in [&mut self.id].into_iter().chain(&mut self.waited_for) {
            *name = access::clean(name, access::NAME).into_owned();
        }
        if let Some(error) = &mut self.error {
            *error = access::clean(error, access::REASON).into_owned();
        }
        self
    }
}

/// Rounded to milliseconds.
fn millis(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::*;
    use crate::telemetry::Telemetry;

    #[tokio::test(start_paused = true)]
    async fn the_last_hundred_requests_are_kept_newest_first() {
        let telemetry = Arc::<Telemetry>::default();
        for n in 0..KEPT + 5 {
            let mut record = Record::new(&telemetry, "/openai/v1/chat/completions", Instant::now());
            (record.app, record.model) = (format!("app-{n}").into(), "m".into());
            (record.status, record.reserved) = (200, Some(70));
            record.bound = Some("TPM".into());
            record.waited(Duration::from_millis(1500));
            drop(record);
        }
        let requests = telemetry.recent_requests();
        assert_eq!(requests.len(), KEPT);
        assert_eq!((&*requests[0].app, &*requests[KEPT - 1].app), ("app-104", "app-5"));
        let RecentRequest { status, wait_s, waited_for, reserved, .. } = &requests[0];
        assert_eq!((*status, *wait_s, waited_for.as_deref(), *reserved), (200, 1.5, Some("TPM"), Some(70)));
    }

    /// Names and errors can come from clients; neither may contain secrets or control characters.
    #[tokio::test(start_paused = true)]
    async fn names_and_errors_are_cleaned() {
        let telemetry = Arc::<Telemetry>::default();
        let mut record = Record::new(&telemetry, "/", Instant::now());
        record.app = "a\nb gsk_secret org_secret".into();
        record.model = "x".repeat(1000).into();
        record.error = Some("broke for org_secret with gsk_secret".into());
        drop(record);
        let shown = serde_json::to_string(&telemetry.recent_requests()).expect("JSON");
        assert!(!shown.contains("secret") && !shown.contains("\\n") && shown.len() < 1500, "{shown}");
    }
}
