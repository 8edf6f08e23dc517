//! The shield's process, as a child of the soak.

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::de::DeserializeOwned;

use super::{
    BoxError,
    shield::{Left, Ready, Stopped},
};

/// A shield process; killed on drop.
pub(super) struct ShieldProcess {
    pub(super) app: SocketAddr,
    process: Child,
    lines: BufReader<ChildStdout>,
}

impl ShieldProcess {
    /// Starts the process. Its log is discarded.
    pub(super) fn start(config: &Path) -> Result<Self, BoxError> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--shield").arg(config).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = command.spawn()?;
        let mut lines = BufReader::new(process.stdout.take().ok_or("its standard output")?);
        let Ready { app } = read(&mut lines)?;
        Ok(Self { app, process, lines })
    }

    pub(super) fn reload(&self) -> Result<(), BoxError> {
        self.signal(Signal::SIGHUP)
    }

    /// Resident memory in KiB.
    pub(super) fn resident(&self) -> Result<u64, BoxError> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    /// The resources that the shield still holds after its clients have disconnected.
    pub(super) fn left(&mut self) -> Result<Left, BoxError> {
        drop(self.process.stdin.take());
        read(&mut self.lines)
    }

    /// Drains the shield and waits for its exit.
    pub(super) fn drained(mut self) -> Result<Stopped, BoxError> {
        self.signal(Signal::SIGTERM)?;
        let stopped = read(&mut self.lines)?;
        let status = self.process.wait()?;
        if status.success() { Ok(stopped) } else { Err(format!("the shield exited with {status}").into()) }
    }

    fn signal(&self, signal: Signal) -> Result<(), BoxError> {
        Ok(kill(Pid::from_raw(self.process.id().try_into()?), signal)?)
    }
}

impl Drop for ShieldProcess {
    fn drop(&mut self) {
        // The process has already exited unless the soak failed.
        if self.process.kill().is_ok() {
            drop(self.process.wait());
        }
    }
}

/// Reads the next report of the shield.
fn read<T: DeserializeOwned>(lines: &mut BufReader<ChildStdout>) -> Result<T, BoxError> {
    let mut line = String::new();
    lines.read_line(&mut line)?;
    serde_json::from_str(&line).map_err(|error| format!("the shield wrote {line:?}: {error}").into())
}
