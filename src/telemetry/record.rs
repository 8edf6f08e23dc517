//! The record of one request: filled while it is processed, logged and counted on drop.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::Instant;

use super::{EarlyHead, ObservedRefusal, Telemetry, exposition};
use crate::{
    config::{Class, FallbackReason},
    groq::Usage,
};

/// The source of a response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// The client: it disconnected or sent an invalid request.
    Client,
    /// The shield.
    Shield,
    /// Groq.
    #[default]
    Upstream,
}

impl Source {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Shield => "shield",
            Self::Upstream => "upstream",
        }
    }
}

/// How one attempt ended, for `attempts_total{outcome}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// A response that is delivered.
    Answered,
    /// Groq refused (429).
    Refused,
    /// A failure status.
    Failed,
    /// No response: a connection failure or timeout.
    Broken,
}

impl Outcome {
    pub(super) const ALL: [Self; 4] = [Self::Answered, Self::Refused, Self::Failed, Self::Broken];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Broken => "broken",
        }
    }
}

/// The record of one request. Dropping it writes the access line and counts the request.
#[derive(Debug)]
pub struct Record {
    telemetry: Arc<Telemetry>,
    /// When the head had been read.
    pub started: Instant,
    /// `x-request-id` generated here, used if the upstream sends none.
    pub id: String,
    /// The requested path, without the query.
    pub path: String,
    /// A short endpoint name for labels.
    pub endpoint: &'static str,
    /// The app.
    pub app: Arc<str>,
    /// The model; empty if there is none.
    pub model: Arc<str>,
    /// Its class.
    pub class: Class,
    /// The request's `traceparent`, unchanged.
    pub traceparent: Option<String>,
    /// Time in the queue over all attempts.
    pub wait: Duration,
    /// When the current wait began, if any.
    pub(super) waiting: Option<Instant>,
    /// The code of the dimension that made it wait.
    pub bound: Option<String>,
    /// Tokens (audio: seconds) reserved under the limits.
    pub reserved: Option<u64>,
    /// Attempts.
    pub attempts: u32,
    /// The status sent; 0 if the client disconnected before.
    pub status: u16,
    /// Who generated the response.
    pub source: Source,
    /// The tokens that count against the app's budget: as Groq stated them, estimated where it stated none.
    pub usage: Usage,
    /// Whether the response reached max completion tokens before it had any content.
    pub truncated: bool,
    /// The upstream's `x-request-id`.
    pub upstream_id: Option<String>,
    /// From the last send to the head of the response.
    pub time_to_head: Option<Duration>,
    /// Its cost, billionths of a USD; 0 without a price for its model.
    pub nano_usd: u64,
    /// The error text for the log, more detailed than the client's.
    pub error: Option<String>,
    /// The model that the request named and why another one (`model`) serves it, if so.
    pub fallback: Option<(Arc<str>, FallbackReason)>,
    /// The original max completion tokens and the lower value that is sent, if they were lowered.
    pub fitted: Option<(u64, u64)>,
    /// Observe mode: how long it would have waited, by the limiter's forecast.
    pub observed_wait: Option<Duration>,
    /// Observe mode: why it would have been refused.
    pub observed_refusal: Option<ObservedRefusal>,
    /// Observe mode: the model that would have served it instead.
    pub observed_fallback: Option<Arc<str>>,
    /// The head of a response that may be opened before its outcome is known (`queue.stream_keepalive`).
    early: Option<Arc<EarlyHead>>,
}

impl Record {
    /// The `x-request-id` that the app has seen.
    pub(super) fn request_id(&self) -> &str {
        if let Some(early) = self.early.as_ref().filter(|early| early.is_opened()) {
            return early.id();
        }
        if self.id.is_empty() { self.upstream_id.as_deref().unwrap_or_default() } else { &self.id }
    }

    /// Starts the record of a request that has just been read.
    pub fn new(telemetry: &Arc<Telemetry>, path: &str, now: Instant) -> Self {
        telemetry.in_flight.fetch_add(1, Ordering::Relaxed);
        Self {
            telemetry: telemetry.clone(),
            started: now,
            id: String::new(),
            path: path.to_owned(),
            endpoint: "other",
            app: Arc::default(),
            model: Arc::default(),
            class: Class::default(),
            traceparent: None,
            wait: Duration::ZERO,
            waiting: None,
            bound: None,
            reserved: None,
            attempts: 0,
            status: 0,
            source: Source::Client,
            usage: Usage::default(),
            truncated: false,
            upstream_id: None,
            time_to_head: None,
            nano_usd: 0,
            error: None,
            fallback: None,
            fitted: None,
            observed_wait: None,
            observed_refusal: None,
            observed_fallback: None,
            early: None,
        }
    }

    /// Begins a wait.
    pub fn waits_from(&mut self, now: Instant) {
        self.waiting = Some(now);
        self.update_early();
    }

    /// Begins another attempt.
    pub fn begins_attempt(&mut self) {
        self.attempts += 1;
        self.update_early();
    }

    /// Records that it is sent with lower max completion tokens.
    pub fn is_fitted(&mut self, fitted: Option<(u64, u64)>) {
        self.fitted = fitted;
        self.update_early();
    }

    /// Ends a wait because the request is sent.
    pub fn waited(&mut self, wait: Duration) {
        self.wait += wait;
        self.waiting = None;
        self.update_early();
    }

    /// Ends a wait for any reason.
    pub fn stop_waiting(&mut self) {
        if let Some(since) = self.waiting {
            self.waited(since.elapsed());
        }
    }

    /// Allows the response to be opened before its outcome is known, with `id` as its `x-request-id`.
    pub fn may_open_early(&mut self, id: String) -> Arc<EarlyHead> {
        self.early.insert(Arc::new(EarlyHead::new(id))).clone()
    }

    /// Whether the response was opened before its outcome was known.
    pub fn is_opened_early(&self) -> bool {
        self.early.as_ref().is_some_and(|early| early.is_opened())
    }

    /// The value of `x-shield-fallback`.
    pub fn fallback_header(&self) -> Option<String> {
        self.fallback.as_ref().map(|(from, reason)| format!("{from}>{}; reason={}", self.model, reason.as_str()))
    }

    fn update_early(&self) {
        if let Some(early) = &self.early {
            early.update(self);
        }
    }

    /// Records that a different model than the named one is to serve the request.
    pub fn falls_back(&mut self, from: &Arc<str>, to: &Arc<str>, reason: FallbackReason) {
        self.fallback = Some((from.clone(), reason));
        self.model = to.clone();
        self.update_early();
    }

    /// Records the named model again, because no other could serve the request.
    pub fn stays(&mut self, model: &Arc<str>) {
        self.fallback = None;
        self.model = model.clone();
        self.update_early();
    }

    /// The status for logs and labels: 499 (documented: the client closed the request) if none was sent.
    pub(super) fn status(&self) -> u16 {
        if self.status == 0 { 499 } else { self.status }
    }

    pub(super) fn class_name(&self) -> &'static str {
        exposition::class_name(self.class)
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.stop_waiting();
        self.telemetry.finished(self);
        self.telemetry.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
