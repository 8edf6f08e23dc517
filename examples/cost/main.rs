//! Measures the cost of a request: the shield's release binary on one core, in alternation with a bare hyper proxy and nginx.
//!
//! `cargo build --release && cargo run --release --example cost` prints the table of `docs/performance.md`. It needs Linux and two
//! cores and takes a few minutes. `-- memory` prints only the memory rows, `-- http2` the cost over HTTP/2, `-- streams` the latency
//! added to streamed responses, `-- scale` the cost by load, `-- parts` the instructions by part of the code. All traffic stays on
//! loopback.

use std::{io, net::SocketAddr, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use tokio::task::LocalSet;

mod bare;
mod connection;
mod external;
mod http2;
mod instructions;
mod load;
mod memory;
mod parts;
mod process;
mod rig;
mod scale;
mod start;
mod streams;
mod stub;
mod subject;
mod table;
mod train;

// The same allocator as the shield's, so that the comparison with bare hyper does not include the allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
struct Arguments {
    /// The binary to measure
    #[arg(long, global = true, default_value = "target/release/groq-shield")]
    shield: PathBuf,
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Subcommand)]
enum What {
    /// The whole table, compared with bare hyper and nginx; the default
    Table(table::Options),
    /// The table's memory rows only
    Memory,
    /// CPU per request over HTTP/2, compared with bare hyper
    Http2(table::Options),
    /// Added time to the first token, added gaps between frames, and the number of streams that one core sustains
    Streams(table::Options),
    /// CPU per request and memory by the number of connections, waiting requests and limiters
    Scale,
    /// Instructions per request by part of the code: `cargo build --profile symbols`, then run this with the same profile
    Parts(parts::Options),
    /// Run the table's loads without measuring, for `deploy/profiled.sh`
    #[command(hide = true)]
    Train,
    /// Run only the upstream
    #[command(hide = true)]
    Stub { listen: SocketAddr },
    /// Run only the upstream of paced streams
    #[command(hide = true)]
    PacedStub { listen: SocketAddr },
    /// Run a server that always sends the same response
    #[command(hide = true)]
    ResponseOnly { listen: SocketAddr },
    /// Run only the bare proxy
    #[command(hide = true)]
    Bare {
        /// Serve HTTP/2 with prior knowledge instead of HTTP/1.1
        #[arg(long)]
        http2: bool,
        listen: SocketAddr,
        upstream: SocketAddr,
    },
}

fn main() -> ExitCode {
    let Arguments { shield, what } = Arguments::parse();
    match run(&shield, what.unwrap_or_else(|| What::Table(table::Options::default()))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cost: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(shield: &std::path::Path, what: What) -> io::Result<()> {
    let measured = || {
        shield.canonicalize().map_err(|error| {
            io::Error::other(format!("{}: {error}; first `cargo build --release`, or --shield FILE", shield.display()))
        })
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let on_one_thread = |role: std::pin::Pin<Box<dyn Future<Output = io::Result<()>>>>| LocalSet::new().block_on(&runtime, role);
    match what {
        What::Table(options) => {
            let shield = measured()?;
            on_one_thread(Box::pin(async move { table::run(&shield, &options).await }))
        }
        What::Memory => {
            let shield = measured()?;
            on_one_thread(Box::pin(async move { table::memory(&shield).await }))
        }
        What::Http2(options) => {
            let shield = measured()?;
            on_one_thread(Box::pin(async move { http2::run(&shield, &options).await }))
        }
        What::Streams(options) => {
            let shield = measured()?;
            on_one_thread(Box::pin(async move { streams::run(&shield, &options).await }))
        }
        What::Scale => {
            let shield = measured()?;
            on_one_thread(Box::pin(async move { scale::run(&shield).await }))
        }
        What::Train => {
            let shield = measured()?;
            on_one_thread(Box::pin(async move { train::run(&shield).await }))
        }
        What::Parts(options) => {
            let shield = measured()?;
            on_one_thread(Box::pin(async move { parts::run(&shield, &options).await }))
        }
        What::Stub { listen } => on_one_thread(Box::pin(stub::run(listen))),
        What::PacedStub { listen } => on_one_thread(Box::pin(streams::paced_stub(listen))),
        What::ResponseOnly { listen } => on_one_thread(Box::pin(stub::response_only(listen))),
        What::Bare { http2, listen, upstream } => on_one_thread(Box::pin(bare::run(http2, listen, upstream))),
    }
}
