//! Rows for which the shield's verdict is not Pass, and why.

use crate::rule::Verdict::{self, Fail, Warn};

/// Rows whose verdict is not Pass, for one reason.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deviation {
    pub(crate) reason: &'static str,
    pub(crate) verdict: Verdict,
    pub(crate) cases: &'static [&'static str],
}

const fn because(reason: &'static str, verdict: Verdict, cases: &'static [&'static str]) -> Deviation {
    Deviation { reason, verdict, cases }
}

/// The verdict that a row is expected to have.
pub(crate) fn expected(case: &str) -> Verdict {
    DEVIATIONS.iter().find(|deviation| deviation.cases.contains(&case)).map_or(Verdict::Pass, |deviation| deviation.verdict)
}

pub(crate) const DEVIATIONS: &[Deviation] = &[
    because(
        "The upstream decides: the shield forwards valid HTTP unchanged, with any method and any header.",
        Warn,
        &[
            "comp-accept-nonsense",
            "comp-duplicate-ct",
            "comp-expect-unknown",
            "comp-upgrade-invalid-ver",
            "mal-url-backslash",
            "mal-url-percent-crlf",
            "mal-url-percent-null",
        ],
    ),
    because(
        "A body on GET, HEAD or OPTIONS is valid HTTP. It is read to its end, so none of it remains on the connection.",
        Warn,
        &["comp-get-with-cl-body", "smug-head-cl-body", "smug-options-cl-body"],
    ),
    because(
        "HTTP/1.0 has no Host (RFC 9112 §3.2 requires it in HTTP/1.1 only), and the shield has a single upstream.",
        Warn,
        &["comp-http10-no-host"],
    ),
    because(
        "RFC 9112 §2.2: a server SHOULD ignore an empty line before the request line, as hyper does.",
        Warn,
        &["comp-leading-crlf"],
    ),
    because(
        "Valid by RFC 9110 §8.6 and §5.5. The shield forwards the length as plain decimal digits, so the upstream cannot read it differently.",
        Warn,
        &[
            "mal-cl-tab-before-value",
            "smug-cl-double-zero",
            "smug-cl-extra-leading-sp",
            "smug-cl-leading-zeros",
            "smug-cl-leading-zeros-octal",
            "smug-cl-trailing-space",
        ],
    ),
    because(
        "A valid header with another name, which is forwarded and does not affect framing.",
        Warn,
        &["norm-underscore-cl", "norm-underscore-te", "smug-transfer-underscore-encoding"],
    ),
    because(
        "Trailers are read and dropped; the body is forwarded with a Content-Length.",
        Warn,
        &["smug-trailer-auth", "smug-trailer-cl", "smug-trailer-content-type", "smug-trailer-host", "smug-trailer-te"],
    ),
    because(
        "The shield responds to `100-continue` itself, then reads the body (RFC 9110 §10.1.1).",
        Warn,
        &["smug-expect-100-cl"],
    ),
    because(
        "The byte after the body begins the next request, which is refused for its method and does not reach the upstream.",
        Warn,
        &["smug-cl0-body-poison"],
    ),
    because(
        "The absolute form is only served for the upstream's own authority: the shield is not an open proxy.",
        Warn,
        &["comp-absolute-form"],
    ),
    because("hyper supports HTTP/1.0 and HTTP/1.1; no known client sends 1.2.", Fail, &["comp-http12-version"]),
    because(
        "An upstream error without the documented object is rebuilt with its status, without the headers that described its body or its connection.",
        Fail,
        &["resp-416", "resp-426"],
    ),
    because(
        "Interim responses are not forwarded: no client of Groq's API uses them, and hyper's client does not expose them.",
        Warn,
        &["resp-103"],
    ),
    because(
        "A success is forwarded with the upstream's body, like every response. The body is framed, so none of it remains on the connection.",
        Warn,
        &["resp-205-body"],
    ),
    because(
        "h2 ends the connection with PROTOCOL_ERROR where the clause requires another code; the connection ends in either case.",
        Warn,
        &[
            "hpack/2.3.3/1",
            "hpack/2.3.3/2",
            "hpack/4.2/1",
            "hpack/5.2/1",
            "hpack/5.2/2",
            "hpack/5.2/3",
            "hpack/6.1/1",
            "hpack/6.3/1",
            "http2/4.3/1",
            "http2/5.1/12",
            "http2/6.5.2/2",
            "http2/6.5/1",
            "http2/6.7/4",
            "http2/6.9.2/3",
            "http2/6.9/3",
        ],
    ),
    because(
        "h2 treats this stream error as a connection error with PROTOCOL_ERROR, as RFC 9113 §5.4.1 allows.",
        Warn,
        &["http2/5.1/5", "http2/5.1/6", "http2/5.1/9", "http2/6.1/2", "http2/6.3/2", "http2/6.4/3"],
    ),
    because(
        "One port serves both versions: bytes other than HTTP/2's preface are treated as HTTP/1.1 and get 400 and a close.",
        Warn,
        &["http2/3.5/2"],
    ),
];
