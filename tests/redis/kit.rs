//! A redis-server for each test, replicas on it, and an upstream with an exact bucket.

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

/// A redis-server; killed when dropped.
pub(crate) struct Redis {
    process: Child,
    port: u16,
    second: u16,
    folder: tempfile::TempDir,
    arguments: Vec<String>,
}

impl Redis {
    /// Starts one with these arguments on a free port.
    pub(crate) async fn start(arguments: &[&str]) -> Self {
        Self::with_second(|_| arguments.iter().map(|&argument| argument.into()).collect()).await
    }

    /// Starts one that also listens on a second port, which its arguments name.
    pub(crate) async fn with_second(arguments: impl Fn(u16) -> Vec<String>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        for _ in 0..5 {
            let (port, second) = (free_port(), free_port());
            let arguments = arguments(second);
            let mut process = spawn(port, &folder, &arguments);
            if serves(&mut process, port).await {
                return Self { process, port, second, folder, arguments };
            }
            drop(process.kill()); // It has ended, or answers nobody.
            process.wait().expect("ended");
        }
        panic!("redis-server does not serve");
    }

    /// Restarts it on the same port, empty.
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

    /// Runs a command as an operator would.
    pub(crate) fn say(&self, words: &[&str]) -> redis::Value {
        let client = redis::Client::open(self.url()).expect("a URL");
        let mut connection = client.get_connection().expect("a connection");
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]).query(&mut connection).unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }
}

impl Redis {
    /// A command's reply as text.
    pub(crate) fn told(&self, words: &[&str]) -> String {
        redis::from_redis_value(self.say(words)).expect("text")
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // Also a stopped one.
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

/// A port that nobody listens on, below the ephemeral range: an ephemeral port could be taken by another test's connection before
/// redis-server starts.
fn free_port() -> u16 {
    const FIRST: u16 = 10_000;
    const PORTS: u16 = 20_000;
    static TRIED: AtomicU16 = AtomicU16::new(0);
    // Test processes that run side by side start at different ports.
    let begin = (std::process::id() % 400) as u16 * 50;
    let mut ports = (0..PORTS).map(|_| FIRST + (begin + TRIED.fetch_add(1, Ordering::Relaxed) % PORTS) % PORTS);
    ports.find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok()).expect("a free port")
}

/// Whether this process answers: one whose second port is taken exits after the first one has been seen to listen.
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

/// A replica on this store with these limits.
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

/// The store's timeout where a test is not about it: long enough for a busy machine.
pub(crate) const LONG_TIMEOUT: Duration = Duration::from_secs(2);

/// Waits until each replica has reached its store, or has lost it.
pub(crate) async fn until(degraded: bool, replicas: &[Limiters]) {
    let at = Instant::now();
    while replicas.iter().any(|replica| replica.store().expect("a store").is_degraded() != degraded) {
        assert!(at.elapsed() < Duration::from_secs(20), "degraded is still {}", !degraded);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) fn ask(app: &str, prompt: u64, output_limit: u64) -> AdmissionRequest {
    AdmissionRequest { app: app.into(), ..start::request(0, prompt, output_limit) }
}

/// Groq's accounting of tokens: an exact bucket that holds prompt and max completion tokens until the end.
pub(crate) struct Upstream {
    limit: f64,
    rate: f64,
    quota: Mutex<(f64, Instant)>,
}

impl Upstream {
    /// A full one.
    pub(crate) fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { limit: limit as f64, rate: limit as f64 / 60.0, quota: Mutex::new((limit as f64, Instant::now())) })
    }

    /// Takes `asked`; returns the headers, or a refusal.
    pub(crate) fn take(&self, asked: u64) -> Result<Observation, ()> {
        let quota = self.add(0.0);
        if quota < asked as f64 {
            return Err(());
        }
        let left = self.add(-(asked as f64));
        let shown = RemoteQuota { limit: self.limit as u64, remaining: left as u64 };
        Ok(Observation { tokens: Some(shown), ..Observation::default() })
    }

    /// Tokens in use now.
    pub(crate) fn used(&self) -> f64 {
        self.limit - self.add(0.0)
    }

    pub(crate) fn give_back(&self, unused: u64) {
        self.add(unused as f64);
    }

    fn add(&self, units: f64) -> f64 {
        let mut quota = self.quota.lock().expect("the level");
        let now = Instant::now();
        quota.0 = (quota.0 + now.duration_since(quota.1).as_secs_f64() * self.rate + units).min(self.limit);
        quota.1 = now;
        quota.0
    }
}

/// A limit on tokens a minute only.
pub(crate) fn tokens(limit: u64) -> ModelLimits {
    ModelLimits { tokens_per_minute: Some(limit), ..ModelLimits::default() }
}
