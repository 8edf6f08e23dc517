//! `groq-shield health`: liveness or readiness as an exit code, for HEALTHCHECK and probes that run a command.

use std::{process::ExitCode, time::Duration};

use super::{
    ask::{self, Whom},
    output::failed,
};

/// Below the shortest common timeout of probes, one second.
const LIMIT: Duration = Duration::from_millis(900);

/// `groq-shield health`
#[derive(Debug, clap::Args)]
pub(super) struct Health {
    #[command(flatten)]
    whom: Whom,
    /// Check whether it accepts new requests, not only whether it is alive
    #[arg(long)]
    ready: bool,
}

/// Exit code 0 if healthy, otherwise 1.
pub(super) fn run(arguments: &Health) -> ExitCode {
    let path = if arguments.ready { "/readyz" } else { "/livez" };
    match ask::get(&arguments.whom.address(), path, LIMIT) {
        Ok((status, _)) if status.is_success() => ExitCode::SUCCESS,
        Ok((status, _)) => failed(&format!("{path}: {status}")),
        Err(why) => failed(&why),
    }
}
