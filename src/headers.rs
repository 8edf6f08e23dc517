//! Which headers go on, and which end here? Hop-by-hop ones and our own do; everything else passes as it came.

use http::{HeaderMap, HeaderName, HeaderValue, header};

/// Makes an app's headers the upstream's. `read_answer`: the shield reads what comes back, so it must come as it is.
///
/// A length that is not the body's, whole by now, goes too. `host` is replaced when the request is sent.
pub fn to_upstream(headers: &mut HeaderMap, read_answer: bool, length: usize) {
    let true_length = headers.get(header::CONTENT_LENGTH).is_some_and(|value| value == itoa::Buffer::new().format(length));
    remove(headers, |name| ends_here(name) || *name == header::EXPECT || (*name == header::CONTENT_LENGTH && !true_length));
    if read_answer {
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }
}

/// Makes the upstream's headers the app's. Nobody but us may say `x-shield-…`.
pub fn from_upstream(headers: &mut HeaderMap) {
    remove(headers, ends_here);
}

/// Whether a header describes one connection only, or is ours. `proxy-connection` and `keep-alive` are not in the standard, but in use.
fn ends_here(name: &HeaderName) -> bool {
    match name.as_str() {
        "connection"
        | "keep-alive"
        | "proxy-authenticate"
        | "proxy-authorization"
        | "proxy-connection"
        | "te"
        | "trailer"
        | "transfer-encoding"
        | "upgrade" => true,
        name => name.starts_with("x-shield-"),
    }
}

/// Removes these, and those that `connection` names. One look at each: a look-up of every name that may be there took longer.
fn remove(headers: &mut HeaderMap, ends: impl Fn(&HeaderName) -> bool) {
    let mut ending: Vec<HeaderName> = headers.keys().filter(|name| ends(name)).cloned().collect();
    if ending.contains(&header::CONNECTION) {
        let nominated = headers.get_all(header::CONNECTION).iter().flat_map(|value| value.as_bytes().split(|b| *b == b','));
        ending.extend(nominated.filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok()));
    }
    for name in ending {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_bytes(name.as_bytes()).expect("a name"), value.parse().expect("a value"));
        }
        headers
    }

    #[test]
    fn only_end_to_end_headers_reach_the_upstream() {
        let mut headers = map(&[
            ("host", "127.0.0.1:8787"),
            ("connection", "keep-alive, X-Secret-Hop"),
            ("connection", "close"),
            ("keep-alive", "timeout=5"),
            ("x-secret-hop", "1"),
            ("proxy-authorization", "Basic x"),
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
        to_upstream(&mut headers, true, 11);
        let expected = map(&[
            ("host", "127.0.0.1:8787"),
            ("accept-encoding", "identity"),
            ("authorization", "Bearer k"),
            ("x-stainless-retry-count", "0"),
            ("cookie", "a=1"),
            ("cookie", "b=2"),
            ("user-agent", "curl/8"),
        ]);
        assert_eq!(headers, expected);
    }

    #[test]
    fn a_length_goes_on_only_if_it_is_the_bodys() {
        for (length, stays) in [(12, true), (11, false), (0, false)] {
            let mut headers = map(&[("content-length", "12")]);
            to_upstream(&mut headers, false, length);
            assert_eq!(headers.contains_key("content-length"), stays, "{length}");
        }
        let mut odd = map(&[("content-length", "012")]);
        to_upstream(&mut odd, false, 12);
        assert!(odd.is_empty());
    }

    #[test]
    fn an_answer_that_nobody_reads_may_come_encoded() {
        let mut headers = map(&[("accept-encoding", "gzip")]);
        to_upstream(&mut headers, false, 0);
        assert_eq!(headers, map(&[("accept-encoding", "gzip")]));
        let mut none = HeaderMap::new();
        to_upstream(&mut none, false, 0);
        assert!(none.is_empty());
    }

    #[test]
    fn answers_keep_what_is_end_to_end() {
        let mut headers = map(&[
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
        let expected = map(&[
            ("content-length", "12"),
            ("content-type", "application/json"),
            ("set-cookie", "__cf_bm=1"),
            ("set-cookie", "b=2"),
            ("x-ratelimit-limit-tokens", "8000"),
        ]);
        assert_eq!(headers, expected);
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
