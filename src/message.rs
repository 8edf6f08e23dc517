//! What is a request, and what an answer, between the wire and the story? A head whose lines stay as they came, and a body.

use bytes::Bytes;
use http::{Method, StatusCode, Uri};

mod headers;

pub(crate) use headers::Found;
pub use headers::Headers;

/// A request.
#[derive(Debug)]
pub struct Request<B> {
    /// Its method.
    pub method: Method,
    /// What it is for.
    pub uri: Uri,
    /// Its headers.
    pub headers: Headers,
    /// Its body.
    pub body: B,
}

impl<B> Request<B> {
    /// The same with another body.
    pub fn with<C>(self, body: C) -> Request<C> {
        Request { method: self.method, uri: self.uri, headers: self.headers, body }
    }
}

/// An answer's head.
#[derive(Clone, Debug, Default)]
pub struct Head {
    /// Its status.
    pub status: StatusCode,
    /// The words beside the status, where they are not the standard's.
    pub reason: Option<Bytes>,
    /// Its headers.
    pub headers: Headers,
}

/// An answer.
#[derive(Debug)]
pub struct Response<B> {
    /// What comes first.
    pub head: Head,
    /// Its body.
    pub body: B,
}

impl<B> Response<B> {
    /// The same with another body.
    pub fn map<C>(self, change: impl FnOnce(B) -> C) -> Response<C> {
        Response { head: self.head, body: change(self.body) }
    }
}
