//! The redis-server that stores the shield's quotas.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
};

use super::BoxError;

/// A redis-server process; killed on drop.
pub(super) struct Redis {
    port: u16,
    process: Option<Child>,
}

impl Redis {
    pub(super) fn start() -> Result<Self, BoxError> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut redis = Self { port, process: None };
        redis.restart()?;
        Ok(redis)
    }

    /// Starts the server again on the same port, without data.
    pub(super) fn restart(&mut self) -> Result<(), BoxError> {
        let port = self.port.to_string();
        let mut command = Command::new("redis-server");
        command.args(["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        self.process = Some(command.stdout(Stdio::null()).spawn().map_err(|error| format!("redis-server: {error}"))?);
        Ok(())
    }

    /// Sends SIGKILL and waits for the exit.
    pub(super) fn kill(&mut self) -> Result<(), BoxError> {
        if let Some(mut process) = self.process.take() {
            process.kill()?;
            process.wait()?;
        }
        Ok(())
    }

    pub(super) fn runs(&self) -> bool {
        self.process.is_some()
    }

    pub(super) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("redis-server was not stopped: {error}");
        }
    }
}
