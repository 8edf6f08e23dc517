//! Output and exit codes of commands.

use std::{io::IsTerminal as _, process::ExitCode};

use crate::config::Faults;

/// Exit code of a wrong command line or configuration, as in sysexits.h.
pub(super) const USAGE: u8 = 64;
/// Added to the number of the signal that ended a process, as shells do.
pub(super) const SIGNALLED: u8 = 128;

/// Writes to standard output; a closed reader, such as `head`, is not an error.
pub(super) fn print(bytes: &[u8]) -> ExitCode {
    use std::io::{ErrorKind, Write};
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => failed(&error),
        _ => ExitCode::SUCCESS,
    }
}

/// Shows faults of the configuration on standard error, with colors on a terminal.
pub(super) fn refuse(faults: &Faults) -> ExitCode {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) || !std::io::stderr().is_terminal();
    tell(&if plain { faults.to_string() } else { faults.styled() });
    ExitCode::from(USAGE)
}

/// Prints why the command failed.
pub(super) fn failed(why: &dyn std::fmt::Display) -> ExitCode {
    tell(&format!("groq-shield: {why}"));
    ExitCode::FAILURE
}

/// Writes a line to standard error. Where its reader has closed, the exit code alone has to do; `eprintln` would panic.
pub(super) fn tell(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{line}");
}
