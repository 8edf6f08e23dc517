//! Whether a URL leads to one of the shield's own listeners.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};

use http::Uri;

/// Whether connections to `url` reach a listener at `listen` on this machine. A name is resolved only where the ports are the same;
/// one that cannot be resolved reaches nothing.
pub(super) fn reaches(url: &Uri, listen: SocketAddr) -> bool {
    let default_port = if url.scheme_str() == Some("https") { 443 } else { 80 };
    let port = url.port_u16().unwrap_or(default_port);
    if listen.port() == 0 || port != listen.port() {
        return false;
    }
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    let addresses: Vec<IpAddr> = match host.parse() {
        Ok(address) => vec![address],
        Err(_) if is_localhost(host) => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
        Err(_) => (host, port).to_socket_addrs().map(|found| found.map(|address| address.ip()).collect()).unwrap_or_default(),
    };
    addresses.into_iter().any(|address| is_served(address.to_canonical(), listen.ip().to_canonical()))
}

/// `localhost` and names below it are loopback's (RFC 6761), whatever a resolver says.
fn is_localhost(host: &str) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    host == "localhost" || host.ends_with(".localhost")
}

/// Whether a listener bound to `listen` accepts connections to `address`.
fn is_served(address: IpAddr, listen: IpAddr) -> bool {
    // A connection to 0.0.0.0 or [::] goes to loopback.
    let address = match address {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        address => address,
    };
    match listen {
        // [::] accepts IPv4 as well.
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => address.is_ipv4() && is_of_this_machine(address),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => is_of_this_machine(address),
        listen => address == listen,
    }
}

/// Only addresses of this machine can be bound. Nothing is sent.
fn is_of_this_machine(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
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
            // A documentation address is no machine's.
            ("http://192.0.2.1:8787", "0.0.0.0:8787", false),
            ("https://api.groq.com", "0.0.0.0:8787", false),
        ] {
            let (uri, address) = (url.parse().expect("a URL"), listen.parse().expect("an address"));
            assert_eq!(reaches(&uri, address), own, "{url} and {listen}");
        }
    }
}
