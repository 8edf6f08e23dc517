//! `groq-shield simulate`: runs the simulated Groq alone.

use std::{fs, io, net::SocketAddr, path::PathBuf, process::ExitCode, thread};

use groq_sim::{Algorithm, Options, Plan, Sim};
use tokio::{
    net::TcpListener,
    runtime::Builder,
    signal::unix::{SignalKind, signal},
};

use super::output::{USAGE, failed};

/// `groq-shield simulate`
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Simulate {
    /// Where it listens; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8789")]
    listen: SocketAddr,
    /// A TOML file with a `[limits]` table; without it, the limits of Groq's developer plan
    #[arg(long, value_name = "FILE")]
    limits: Option<PathBuf>,
    /// Algorithm of the limits; Groq's are token buckets
    #[arg(long, value_enum, default_value_t)]
    algorithm: Algorithm,
    /// Seed of all random choices
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,
}

/// Serves until SIGINT or SIGTERM.
pub(super) fn run(arguments: &Simulate) -> ExitCode {
    let plan = match &arguments.limits {
        None => Plan::developer(),
        Some(file) => match fs::read_to_string(file).map_err(|error| error.to_string()).and_then(|text| Plan::parse(&text)) {
            Ok(plan) => plan,
            Err(why) => {
                eprintln!("groq-shield: {}: {why}", file.display());
                return ExitCode::from(USAGE);
            }
        },
    };
    let options = Options { plan, algorithm: arguments.algorithm, seed: arguments.seed, ..Options::default() };
    let served = Builder::new_multi_thread().enable_all().build().and_then(|runtime| {
        runtime.block_on(async {
            let mut terminate = signal(SignalKind::terminate())?;
            let mut interrupt = signal(SignalKind::interrupt())?;
            let listener = TcpListener::bind(arguments.listen).await?;
            let sim = Sim::new(options);
            eprintln!("simulated Groq ready on http://{}", listener.local_addr()?);
            tokio::select! {
                served = sim.serve(listener) => served,
                _ = terminate.recv() => Ok(()),
                _ = interrupt.recv() => Ok(()),
            }
        })
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&format!("the simulated Groq on {}: {error}", arguments.listen)),
    }
}

/// Runs a simulated Groq on a free port in a separate thread until the process ends.
pub(super) fn in_the_background(options: Options) -> io::Result<(SocketAddr, Sim)> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let sim = Sim::new(options);
    let serving = sim.clone();
    thread::Builder::new().name("simulated-groq".into()).spawn(move || {
        runtime.block_on(async {
            if let Err(error) = async { serving.serve(TcpListener::from_std(listener)?).await }.await {
                tracing::error!(%error, "the simulated Groq has ended");
            }
        });
    })?;
    Ok((address, sim))
}
