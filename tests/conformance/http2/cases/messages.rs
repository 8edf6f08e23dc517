//! h2spec's `http2`, messages: requests that are malformed by RFC 9113 §8.

use super::case;
use crate::http2::{
    Allowed::Malformed,
    Case,
    frames::{END_HEADERS, END_STREAM},
    step::{Step, data, fields, get_with, post, post_with},
};

/// A complete request of exactly these fields.
fn whole(list: &[(&str, &str)]) -> Step {
    fields(END_STREAM | END_HEADERS, list)
}

pub(super) fn cases() -> Vec<Case> {
    const METHOD: (&str, &str) = (":method", "GET");
    const SCHEME: (&str, &str) = (":scheme", "http");
    const PATH: (&str, &str) = (":path", "/");
    const AUTHORITY: (&str, &str) = (":authority", "localhost");
    vec![
        case("http2/8.1.2/1", "RFC 9113 §8.2.1", [get_with(&[("X-TEST", "ok")])], Malformed),
        case("http2/8.1.2.1/1", "RFC 9113 §8.3", [get_with(&[(":test", "ok")])], Malformed),
        case("http2/8.1.2.1/2", "RFC 9113 §8.3", [get_with(&[(":status", "200")])], Malformed),
        case("http2/8.1.2.1/3", "RFC 9113 §8.3", [post(1), data(1, 0), fields(END_HEADERS, &[(":method", "POST")])], Malformed),
        case("http2/8.1.2.1/4", "RFC 9113 §8.3", [whole(&[("x-test", "ok"), METHOD, SCHEME, PATH, AUTHORITY])], Malformed),
        case("http2/8.1.2.2/1", "RFC 9113 §8.2.2", [get_with(&[("connection", "keep-alive")])], Malformed),
        case("http2/8.1.2.2/2", "RFC 9113 §8.2.2", [get_with(&[("trailers", "test"), ("te", "trailers, deflate")])], Malformed),
        case("http2/8.1.2.3/1", "RFC 9113 §8.3.1", [whole(&[METHOD, SCHEME, (":path", ""), AUTHORITY])], Malformed),
        // h2spec leaves out the scheme as well.
        case("http2/8.1.2.3/2", "RFC 9113 §8.3.1", [whole(&[PATH, AUTHORITY])], Malformed),
        case("http2/8.1.2.3/3", "RFC 9113 §8.3.1", [whole(&[METHOD, PATH, AUTHORITY])], Malformed),
        case("http2/8.1.2.3/4", "RFC 9113 §8.3.1", [whole(&[METHOD, SCHEME, AUTHORITY])], Malformed),
        case("http2/8.1.2.3/5", "RFC 9113 §8.3.1", [get_with(&[METHOD])], Malformed),
        case("http2/8.1.2.3/6", "RFC 9113 §8.3.1", [get_with(&[SCHEME])], Malformed),
        case("http2/8.1.2.3/7", "RFC 9113 §8.3.1", [get_with(&[PATH])], Malformed),
        case("http2/8.1.2.6/1", "RFC 9113 §8.1.1", [post_with(&[("content-length", "1")]), data(1, END_STREAM)], Malformed),
        case(
            "http2/8.1.2.6/2",
            "RFC 9113 §8.1.1",
            [post_with(&[("content-length", "1")]), data(1, 0), data(1, END_STREAM)],
            Malformed,
        ),
    ]
}
