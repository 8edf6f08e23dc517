//! How does the proxy start? Settings, logging, listeners, then it serves.

use std::process::ExitCode;

use super::{Config, USAGE, failed};
use crate::config::Source;

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
    /// Put the shield before the built-in simulated Groq: needs no key and no network
    #[cfg(feature = "demo")]
    #[arg(long, conflicts_with = "upstream")]
    simulate: bool,
}

pub(super) fn run(arguments: Serve) -> ExitCode {
    let source = arguments.source();
    let settings = match source.load().settings() {
        Ok(settings) => settings,
        Err(faults) => {
            eprintln!("{faults}");
            return ExitCode::from(USAGE);
        }
    };
    failed(&format!("nothing listens on {} in this build", settings.server.listen))
}

impl Serve {
    fn source(&self) -> Source {
        Source {
            listen: self.listen.clone(),
            upstream: self.upstream.clone(),
            admin: self.admin.clone(),
            ..Source::new(self.config.config.clone())
        }
    }
}
