//! What are settings while they are read? What must be there in pairs may be there by halves, names are still to come.

use std::path::PathBuf;

use super::{App, Organisation, Settings, Tls};

/// Settings while they are read: what must be there in pairs may be there by halves.
#[derive(Clone, Debug, Default)]
pub(super) struct Draft {
    pub(super) settings: Settings,
    pub(super) cert: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
}

impl From<&Settings> for Draft {
    fn from(settings: &Settings) -> Self {
        let tls = settings.server.tls.as_ref();
        Self { cert: tls.map(|tls| tls.cert.clone()), key: tls.map(|tls| tls.key.clone()), settings: settings.clone() }
    }
}

impl Draft {
    /// The settings, with the pairs that are whole.
    pub(super) fn finish(mut self) -> Settings {
        self.settings.server.tls = self.cert.zip(self.key).map(|(cert, key)| Tls { cert, key });
        self.settings
    }
}

/// An organisation before its keys are read.
pub(super) fn organisation() -> Organisation {
    Organisation { name: String::new(), api_key_env: Vec::new(), api_key_sha256: Vec::new() }
}

/// An app before its keys are read.
pub(super) fn app() -> App {
    App::default()
}
