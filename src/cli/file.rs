//! The flag that names the configuration file.

use std::path::PathBuf;

/// The file to read.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct Config {
    /// The configuration file [env: GROQ_SHIELD_CONFIG]
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
}
