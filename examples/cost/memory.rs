//! Memory per idle connection and per waiting request, each from the difference that 10 000 of them make.

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
    connection::Connection,
    load::{self, KEY, MODEL, MakeRequest, always},
    process::{PROXY_CORE, Running, free_address, shield},
    start::get,
};

/// Number of connections and of waiting requests.
pub(crate) const MANY: usize = 10_000;
/// Concurrent requests while connections are opened. Few, so that the memory of upstream connections does not count.
const CONCURRENCY: usize = 16;
/// A model with a limit of one request per second, whose requests wait for hours.
const SLOW: &str = "slow";
/// A model with a limit of [`BRISK_RATE`] requests per second.
pub(crate) const BRISK: &str = "brisk";
/// Requests per second that the limit of [`BRISK`] allows.
pub(crate) const BRISK_RATE: usize = 1000;
/// The allocator returns freed memory to the system after one second.
const PURGE_DELAY: Duration = Duration::from_secs(2);
/// Maximum time until all requests are queued.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// A shield whose queue holds [`MANY`] requests for hours.
pub(crate) struct QueueingShield {
    /// The shield's process.
    pub(crate) running: Running,
    admin: std::net::SocketAddr,
    _configuration: NamedTempFile,
}

impl QueueingShield {
    /// Starts a shield that limits only the models [`SLOW`] and [`BRISK`].
    pub(crate) fn start(program: &Path, upstream: std::net::SocketAddr) -> io::Result<Self> {
        let mut configuration = NamedTempFile::with_suffix(".toml")?;
        let brisk = BRISK_RATE * 60;
        write!(
            configuration,
            "[limits]\nplan = \"none\"\n[limits.model.{SLOW}]\nrequests_per_minute = 60\n[limits.model.{BRISK}]\nrequests_per_minute = {brisk}\n"
        )?;
        let (listen, admin) = (free_address()?, free_address()?);
        let file = configuration.path().to_string_lossy().into_owned();
        let settings = [
            ("GROQ_SHIELD_CONFIG", file.as_str()),
            ("GROQ_SHIELD_SERVER_MAX_CONNECTIONS", "20000"),
            ("GROQ_SHIELD_QUEUE_MAX_WAITING", "20000"),
            ("GROQ_SHIELD_QUEUE_MAX_WAIT", "24h"),
        ];
        let running = Running::start(PROXY_CORE, &shield(program, listen, admin, upstream, &settings), listen)?;
        Ok(Self { running, admin, _configuration: configuration })
    }

    /// Sends one request for the model [`SLOW`] on each connection, and returns when the requests are queued.
    pub(crate) async fn queue_on(&self, connections: &mut [Connection]) -> io::Result<()> {
        let request = load::request(KEY, &load::call(SLOW, 1024, false));
        let expected = self.waiting()? + connections.len();
        for connection in connections.iter_mut() {
            connection.stream.write_all(&request).await?;
        }
        let start = Instant::now();
        // A tolerance of 100, because the quota admits the first few requests at once.
        while self.waiting()? + 100 < expected {
            if start.elapsed() > LONGEST_WAIT {
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

/// Opens `count` connections and sends one request on each.
pub(crate) async fn used(running: &Running, count: usize) -> io::Result<Vec<Connection>> {
    let connections = load::connect(running.address, count).await?;
    load::once_each(connections, CONCURRENCY, &standard_request()).await
}

/// Makes requests of 1 KB for [`MODEL`].
pub(crate) fn standard_request() -> MakeRequest {
    always(load::request(KEY, &load::call(MODEL, 1027, false)))
}

/// Bytes per idle connection after its first response.
pub(crate) async fn of_connection(running: &Running) -> io::Result<f64> {
    drop(used(running, 4 * CONCURRENCY).await?);
    sleep(Duration::from_millis(500)).await;
    let before = running.memory()?;
    let connections = used(running, MANY).await?;
    let after = running.memory()?;
    drop(connections);
    Ok((after - before) / MANY as f64)
}

/// Bytes per connection with a waiting request of 1 KB.
pub(crate) async fn of_waiting(shield: &QueueingShield) -> io::Result<f64> {
    drop(used(&shield.running, 4 * CONCURRENCY).await?);
    let before = memory_at_rest(&shield.running).await?;
    let mut connections = used(&shield.running, MANY).await?;
    shield.queue_on(&mut connections).await?;
    let after = memory_at_rest(&shield.running).await?;
    Ok((after - before) / MANY as f64)
}

/// Memory in bytes after a burst. The allocator returns freed memory only on its next use, so a few requests are sent first.
async fn memory_at_rest(running: &Running) -> io::Result<f64> {
    sleep(PURGE_DELAY).await;
    drop(used(running, CONCURRENCY).await?);
    sleep(Duration::from_millis(500)).await;
    running.memory()
}
