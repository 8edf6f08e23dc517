//! `groq-shield serve`: runs the proxy until a signal has drained it.

use std::process::ExitCode;

use super::{
    file::Config,
    output::{SIGNALLED, failed},
    start::{self, Started},
};
use crate::{
    config::Source,
    server::{self, Ended, Listeners},
};

/// `groq-shield serve`
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct Serve {
    #[command(flatten)]
    config: Config,
    /// Where apps connect, 127.0.0.1:8787 by default; port 0 takes a free one [env: GROQ_SHIELD_LISTEN]
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// Where requests go, https://api.groq.com by default [env: GROQ_SHIELD_UPSTREAM]
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,
    /// Where operators connect, 127.0.0.1:8788 by default [env: GROQ_SHIELD_ADMIN]
    #[arg(long, value_name = "ADDR")]
    admin: Option<String>,
    /// Use the built-in simulated Groq as the upstream: needs no key and no network
    #[cfg(feature = "demo")]
    #[arg(long, conflicts_with = "upstream")]
    simulate: bool,
}

/// Serves until it is drained. Exit code 64 for a fault in the configuration, 1 if it cannot start or listen, 128 + n if a second
/// signal n ended the drain early.
pub(super) fn run(arguments: Serve) -> ExitCode {
    #[cfg(feature = "demo")]
    let simulate = arguments.simulate;
    #[cfg(not(feature = "demo"))]
    let simulate = false;
    let Started { shield, settings, reloading } = match Started::new(arguments.source(), simulate) {
        Ok(started) => started,
        Err(code) => return code,
    };
    let served = Listeners::open(&settings).and_then(|listeners| {
        start::watch(reloading.clone())?;
        server::run(shield, listeners, move || reloading.now())
    });
    match served {
        Ok(Ended::Drained) => ExitCode::SUCCESS,
        Ok(Ended::Signalled(signal)) => ExitCode::from(SIGNALLED + u8::try_from(signal.as_raw_value()).unwrap_or_default()),
        Err(why) => failed(&why),
    }
}

impl Serve {
    fn source(self) -> Source {
        Source { listen: self.listen, upstream: self.upstream, admin: self.admin, ..Source::new(self.config.config) }
    }
}
