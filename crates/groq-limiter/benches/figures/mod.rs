//! Deterministic simulation of overload in virtual time: the limiter's core in front of a reference upstream.
//!
//! | file | contents |
//! |---|---|
//! | `upstream` | an exact implementation of Groq's documented rate limiter |
//! | `load` | arrivals, sizes and latencies of requests |
//! | `front` | what decides when requests are sent: the shield's limiter or a baseline |
//! | `world` | the event loop of a simulation |
//! | `outcome` | the figures of a simulation |
//! | `oracle` | the maximum usage of a limit on output |
//! | `rows` | the scenarios and their targets |

pub(crate) mod front;
pub(crate) mod load;
pub(crate) mod oracle;
pub(crate) mod outcome;
pub(crate) mod rows;
pub(crate) mod upstream;
pub(crate) mod world;

/// Nanoseconds.
pub(crate) type Ns = u64;
pub(crate) const MS: Ns = 1_000_000;
pub(crate) const SECOND: Ns = 1000 * MS;
pub(crate) const MINUTE: Ns = 60 * SECOND;
