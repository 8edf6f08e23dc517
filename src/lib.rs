//! groq-shield: the proxy that everyone who calls Groq puts in front of it.
//!
//! It throttles before Groq does, retries what is transient, and turns every failure into the
//! documented error object. The path of one request, top to bottom:
//!
//! | step | module | question it answers |
//! |---|---|---|
//! | accept | [`server`] | who listens, accepts, drains; what becomes of bytes that are not HTTP |
//! | handle, forward | [`proxy`] | the story of one request |
//! | take in | [`intake`] | the body, whole and bounded |
//! | read | [`call`] | which endpoint, organisation, app, model; what may it cost; how patient is it |
//! | reserve | [`limits`] | may it go now, later, never; settled with the truth afterwards |
//! | send | [`upstream`] | one attempt at Groq: an answer or a failure |
//! | judge | [`retry`], [`breaker`] | deliver, again after so long, give up |
//! | relay | [`relay`] | the answer streams back; usage and truncation are seen in its tail |
//! | reject | [`error`] | every failure as the documented object |
//!
//! [`message`] is a request and an answer between these, `wire` both as bytes.
//! [`groq`] knows Groq's words, [`estimate`] tokens and audio seconds, [`headers`] what is forwarded,
//! [`config`] the TOML file, [`telemetry`] logs and metrics, [`admin`] the second listener.
//! The simulated Groq is a crate of its own, `groq-sim`.

pub mod admin;
pub mod breaker;
pub mod call;
pub mod cli;
pub mod config;
pub mod error;
pub mod estimate;
pub mod groq;
pub mod headers;
pub mod intake;
mod late;
pub mod limits;
pub mod message;
pub mod proxy;
pub mod relay;
pub mod retry;
pub mod server;
pub mod telemetry;
pub mod upstream;
mod wire;
