//! A simulated Groq: its rate limiter, endpoints, error messages and failures.
//!
//! The simulator is based only on captured traffic and Groq's documentation. It shares no code with the proxy or its limiter, so
//! that a bug in them is not hidden by the same bug here. It serves HTTP/1.1 and HTTP/2 on any byte stream, such as a socket or
//! `tokio::io::duplex`. All time comes from tokio's clock, so it also runs in virtual time.
//!
//! ```no_run
//! use groq_sim::{Fault, Action, Options, Plan, Sim};
//!
//! # async fn run() -> std::io::Result<()> {
//! let sim = Sim::new(Options { plan: Plan::free(), ..Options::default() });
//! sim.set_faults(vec![Fault::nth(1, Action::Close)]);
//! sim.serve(tokio::net::TcpListener::bind("127.0.0.1:0").await?).await
//! # }
//! ```
//!
//! | modules | contents |
//! |---|---|
//! | `options`, `plan` | settings; the limits of Groq's plans |
//! | `dimension`, `limit`, `limiter`, `expected_output`, `refusal` | rate limiting: a single limit, all limits of a scope, the response to a refusal |
//! | `call`, `generation`, `chat`, `responses`, `embeddings`, `audio`, `resources` | parsing a request; the response of each endpoint |
//! | `answer`, `fault`, `action`, `raw`, `connection`, `error` | responses as bytes and pauses; injected faults and their effects; serving a connection; error objects |
//! | `log` | the received requests, for tests |
//!
//! In addition to Groq's paths there are `GET /_sim/log`, `GET /_sim/stats`, `POST /_sim/faults` (a list of [`Fault`]) and
//! `POST /_sim/reset`. A message can control its own response with any of the keys in
//! `[[sim completion=123 reasoning=40 head_ms=250 cached=10 error=tool_use_failed]]`.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sha2::{Digest, Sha256};
use tokio::{net::TcpListener, time::Instant};

mod action;
mod answer;
mod audio;
mod call;
mod chat;
mod connection;
mod dimension;
mod embeddings;
mod error;
mod expected_output;
mod fault;
mod generation;
mod limit;
mod limiter;
mod log;
mod options;
mod plan;
mod raw;
mod refusal;
mod resources;
mod responses;
#[cfg(test)]
mod tests;

pub use action::Action;
pub use expected_output::OutputTest;
pub use fault::Fault;
pub use limit::Algorithm;
pub use limiter::ExternalTraffic;
pub use log::{LimitStats, Request, ScopeStats, Stats};
pub use options::{Charging, HeaderTime, Options, Pace, Rounding, Wording};
pub use plan::{ModelLimits, Plan};

/// A simulated Groq. Clones share their state.
#[derive(Clone, Debug)]
pub struct Sim(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    options: Options,
    started: Instant,
    connections: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    limiters: HashMap<limiter::Scope, limiter::Limiter>,
    faults: fault::Faults,
    log: log::Log,
    resources: resources::Resources,
    requests: u64,
}

impl Sim {
    /// Creates a simulated Groq whose time starts now.
    pub fn new(options: Options) -> Self {
        let state = State { faults: fault::Faults::new(options.faults.clone(), options.seed), ..State::default() };
        let (started, connections) = (Instant::now(), AtomicU64::new(0));
        Self(Arc::new(Shared { options, started, connections, state: Mutex::new(state) }))
    }

    /// Accepts connections until the future is dropped.
    ///
    /// # Errors
    /// If `TCP_NODELAY` cannot be set on a socket. Errors of accept are retried.
    pub async fn serve(&self, listener: TcpListener) -> io::Result<()> {
        loop {
            let socket = match listener.accept().await {
                Ok((socket, _)) => socket,
                // The connection was reset, or the process is out of file descriptors: both are temporary.
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
            };
            socket.set_nodelay(true)?;
            let sim = self.clone();
            tokio::spawn(async move { sim.serve_connection(socket).await });
        }
    }

    /// Replaces the injected faults.
    pub fn set_faults(&self, faults: Vec<Fault>) {
        let seed = self.0.options.seed;
        self.state().faults = fault::Faults::new(faults, seed);
    }

    /// Removes all usage, log entries, files and faults.
    pub fn reset(&self) {
        let state = &mut *self.state();
        let faults = fault::Faults::new(Vec::new(), self.0.options.seed);
        *state = State { requests: state.requests, faults, ..State::default() };
    }

    /// The last 20 000 requests, oldest first.
    pub fn log(&self) -> Vec<Request> {
        self.state().log.requests()
    }

    /// Counts of requests, and the usage of each limit.
    pub fn stats(&self) -> Stats {
        let now = self.now();
        let state = &mut *self.state();
        log::stats(now, state)
    }

    fn next_connection(&self) -> u64 {
        self.0.connections.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Nanoseconds since the start.
    fn now(&self) -> u64 {
        u64::try_from(self.0.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Unix time in seconds. The simulator starts on 1 January 2026.
    fn unix_time(&self) -> u64 {
        1_767_225_600 + self.0.started.elapsed().as_secs()
    }

    fn organization(&self, key: &str) -> String {
        match self.0.options.organizations.get(key) {
            Some(name) => name.clone(),
            None => format!("org_01{}", &hex(&Sha256::digest(key))[..24]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
