//! `groq-shield` processes on free ports; killed on drop.

use std::{
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use super::{Answer, Client};

const START: Duration = Duration::from_secs(30);
/// The log message of a reload.
const RELOADED: &str = "configuration read again";

/// A running `groq-shield`.
pub(crate) struct Process {
    child: Child,
    log: Arc<Mutex<String>>,
    addresses: Vec<SocketAddr>,
}

impl Process {
    /// Starts the binary and waits for the log line of readiness.
    ///
    /// # Panics
    /// With the log, if there is no such line in time.
    pub(crate) fn start(args: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = binary();
        let mut child = command
            .args(args)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("groq-shield starts");
        let log = Arc::new(Mutex::new(String::new()));
        let (ready, wait) = mpsc::channel();
        collect(child.stdout.take().expect("stdout is piped"), log.clone(), ready.clone());
        collect(child.stderr.take().expect("stderr is piped"), log.clone(), ready);
        let addresses = wait.recv_timeout(START).unwrap_or_default();
        let process = Self { child, log, addresses };
        assert!(!process.addresses.is_empty(), "not ready: groq-shield {}\n{}", args.join(" "), process.log());
        process
    }

    /// The log so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().expect("no panic while the log is held").clone()
    }

    /// The address for apps.
    pub(crate) fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// The admin address.
    pub(crate) fn admin(&self) -> SocketAddr {
        *self.addresses.get(1).unwrap_or_else(|| panic!("no admin address in the ready line:\n{}", self.log()))
    }

    /// A client for the apps' address.
    pub(crate) fn client(&self) -> Client {
        Client::new(self.address())
    }

    /// Sends a signal to the process.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).expect("the process can be signalled");
    }

    /// Waits at most `limit` for the exit.
    pub(crate) async fn ended(&mut self, limit: Duration) -> ExitStatus {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                return status;
            }
            assert!(tokio::time::Instant::now() < deadline, "still running after {limit:?}:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if the process has already exited.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- groq-shield on {:?} wrote:\n{}", self.addresses, tail(&self.log()));
        }
    }
}

/// The command of the binary, without the developer's environment variables for keys, proxies and settings.
pub(crate) fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_groq-shield"));
    let ours = |name: &str| name.starts_with("GROQ_") || name.starts_with("OPENAI_") || name.to_lowercase().ends_with("_proxy");
    for name in std::env::vars_os().map(|(name, _)| name).filter(|name| name.to_str().is_some_and(ours)) {
        command.env_remove(name);
    }
    command.env("NO_COLOR", "1");
    command
}

/// Reads an output to its end. Sends the addresses of the "ready" log entry to `ready`.
fn collect(output: impl Read + Send + 'static, log: Arc<Mutex<String>>, ready: mpsc::Sender<Vec<SocketAddr>>) {
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let found = if line.contains("ready") { addresses(&line) } else { Vec::new() };
            let mut log = log.lock().expect("no panic while the log is held");
            log.push_str(&line);
            log.push('\n');
            drop(log);
            if !found.is_empty() {
                // Only the first ready line has a receiver.
                let _ = ready.send(found);
            }
        }
    });
}

/// Every `IP:PORT` of a line, in order.
fn addresses(line: &str) -> Vec<SocketAddr> {
    line.split(|c: char| !(c.is_ascii_hexdigit() || matches!(c, '.' | ':' | '[' | ']'))).filter_map(|w| w.parse().ok()).collect()
}

fn tail(log: &str) -> &str {
    let from = log.char_indices().rev().nth(8000).map_or(0, |(at, _)| at);
    &log[from..]
}

/// `groq-shield simulate`.
pub(crate) struct Simulator {
    pub(crate) process: Process,
    _limits: TempDir,
}

impl Simulator {
    /// Starts a simulated Groq with the limits of a TOML `[limits]` table.
    pub(crate) fn start(limits: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("limits.toml");
        std::fs::write(&file, limits).expect("the limits can be written");
        let file = file.to_str().expect("temporary paths are UTF-8");
        Self { process: Process::start(&["simulate", "--listen", "127.0.0.1:0", "--limits", file], &[]), _limits: directory }
    }

    /// Starts a simulated Groq without limits.
    pub(crate) fn generous() -> Self {
        Self::start("[limits]\nplan = \"none\"\n")
    }

    /// Sets the faults of the next requests.
    pub(crate) async fn faults(&self, script: serde_json::Value) {
        let answer = self.process.client().plain("/_sim/faults", Some(&script)).await;
        assert!(answer.status.is_success(), "the simulator accepts the faults: {} {}", answer.status, answer.text());
    }

    /// The received requests, oldest first.
    pub(crate) async fn log(&self) -> Vec<serde_json::Value> {
        let answer: Answer = self.process.client().plain("/_sim/log", None).await;
        serde_json::from_slice(&answer.body).expect("the wire log is a JSON array")
    }
}

/// A shield in front of an upstream.
pub(crate) struct Shield {
    pub(crate) process: Process,
    config: TempDir,
}

impl Shield {
    /// Starts a shield in front of `upstream` with the configuration `config`, a TOML document without `[server]`, `[admin]` and
    /// `upstream.base_url`.
    pub(crate) fn before(upstream: SocketAddr, config: &str) -> Self {
        Self::with(upstream, config, &[])
    }

    /// The same with environment variables.
    pub(crate) fn with(upstream: SocketAddr, config: &str, environment: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("groq-shield.toml");
        std::fs::write(&file, config).expect("the configuration can be written");
        let (file, upstream) = (file.to_str().expect("temporary paths are UTF-8"), format!("http://{upstream}"));
        let arguments =
            ["serve", "--config", file, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--upstream", upstream.as_str()];
        Self { process: Process::start(&arguments, environment), config: directory }
    }

    /// Replaces the configuration, and waits until the log says that it was reloaded.
    pub(crate) async fn reload(&self, config: &str) {
        let reloads = || self.process.log().matches(RELOADED).count();
        let before = reloads();
        std::fs::write(self.config.path().join("groq-shield.toml"), config).expect("the configuration can be written");
        self.process.signal(Signal::SIGHUP);
        let deadline = tokio::time::Instant::now() + START;
        while reloads() == before {
            assert!(tokio::time::Instant::now() < deadline, "not reloaded:\n{}", self.process.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
