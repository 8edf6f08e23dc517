//! Handles one request: read it, admit it, send it, decide on retries, relay the response.
//!
//! | file | what it does |
//! |---|---|
//! | `pipeline` | [`handle`], which cannot fail, around the fallible `forward`: start reading here |
//! | `request` | endpoint, organization, app, model, cost and deadline of a request |
//! | `body_buffer` | collects request bodies under a budget shared by all requests |
//! | `admission` | waits for the breaker and the limits |
//! | `attempt` | sends the request once |
//! | `retry`, `breaker`, `fallback` | pure policies: deliver, retry or give up; whether to send at all; use another model |
//! | `observe` | observe mode: requests pass at once, and what the limiter would have done is counted |
//! | `relay` | response bodies: relays them, and reads usage and truncation on the way |
//! | `rate_limit` | the headers `RateLimit` and `RateLimit-Policy` of every response |
//! | `response` | response heads: what the shield adds |
//! | `served_models` | the models that each organization has used recently, for the message when one is missing |
//! | `shield` | the state shared by all requests |
//! | `via` | the `Via` header, which detects loops |
//! | `error` | the documented error object for every failure |

mod admission;
mod attempt;
mod bill;
pub mod body_buffer;
pub mod breaker;
mod caps;
pub mod error;
mod fallback;
mod observe;
mod observer;
mod pipeline;
mod rate_limit;
pub mod relay;
pub mod request;
mod response;
pub mod retry;
mod served_models;
mod shield;
mod via;

pub use pipeline::{handle, refuse};
pub use served_models::ServedModels;
pub use shield::Shield;

#[cfg(test)]
mod tests;
