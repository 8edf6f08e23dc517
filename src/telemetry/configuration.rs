//! The configuration in force, and the faults of the last one that was refused.

use std::{
    path::{Path, PathBuf},
    sync::PoisonError,
    time::SystemTime,
};

use super::Telemetry;

/// Characters of a refused file's faults.
const FAULTS: usize = 4000;

/// The configuration as operators see it.
#[derive(Clone, Debug, Default)]
pub struct Configuration {
    /// The file in force; `None`: defaults, flags and environment alone.
    pub file: Option<PathBuf>,
    /// When it took effect.
    pub loaded: Option<SystemTime>,
    /// How often one took effect, the start included.
    pub loads: u64,
    /// When and why the last one was refused; `None` once one took effect.
    pub refused: Option<(SystemTime, String)>,
}

impl Telemetry {
    /// A configuration has taken effect.
    pub fn configured(&self, file: Option<&Path>) {
        let mut state = self.configuration.lock().unwrap_or_else(PoisonError::into_inner);
        let loads = state.loads + 1;
        *state = Configuration { file: file.map(Path::to_owned), loaded: Some(SystemTime::now()), loads, refused: None };
    }

    /// A configuration has been refused; the old one stays in force. `faults` are shown as they are: without secrets.
    pub fn reload_refused(&self, faults: &str) {
        let mut state = self.configuration.lock().unwrap_or_else(PoisonError::into_inner);
        state.refused = Some((SystemTime::now(), faults.chars().take(FAULTS).collect()));
    }

    /// The state of the configuration.
    pub fn configuration(&self) -> Configuration {
        self.configuration.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
