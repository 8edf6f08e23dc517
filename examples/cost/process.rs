//! A measured process: pinned to one core, queried for its use, stopped with this program.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time::Instant;

/// The core of load and upstream.
pub(crate) const OURS: usize = 0;
/// The core of the measured process; one process at a time.
pub(crate) const THEIRS: usize = 1;

/// Enough for ten thousand connections.
const DESCRIPTORS: &str = "--nofile=20000";
/// The kernel's counters of TCP.
const COUNTERS: &str = "/proc/net/snmp";
/// The kernel's scheduler groups processes by session.
const AUTOGROUP: &str = "/proc/self/autogroup";
/// Longest time until a process listens.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// A process of this run. Dropping it stops the process.
pub(crate) struct Running {
    /// Its listening address.
    pub(crate) address: SocketAddr,
    child: Child,
}

impl Running {
    /// Starts `command` on a core and waits until it accepts.
    pub(crate) fn start(core: usize, command: &Command, address: SocketAddr) -> io::Result<Self> {
        // It must not outlive this program if that is killed.
        let mut pinned = Command::new("setpriv");
        pinned
            .args(["--pdeathsig", "KILL", "taskset", "-c", &core.to_string()])
            .arg(command.get_program())
            .args(command.get_args());
        for (name, value) in command.get_envs() {
            pinned.env(name, value.unwrap_or_default());
        }
        // A configuration file in the working directory must not be read.
        let child = pinned.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.map_err(|why| io::Error::other(format!("setpriv (of util-linux) cannot be run: {why}")))?;
        let mut running = Self { address, child };
        let begun = Instant::now();
        while TcpStream::connect(address).is_err() {
            let ended = running.child.try_wait()?;
            if ended.is_some() || begun.elapsed() > LONGEST_WAIT {
                let program = command.get_program().display();
                return Err(io::Error::other(format!("{program} does not listen on {address} ({ended:?})")));
            }
            pause(Duration::from_millis(1));
        }
        Ok(running)
    }

    /// Starts this program in another role, on a free address.
    pub(crate) fn start_role(core: usize, role: impl FnOnce(SocketAddr) -> io::Result<Command>) -> io::Result<Self> {
        let listen = free()?;
        Self::start(core, &role(listen)?, listen)
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// CPU time so far, of all threads.
    pub(crate) fn cpu(&self) -> io::Result<Duration> {
        let mut nanos = 0;
        for thread in fs::read_dir(format!("/proc/{}/task", self.id()))? {
            let stat = fs::read_to_string(thread?.path().join("schedstat"))?;
            nanos += stat.split(' ').next().and_then(|used| used.parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(Duration::from_nanos(nanos))
    }

    /// Stops it with SIGTERM and waits, so that it writes what it writes at exit.
    pub(crate) fn end(mut self) -> io::Result<()> {
        kill(Pid::from_raw(self.id().cast_signed()), Signal::SIGTERM)?;
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { Err(io::Error::other(format!("it ended with {status}"))) }
    }

    /// Proportional set size, bytes.
    pub(crate) fn memory(&self) -> io::Result<f64> {
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.id()))?;
        let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB")?.parse::<f64>().ok());
        pss.map(|kilobytes| kilobytes * 1024.0).ok_or_else(|| io::Error::other("no Pss in smaps_rollup"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// TCP segments sent by this machine.
pub(crate) fn segments() -> io::Result<u64> {
    let counters = fs::read_to_string(COUNTERS)?;
    // A line of names, then a line of values.
    let mut lines = counters.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let sent = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "OutSegs");
    sent.and_then(|(_, count)| count.parse().ok()).ok_or_else(|| io::Error::other(format!("no OutSegs in {COUNTERS}")))
}

/// An address that is currently free.
pub(crate) fn free() -> io::Result<SocketAddr> {
    TcpListener::bind(("127.0.0.1", 0))?.local_addr()
}

/// Raises the session's scheduling priority while it lives.
pub(crate) struct Settled {
    /// The previous value.
    share: Option<String>,
}

impl Drop for Settled {
    fn drop(&mut self) {
        if let Some(share) = &self.share {
            // At the session's end the value no longer matters.
            let _ = fs::write(AUTOGROUP, share);
        }
    }
}

/// Pins this process, and the processes that it starts, to its core; raises the descriptor limit for ten thousand connections,
/// and the priority where that is allowed.
pub(crate) fn settle() -> io::Result<Settled> {
    let id = std::process::id().to_string();
    for (program, arguments) in [("taskset", ["-cp", &OURS.to_string(), &id]), ("prlimit", ["--pid", &id, DESCRIPTORS])] {
        let status = Command::new(program).args(arguments).stdout(Stdio::null()).status();
        if !status.is_ok_and(|status| status.success()) {
            return Err(io::Error::other(format!("{program} {} failed (it is part of util-linux)", arguments.join(" "))));
        }
    }
    // Both need privileges; without them the figures are noisier.
    let _ = Command::new("renice").args(["-n", "-15", "-p", &id]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    let before = fs::read_to_string(AUTOGROUP).ok();
    let share = before.and_then(|text| text.rsplit(' ').next().map(|nice| nice.trim().to_owned()));
    let raised = fs::write(AUTOGROUP, "-19").is_ok();
    Ok(Settled { share: share.filter(|_| raised) })
}

/// Sleeps without load.
#[expect(clippy::disallowed_methods, reason = "this process has one thread, and nothing to do meanwhile")]
pub(crate) fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// This program in another role: upstream or another proxy.
pub(crate) fn ourselves(role: &[&str]) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(role);
    Ok(command)
}

/// The shield's command on a core of its own: one thread, nothing on disk; `more` are additional variables.
pub(crate) fn shield(
    program: &Path,
    listen: SocketAddr,
    admin: SocketAddr,
    upstream: SocketAddr,
    more: &[(&str, &str)],
) -> Command {
    let mut command = Command::new(program);
    command.args(["serve", "--listen", &listen.to_string(), "--admin", &admin.to_string()]);
    command.args(["--upstream", &format!("http://{upstream}")]);
    command.env("GROQ_SHIELD_SERVER_THREADS", "1").env("GROQ_SHIELD_LOG_LEVEL", "warn");
    command.envs(more.iter().copied());
    command
}
