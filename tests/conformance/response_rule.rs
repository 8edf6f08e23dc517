//! Rules for how an intermediary forwards an upstream's answer.

use crate::rule::{
    Answer, Exchange, Rule,
    Verdict::{self, Fail, Pass, Warn},
    rule, when,
};

fn hello(exchange: &Exchange) -> bool {
    let whole = |answer: &Answer| answer.body == b"hello" && answer.whole && (200..300).contains(&answer.status);
    matches!(exchange.first.answers.as_slice(), [answer] if whole(answer)) && exchange.first.stray.is_empty()
}

fn refused(exchange: &Exchange) -> bool {
    matches!(exchange.first.answers.as_slice(), [answer] if answer.status == 502 && answer.whole)
        && exchange.first.stray.is_empty()
}

/// Refused, or the complete body in an answer for which `holds` is true.
fn refused_or(exchange: &Exchange, holds: fn(&Answer) -> bool) -> Verdict {
    when(refused(exchange) || hello(exchange) && holds(&exchange.first.answers[0]))
}

fn bodyless(exchange: &Exchange, statuses: &[u16], holds: fn(&Answer) -> bool) -> Verdict {
    let [answer] = exchange.first.answers.as_slice() else { return Fail };
    let empty = answer.body.is_empty() && exchange.first.stray.is_empty();
    when(refused(exchange) || empty && statuses.contains(&answer.status) && holds(answer))
}

pub(crate) const WHOLE: Rule = rule("the answer, whole and alone", |e, _| when(hello(e)));
pub(crate) const BAD_GATEWAY: Rule = rule("502", |e, _| match e.first.answers.as_slice() {
    _ if refused(e) => Pass,
    // Nothing is passed on, which protects the client.
    [] if e.first.closed && e.first.stray.is_empty() => Warn,
    _ => Fail,
});
pub(crate) const CUT: Rule = rule("502, or an answer that is visibly cut short", |e, _| match e.first.answers.as_slice() {
    _ if refused(e) => Pass,
    [] => when(e.first.closed),
    [answer] => when(!answer.whole && e.first.closed),
    _ => Fail,
});
pub(crate) const ONE_FRAMING: Rule = rule("502, or chunks without the length", |e, _| {
    refused_or(e, |answer| answer.header("transfer-encoding").is_none() || answer.header("content-length").is_none())
});
pub(crate) const ONE_LENGTH: Rule = rule("502, or one length", |e, _| {
    refused_or(e, |answer| {
        let lengths = answer.headers.iter().filter(|(name, _)| name == "content-length");
        lengths.map(|(_, value)| value.as_str()).eq(["5"]) || answer.header("transfer-encoding").is_some()
    })
});
pub(crate) const NO_CONTENT: Rule = rule("204 without body, Content-Length, Transfer-Encoding", |e, _| {
    bodyless(e, &[204], |answer| answer.header("content-length").is_none() && answer.header("transfer-encoding").is_none())
});
/// RFC 9110 §15.3.6 forbids a server to generate content; an intermediary may forward what it received.
pub(crate) const RESET_CONTENT: Rule = rule("205 without a body, or 502; one that is framed is tolerated", |e, _| {
    let framed = |answer: &Answer| answer.status == 205 && answer.whole;
    match bodyless(e, &[205], |_| true) {
        Fail if matches!(e.first.answers.as_slice(), [answer] if framed(answer)) && e.first.stray.is_empty() => Warn,
        verdict => verdict,
    }
});
/// A 407 concerns a client and its own proxy; from an upstream it is not valid.
pub(crate) const NOT_407_ALONE: Rule = rule("407 with its Proxy-Authenticate, or another status", |e, _| {
    when(matches!(e.first.answers.as_slice(), [answer] if answer.status != 407 || answer.header("proxy-authenticate").is_some()))
});
pub(crate) const BODYLESS: Rule = rule("the answer without a body", |e, _| bodyless(e, &[200, 304], |_| true));
pub(crate) const LENGTH_OF_GET: Rule = rule("no Content-Length, or the upstream's", |e, _| {
    bodyless(e, &[200], |answer| answer.header("content-length").is_none_or(|length| length == "5"))
});
pub(crate) const DECHUNKED: Rule = rule("the body without Transfer-Encoding, no 1xx, then close", |e, _| {
    when(hello(e) && e.first.closed && e.first.interim.is_empty() && e.first.answers[0].header("transfer-encoding").is_none())
});
pub(crate) const NO_FOLD: Rule =
    rule("502, or the line unfolded", |e, _| refused_or(e, |answer| memchr::memmem::find(&answer.head, b"\r\n ").is_none()));
pub(crate) const NO_SPACE: Rule =
    rule("502, or the space removed", |e, _| refused_or(e, |answer| memchr::memmem::find(&answer.head, b" :").is_none()));
pub(crate) const REFUSED_OR_CLEAN: Rule = rule("502, or the byte replaced by a space", |e, _| {
    refused_or(e, |answer| {
        let bare = answer.head.windows(2).any(|two| two[0] == b'\r' && two[1] != b'\n');
        !bare && !answer.head.contains(&0)
    })
});
pub(crate) const READ_OR_REFUSED: Rule =
    rule("502, or the answer in a head that is valid", |e, _| refused_or(e, |answer| !answer.head.contains(&b'[')));
pub(crate) const OWN_VERSION: Rule =
    rule("the answer as HTTP/1.1", |e, _| when(hello(e) && e.first.answers[0].head.starts_with(b"HTTP/1.1 ")));
pub(crate) const NO_HOP: Rule = rule("the answer without hop-by-hop headers", |e, _| {
    when(hello(e) && ["x-hop", "keep-alive"].iter().all(|name| e.first.answers[0].header(name).is_none()))
});
pub(crate) const EARLY_HINTS: Rule = rule("103 and 200; 200 alone is tolerated", |e, _| match e.first.interim.as_slice() {
    [103] => when(hello(e)),
    _ if hello(e) => Warn,
    _ => Fail,
});
pub(crate) const NOT_SWITCHED: Rule = rule("502, and no other protocol", |e, _| match e.first.interim.as_slice() {
    [] => (BAD_GATEWAY.judge)(e, ""),
    _ => Fail,
});

/// The upstream's status and this header.
pub(crate) const fn keeps(want: &'static str) -> Rule {
    let judge = |e: &Exchange, want: &str| match e.first.answers.as_slice() {
        [answer] if e.first.stray.is_empty() => when(answer.header(want).is_some() && answer.status != 502),
        _ => Fail,
    };
    Rule { allowed: "the status, with the header that it calls for", judge, want }
}

/// The unchanged answer, with this header line.
pub(crate) const fn whole(want: &'static str) -> Rule {
    let judge = |e: &Exchange, want: &str| {
        let kept = |answer: &Answer| answer.headers.iter().any(|(name, value)| format!("{name}: {value}") == want);
        when(hello(e) && kept(&e.first.answers[0]))
    };
    Rule { allowed: "the answer, its header kept", judge, want }
}
