//! Instructions per request, counted by valgrind's callgrind: independent of time.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::TempDir;

use super::{
    load::{self, Make},
    process::{OURS, Running, THEIRS, free, ourselves, shield},
};

/// Connections.
const AT_ONCE: usize = 8;
/// Requests on each connection before counting begins.
const BEFORE: usize = 50;
/// Counted requests on each connection.
const COUNTED: usize = 125;

/// A count, and the path of callgrind's output.
pub(crate) struct Counted {
    /// Instructions per request, without the kernel's.
    pub(crate) each: f64,
    /// callgrind's output.
    pub(crate) profile: PathBuf,
    _home: TempDir,
}

/// Whether valgrind is available.
pub(crate) fn is_possible() -> bool {
    let run = |program| Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    run("valgrind").is_ok_and(|status| status.success())
}

/// Counts what `proxy`, listening on `address`, executes for the requests of `make`.
async fn count(proxy: &Command, address: std::net::SocketAddr, make: &Make) -> io::Result<Counted> {
    let home = TempDir::new()?;
    let profile = home.path().join("callgrind");
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--instr-atstart=no", "--dump-instr=yes", "--fair-sched=yes"]);
    command.arg(format!("--callgrind-out-file={}", profile.display()));
    command.arg(proxy.get_program()).args(proxy.get_args());
    for (name, value) in proxy.get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    let running = Running::start(THEIRS, &command, address)?;
    let wires = load::connect(address, AT_ONCE).await?;
    let (_, wires) = load::rounds(wires, BEFORE, make).await?;
    control("-i", "on", &running)?;
    let (tally, _wires) = load::rounds(wires, COUNTED, make).await?;
    control("-i", "off", &running)?;
    control("-d", "counted", &running)?;
    if tally.failed > 0 {
        return Err(io::Error::other(format!("{} of {} requests failed", tally.failed, tally.requests)));
    }
    let dumped = dumped(home.path())?;
    let each = total(&dumped)? as f64 / tally.requests as f64;
    Ok(Counted { each, profile: dumped, _home: home })
}

/// Counts for the shield and for bare hyper.
pub(crate) async fn both(program: &Path, make: &Make) -> io::Result<(Counted, Counted)> {
    let stub = Running::start_role(OURS, |listen| ourselves(&["stub", &listen.to_string()]))?;
    let (listen, admin) = (free()?, free()?);
    let counted = count(&shield(program, listen, admin, stub.address, &[]), listen, make).await?;
    let listen = free()?;
    let bare = ourselves(&["bare", &listen.to_string(), &stub.address.to_string()])?;
    Ok((counted, count(&bare, listen, make).await?))
}

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

/// The single profile that was dumped.
fn dumped(home: &Path) -> io::Result<PathBuf> {
    let mut files = fs::read_dir(home)?.filter_map(|entry| Some(entry.ok()?.path()));
    files.find(|file| total(file).is_ok_and(|total| total > 0)).ok_or_else(|| io::Error::other("callgrind wrote nothing"))
}

fn total(profile: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(profile)?;
    let total = text.lines().rev().find_map(|line| line.strip_prefix("totals: ")?.trim().parse().ok());
    total.ok_or_else(|| io::Error::other("callgrind's file has no total"))
}
