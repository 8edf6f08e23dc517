//! Memory of a connection and of a waiting request: ten thousand of each, by the difference.

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

/// How many.
pub(crate) const MANY: usize = 10_000;
/// Requests at once while connections are made: the upstream's connections are not what is measured.
const AT_ONCE: usize = 16;
/// The model whose line does not move.
const SLOW: &str = "slow";
/// The model of which [`BRISK_RATE`] a second may go.
pub(crate) const BRISK: &str = "brisk";
/// Grants a second.
pub(crate) const BRISK_RATE: usize = 1000;
/// The allocator waits for a second before it gives memory back.
const GIVEN_BACK: Duration = Duration::from_secs(2);
/// The line is given so long to form.
const PATIENCE: Duration = Duration::from_secs(30);

/// A shield whose line takes ten thousand, for hours.
pub(crate) struct Patient {
    /// The process.
    pub(crate) running: Running,
    admin: std::net::SocketAddr,
    _configuration: NamedTempFile,
}

impl Patient {
    /// Starts it; the models [`SLOW`] and [`BRISK`] have limits of their own, all others none that binds.
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

    /// Lets so many more wait in the line that does not move.
    pub(crate) async fn line_up(&self, wires: &mut [Wire]) -> io::Result<()> {
        let request = load::request(KEY, &load::call(SLOW, 1024, false));
        let expected = self.waiting()? + wires.len();
        for wire in wires.iter_mut() {
            wire.stream.write_all(&request).await?;
        }
        let begun = Instant::now();
        // What its bucket lets go at once does not wait.
        while self.waiting()? + 100 < expected {
            if begun.elapsed() > PATIENCE {
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

/// Connections that have had one answer each.
pub(crate) async fn used(running: &Running, count: usize) -> io::Result<Vec<Wire>> {
    let wires = load::connect(running.address, count).await?;
    load::once_each(wires, AT_ONCE, &usual()).await
}

/// The usual call of 1 KB.
pub(crate) fn usual() -> Make {
    always(load::request(KEY, &load::call(MODEL, 1027, false)))
}

/// Of an idle connection that has had an answer, bytes.
pub(crate) async fn of_connection(running: &Running) -> io::Result<f64> {
    drop(used(running, 4 * AT_ONCE).await?);
    sleep(Duration::from_millis(500)).await;
    let before = running.memory()?;
    let wires = used(running, MANY).await?;
    let after = running.memory()?;
    drop(wires);
    Ok((after - before) / MANY as f64)
}

/// Of a request of 1 KB that waits, beside its connection, bytes.
pub(crate) async fn of_waiting(patient: &Patient) -> io::Result<f64> {
    let mut wires = used(&patient.running, MANY).await?;
    let before = at_rest(&patient.running).await?;
    patient.line_up(&mut wires).await?;
    let after = at_rest(&patient.running).await?;
    Ok((after - before) / MANY as f64)
}

/// Memory when a burst is over: what it left free goes back to the system after a second, with the next requests.
async fn at_rest(running: &Running) -> io::Result<f64> {
    sleep(GIVEN_BACK).await;
    drop(used(running, AT_ONCE).await?);
    sleep(Duration::from_millis(500)).await;
    running.memory()
}
