//! Which command is asked for? The commands and flags; `cli/…` does each.

use std::process::ExitCode;

/// Runs the command that the arguments name.
pub fn run() -> ExitCode {
    ExitCode::SUCCESS
}
