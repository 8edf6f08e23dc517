//! What would Groq do? A Groq that never leaves the machine: its limiter, endpoints, texts and ways to fail.
//!
//! Written from captured traffic and Groq's documentation alone; it imports nothing of the shield, whose mistakes it
//! would share. It serves any stream of bytes (a socket, `tokio::io::duplex`) and takes all time from tokio's clock,
//! so that it runs in virtual time too.
//!
//! | file | question |
//! |---|---|
//! | `plan`, `level`, `lane`, `output`, `texts` | the limits; how full one is; may a request go; what it is expected to produce; what a refusal says |
//! | `call`, `chat`, `responses`, `media`, `shelf` | what is asked; the answers of each endpoint |
//! | `reply`, `fault`, `connection` | bytes over time; what is made to go wrong; one connection |
//! | `log` | what came in, for tests |
//!
//! Beside Groq's paths it has its own: `GET /_sim/log`, `GET /_sim/stats`, `POST /_sim/faults` ([`Fault`]), `POST /_sim/reset`.
//! A message may say how it is to be answered: `[[sim completion=123 head_ms=250 cached=10 error=tool_use_failed]]`.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sha2::{Digest, Sha256};
use tokio::{net::TcpListener, time::Instant};

mod answer;
mod audio;
mod call;
mod chat;
mod connection;
mod error;
mod expected_output;
mod fault;
mod limit;
mod limiter;
mod log;
mod plan;
mod resources;
mod responses;
#[cfg(test)]
mod tests;

pub use expected_output::OutputTest;
pub use fault::{Action, Fault};
pub use limit::Algorithm;
pub use limiter::Stranger;
pub use log::{LaneStats, LevelStats, Request, Stats};
pub use plan::{ModelLimits, Plan};

/// When the limiter takes how much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Charging {
    /// Holds prompt + ceiling and gives the rest back at the end: Groq, as far as known.
    #[default]
    R,
    /// Tests prompt + ceiling, holds the prompt, adds the output at the end.
    T,
    /// Tests and holds the prompt, adds the output at the end.
    P,
    /// Holds prompt + ceiling and never gives back.
    N,
}

/// When the `x-ratelimit-*` headers are read off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stamp {
    /// At admission: Groq.
    #[default]
    Admission,
    /// When the answer's head goes out.
    Finish,
}

/// How `retry-after` becomes whole seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Rounding {
    #[default]
    Up,
    Down,
    Nearest,
}

/// Which of Groq's captured ways a refusal is written in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wording {
    /// `… on tokens per minute (TPM): Limit …`
    #[default]
    Current,
    /// `… on : Limit …`, the use rounded down.
    Nameless,
    /// `Requested ~n`, and 429 even for what can never fit.
    Of2024,
}

/// How fast and how much it generates. Lognormal, by the simulator's seed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Median time to a stream's head.
    pub head: Duration,
    /// Its spread: the standard deviation of the logarithm.
    pub head_sigma: f64,
    /// 0: all at once.
    pub tokens_per_second: f64,
    /// Median completion where the ceiling does not cut it.
    pub completion: f64,
    /// Its spread.
    pub completion_sigma: f64,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            head: Duration::from_millis(60),
            head_sigma: 0.4,
            tokens_per_second: 1000.0,
            completion: 120.0,
            completion_sigma: 0.7,
        }
    }
}

impl Pace {
    /// Answers at once.
    pub fn instant() -> Self {
        Self { head: Duration::ZERO, tokens_per_second: 0.0, ..Self::default() }
    }
}

/// What the simulated Groq is like.
#[derive(Clone, Debug)]
pub struct Options {
    /// The limits.
    pub plan: Plan,
    /// How limits forget.
    pub algorithm: Algorithm,
    /// When they take.
    pub charging: Charging,
    /// What is tested against `output_tokens_per_minute`.
    pub output_test: OutputTest,
    /// When headers are read off.
    pub stamp: Stamp,
    /// How `retry-after` is rounded.
    pub retry_after: Rounding,
    /// `reset` headers to the nanosecond, not by the whole units that `remaining` shows.
    pub exact_reset: bool,
    /// How refusals are worded.
    pub wording: Wording,
    /// The last sentence of a refusal.
    pub tail: String,
    /// Organisation ids by API key. Any other key is an organisation of its own.
    pub organisations: BTreeMap<String, String>,
    /// Share of a limit that is taken when a lane is first used, by code (`TPD`); over 1 for debt.
    pub initial_use: BTreeMap<String, f64>,
    /// Traffic that goes past whoever is in front.
    pub stranger: Option<Stranger>,
    /// How fast it generates.
    pub pace: Pace,
    /// Bytes of an audio file at most (25 MB on the free plan).
    pub max_audio: usize,
    /// Bytes of any body at most.
    pub max_body: usize,
    /// Everything random follows from it.
    pub seed: u64,
    /// What is made to go wrong.
    pub faults: Vec<Fault>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            plan: Plan::developer(),
            algorithm: Algorithm::default(),
            charging: Charging::default(),
            output_test: OutputTest::default(),
            stamp: Stamp::default(),
            retry_after: Rounding::default(),
            exact_reset: false,
            wording: Wording::default(),
            tail: "Visit https://console.groq.com/docs/rate-limits for more information.".to_owned(),
            organisations: BTreeMap::new(),
            initial_use: BTreeMap::new(),
            stranger: None,
            pace: Pace::default(),
            max_audio: 100 << 20,
            max_body: 110 << 20,
            seed: 1,
            faults: Vec::new(),
        }
    }
}

/// A simulated Groq. Clones are the same one.
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
    lanes: HashMap<limiter::Scope, limiter::Lane>,
    faults: fault::Faults,
    log: log::Log,
    shelf: resources::Shelf,
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
                // The connection is gone or descriptors ran out: neither lasts.
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

    /// Replaces the script of faults.
    pub fn set_faults(&self, faults: Vec<Fault>) {
        let seed = self.0.options.seed;
        self.state().faults = fault::Faults::new(faults, seed);
    }

    /// Empties limits, log, files and the script of faults.
    pub fn reset(&self) {
        let state = &mut *self.state();
        let faults = fault::Faults::new(Vec::new(), self.0.options.seed);
        *state = State { requests: state.requests, faults, ..State::default() };
    }

    /// Every request seen, oldest first; the last 20 000 of them.
    pub fn log(&self) -> Vec<Request> {
        self.state().log.requests()
    }

    /// What was admitted, refused and spent.
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

    fn organisation(&self, key: &str) -> String {
        match self.0.options.organisations.get(key) {
            Some(name) => name.clone(),
            None => format!("org_01{}", &hex(&Sha256::digest(key))[..24]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
