//! `groq-shield check`: every fault of the configuration, or the configuration in effect.

use std::process::ExitCode;

use super::{
    file::Config,
    output::{USAGE, print, refuse, tell},
};
use crate::{
    config::{self, Source},
    server,
};

/// `groq-shield check`
#[derive(Debug, clap::Args)]
pub(super) struct Check {
    #[command(flatten)]
    config: Config,
    /// Print a file with every key at its default, commented, and do nothing else
    #[arg(long)]
    example: bool,
}

pub(super) fn run(arguments: &Check) -> ExitCode {
    if arguments.example {
        return print(config::example::file().as_bytes());
    }
    let loaded = Source::new(arguments.config.config.clone()).load();
    if !loaded.faults.faults.is_empty() {
        return refuse(&loaded.faults);
    }
    if let Err(why) = server::check_tls(&loaded.settings) {
        tell(&format!("groq-shield: {why}"));
        return ExitCode::from(USAGE);
    }
    let file = loaded.file.as_deref().map_or("no file: defaults, variables".into(), |file| file.display().to_string());
    let notes: String = loaded.notes.iter().map(|note| format!("# note: {}\n", note.message)).collect();
    print(format!("# {file}\n{notes}\n{}", loaded.effective).as_bytes())
}
