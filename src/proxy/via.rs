//! The `Via` header (RFC 9110 §7.6.3): names this process, and detects requests that it has already forwarded.

use http::{HeaderMap, HeaderValue, Version, header};

/// The name of this process in `Via`. It is random, so several shields may be chained, and only loops are refused.
pub struct Via {
    name: String,
    /// The values for requests received by HTTP/1.0, HTTP/1.1 and HTTP/2.
    values: [HeaderValue; 3],
}

impl Default for Via {
    fn default() -> Self {
        let name = format!("groq-shield-{:016x}", fastrand::u64(..));
        let value = |protocol| HeaderValue::try_from(format!("{protocol} {name}")).expect("the name is hexadecimal");
        Self { values: ["1.0", "1.1", "2"].map(value), name }
    }
}

impl Via {
    /// Whether a request with these headers has been forwarded by this process before.
    pub fn is_in(&self, headers: &HeaderMap) -> bool {
        let values = headers.get_all(header::VIA).iter().filter_map(|value| value.to_str().ok());
        // Each entry is the protocol, the name and an optional comment.
        let mut names = values.flat_map(|value| value.split(',')).filter_map(|entry| entry.split_ascii_whitespace().nth(1));
        names.any(|name| name == self.name)
    }

    /// Adds this process to the headers of a request that it received as `version`.
    pub fn add_to(&self, headers: &mut HeaderMap, version: Version) {
        let [http10, http11, http2] = &self.values;
        let value = match version {
            Version::HTTP_09 | Version::HTTP_10 => http10,
            Version::HTTP_2 => http2,
            _ => http11,
        };
        headers.append(header::VIA, value.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_recognized_by_the_process_that_forwarded_it_and_by_no_other() {
        let (this, other) = (Via::default(), Via::default());
        let mut headers = HeaderMap::new();
        headers.append(header::VIA, HeaderValue::from_static("1.1 varnish (7.0), 2 groq-shield-0"));
        assert!(!this.is_in(&headers));
        other.add_to(&mut headers, Version::HTTP_2);
        assert!(!this.is_in(&headers) && other.is_in(&headers));
        this.add_to(&mut headers, Version::HTTP_11);
        assert!(this.is_in(&headers));
        // A server in between may join the values.
        let values: Vec<_> = headers.get_all(header::VIA).iter().map(|value| value.to_str().expect("text")).collect();
        let joined = HeaderValue::from_str(&values.join(",")).expect("a value");
        assert!(this.is_in(&HeaderMap::from_iter([(header::VIA, joined)])));
    }
}
