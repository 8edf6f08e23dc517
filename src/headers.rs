//! Which headers go on, and which end here? Hop-by-hop ones and our own do; everything else passes as it came.

use http::{HeaderValue, header};

use crate::message::Headers;

/// Makes an app's headers the upstream's. `read_answer`: the shield reads what comes back, so it must come as it is.
///
/// `host` and the body's length go too: they are told anew when the request is sent.
pub fn to_upstream(headers: &mut Headers, read_answer: bool) {
    remove(headers, |name| {
        let is = |word: &str| name.eq_ignore_ascii_case(word.as_bytes());
        ends_here(name)
            || match name.len() {
                4 => is("host"),
                6 => is("expect"),
                14 => is("content-length"),
                15 => read_answer && is("accept-encoding"),
                _ => false,
            }
    });
    if read_answer {
        headers.append(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }
}

/// Makes the upstream's headers the app's. Nobody but us may say `x-shield-…`.
pub fn from_upstream(headers: &mut Headers) {
    remove(headers, ends_here);
}

/// Whether a header describes one connection only, or is ours. `proxy-connection` and `keep-alive` are not in the standard, but in use.
fn ends_here(name: &[u8]) -> bool {
    let is = |word: &str| name.eq_ignore_ascii_case(word.as_bytes());
    let ours = "x-shield-";
    match name.len() {
        2 => is("te"),
        7 => is("trailer") || is("upgrade"),
        10 => is("connection") || is("keep-alive"),
        16 if is("proxy-connection") => true,
        17 if is("transfer-encoding") => true,
        18 if is("proxy-authenticate") => true,
        19 if is("proxy-authorization") => true,
        _ => name.get(..ours.len()).is_some_and(|start| start.eq_ignore_ascii_case(ours.as_bytes())),
    }
}

/// Removes these, and those that `connection` names.
fn remove(headers: &mut Headers, ends: impl Fn(&[u8]) -> bool) {
    let named = headers.get_all("connection").flat_map(|value| value.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
    // The usual words name nothing, and take no memory.
    let usual = |word: &[u8]| word.eq_ignore_ascii_case(b"keep-alive") || word.eq_ignore_ascii_case(b"close");
    let named: Vec<Vec<u8>> = named.filter(|word| !usual(word)).map(<[u8]>::to_vec).collect();
    headers.retain(|name, _| !ends(name) && !named.iter().any(|word| name.eq_ignore_ascii_case(word)));
}

#[cfg(test)]
mod tests {
    use http::HeaderName;
    use proptest::prelude::*;

    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        let pair = |(name, value): &(&str, &str)| {
            (HeaderName::from_bytes(name.as_bytes()).expect("a name"), value.parse().expect("a value"))
        };
        pairs.iter().map(pair).collect()
    }

    /// What is left, as text.
    fn left(headers: &Headers) -> Vec<(&str, &str)> {
        let text = |bytes| std::str::from_utf8(bytes).expect("text");
        headers.iter().map(|(name, value)| (text(name), text(value))).collect()
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
            ("authorization", "Bearer k"),
            ("x-stainless-retry-count", "0"),
            ("cookie", "a=1"),
            ("cookie", "b=2"),
            ("user-agent", "curl/8"),
            ("accept-encoding", "identity"),
        ];
        assert_eq!(left(&headers), expected);
    }

    #[test]
    fn an_answer_that_nobody_reads_may_come_encoded() {
        let mut gzip = headers(&[("accept-encoding", "gzip")]);
        to_upstream(&mut gzip, false);
        assert_eq!(left(&gzip), [("accept-encoding", "gzip")]);
        let mut none = Headers::new();
        to_upstream(&mut none, false);
        assert!(none.is_empty());
    }

    #[test]
    fn answers_keep_what_is_end_to_end() {
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
                let mut headers = Headers::from_iter([(header::CONNECTION, value)]);
                from_upstream(&mut headers);
                prop_assert!(headers.is_empty());
            }
        }
    }
}
