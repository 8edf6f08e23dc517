//! groq-shield: a proxy in front of Groq's API that delays requests until the rate limits have room, retries transient failures,
//! and turns every failure into the documented error object.
//!
//! The path of a request, top to bottom:
//!
//! | step | where |
//! |---|---|
//! | accept a connection, serve HTTP on it | [`server`] |
//! | read the request, admit it, send it, relay the response | [`proxy`]: start at `proxy/pipeline.rs` |
//! | reserve under Groq's limits, wait in the queue, settle | [`groq_limiter`] |
//! | one exchange with Groq | [`upstream`] |
//!
//! Besides these, [`groq`] parses Groq's wire formats (endpoints, rate-limit headers, refusal texts, usage), [`estimate`] counts
//! tokens and audio seconds, [`headers`] decides which headers pass, [`config`] reads the TOML file, [`telemetry`] logs and
//! counts, [`admin`] is the second listener, [`cli`] the commands. The simulated Groq is a crate of its own, `groq-sim`.

pub mod accounts;
pub mod admin;
pub mod cli;
pub mod config;
pub mod estimate;
pub mod groq;
pub mod headers;
pub mod proxy;
pub mod server;
mod shutdown;
pub mod telemetry;
pub mod upstream;
pub mod wall_clock;
