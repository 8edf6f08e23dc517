//! Why a request ends without the upstream's own response.

use std::time::Duration;

use groq_limiter::types::Dimension;

use super::upstream::UpstreamError;
use crate::{accounts::Exceeded, upstream::ExchangeError};

/// Why a request ends without the upstream's own response.
#[derive(Clone, Debug)]
pub enum Rejection {
    /// Not HTTP, or not one unambiguous request.
    Malformed(&'static str),
    /// The head or the body arrived too slowly.
    RequestTimeout(&'static str),
    /// Invalid JSON on an endpoint that takes JSON.
    InvalidJson(String),
    /// More bytes than `server.max_body`.
    BodyTooLarge {
        /// `server.max_body`, bytes.
        limit: u64,
    },
    /// No API key.
    NoKey,
    /// `[[app]]` tokens are configured, and this is not one of them.
    UnknownToken,
    /// This process has already forwarded the request.
    Loop,
    /// CONNECT, TRACE, or an authority other than the upstream's.
    Destination(String),
    /// The request needs more than a limit can ever hold.
    NeverFits {
        /// The limit's dimension.
        dimension: Dimension,
        /// The limit.
        limit: u64,
        /// What the request needs in total.
        asked: u64,
        /// The parts of that sum, prompt and completion limit; `None` if it is a single number.
        parts: Option<(u64, u64)>,
        /// The member of the body that lowers the completion limit.
        lower: CompletionLimit,
    },
    /// The request cannot be sent within its max wait.
    NotInTime {
        /// The dimension that makes it wait.
        dimension: Dimension,
        /// Forecast wait from now.
        wait: Duration,
        /// The completion limit, and its member, with which it could be sent in time.
        fits: Option<(u64, &'static str)>,
        /// When the same request could be sent in time.
        retry_after: Duration,
        /// Whether the client set the max wait, and not `queue.max_wait`.
        by_client: bool,
    },
    /// Groq refused, and the max wait is over.
    Refused {
        /// The dimension, if the refusal named it.
        dimension: Option<Dimension>,
        /// How long the upstream said to wait.
        retry_after: Duration,
    },
    /// A budget of the app is spent.
    BudgetSpent(Exceeded),
    /// The queue is full, by count or by bytes of bodies.
    Overloaded {
        /// When to try again.
        retry_after: Duration,
    },
    /// The shield is shutting down.
    ShuttingDown,
    /// The breaker is open.
    BreakerOpen {
        /// When the next probe is due.
        retry_after: Duration,
    },
    /// DNS failure, connection refused or reset, or connect timeout.
    Unreachable(String),
    /// The upstream's certificate or the TLS handshake failed.
    UpstreamTls(String),
    /// Closed or reset before the end of the head, or of a body that has to be complete.
    UpstreamClosed,
    /// No head within `upstream.response_timeout`, or no frame within `upstream.idle_timeout`.
    UpstreamTimeout,
    /// Not HTTP, or not JSON where JSON is expected.
    UpstreamInvalid(&'static str),
    /// An error response of the upstream, passed or rebuilt.
    Upstream(Box<UpstreamError>),
    /// A panic in the shield.
    Internal,
}

/// How an app can lower the completion limit of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompletionLimit {
    /// The request states it in this member.
    Stated(&'static str),
    /// The request does not state it, but could in this member.
    Unstated(&'static str),
    /// The endpoint has no completion limit.
    None,
}

impl From<ExchangeError> for Rejection {
    fn from(error: ExchangeError) -> Self {
        match error {
            ExchangeError::Unreachable(detail) => Self::Unreachable(detail),
            ExchangeError::Tls(detail) | ExchangeError::TlsAlert(detail) => Self::UpstreamTls(detail),
            ExchangeError::Closed => Self::UpstreamClosed,
            ExchangeError::Timeout => Self::UpstreamTimeout,
            ExchangeError::Invalid(what) => Self::UpstreamInvalid(what),
        }
    }
}

impl Rejection {
    /// Whether this failure comes from the shield and not from Groq.
    pub fn is_ours(&self) -> bool {
        match self {
            Self::Upstream(error) => error.rebuilt,
            _ => true,
        }
    }

    /// Whether the request itself is at fault.
    pub fn is_clients(&self) -> bool {
        matches!(
            self,
            Self::Malformed(_)
                | Self::RequestTimeout(_)
                | Self::InvalidJson(_)
                | Self::BodyTooLarge { .. }
                | Self::NoKey
                | Self::UnknownToken
                | Self::Destination(_)
                | Self::NeverFits { .. }
        )
    }
}
