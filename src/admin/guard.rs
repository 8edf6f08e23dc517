//! Access control of the admin listener: programs and browsers of operators, but no web pages of other origins.
//!
//! A web page can make its reader's browser send requests here, and can resolve a name of its own to this address (DNS
//! rebinding). So a request must name a host that is certainly ours, and must not come from another origin.

use std::net::IpAddr;

use http::{HeaderMap, Request, header, uri::Authority};

/// Admits a request, or returns why not.
pub(super) fn admit<B>(request: &Request<B>) -> Result<(), &'static str> {
    let headers = request.headers();
    let host = match (headers.get(header::HOST), request.uri().authority()) {
        (Some(host), _) => Some(host.to_str().ok().and_then(|host| host.parse::<Authority>().ok()).ok_or(HOST)?),
        (None, authority) => authority.cloned(),
    };
    // Browsers always send Host; an HTTP/1.0 probe need not.
    if host.as_ref().is_some_and(|host| !is_ours(host.host())) {
        return Err(HOST);
    }
    if let Some(origin) = headers.get(header::ORIGIN) {
        let same = host.is_some_and(|host| origin.as_bytes() == format!("http://{host}").as_bytes());
        if !same {
            return Err(ORIGIN);
        }
    }
    match word(headers, "sec-fetch-site") {
        None | Some("same-origin" | "none") => Ok(()),
        // Following a link shows the page to the user and reveals nothing to the linking page.
        Some(_) if request.uri().path() == "/" && is_link_followed(headers) => Ok(()),
        Some(_) => Err(ORIGIN),
    }
}

const HOST: &str = "This host name could be anyone's. Use the address itself, localhost, or a name without dots.";
const ORIGIN: &str = "Web pages of another origin cannot read the admin listener. Open its address directly.";

/// Addresses cannot be rebound; names without a dot, and those under suffixes that nobody can register, are local.
fn is_ours(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase();
    host.parse::<IpAddr>().is_ok()
        || !host.contains('.')
        || [".localhost", ".local", ".internal", ".home.arpa", ".svc"].iter().any(|suffix| host.ends_with(suffix))
}

fn is_link_followed(headers: &HeaderMap) -> bool {
    word(headers, "sec-fetch-mode") == Some("navigate") && word(headers, "sec-fetch-dest") == Some("document")
}

fn word<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).map(|value| value.to_str().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(path: &str, headers: &[(&str, &str)]) -> bool {
        let request = headers.iter().fold(Request::get(path), |request, (name, value)| request.header(*name, *value));
        admit(&request.body(()).expect("a request")).is_ok()
    }

    #[test]
    fn only_hosts_that_are_surely_ours() {
        for ours in
            ["127.0.0.1:8788", "localhost:8788", "[::1]:8788", "10.0.0.7", "groq-shield:8788", "LOCALHOST", "a.svc.cluster.local"]
        {
            assert!(admitted("/status", &[("host", ours)]), "{ours}");
        }
        for other in
            ["evil.example", "evil.example:8788", "127.0.0.1.evil.example", "localhost.evil.example", "", "a b", "x@evil.example"]
        {
            assert!(!admitted("/status", &[("host", other)]), "{other}");
        }
        assert!(admitted("/livez", &[]));
    }

    #[test]
    fn no_page_of_another_origin() {
        let host = ("host", "127.0.0.1:8788");
        assert!(admitted("/status", &[host, ("origin", "http://127.0.0.1:8788"), ("sec-fetch-site", "same-origin")]));
        for origin in ["https://evil.example", "http://127.0.0.1:3000", "http://localhost:8788", "null", "https://127.0.0.1:8788"]
        {
            assert!(!admitted("/status", &[host, ("origin", origin)]), "{origin}");
        }
        for site in ["cross-site", "same-site", "nonsense"] {
            assert!(!admitted("/status", &[host, ("sec-fetch-site", site)]), "{site}");
            assert!(!admitted("/", &[host, ("sec-fetch-site", site)]), "{site}");
        }
    }

    #[test]
    fn a_link_may_be_followed_to_the_page_but_not_framed() {
        let link = |dest| {
            [("host", "localhost"), ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", dest)]
        };
        assert!(admitted("/", &link("document")));
        assert!(!admitted("/", &link("iframe")));
        assert!(!admitted("/status", &link("document")));
    }
}
