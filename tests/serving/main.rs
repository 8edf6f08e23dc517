//! Listening, draining, TLS, and bytes that are not HTTP, over real sockets in one process.

mod any_bytes;
mod corpus;
mod drain;
mod http2;
mod idle;
mod kit;
mod malformed;
mod tls;

#[path = "../conformance/http2/frames.rs"]
#[expect(dead_code, reason = "the tables of conformance need more")]
mod frames;
