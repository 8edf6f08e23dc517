//! The log of received requests, for tests in the process or over `/_sim/log` and `/_sim/stats`.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use serde::Serialize;

use crate::{Sim, State};

/// Maximum number of requests in the log.
const MAX_REQUESTS: usize = 20_000;
/// Maximum size of a body in the log, in bytes.
const MAX_BODY: usize = 64 << 10;

/// A received request.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Request {
    /// Number of the request from 1, in the order in which bodies were complete.
    pub number: u64,
    /// Number of the connection from 1.
    pub connection: u64,
    /// Time of receipt in milliseconds since the simulator's start.
    pub at_ms: f64,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub version: String,
    /// The method.
    pub method: String,
    /// The request target: over HTTP/2 its `:path`.
    pub target: String,
    /// Names (in lower case) and values of the headers, in order; over HTTP/2 `:authority` is the first.
    pub headers: Vec<(String, String)>,
    /// Bytes of the body.
    pub body_length: usize,
    /// SHA-256 of the body in hexadecimal.
    pub body_sha256: String,
    /// The body; empty if it is larger than 64 KiB.
    #[serde(skip)]
    pub body: Bytes,
    /// The requested model, if any.
    pub model: String,
    /// The status of the response; `None` if there is none yet, or if the fault sends no HTTP response.
    pub status: Option<u16>,
    /// Code of the dimension that refused the request.
    pub refused: Option<&'static str>,
    /// The fault that was injected.
    pub fault: Option<&'static str>,
    /// `complete`, or `dropped` if the client disconnected before the end; `None` until then.
    pub ended: Option<&'static str>,
    /// Time of the end in milliseconds since the simulator's start.
    pub ended_ms: Option<f64>,
}

impl Request {
    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// One limit of a scope.
#[derive(Clone, Debug, Serialize)]
pub struct LimitStats {
    /// The limit.
    pub limit: u64,
    /// Units used now, rounded up.
    pub used: u64,
    /// Units charged since the start, minus refunds.
    pub charged: i128,
}

/// One organization, model and service tier.
#[derive(Clone, Debug, Serialize)]
pub struct ScopeStats {
    /// Organization id.
    pub organization: String,
    /// The model.
    pub model: String,
    /// The service tier.
    pub tier: String,
    /// Requests admitted.
    pub admitted: u64,
    /// Requests refused, by the dimension that refused.
    pub refused: BTreeMap<&'static str, u64>,
    /// Limits by code (`TPM`).
    pub limits: BTreeMap<&'static str, LimitStats>,
}

/// Counts of the simulator, and the usage of each scope.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Stats {
    /// Requests received.
    pub requests: u64,
    /// Requests admitted by the limiters.
    pub admitted: u64,
    /// Requests refused by the limiters, by dimension.
    pub refused: BTreeMap<&'static str, u64>,
    /// Faults injected.
    pub faults: u64,
    /// Responses during which the client disconnected.
    pub dropped: u64,
    /// Every scope that has had a request.
    pub scopes: Vec<ScopeStats>,
}

impl Stats {
    /// Number of refusals by all dimensions.
    pub fn refusals(&self) -> u64 {
        self.refused.values().sum()
    }
}

pub(crate) fn stats(now: u64, state: &mut State) -> Stats {
    let mut stats = Stats { requests: state.log.seen, faults: state.log.faults, dropped: state.log.dropped, ..Stats::default() };
    for ((organization, model, tier), limiter) in &mut state.limiters {
        stats.admitted += limiter.admitted;
        for (code, count) in &limiter.refused {
            *stats.refused.entry(code).or_default() += count;
        }
        let limits = limiter.usage(now).into_iter();
        stats.scopes.push(ScopeStats {
            organization: organization.clone(),
            model: model.clone(),
            tier: tier.clone(),
            admitted: limiter.admitted,
            refused: limiter.refused.clone(),
            limits: limits.map(|(code, limit, used, charged)| (code, LimitStats { limit, used, charged })).collect(),
        });
    }
    stats.scopes.sort_by(|a, b| (&a.organization, &a.model, &a.tier).cmp(&(&b.organization, &b.model, &b.tier)));
    stats
}

#[derive(Debug, Default)]
pub(crate) struct Log {
    requests: VecDeque<Request>,
    seen: u64,
    faults: u64,
    dropped: u64,
}

impl Log {
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.iter().cloned().collect()
    }

    pub(crate) fn push(&mut self, mut request: Request, body: &Bytes) {
        if body.len() <= MAX_BODY {
            request.body = body.clone();
        }
        self.seen += 1;
        if self.requests.len() == MAX_REQUESTS {
            self.requests.pop_front();
        }
        self.requests.push_back(request);
    }

    fn find(&mut self, number: u64) -> Option<&mut Request> {
        let first = self.requests.front()?.number;
        self.requests.get_mut(usize::try_from(number.checked_sub(first)?).ok()?)
    }
}

/// Writes a request's log entry. On drop before the end, the entry says that the client disconnected.
#[derive(Debug)]
pub(crate) struct EntryWriter {
    sim: Sim,
    pub(crate) number: u64,
    ended: bool,
}

impl EntryWriter {
    pub(crate) fn new(sim: &Sim, number: u64) -> Self {
        Self { sim: sim.clone(), number, ended: false }
    }

    pub(crate) fn answered(&self, status: Option<u16>, refused: Option<&'static str>) {
        if let Some(request) = self.sim.state().log.find(self.number) {
            (request.status, request.refused) = (status, refused);
        }
    }

    pub(crate) fn fault(&self, name: &'static str) {
        let log = &mut self.sim.state().log;
        log.faults += 1;
        if let Some(request) = log.find(self.number) {
            request.fault = Some(name);
        }
    }

    /// Notes that the last byte of the response has been sent.
    pub(crate) fn complete(&mut self) {
        self.end("complete");
    }

    fn end(&mut self, how: &'static str) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let at = self.sim.now() as f64 / 1e6;
        let log = &mut self.sim.state().log;
        log.dropped += u64::from(how == "dropped");
        if let Some(request) = log.find(self.number) {
            (request.ended, request.ended_ms) = (Some(how), Some(at));
        }
    }
}

impl Drop for EntryWriter {
    fn drop(&mut self) {
        self.end("dropped");
    }
}
