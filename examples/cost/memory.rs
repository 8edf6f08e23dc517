//! Memory per connection and per waiting request: the difference that ten thousand of each make.

use std::{
    io::{self, Write as _},
    path::Path,
    time::Duration,
};

use tempfile::NamedTempFile;
use tokio::{
    io::AsyncWriteExt as _,
    time::{Instant, sleep},
};

use super::{
    load::{self, KEY, MODEL, Make, always},
    process::{Running, THEIRS, free, shield},
    start::get,
    wire::Wire,
};

/// Connections, and waiting requests.
pub(crate) const MANY: usize = 10_000;
/// Concurrent requests while connections are made: keeps the upstream's connections out of the figure.
const AT_ONCE: usize = 16;
/// A model whose queue barely moves.
const SLOW: &str = "slow";
/// A model with a limit of [`BRISK_RATE`] requests a second.
pub(crate) const BRISK: &str = "brisk";
/// Requests a second.
pub(crate) const BRISK_RATE: usize = 1000;
/// The allocator returns memory to the system after a second.
const PURGE_DELAY: Duration = Duration::from_secs(2);
/// Longest time until the queue has formed.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// A shield whose queue holds ten thousand requests, for hours.
pub(crate) struct QueueingShield {
    /// The process.
    pub(crate) running: Running,
    admin: std::net::SocketAddr,
    _configuration: NamedTempFile,
}

impl QueueingShield {
    /// Starts it; the models [`SLOW`] and [`BRISK`] have limits of their own, all others have none.
    pub(crate) fn start(program: &Path, upstream: std::net::SocketAddr) -> io::Result<Self> {
        let mut configuration = NamedTempFile::with_suffix(".toml")?;
        let brisk = BRISK_RATE * 60;
        write!(
            configuration,
            "[limits]\nplan = \"none\"\n[limits.model.{SLOW}]\nrequests_per_minute = 60\n[limits.model.{BRISK}]\nrequests_per_minute = {brisk}\n"
        )?;
        let (listen, admin) = (free()?, free()?);
        let file = configuration.path().to_string_lossy().into_owned();
        let settings = [
            ("GROQ_SHIELD_CONFIG", file.as_str()),
            ("GROQ_SHIELD_SERVER_MAX_CONNECTIONS", "20000"),
            ("GROQ_SHIELD_QUEUE_MAX_WAITING", "20000"),
            ("GROQ_SHIELD_QUEUE_MAX_WAIT", "24h"),
        ];
        let running = Running::start(THEIRS, &shield(program, listen, admin, upstream, &settings), listen)?;
        Ok(Self { running, admin, _configuration: configuration })
    }

    /// Queues one request on each connection for the model [`SLOW`].
    pub(crate) async fn queue_on(&self, wires: &mut [Wire]) -> io::Result<()> {
        let request = load::request(KEY, &load::call(SLOW, 1024, false));
        let expected = self.waiting()? + wires.len();
        for wire in wires.iter_mut() {
            wire.stream.write_all(&request).await?;
        }
        let begun = Instant::now();
        // The requests that the bucket lets through at once do not wait.
        while self.waiting()? + 100 < expected {
            if begun.elapsed() > LONGEST_WAIT {
                return Err(io::Error::other(format!("{} wait, not {expected}", self.waiting()?)));
            }
            sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    fn waiting(&self) -> io::Result<usize> {
        let status = get(self.admin, "/status")?;
        let body = status.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let status: serde_json::Value = serde_json::from_str(body)?;
        let limiters = status["limiters"].as_array().into_iter().flatten();
        let counts = limiters
            .flat_map(|limiter| limiter["waiting"].as_array().into_iter().flatten())
            .filter_map(|row| row["count"].as_u64());
        Ok(counts.sum::<u64>() as usize)
    }
}

/// Connections that have been used once.
pub(crate) async fn used(running: &Running, count: usize) -> io::Result<Vec<Wire>> {
    let wires = load::connect(running.address, count).await?;
    load::once_each(wires, AT_ONCE, &usual()).await
}

/// The standard call of 1 KB.
pub(crate) fn usual() -> Make {
    always(load::request(KEY, &load::call(MODEL, 1027, false)))
}

/// Bytes per idle connection that has been used.
pub(crate) async fn of_connection(running: &Running) -> io::Result<f64> {
    drop(used(running, 4 * AT_ONCE).await?);
    sleep(Duration::from_millis(500)).await;
    let before = running.memory()?;
    let wires = used(running, MANY).await?;
    let after = running.memory()?;
    drop(wires);
    Ok((after - before) / MANY as f64)
}

/// Bytes per connection with a waiting request of 1 KB.
pub(crate) async fn of_waiting(shield: &QueueingShield) -> io::Result<f64> {
    drop(used(&shield.running, 4 * AT_ONCE).await?);
    let before = at_rest(&shield.running).await?;
    let mut wires = used(&shield.running, MANY).await?;
    shield.queue_on(&mut wires).await?;
    let after = at_rest(&shield.running).await?;
    Ok((after - before) / MANY as f64)
}

/// Memory after a burst: freed memory is returned to the system after a second, with the next requests.
async fn at_rest(running: &Running) -> io::Result<f64> {
    sleep(PURGE_DELAY).await;
    drop(used(running, AT_ONCE).await?);
    sleep(Duration::from_millis(500)).await;
    running.memory()
}
