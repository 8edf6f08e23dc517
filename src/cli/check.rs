//! `groq-shield check`: every fault of the configuration, or the configuration in effect.

use std::process::ExitCode;

use super::{
    file::Config,
    output::{print, refuse},
};
use crate::config::{self, Source};

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
    let file = loaded.file.as_deref().map_or("no file: defaults, variables".into(), |file| file.display().to_string());
    let notes: String = loaded.notes.iter().map(|note| format!("# note: {}\n", note.message)).collect();
    print(format!("# {file}\n{notes}\n{}", loaded.effective).as_bytes())
}
