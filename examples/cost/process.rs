//! Processes of a measurement: each is pinned to a core and killed when this program ends.

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

/// The core of the load generator and the upstream.
pub(crate) const LOAD_CORE: usize = 0;
/// The core of the measured processes, one of which is busy at a time.
pub(crate) const PROXY_CORE: usize = 1;

/// Limit of open files, enough for 10 000 connections.
const DESCRIPTORS: &str = "--nofile=20000";
/// Where Linux has its TCP counters.
const COUNTERS: &str = "/proc/net/snmp";
/// Priority of this session. Linux schedules sessions as groups, so the nice value of a process alone has no effect.
const AUTOGROUP: &str = "/proc/self/autogroup";
/// Maximum time until a process listens.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// A running process; killed on drop.
pub(crate) struct Running {
    /// The address that it listens on.
    pub(crate) address: SocketAddr,
    child: Child,
}

impl Running {
    /// Starts `command` on `core` and waits until it accepts connections on `address`.
    pub(crate) fn start(core: usize, command: &Command, address: SocketAddr) -> io::Result<Self> {
        // The kernel kills the process if this program is killed.
        let mut pinned = Command::new("setpriv");
        pinned
            .args(["--pdeathsig", "KILL", "taskset", "-c", &core.to_string()])
            .arg(command.get_program())
            .args(command.get_args());
        for (name, value) in command.get_envs() {
            pinned.env(name, value.unwrap_or_default());
        }
        // Not in the working directory, because the shield would read a configuration file there.
        let child = pinned.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.map_err(|error| io::Error::other(format!("setpriv (of util-linux) cannot be run: {error}")))?;
        let mut running = Self { address, child };
        let start = Instant::now();
        while TcpStream::connect(address).is_err() {
            let ended = running.child.try_wait()?;
            if ended.is_some() || start.elapsed() > LONGEST_WAIT {
                let program = command.get_program().display();
                return Err(io::Error::other(format!("{program} does not listen on {address} ({ended:?})")));
            }
            pause(Duration::from_millis(1));
        }
        Ok(running)
    }

    /// Starts the command that `role` makes for a free address.
    pub(crate) fn start_role(core: usize, role: impl FnOnce(SocketAddr) -> io::Result<Command>) -> io::Result<Self> {
        let listen = free_address()?;
        Self::start(core, &role(listen)?, listen)
    }

    /// Process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// CPU time of all threads since the start.
    pub(crate) fn cpu(&self) -> io::Result<Duration> {
        let mut nanos = 0;
        for thread in fs::read_dir(format!("/proc/{}/task", self.id()))? {
            let stat = fs::read_to_string(thread?.path().join("schedstat"))?;
            nanos += stat.split(' ').next().and_then(|used| used.parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(Duration::from_nanos(nanos))
    }

    /// Sends SIGTERM and waits for the exit, so that the process can write its profile.
    pub(crate) fn end(mut self) -> io::Result<()> {
        kill(Pid::from_raw(self.id().cast_signed()), Signal::SIGTERM)?;
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { Err(io::Error::other(format!("it ended with {status}"))) }
    }

    /// Proportional set size in bytes.
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

/// TCP segments that this machine has sent since its start.
pub(crate) fn segments() -> io::Result<u64> {
    let counters = fs::read_to_string(COUNTERS)?;
    // A line of names, then a line of values.
    let mut lines = counters.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let sent = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "OutSegs");
    sent.and_then(|(_, count)| count.parse().ok()).ok_or_else(|| io::Error::other(format!("no OutSegs in {COUNTERS}")))
}

/// A loopback address that nothing listens on.
pub(crate) fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind(("127.0.0.1", 0))?.local_addr()
}

/// The session's raised priority; restored on drop.
pub(crate) struct RaisedPriority {
    /// The previous nice value; `None` if it was not raised.
    previous: Option<String>,
}

impl Drop for RaisedPriority {
    fn drop(&mut self) {
        if let Some(previous) = &self.previous {
            // On failure the priority stays raised until the session ends.
            let _ = fs::write(AUTOGROUP, previous);
        }
    }
}

/// Pins this process to [`LOAD_CORE`], raises the limit of open files for itself and the processes that it starts, and raises
/// their priority if the user may do so.
pub(crate) fn pin() -> io::Result<RaisedPriority> {
    let id = std::process::id().to_string();
    for (program, arguments) in [("taskset", ["-cp", &LOAD_CORE.to_string(), &id]), ("prlimit", ["--pid", &id, DESCRIPTORS])] {
        let status = Command::new(program).args(arguments).stdout(Stdio::null()).status();
        if !status.is_ok_and(|status| status.success()) {
            return Err(io::Error::other(format!("{program} {} failed (it is part of util-linux)", arguments.join(" "))));
        }
    }
    // Both writes fail without root privileges. The figures are noisier then.
    let _ = Command::new("renice").args(["-n", "-15", "-p", &id]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    let before = fs::read_to_string(AUTOGROUP).ok();
    let previous = before.and_then(|text| text.rsplit(' ').next().map(|nice| nice.trim().to_owned()));
    let raised = fs::write(AUTOGROUP, "-19").is_ok();
    Ok(RaisedPriority { previous: previous.filter(|_| raised) })
}

/// Blocks the thread, when there is no load on it.
#[expect(clippy::disallowed_methods, reason = "this process has one thread, and nothing to do meanwhile")]
pub(crate) fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// The command that runs this program with the arguments `role`.
pub(crate) fn this_program(role: &[&str]) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(role);
    Ok(command)
}

/// The command that runs the shield with one worker thread and without files. `more` has additional environment variables.
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
