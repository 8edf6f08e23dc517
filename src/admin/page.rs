//! The page, embedded in the binary; its content security policy names its own script and style only.

use std::sync::LazyLock;

use bytes::Bytes;
use http::{HeaderValue, Response, header};
use http_body_util::Full;
use sha2::{Digest, Sha256};

const PAGE: &str = include_str!("page.html");

/// Loads nothing but `/status` and `/requests`, and runs only the embedded script.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let policy = format!(
        "default-src 'none'; script-src {}; style-src {}; img-src data:; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
        source("script"),
        source("style")
    );
    HeaderValue::from_str(&policy).expect("a policy is visible ASCII")
});

/// The page and its policy.
pub(super) fn response() -> Response<Full<Bytes>> {
    let mut response = super::text("text/html; charset=utf-8", PAGE);
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, POLICY.clone());
    response
}

/// The hash of the page's inline element of this name, as a policy lists it.
fn source(element: &str) -> String {
    let (open, close) = (format!("<{element}>"), format!("</{element}>"));
    let inline = PAGE.split_once(&open).and_then(|(_, rest)| rest.split_once(&close)).expect("the page has one").0;
    format!("'sha256-{}'", base64(&Sha256::digest(inline.as_bytes())))
}

/// Base64 with padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits = (0..3).fold(0_u32, |bits, at| bits << 8 | u32::from(three.get(at).copied().unwrap_or(0)));
        for digit in 0..4 {
            let value = bits >> (18 - 6 * digit) & 63;
            text.push(if digit > three.len() { '=' } else { char::from(DIGITS[value as usize]) });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_matches_the_standard() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn the_page_needs_nothing_from_elsewhere() {
        for outside in [
            "http://",
            "https://",
            "src=",
            "@import",
            "url(",
            "innerHTML",
            "insertAdjacentHTML",
            "document.write",
            " style=\"",
            " onclick",
        ] {
            let found = PAGE.match_indices(outside).map(|(at, _)| &PAGE[at..PAGE.len().min(at + 40)]);
            // The namespace of SVG is a name, not an address.
            let found: Vec<_> = found.filter(|text| !text.starts_with("http://www.w3.org/2000/svg")).collect();
            assert!(found.is_empty(), "{outside}: {found:?}");
        }
        assert_eq!(PAGE.matches("<script").count(), 1);
        assert_eq!(PAGE.matches("<style").count(), 1);
    }
}
