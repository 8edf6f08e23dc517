//! HTTP/2 towards upstreams that are not hyper: Node's `http2` and hypercorn over TLS, working and failing.

mod kit;
mod servers;
mod tunnel;

#[path = "../wire/kit/tools.rs"]
#[expect(dead_code, reason = "the official clients are not needed here")]
mod tools;
