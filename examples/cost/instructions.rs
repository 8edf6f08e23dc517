//! Instructions per request, counted by valgrind's callgrind. Unlike CPU time, they do not depend on the machine's other load.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::TempDir;

use super::{
    load::{self, MakeRequest},
    process::{LOAD_CORE, PROXY_CORE, Running, free_address, shield, this_program},
};

/// Concurrent connections.
const CONCURRENCY: usize = 8;
/// Requests on each connection before counting starts.
const WARM_UP: usize = 50;
/// Requests on each connection that are counted.
const COUNTED: usize = 125;

/// The result of a count.
pub(crate) struct Counted {
    /// Instructions per request in user space.
    pub(crate) per_request: f64,
    /// The path of callgrind's output; deleted on drop.
    pub(crate) profile: PathBuf,
    _home: TempDir,
}

/// Whether valgrind is installed.
pub(crate) fn is_installed() -> bool {
    let run = |program| Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    run("valgrind").is_ok_and(|status| status.success())
}

/// Counts the instructions that `proxy`, listening on `address`, executes for the requests of `make_request`.
async fn count(proxy: &Command, address: std::net::SocketAddr, make_request: &MakeRequest) -> io::Result<Counted> {
    let home = TempDir::new()?;
    let profile = home.path().join("callgrind");
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--instr-atstart=no", "--dump-instr=yes", "--fair-sched=yes"]);
    command.arg(format!("--callgrind-out-file={}", profile.display()));
    command.arg(proxy.get_program()).args(proxy.get_args());
    for (name, value) in proxy.get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    let running = Running::start(PROXY_CORE, &command, address)?;
    let connections = load::connect(address, CONCURRENCY).await?;
    let (_, connections) = load::rounds(connections, WARM_UP, make_request).await?;
    control("-i", "on", &running)?;
    let (tally, _wires) = load::rounds(connections, COUNTED, make_request).await?;
    control("-i", "off", &running)?;
    control("-d", "counted", &running)?;
    if tally.failed > 0 {
        return Err(io::Error::other(format!("{} of {} requests failed", tally.failed, tally.requests)));
    }
    let dumped = dumped(home.path())?;
    let per_request = total(&dumped)? as f64 / tally.requests as f64;
    Ok(Counted { per_request, profile: dumped, _home: home })
}

/// The counts of the shield and of bare hyper.
pub(crate) async fn both(program: &Path, make_request: &MakeRequest) -> io::Result<(Counted, Counted)> {
    let stub = Running::start_role(LOAD_CORE, |listen| this_program(&["stub", &listen.to_string()]))?;
    let (listen, admin) = (free_address()?, free_address()?);
    let counted = count(&shield(program, listen, admin, stub.address, &[]), listen, make_request).await?;
    let listen = free_address()?;
    let bare = this_program(&["bare", &listen.to_string(), &stub.address.to_string()])?;
    Ok((counted, count(&bare, listen, make_request).await?))
}

/// Sends a command to the running callgrind.
fn control(option: &str, value: &str, running: &Running) -> io::Result<()> {
    let mut command = Command::new("callgrind_control");
    let status = command
        .arg(format!("{option}={value}"))
        .arg(running.id().to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other("callgrind_control failed")) }
}

/// The path of the profile that was dumped.
fn dumped(home: &Path) -> io::Result<PathBuf> {
    let mut files = fs::read_dir(home)?.filter_map(|entry| Some(entry.ok()?.path()));
    files.find(|file| total(file).is_ok_and(|total| total > 0)).ok_or_else(|| io::Error::other("callgrind wrote nothing"))
}

/// The number of instructions in a profile.
fn total(profile: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(profile)?;
    let total = text.lines().rev().find_map(|line| line.strip_prefix("totals: ")?.trim().parse().ok());
    total.ok_or_else(|| io::Error::other("callgrind's file has no total"))
}
