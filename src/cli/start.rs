//! Set-up shared by `serve` and `exec`: settings, log, simulated Groq, shield.

use std::{io, process::ExitCode, sync::Arc, time::Duration};

use super::output::{failed, refuse};
use crate::{
    config::{Next, Note, Reload, Settings, Source},
    proxy::Shield,
    telemetry::{self, Handle},
};

/// How often the configuration file is checked for changes.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A shield that is ready to listen.
pub(super) struct Started {
    pub(super) shield: Arc<Shield>,
    pub(super) settings: Settings,
    pub(super) reloading: Arc<Reloading>,
}

/// Reads the configuration again and applies it.
pub(super) struct Reloading {
    shield: Arc<Shield>,
    reload: Reload,
    log: Handle,
}

impl Started {
    /// Reads the configuration, starts the log, creates the shield; reports errors on standard error.
    pub(super) fn new(mut source: Source, simulate: bool) -> Result<Self, ExitCode> {
        if simulate {
            source.upstream = Some(simulated().map_err(|why| failed(&format!("the simulated Groq cannot start: {why}")))?);
        }
        let loaded = source.load();
        let settings = loaded.clone().settings().map_err(|faults| refuse(&faults))?;
        let log = telemetry::init(&settings.log).map_err(|why| failed(&why))?;
        let shield = Shield::new(settings.clone()).map_err(|why| failed(&why))?;
        shield.telemetry.configured(loaded.file.as_deref());
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            file = loaded.file.as_deref().map(tracing::field::debug),
            upstream = %settings.upstream.base_url,
            "groq-shield starts"
        );
        log_notes(&loaded.notes);
        let reloading = Arc::new(Reloading { shield: shield.clone(), reload: Reload::new(source, &loaded), log });
        Ok(Self { shield, settings, reloading })
    }
}

impl Reloading {
    /// Reads everything again; a configuration with faults changes nothing.
    pub(super) fn now(&self) {
        match self.reload.again() {
            Ok(next) => self.apply(next),
            Err(faults) => {
                let faults = faults.to_string();
                self.shield.telemetry.reload_refused(&faults);
                tracing::error!("the configuration has faults, the old one stays in effect:\n{faults}");
            }
        }
    }

    /// Watches the file until the process ends.
    pub(super) async fn watch(&self) {
        loop {
            tokio::time::sleep(CHECK_INTERVAL).await;
            if self.reload.is_due() {
                self.now();
            }
        }
    }

    fn apply(&self, Next { settings, changes, notes }: Next) {
        if let Err(why) = self.log.set_level(&settings.log.level) {
            tracing::error!("log.level stays: {why}");
        }
        let file = self.shield.telemetry.configuration().file;
        self.shield.reload(settings);
        self.shield.telemetry.configured(file.as_deref());
        for change in &changes {
            let value = |value: &Option<String>| value.clone().unwrap_or_else(|| "not set".into());
            let (key, old, new) = (&change.key, value(&change.old), value(&change.new));
            if change.live {
                tracing::info!("{key}: {new}, was {old}");
            } else {
                tracing::warn!("{key}: {new} takes effect after a restart, {old} stays in effect");
            }
        }
        log_notes(&notes);
        let live = changes.iter().filter(|change| change.live).count();
        tracing::info!(changed = live, waiting = changes.len() - live, "configuration read again");
    }
}

fn log_notes(notes: &[Note]) {
    for Note { message, is_warning } in notes {
        if *is_warning {
            tracing::warn!("{message}");
        } else {
            tracing::info!("{message}");
        }
    }
}

/// Starts watching the file in a thread that ends with the process.
pub(super) fn watch(reloading: Arc<Reloading>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let body = move || runtime.block_on(reloading.watch());
    std::thread::Builder::new().name("configuration".into()).spawn(body).map(drop)
}

/// Starts the simulated Groq; returns its URL.
#[cfg(feature = "demo")]
fn simulated() -> io::Result<String> {
    let (address, _) = super::simulate::in_the_background(groq_sim::Options::default())?;
    Ok(format!("http://{address}"))
}

#[cfg(not(feature = "demo"))]
fn simulated() -> io::Result<String> {
    Err(io::Error::other("this groq-shield was built without it"))
}
