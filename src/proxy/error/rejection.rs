//! Why a request ends without the upstream's own answer.

use std::time::Duration;

use groq_limiter::types::Dimension;

use super::upstream::UpstreamError;
use crate::{accounts::Exceeded, upstream::ExchangeError};

/// A request's end without the upstream's own answer.
#[derive(Clone, Debug)]
pub enum Rejection {
    /// Bytes that are not HTTP, or not one unambiguous request.
    Malformed(&'static str),
    /// The head or the body came too slowly.
    RequestTimeout(&'static str),
    /// JSON that does not parse on an endpoint that takes JSON.
    InvalidJson(String),
    /// More bytes than `server.max_body`.
    BodyTooLarge {
        /// `server.max_body`, bytes.
        limit: u64,
    },
    /// No key at all.
    NoKey,
    /// `[[app]]` tokens are configured and this is none of them.
    UnknownToken,
    /// The request has been forwarded by this process before.
    Loop,
    /// CONNECT, TRACE, or an authority that is not the upstream's.
    Destination(String),
    /// More than a limit can ever hold.
    NeverFits {
        /// The limit's dimension.
        dimension: Dimension,
        /// The limit.
        limit: u64,
        /// What the request asks for in all.
        asked: u64,
        /// How that sum comes about: prompt and completion limit; `None` where it is one number.
        parts: Option<(u64, u64)>,
        /// The member of the body that lowers the completion limit.
        lower: CompletionLimit,
    },
    /// Cannot be sent within the longest wait.
    NotInTime {
        /// The dimension that makes it wait.
        dimension: Dimension,
        /// Forecast wait from now.
        wait: Duration,
        /// With a completion limit of at most so much, in this member, it could be sent sooner.
        fits: Option<(u64, &'static str)>,
        /// After so long the same request could be sent in time.
        retry_after: Duration,
        /// Whether the client set the longest wait, and not `queue.max_wait`.
        by_client: bool,
    },
    /// Groq refused, and the client's max wait is over.
    Refused {
        /// The dimension, where the refusal named it.
        dimension: Option<Dimension>,
        /// How long the upstream said to wait.
        retry_after: Duration,
    },
    /// A budget of the app is spent.
    BudgetSpent(Exceeded),
    /// The queue is full by count or bytes, or the shield is out of memory for bodies.
    Overloaded {
        /// When to come again.
        retry_after: Duration,
    },
    /// The shield is stopping.
    ShuttingDown,
    /// The breaker is open.
    BreakerOpen {
        /// When it will probe.
        retry_after: Duration,
    },
    /// DNS, refused, reset while connecting, connect timeout.
    Unreachable(String),
    /// The upstream's certificate or handshake.
    UpstreamTls(String),
    /// Closed or reset before or in the head, or in a body that had to be whole.
    UpstreamClosed,
    /// No head within `upstream.response_timeout`, or no frame within `upstream.idle_timeout`.
    UpstreamTimeout,
    /// Not HTTP, or not JSON where JSON is the answer.
    UpstreamInvalid(&'static str),
    /// An error status of the upstream's, rebuilt or passed.
    Upstream(Box<UpstreamError>),
    /// A panic of ours.
    Internal,
}

/// The completion limit of a request's body, as far as an app can lower it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompletionLimit {
    /// The request states it in this member.
    Stated(&'static str),
    /// The request leaves it to Groq, and could state it in this member.
    Unstated(&'static str),
    /// The endpoint has none.
    None,
}

impl From<ExchangeError> for Rejection {
    fn from(error: ExchangeError) -> Self {
        match error {
            ExchangeError::Unreachable(detail) => Self::Unreachable(detail),
            ExchangeError::Tls(detail) => Self::UpstreamTls(detail),
            ExchangeError::Closed => Self::UpstreamClosed,
            ExchangeError::Timeout => Self::UpstreamTimeout,
            ExchangeError::Invalid(what) => Self::UpstreamInvalid(what),
        }
    }
}

impl Rejection {
    /// Whether the shield made this failure itself (and not Groq).
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
