//! A redis-server for each test, replicas that use it, and an upstream with an exact limit.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use groq_limiter::{
    AdmissionRequest, Limiters,
    settings::{LimitSettings, ModelLimits, Plan, RedisSettings, Settings},
    types::{Observation, RemoteQuota},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time::Instant;

use crate::start;

/// A redis-server process; killed on drop.
pub(crate) struct Redis {
    process: Child,
    port: u16,
    second: u16,
    folder: tempfile::TempDir,
    arguments: Vec<String>,
}

impl Redis {
    /// Starts a server on a free port, with additional arguments.
    pub(crate) async fn start(arguments: &[&str]) -> Self {
        Self::with_second(|_| arguments.iter().map(|&argument| argument.into()).collect()).await
    }

    /// Starts a server whose arguments can use a second free port.
    pub(crate) async fn with_second(arguments: impl Fn(u16) -> Vec<String>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        for _ in 0..5 {
            let (port, second) = (free_port(), free_port());
            let arguments = arguments(second);
            let mut process = spawn(port, &folder, &arguments);
            if serves(&mut process, port).await {
                return Self { process, port, second, folder, arguments };
            }
            drop(process.kill()); // The process has exited, or does not respond.
            process.wait().expect("ended");
        }
        panic!("redis-server does not serve");
    }

    /// Starts the server again on the same port, without data.
    pub(crate) async fn restart(&mut self) {
        self.kill();
        self.process = spawn(self.port, &self.folder, &self.arguments);
        assert!(serves(&mut self.process, self.port).await, "redis-server does not come back");
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill().expect("killed");
        self.process.wait().expect("ended");
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.process.id()).expect("a process id")), signal).expect("signalled");
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn second_port(&self) -> u16 {
        self.second
    }

    pub(crate) fn url(&self) -> String {
        url(self.port)
    }

    /// Runs a command on a connection of its own.
    pub(crate) fn command(&self, words: &[&str]) -> redis::Value {
        let client = redis::Client::open(self.url()).expect("a URL");
        let mut connection = client.get_connection().expect("a connection");
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]).query(&mut connection).unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }
}

impl Redis {
    /// Runs a command and returns its reply as text.
    pub(crate) fn command_text(&self, words: &[&str]) -> String {
        redis::from_redis_value(self.command(words)).expect("text")
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // SIGKILL also works on a process that was stopped with SIGSTOP.
        if self.process.kill().is_ok() {
            self.process.wait().expect("ended");
        }
    }
}

fn spawn(port: u16, folder: &tempfile::TempDir, arguments: &[String]) -> Child {
    Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"])
        .arg(folder.path())
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server starts: install Debian's package redis-server")
}

fn url(port: u16) -> String {
    format!("redis://127.0.0.1:{port}")
}

/// A free port below the ephemeral range: an ephemeral port could be used by another test's connection before redis-server
/// starts.
fn free_port() -> u16 {
    const FIRST: u16 = 10_000;
    const PORTS: u16 = 20_000;
    static TRIED: AtomicU16 = AtomicU16::new(0);
    // Concurrent test processes start at different ports.
    let begin = (std::process::id() % 400) as u16 * 50;
    let mut ports = (0..PORTS).map(|_| FIRST + (begin + TRIED.fetch_add(1, Ordering::Relaxed) % PORTS) % PORTS);
    ports.find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok()).expect("a free port")
}

/// Waits until the server replies. Returns `false` if the process exits, which can also happen after its first port is open, if the
/// second port is in use.
async fn serves(process: &mut Child, port: u16) -> bool {
    let its = format!("process_id:{}\r\n", process.id());
    let client = redis::Client::open(url(port)).expect("a URL");
    let told =
        || client.get_connection().and_then(|mut connection| redis::cmd("INFO").arg("server").query::<String>(&mut connection));
    for _ in 0..400 {
        if process.try_wait().expect("its state").is_some() {
            return false;
        }
        if told().is_ok_and(|told| told.contains(&its)) {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    false
}

/// A replica with this store and these limits.
pub(crate) fn replica(url: &str, model: ModelLimits, timeout: Duration) -> Limiters {
    replica_of(store(url, timeout), model)
}

pub(crate) fn store(url: &str, timeout: Duration) -> RedisSettings {
    RedisSettings { prefix: "test".into(), timeout, ..RedisSettings::new(url) }
}

pub(crate) fn replica_of(store: RedisSettings, model: ModelLimits) -> Limiters {
    let limits = LimitSettings { plan: Plan::None, default: model, ..LimitSettings::default() };
    Limiters::new(Settings { limits: limits.into(), redis: Some(store), ..Settings::default() })
}

/// Timeout of the store in tests that do not test it, long enough for a busy machine.
pub(crate) const LONG_TIMEOUT: Duration = Duration::from_secs(2);

/// Waits until the store of every replica is degraded or available.
pub(crate) async fn until(degraded: bool, replicas: &[Limiters]) {
    let at = Instant::now();
    while replicas.iter().any(|replica| replica.store().expect("a store").is_degraded() != degraded) {
        assert!(at.elapsed() < Duration::from_secs(20), "degraded is still {}", !degraded);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) fn admission(app: &str, prompt: u64, output_limit: u64) -> AdmissionRequest {
    AdmissionRequest { app: app.into(), ..start::request(0, prompt, output_limit) }
}

/// The upstream's limit on tokens: prompt and max completion tokens are reserved until the end of the response.
pub(crate) struct Upstream {
    limit: f64,
    rate: f64,
    quota: Mutex<(f64, Instant)>,
}

impl Upstream {
    /// A limit that is not used.
    pub(crate) fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { limit: limit as f64, rate: limit as f64 / 60.0, quota: Mutex::new((limit as f64, Instant::now())) })
    }

    /// Reserves `units` and returns the headers.
    ///
    /// # Errors
    /// A refusal.
    pub(crate) fn reserve(&self, units: u64) -> Result<Observation, ()> {
        let quota = self.add(0.0);
        if quota < units as f64 {
            return Err(());
        }
        let left = self.add(-(units as f64));
        let shown = RemoteQuota { limit: self.limit as u64, remaining: left as u64 };
        Ok(Observation { tokens: Some(shown), ..Observation::default() })
    }

    /// Used tokens.
    pub(crate) fn used(&self) -> f64 {
        self.limit - self.add(0.0)
    }

    pub(crate) fn refund(&self, unused: u64) {
        self.add(unused as f64);
    }

    fn add(&self, units: f64) -> f64 {
        let mut quota = self.quota.lock().expect("no panic while locked");
        let now = Instant::now();
        quota.0 = (quota.0 + now.duration_since(quota.1).as_secs_f64() * self.rate + units).min(self.limit);
        quota.1 = now;
        quota.0
    }
}

/// Limits on tokens per minute only.
pub(crate) fn tokens(limit: u64) -> ModelLimits {
    ModelLimits { tokens_per_minute: Some(limit), ..ModelLimits::default() }
}
