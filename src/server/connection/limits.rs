//! Time limits of a connection, over either version of HTTP.

use std::time::Duration;

/// How long a connection is kept without a request: longer than any common client keeps its own (OkHttp: 300 s), so that the
/// client closes first and no request meets a closing connection.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(330);
/// How long hyper keeps a connection without a request.
pub(super) const QUIET: Duration = Duration::from_secs(1);
/// Maximum time without any progress of a client that reads its response.
pub(super) const MAX_BLOCKED: Duration = Duration::from_secs(120);
/// How long a client may go on sending after its last response, so that the response is not lost in a reset.
pub(super) const LINGER: Duration = Duration::from_secs(10);
