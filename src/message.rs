//! What is a request, and what an answer, between the wire and the story? A head whose lines stay as they came, and a body.

use http::{Method, Uri};

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

impl<B> From<Request<B>> for http::Request<B> {
    fn from(request: Request<B>) -> Self {
        let mut converted = http::Request::new(request.body);
        *converted.method_mut() = request.method;
        *converted.uri_mut() = request.uri;
        *converted.headers_mut() = (&request.headers).into();
        converted
    }
}
