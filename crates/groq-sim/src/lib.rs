//! A simulated Groq: its rate limiter, endpoints, error texts and ways to fail.
//!
//! It is written from captured traffic and Groq's documentation alone and shares no code with the proxy or its limiter,
//! so that it cannot share their mistakes. It serves any byte stream (a socket, `tokio::io::duplex`) over HTTP/1.1 and HTTP/2 and
//! takes all time from tokio's clock, so it runs in virtual time too.
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
//! | `dimension`, `limit`, `limiter`, `expected_output`, `refusal` | rate limiting: one limit, all limits of a scope, what a refusal says |
//! | `call`, `generation`, `chat`, `responses`, `embeddings`, `audio`, `resources` | reading a request; the answer of each endpoint |
//! | `answer`, `fault`, `action`, `raw`, `connection`, `error` | answers as bytes over time; injected faults and what they do; serving a connection; error objects |
//! | `log` | what came in, for tests |
//!
//! Beside Groq's paths it has its own: `GET /_sim/log`, `GET /_sim/stats`, `POST /_sim/faults` (a list of [`Fault`]) and
//! `POST /_sim/reset`. A message may direct its own answer, by any of
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
    /// A simulated Groq; its time starts now.
    pub fn new(options: Options) -> Self {
        let state = State { faults: fault::Faults::new(options.faults.clone(), options.seed), ..State::default() };
        let (started, connections) = (Instant::now(), AtomicU64::new(0));
        Self(Arc::new(Shared { options, started, connections, state: Mutex::new(state) }))
    }

    /// Accepts connections until it is dropped.
    ///
    /// # Errors
    /// The listener's, if it breaks for good.
    pub async fn serve(&self, listener: TcpListener) -> io::Result<()> {
        loop {
            let socket = match listener.accept().await {
                Ok((socket, _)) => socket,
                // The connection is gone or file descriptors ran out: neither lasts.
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

    /// Replaces the faults.
    pub fn set_faults(&self, faults: Vec<Fault>) {
        let seed = self.0.options.seed;
        self.state().faults = fault::Faults::new(faults, seed);
    }

    /// Empties limits, log and files, and removes all faults.
    pub fn reset(&self) {
        let state = &mut *self.state();
        let faults = fault::Faults::new(Vec::new(), self.0.options.seed);
        *state = State { requests: state.requests, faults, ..State::default() };
    }

    /// Every request seen, oldest first; the last 20 000 of them.
    pub fn log(&self) -> Vec<Request> {
        self.state().log.requests()
    }

    /// What was admitted, refused and used.
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

    /// Seconds since 1970 by the simulator's own calendar, which begins with 2026.
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
