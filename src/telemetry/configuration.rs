//! The current configuration, and the faults of the last rejected one.

use std::{
    path::{Path, PathBuf},
    sync::PoisonError,
    time::SystemTime,
};

use super::Telemetry;

/// Characters of a rejected file's faults.
const FAULTS: usize = 4000;

/// The configuration as operators see it.
#[derive(Clone, Debug, Default)]
pub struct Configuration {
    /// Its file; `None`: defaults, flags and environment only.
    pub file: Option<PathBuf>,
    /// When it took effect.
    pub loaded: Option<SystemTime>,
    /// How many configurations have taken effect, the first one included.
    pub loads: u64,
    /// When and why the last one was rejected; `None` once another took effect.
    pub refused: Option<(SystemTime, String)>,
}

impl Telemetry {
    /// A configuration has taken effect.
    pub fn configured(&self, file: Option<&Path>) {
        let mut state = self.configuration.lock().unwrap_or_else(PoisonError::into_inner);
        let loads = state.loads + 1;
        *state = Configuration { file: file.map(Path::to_owned), loaded: Some(SystemTime::now()), loads, refused: None };
    }

    /// A configuration has been rejected; the previous one stays in force. `faults` contain no secrets.
    pub fn reload_refused(&self, faults: &str) {
        let mut state = self.configuration.lock().unwrap_or_else(PoisonError::into_inner);
        state.refused = Some((SystemTime::now(), faults.chars().take(FAULTS).collect()));
    }

    /// The state of the configuration.
    pub fn configuration(&self) -> Configuration {
        self.configuration.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
