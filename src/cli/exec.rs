//! `groq-shield exec`: runs a command behind its own shield, on free ports.

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
    file::Config,
    output::{SIGNALLED, failed},
    start::{self, Started},
};
use crate::{
    config::Source,
    server::{self, Listeners, Running},
    telemetry::Totals,
};

/// Exit codes for a command that cannot be run, as in shells.
const NOT_FOUND: u8 = 127;
const NOT_RUNNABLE: u8 = 126;

/// The help text about variables; `environment` sets them.
const VARIABLES: &str = "\
CMD gets these variables; programs that have a base URL written in do not ask for them:
  GROQ_BASE_URL     http://127.0.0.1:PORT            groq SDKs
  GROQ_API_BASE     http://127.0.0.1:PORT            langchain-groq, litellm
  OPENAI_BASE_URL   http://127.0.0.1:PORT/openai/v1  openai SDKs and what is built on them
  OPENAI_API_BASE   http://127.0.0.1:PORT/openai/v1  older ones
  NO_PROXY no_proxy the host, added to what they say
  GROQ_API_KEY OPENAI_API_KEY  a placeholder, with --simulate and where they are not set

Only warnings are logged, unless log.level is set (GROQ_SHIELD_LOG_LEVEL=info). At the end a line on standard error says how
many requests came through. The exit code is CMD's.";

/// The placeholder key for simulated calls: clients do not start without a key.
const PLACEHOLDER_KEY: &str = "gsk_simulated";

/// `groq-shield exec`
#[derive(Debug, clap::Args)]
#[command(after_help = VARIABLES)]
pub(super) struct Exec {
    #[command(flatten)]
    config: Config,
    /// Use the built-in simulated Groq as the upstream: needs no key and no network
    #[cfg(feature = "demo")]
    #[arg(long)]
    simulate: bool,
    /// The command and its arguments, after `--`
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Runs the command and returns its exit code, or 128 + n if signal n ended it, 127 if it does not exist, 126 if it cannot be
/// run.
pub(super) fn run(arguments: Exec) -> ExitCode {
    #[cfg(feature = "demo")]
    let simulate = arguments.simulate;
    #[cfg(not(feature = "demo"))]
    let simulate = false;
    let free = || Some("127.0.0.1:0".to_owned());
    let source = Source { listen: free(), admin: free(), quiet: true, ..Source::new(arguments.config.config) };
    let Started { shield, settings, reloading } = match Started::new(source, simulate) {
        Ok(started) => started,
        Err(code) => return code,
    };
    let ran = Listeners::open(&settings).and_then(|listeners| {
        start::watch(reloading.clone())?;
        let telemetry = shield.telemetry.clone();
        let running = server::start(shield, listeners)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let variables = environment(running.app.port(), simulate);
        let code = runtime.block_on(shielded(&arguments.command, &variables, running, || reloading.now()))?;
        if !matches!(code, NOT_FOUND | NOT_RUNNABLE) {
            eprintln!("groq-shield: {}", summary(telemetry.totals()));
        }
        Ok(code)
    });
    match ran {
        Ok(code) => ExitCode::from(code),
        Err(why) => failed(&why),
    }
}

/// Runs the command behind a running shield, then drains it.
async fn shielded(words: &[OsString], variables: &[(&str, String)], running: Running, reload: impl Fn()) -> io::Result<u8> {
    running.log_ready();
    let (program, rest) = words.split_first().expect("the command line requires one");
    let mut command = Command::new(program);
    command.args(rest).envs(variables.iter().map(|(name, value)| (name, value)));
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

/// Runs the command to its end and forwards signals to it; the handlers are installed before the command starts.
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
    // A terminal sends Ctrl-C to the whole process group: the command has received it already.
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

/// One line about the outcomes of the command's requests.
fn summary(Totals { requests, waited, retried, failed }: Totals) -> String {
    match requests {
        0 => "no request came through. CMD ignores the base URL in its environment: give its client base_url, \
              for groq os.environ[\"GROQ_BASE_URL\"], for openai os.environ[\"OPENAI_BASE_URL\"]"
            .into(),
        1 => format!("1 request came through, {waited} waited, {retried} retried, {failed} failed"),
        _ => format!("{requests} requests came through, {waited} waited, {retried} retried, {failed} failed"),
    }
}

/// Points every client at the shield, bypassing proxies.
fn environment(port: u16, simulated: bool) -> Vec<(&'static str, String)> {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let host = format!("http://127.0.0.1:{port}");
    let openai = format!("{host}/openai/v1");
    let mut variables = vec![
        ("OPENAI_BASE_URL", openai.clone()),
        ("OPENAI_API_BASE", openai),
        // Some clients expect the host only, others the whole path; the host works for both.
        ("GROQ_API_BASE", host.clone()),
        ("GROQ_BASE_URL", host),
    ];
    for name in ["NO_PROXY", "no_proxy"] {
        let direct = set(name).map_or_else(|| "127.0.0.1".into(), |others| format!("{others},127.0.0.1"));
        variables.push((name, direct));
    }
    for name in ["GROQ_API_KEY", "OPENAI_API_KEY"] {
        if simulated && set(name).is_none() {
            variables.push((name, PLACEHOLDER_KEY.into()));
        }
    }
    variables
}
