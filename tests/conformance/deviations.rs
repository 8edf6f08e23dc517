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
        "The upstream decides; the shield passes what is valid HTTP, any method and any header, unchanged.",
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
        "A body on GET, HEAD or OPTIONS is valid HTTP; it is read to its end, so nothing of it is left on the connection.",
        Warn,
        &["comp-get-with-cl-body", "smug-head-cl-body", "smug-options-cl-body"],
    ),
    because(
        "HTTP/1.0 has no Host (RFC 9112 §3.2 asks for it in HTTP/1.1 alone), and the shield has one upstream whatever it says.",
        Warn,
        &["comp-http10-no-host"],
    ),
    because(
        "RFC 9112 §2.2: a server SHOULD ignore an empty line before the request line; hyper does.",
        Warn,
        &["comp-leading-crlf"],
    ),
    because(
        "Valid by RFC 9110 §8.6 and §5.5; the shield sends the length again as plain decimal digits, so no other reading gets through.",
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
        "A valid header of its own name; it passes under that name and frames nothing.",
        Warn,
        &["norm-underscore-cl", "norm-underscore-te", "smug-transfer-underscore-encoding"],
    ),
    because(
        "Trailers are read and dropped: the body goes on with a Content-Length.",
        Warn,
        &["smug-trailer-auth", "smug-trailer-cl", "smug-trailer-content-type", "smug-trailer-host", "smug-trailer-te"],
    ),
    because(
        "`100-continue` is answered by the shield, then the body is read, as RFC 9110 §10.1.1 has it.",
        Warn,
        &["smug-expect-100-cl"],
    ),
    because(
        "The byte after the body begins the next request, which is refused for its method; nothing of it reaches the one after.",
        Warn,
        &["smug-cl0-body-poison"],
    ),
    because(
        "The absolute form is served for the upstream's own authority alone: the shield is no open proxy.",
        Warn,
        &["comp-absolute-form"],
    ),
    because("hyper speaks HTTP/1.0 and HTTP/1.1; no client in use says 1.2.", Fail, &["comp-http12-version"]),
    because(
        "An upstream's error without the documented object is rebuilt with its status, without what described its body or belongs to one connection.",
        Fail,
        &["resp-416", "resp-426"],
    ),
    because(
        "Interim responses are not forwarded: no client of Groq's API uses them, and hyper's client does not surface them.",
        Warn,
        &["resp-103"],
    ),
    because(
        "A success passes with the body that the upstream gave it, as every response does; it is framed, so nothing is left over.",
        Warn,
        &["resp-205-body"],
    ),
    because(
        "h2 ends the connection with PROTOCOL_ERROR where the clause names a code of its own; the connection ends all the same.",
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
        "h2 treats this error of a stream as one of its connection, as RFC 9113 §5.4.1 allows, and with PROTOCOL_ERROR.",
        Warn,
        &["http2/5.1/5", "http2/5.1/6", "http2/5.1/9", "http2/6.1/2", "http2/6.3/2", "http2/6.4/3"],
    ),
    because(
        "One port serves both versions: bytes that are not HTTP/2's preface are HTTP/1.1, answered with 400 and a close.",
        Warn,
        &["http2/3.5/2"],
    ),
];
