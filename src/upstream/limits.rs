//! Limits of a connection, over either version of HTTP.

use std::time::Duration;

/// How long an idle connection is kept. Groq's edge closes idle connections after some minutes; a new one costs less than a lost
/// request.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(45);
/// Longest life of a connection: under steady load it is never idle, and would never follow a change of DNS.
pub(super) const MAX_AGE: Duration = Duration::from_secs(600);
/// Largest response head, bytes: twice the largest request head.
pub(super) const MAX_HEAD: usize = 128 << 10;
