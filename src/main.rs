//! Reads the arguments, runs the command, and exits; nothing else calls `exit`.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    groq_shield::cli::run()
}
