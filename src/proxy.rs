//! The life of one request: read it, admit it, attempt it, judge the outcome, relay the response.
//!
//! | file | what it does |
//! |---|---|
//! | `pipeline` | [`handle`], which cannot fail, around the fallible `forward`: start reading here |
//! | `request` | endpoint, organization, app, model, cost and deadline of a request |
//! | `body_buffer` | collects request bodies under a budget shared by all requests |
//! | `admission` | waits for the breaker and the limits |
//! | `attempt` | sends the request once |
//! | `retry`, `breaker`, `fallback` | pure policies: deliver, try again, give up; whether to try at all; another model |
//! | `observe` | observe mode: nothing waits, and what would have become of requests is counted |
//! | `relay` | response bodies: usage and truncation are observed while they pass |
//! | `rate_limit` | `RateLimit` and `RateLimit-Policy` of every response |
//! | `response` | response heads: what the shield adds |
//! | `served_models` | the models that each organization has used of late, for the message when one is gone |
//! | `shield` | what all requests share |
//! | `via` | recognizes a request that has come back |
//! | `error` | every failure as the documented error object |

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
