//! How is one command shielded? A shield on free ports, the command pointed at it, its exit code ours.

use std::{
    ffi::OsString,
    io::{self, IsTerminal},
    os::unix::process::ExitStatusExt,
    process::{ExitCode, ExitStatus},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    process::Command,
    signal::unix::{SignalKind, signal},
};

use super::{
    Config, SIGNALLED, failed,
    start::{self, Started},
};
use crate::{
    config::Source,
    server::{self, Listeners, Running},
};

/// Exit codes of a command that cannot be run, as shells have them.
const NOT_FOUND: u8 = 127;
const NOT_RUNNABLE: u8 = 126;

/// `groq-shield exec`
#[derive(Debug, clap::Args)]
pub(super) struct Exec {
    #[command(flatten)]
    config: Config,
    /// Put the shield before the built-in simulated Groq: needs no key and no network
    #[cfg(feature = "demo")]
    #[arg(long)]
    simulate: bool,
    /// The command and its arguments, after `--`
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Runs the command. Its own exit code, 128 + n if signal n ended it; 127: there is no such command, 126: it cannot be run.
pub(super) fn run(arguments: Exec) -> ExitCode {
    #[cfg(feature = "demo")]
    let simulate = arguments.simulate;
    #[cfg(not(feature = "demo"))]
    let simulate = false;
    let free = || Some("127.0.0.1:0".to_owned());
    let source = Source { listen: free(), admin: free(), ..Source::new(arguments.config.config) };
    let Started { shield, settings, reloading } = match Started::new(source, simulate) {
        Ok(started) => started,
        Err(code) => return code,
    };
    let ran = Listeners::open(&settings).and_then(|listeners| {
        start::watch(reloading.clone())?;
        let running = server::start(shield, listeners)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(shielded(&arguments.command, running, || reloading.now()))
    });
    match ran {
        Ok(code) => ExitCode::from(code),
        Err(why) => failed(&why),
    }
}

/// Runs the command before a running shield, then drains it.
async fn shielded(words: &[OsString], running: Running, reload: impl Fn()) -> io::Result<u8> {
    running.log_ready();
    let (program, rest) = words.split_first().expect("the command line requires one");
    let mut command = Command::new(program);
    command.args(rest).envs(environment(running.app.port()));
    let code = match attended(&mut command, &reload).await? {
        Ok(status) => code(status),
        Err(why) => {
            failed(&format!("{} cannot be run: {why}", program.display()));
            if why.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_RUNNABLE }
        }
    };
    running.drained().await;
    Ok(code)
}

/// Runs the command to its end and passes signals on to it: it listens before there is a command to signal.
async fn attended(command: &mut Command, reload: &impl Fn()) -> io::Result<io::Result<ExitStatus>> {
    let mut hangup = signal(SignalKind::hangup())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut quit = signal(SignalKind::quit())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut user = signal(SignalKind::user_defined1())?;
    let mut user_2 = signal(SignalKind::user_defined2())?;
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(why) => return Ok(Err(why)),
    };
    // A terminal's Ctrl-C goes to the whole group of processes: the command has it already.
    let terminal = io::stdin().is_terminal();
    loop {
        let (signal, has_it) = tokio::select! {
            status = child.wait() => return status.map(Ok),
            _ = hangup.recv() => { reload(); (Signal::SIGHUP, false) }
            _ = interrupt.recv() => (Signal::SIGINT, terminal),
            _ = quit.recv() => (Signal::SIGQUIT, terminal),
            _ = terminate.recv() => (Signal::SIGTERM, false),
            _ = user.recv() => (Signal::SIGUSR1, false),
            _ = user_2.recv() => (Signal::SIGUSR2, false),
        };
        let Some(id) = child.id().and_then(|id| id.try_into().ok()).filter(|_| !has_it) else { continue };
        if let Err(why) = kill(Pid::from_raw(id), signal) {
            tracing::warn!("{signal} cannot be passed on: {why}");
        }
    }
}

fn code(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| i32::from(SIGNALLED) + status.signal().unwrap_or_default());
    u8::try_from(code).unwrap_or(u8::MAX)
}

/// Points every client at the shield, past any proxy.
fn environment(port: u16) -> Vec<(&'static str, String)> {
    let host = format!("http://127.0.0.1:{port}");
    let mut variables = vec![
        ("OPENAI_BASE_URL", format!("{host}/openai/v1")),
        // One client wants the host alone and another the whole path; the host serves both.
        ("GROQ_API_BASE", host.clone()),
        ("GROQ_BASE_URL", host),
    ];
    for name in ["NO_PROXY", "no_proxy"] {
        let direct = match std::env::var(name) {
            Ok(others) if !others.is_empty() => format!("{others},127.0.0.1"),
            _ => "127.0.0.1".into(),
        };
        variables.push((name, direct));
    }
    variables
}
