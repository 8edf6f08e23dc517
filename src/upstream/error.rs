//! How an exchange with the upstream fails.

/// Why an exchange with the upstream ended without a complete response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExchangeError {
    /// Name lookup, TCP, connect timeout, or the HTTP proxy.
    Unreachable(String),
    /// The certificate is not trusted, or the peer does not speak TLS as required.
    Tls(String),
    /// The peer ended the handshake with an alert.
    TlsAlert(String),
    /// Closed or reset before the response was complete.
    Closed,
    /// No head, or no next frame, in time.
    Timeout,
    /// Not HTTP, or not a valid response of the endpoint.
    Invalid(&'static str),
}

impl ExchangeError {
    pub(super) const NOT_HTTP: Self = Self::Invalid("it is not HTTP");
    pub(super) const HEAD_TOO_LARGE: Self = Self::Invalid("its head is larger than 128 KiB or has more than 100 headers");
}

/// An attempt without a complete response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What went wrong.
    pub error: ExchangeError,
    /// Whether the request may have reached Groq.
    pub sent: bool,
}

impl Failure {
    /// A failure after the request was sent.
    pub fn after_sending(error: ExchangeError) -> Self {
        Self { error, sent: true }
    }

    pub(super) fn before_sending(error: ExchangeError) -> Self {
        Self { error, sent: false }
    }
}

/// Why a connection did not deliver the head of a response.
pub(super) enum Unanswered {
    /// The request was not sent, or not processed. The error applies if it is not sent again.
    Unsent(ExchangeError),
    /// The request may have reached the upstream.
    Failed(ExchangeError),
}
