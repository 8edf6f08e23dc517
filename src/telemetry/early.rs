//! Heads of responses that are opened before their outcome is known (`queue.stream_keepalive`).

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::Record;

/// Shared by a request's record, which updates it, and by the head, which may be sent at any moment.
#[derive(Debug)]
pub struct EarlyHead {
    id: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    opened: bool,
    attempts: u32,
    wait: Duration,
    waiting: Option<Instant>,
    fallback: Option<String>,
    /// The model that is to serve it, if not the named one.
    model: Option<Arc<str>>,
    fitted: Option<(u64, u64)>,
}

/// The contents of the head.
#[derive(Debug)]
pub struct EarlySnapshot {
    /// `x-request-id`
    pub id: String,
    /// Time in the queue so far.
    pub wait: Duration,
    /// Attempts at Groq so far.
    pub attempts: u32,
    /// `x-shield-fallback`, if a different model than the named one is to serve the request.
    pub fallback: Option<String>,
    /// That other model.
    pub model: Option<Arc<str>>,
    /// `x-shield-fitted`: the requested max completion tokens, and the lower ones that are sent.
    pub fitted: Option<(u64, u64)>,
}

impl EarlyHead {
    /// The head of the response with this `x-request-id`.
    pub fn new(id: String) -> Self {
        Self { id, state: Mutex::default() }
    }

    /// Takes the contents of the head, which is sent now.
    pub fn open(&self, now: Instant) -> EarlySnapshot {
        let mut state = self.state();
        state.opened = true;
        EarlySnapshot {
            id: self.id.clone(),
            wait: state.wait + state.waiting.map_or(Duration::ZERO, |since| now.saturating_duration_since(since)),
            attempts: state.attempts,
            fallback: state.fallback.clone(),
            model: state.model.clone(),
            fitted: state.fitted,
        }
    }

    pub(super) fn is_opened(&self) -> bool {
        self.state().opened
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn update(&self, record: &Record) {
        let mut state = self.state();
        state.attempts = record.attempts;
        (state.wait, state.waiting) = (record.wait, record.waiting);
        state.fallback = record.fallback_header();
        state.model = state.fallback.is_some().then(|| record.model.clone());
        state.fitted = record.fitted;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
