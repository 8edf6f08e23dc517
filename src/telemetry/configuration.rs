//! The current configuration, and the faults of the last rejected one.

use std::{
    path::{Path, PathBuf},
    sync::PoisonError,
    time::SystemTime,
};

use super::Telemetry;

/// Maximum characters of the faults of a rejected file.
const FAULTS: usize = 4000;

/// The configuration as operators see it.
#[derive(Clone, Debug, Default)]
pub struct Configuration {
    /// Its file; `None` if there are only defaults, flags and environment variables.
    pub file: Option<PathBuf>,
    /// When it took effect.
    pub loaded: Option<SystemTime>,
    /// How many configurations have taken effect, including the first one.
    pub loads: u64,
    /// When and why the last one was rejected; `None` once another has taken effect.
    pub refused: Option<(SystemTime, String)>,
}

impl Telemetry {
    /// Records that a configuration has taken effect.
    pub fn configured(&self, file: Option<&Path>) {
        let mut state = self.configuration.lock().unwrap_or_else(PoisonError::into_inner);
        let loads = state.loads + 1;
        *state = Configuration { file: file.map(Path::to_owned), loaded: Some(SystemTime::now()), loads, refused: None };
    }

    /// Records that a configuration was rejected and the previous one stays in effect. `faults` contains no secrets.
    pub fn reload_refused(&self, faults: &str) {
        let mut state = self.configuration.lock().unwrap_or_else(PoisonError::into_inner);
        state.refused = Some((SystemTime::now(), faults.chars().take(FAULTS).collect()));
    }

    /// The state of the configuration.
    pub fn configuration(&self) -> Configuration {
        self.configuration.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
