//! The configuration: the structs of `settings` are the only list of its keys.
//!
//! The check of the file, the environment variables, the JSON schema, `config/groq-shield.toml` and the table of keys in
//! `docs/configuration.md` are derived from them.

mod document;
mod effective;
pub mod example;
mod fallback;
mod faults;
mod formats;
mod hints;
mod limiter;
mod notes;
mod own_address;
mod paths;
mod reload;
mod rules;
pub mod schema;
mod settings;
mod source;
mod text;

pub use fallback::{Fallback, FallbackReason};
pub use faults::{Fault, Faults, Origin};
pub use formats::Digest;
pub use groq_limiter::{
    settings::{ModelLimits, Plan},
    types::Priority as Class,
};
pub use notes::Note;
pub use reload::{Change, Next, Reload};
pub use settings::{
    Admin, App, Breaker, Limits, Log, LogFormat, Mode, ModelPrice, Organization, Queue, Retry, Server, Settings, Store,
    StoreKind, Tls, Upstream,
};
pub use source::{Loaded, PLACES, Source};

#[cfg(test)]
mod tests;
