//! The shield's process: like `groq-shield serve`, but it reports the resources that are still held at the end.

use std::{
    io::{Read, Write},
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Weak},
    time::Duration,
};

use groq_shield::{
    config::{Reload, Source},
    proxy::Shield,
    server::{self, Listeners},
    telemetry,
};
use serde::{Deserialize, Serialize};

use super::BoxError;

/// Maximum time until a count reaches 0.
const SETTLE: Duration = Duration::from_secs(15);

/// Reported once the shield listens.
#[derive(Serialize, Deserialize)]
pub(super) struct Ready {
    pub(super) app: SocketAddr,
}

/// Reported once the clients have disconnected, before the drain.
#[derive(Serialize, Deserialize)]
pub(super) struct Left {
    pub(super) bytes: u64,
    pub(super) places: u64,
    pub(super) connections: u64,
    /// Whether Redis is unreachable.
    pub(super) degraded: bool,
}

/// Reported after the drain.
#[derive(Serialize, Deserialize)]
pub(super) struct Stopped {
    pub(super) tasks: u64,
    pub(super) descriptors: u64,
}

/// Serves until SIGTERM. The report [`Left`] is written at the end of standard input.
pub(super) fn run(config: PathBuf) -> Result<(), BoxError> {
    // tokio keeps the two descriptors of its signal pipe for the life of the process.
    drop(tokio::runtime::Builder::new_current_thread().enable_all().build()?);
    let before = descriptors();
    let source = Source::new(Some(config));
    let loaded = source.load();
    let settings = loaded.clone().settings()?;
    let log = telemetry::init(&settings.log)?;
    let reload = Reload::new(source, &loaded);
    let listeners = Listeners::open(&settings)?;
    let app = listeners.app.local_addr()?;
    let shield = Shield::new(settings)?;
    let rest = Arc::downgrade(&shield);
    std::thread::Builder::new().name("count".into()).spawn({
        let rest = rest.clone();
        move || report_at_end_of_input(&rest)
    })?;
    report(&Ready { app })?;
    let reloaded = Arc::downgrade(&shield);
    server::run(shield, listeners, move || match (reload.again(), reloaded.upgrade()) {
        (Ok(next), Some(shield)) => shield.reload(next.settings),
        (Err(faults), _) => tracing::error!("the configuration has faults, the old one stays in effect:\n{faults}"),
        (Ok(_), None) => {}
    })?;
    drop(log);
    let tasks = settled(|| rest.strong_count() as u64);
    let descriptors = settled(|| descriptors().saturating_sub(before));
    report(&Stopped { tasks, descriptors })
}

fn report_at_end_of_input(shield: &Weak<Shield>) {
    let mut nothing = Vec::new();
    if std::io::stdin().read_to_end(&mut nothing).is_err() {
        return;
    }
    let Some(shield) = shield.upgrade() else { return };
    let in_flight = || shield.limits.snapshot().iter().map(|limiter| limiter.in_flight).sum::<usize>();
    let left = Left {
        bytes: settled(|| shield.body_budget.held()),
        places: settled(|| (shield.limits.waiting() + in_flight()) as u64),
        connections: settled(|| shield.connections.len() as u64),
        degraded: shield.limits.store().is_none_or(|store| store.is_degraded()),
    };
    drop(shield);
    if let Err(error) = report(&left) {
        tracing::error!(%error, "the report cannot be written");
    }
}

/// Polls `count` until it is 0 or [`SETTLE`] has passed, and returns its last value.
fn settled(count: impl Fn() -> u64) -> u64 {
    let step = Duration::from_millis(20);
    for _ in 0..SETTLE.as_millis() / step.as_millis() {
        if count() == 0 {
            return 0;
        }
        #[expect(clippy::disallowed_methods, reason = "a thread outside of every runtime")]
        std::thread::sleep(step);
    }
    count()
}

/// Number of open file descriptors.
fn descriptors() -> u64 {
    std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64)
}

/// Writes a report as a line of JSON to standard output.
fn report(what: &impl Serialize) -> Result<(), BoxError> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, what)?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}
