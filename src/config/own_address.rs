//! Whether a URL leads to one of the shield's own listeners.

use std::net::{IpAddr, SocketAddr};

use http::Uri;

/// Whether connections to `url` reach a listener at `listen`, as far as the text tells. Nothing is resolved: where a name or another
/// address of this machine leads back here, the first request is answered with an error that says so.
pub(super) fn reaches(url: &Uri, listen: SocketAddr) -> bool {
    let default_port = if url.scheme_str() == Some("https") { 443 } else { 80 };
    if listen.port() == 0 || url.port_u16().unwrap_or(default_port) != listen.port() {
        return false;
    }
    let host = url.host().unwrap_or_default().trim_matches(['[', ']', '.']).to_ascii_lowercase();
    let listen = listen.ip().to_canonical();
    match host.parse::<IpAddr>().map(|address| address.to_canonical()) {
        // A connection to 0.0.0.0 or [::] goes to loopback.
        Ok(address) if address.is_unspecified() => listen.is_loopback() || listen.is_unspecified(),
        Ok(address) => address == listen || address.is_loopback() && listen.is_unspecified(),
        // These names are loopback's (RFC 6761), whatever a resolver says.
        Err(_) => (host == "localhost" || host.ends_with(".localhost")) && (listen.is_loopback() || listen.is_unspecified()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_addresses_are_seen_and_others_are_not() {
        for (url, listen, own) in [
            ("http://127.0.0.1:8787", "127.0.0.1:8787", true),
            ("http://localhost:8787", "127.0.0.1:8787", true),
            ("http://LOCALHOST.:8787/x", "[::1]:8787", true),
            ("http://shield.localhost:8787", "127.0.0.1:8787", true),
            ("http://0.0.0.0:8787", "127.0.0.1:8787", true),
            ("http://127.0.0.1:8787", "0.0.0.0:8787", true),
            ("http://127.0.0.1:8787", "[::]:8787", true),
            ("http://[::ffff:127.0.0.1]:8787", "127.0.0.1:8787", true),
            ("http://127.0.0.1", "127.0.0.1:80", true),
            ("https://localhost", "127.0.0.1:443", true),
            ("http://127.0.0.1:8788", "127.0.0.1:8787", false),
            ("http://127.0.0.1:8787", "127.0.0.1:0", false),
            ("http://127.0.0.2:8787", "127.0.0.1:8787", false),
            ("http://192.0.2.1:8787", "192.0.2.1:8787", true),
            ("http://192.0.2.1:8787", "0.0.0.0:8787", false),
            ("https://api.groq.com", "0.0.0.0:8787", false),
        ] {
            let (uri, address) = (url.parse().expect("a URL"), listen.parse().expect("an address"));
            assert_eq!(reaches(&uri, address), own, "{url} and {listen}");
        }
    }
}
