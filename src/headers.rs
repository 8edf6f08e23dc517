//! Which headers pass between app and upstream: end-to-end ones do; hop-by-hop ones and `x-shield-*` do not.

use http::{HeaderMap, HeaderName, HeaderValue, header};

/// The id of a request in the logs of Groq and the shield.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The first value of `name`, if it is visible ASCII.
pub fn text(headers: &HeaderMap, name: impl header::AsHeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// The first value of each of `names`. One pass over the headers present is cheaper than a lookup for each name, which hashes it
/// (140 instructions).
pub fn first<'h, const N: usize>(headers: &'h HeaderMap, names: [&str; N]) -> [Option<&'h HeaderValue>; N] {
    let mut values = [None; N];
    for (name, value) in headers {
        if let Some(at) = names.iter().position(|wanted| *wanted == name.as_str()) {
            values[at].get_or_insert(value);
        }
    }
    values
}

/// Turns an app's request headers into those of the upstream request.
///
/// With `read_answer` the shield reads the response body, so the upstream is asked not to encode it.
/// `host` and `content-length` are removed; they are set when the request is sent.
pub fn to_upstream(headers: &mut HeaderMap, read_answer: bool) {
    remove_hop_by_hop(headers);
    for name in [header::HOST, header::EXPECT, header::CONTENT_LENGTH] {
        headers.remove(name);
    }
    if read_answer {
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }
}

/// Turns the upstream's response headers into those of the app's response. `x-shield-*` is removed: only the shield sets it.
pub fn from_upstream(headers: &mut HeaderMap) {
    remove_hop_by_hop(headers);
}

/// Whether a header is hop-by-hop (RFC 9110 §7.6.1), or only set or read by the shield. `proxy-connection` and `keep-alive` are
/// not standardized, but in use.
fn ends_here(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "keep-alive"
            | "proxy-connection"
    ) || name.starts_with("x-shield-")
}

/// Removes hop-by-hop headers, those that `connection` names, and `x-shield-*`.
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let values = headers.get_all(header::CONNECTION).iter().map(HeaderValue::as_bytes);
    let tokens = values.flat_map(|value| value.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
    let named = tokens.filter_map(|token| HeaderName::from_bytes(token).ok());
    // One pass over the headers is cheaper than a lookup for each hop-by-hop name.
    let present = headers.keys().filter(|name| ends_here(name.as_str())).cloned();
    for name in named.chain(present).collect::<Vec<_>>() {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| {
            (HeaderName::from_bytes(name.as_bytes()).expect("a name"), value.parse().expect("a value"))
        };
        pairs.iter().map(pair).collect()
    }

    /// The remaining headers, sorted by name: a `HeaderMap` keeps the order of values of the same name only.
    fn left(headers: &HeaderMap) -> Vec<(&str, &str)> {
        let mut left: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.to_str().expect("text"))).collect();
        left.sort_by_key(|(name, _)| *name);
        left
    }

    #[test]
    fn only_end_to_end_headers_reach_the_upstream() {
        let mut headers = headers(&[
            ("host", "127.0.0.1:8787"),
            ("connection", "keep-alive, X-Secret-Hop"),
            ("connection", "close"),
            ("keep-alive", "timeout=5"),
            ("x-secret-hop", "1"),
            ("proxy-authorization", "Basic x"),
            ("proxy-authenticate", "Basic"),
            ("proxy-connection", "keep-alive"),
            ("te", "trailers"),
            ("trailer", "x"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("expect", "100-continue"),
            ("content-length", "12"),
            ("x-shield-app", "a"),
            ("x-shield-max-wait-ms", "5"),
            ("X-Shield-Anything", "5"),
            ("accept-encoding", "gzip"),
            ("accept-encoding", "br"),
            ("authorization", "Bearer k"),
            ("x-stainless-retry-count", "0"),
            ("cookie", "a=1"),
            ("cookie", "b=2"),
            ("user-agent", "curl/8"),
        ]);
        to_upstream(&mut headers, true);
        let expected = [
            ("accept-encoding", "identity"),
            ("authorization", "Bearer k"),
            ("cookie", "a=1"),
            ("cookie", "b=2"),
            ("user-agent", "curl/8"),
            ("x-stainless-retry-count", "0"),
        ];
        assert_eq!(left(&headers), expected);
    }

    #[test]
    fn unread_answers_may_be_encoded() {
        let mut gzip = headers(&[("accept-encoding", "gzip")]);
        to_upstream(&mut gzip, false);
        assert_eq!(left(&gzip), [("accept-encoding", "gzip")]);
        let mut none = HeaderMap::new();
        to_upstream(&mut none, false);
        assert!(none.is_empty());
    }

    #[test]
    fn answers_keep_end_to_end_headers() {
        let mut headers = headers(&[
            ("connection", "close, x-hop"),
            ("x-hop", "1"),
            ("transfer-encoding", "chunked"),
            ("x-shield-error", "a lie"),
            ("content-length", "12"),
            ("content-type", "application/json"),
            ("set-cookie", "__cf_bm=1"),
            ("set-cookie", "b=2"),
            ("x-ratelimit-limit-tokens", "8000"),
        ]);
        from_upstream(&mut headers);
        let expected = [
            ("content-length", "12"),
            ("content-type", "application/json"),
            ("set-cookie", "__cf_bm=1"),
            ("set-cookie", "b=2"),
            ("x-ratelimit-limit-tokens", "8000"),
        ];
        assert_eq!(left(&headers), expected);
    }

    proptest! {
        #[test]
        fn any_connection_header(value in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                let mut headers = HeaderMap::from_iter([(header::CONNECTION, value)]);
                from_upstream(&mut headers);
                prop_assert!(headers.is_empty());
            }
        }
    }
}
