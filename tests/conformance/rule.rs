//! The result of a probe, and the rules that judge it.

/// The verdict on one probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    /// As the clause says, in its strictest reading.
    Pass,
    /// Allowed, though not the safest choice.
    Warn,
    /// Violates the clause.
    Fail,
}

use Verdict::{Fail, Pass, Warn};

/// One final response.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// The raw head.
    pub(crate) head: Vec<u8>,
    /// Whether the body is as long as its head announces.
    pub(crate) whole: bool,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(this, _)| this == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn body(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Everything that came back for one write.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reply {
    pub(crate) answers: Vec<Answer>,
    /// Interim responses (1xx) before the first answer.
    pub(crate) interim: Vec<u16>,
    /// Bytes after the last answer that are not a response.
    pub(crate) stray: Vec<u8>,
    pub(crate) closed: bool,
}

impl Reply {
    /// The first answer's status; 0 without one.
    pub(crate) fn status(&self) -> u16 {
        self.answers.first().map_or(0, |answer| answer.status)
    }

    fn closed_silently(&self) -> bool {
        self.closed && self.answers.is_empty()
    }

    fn silent(&self) -> bool {
        self.answers.is_empty()
    }

    fn success(&self) -> bool {
        (200..300).contains(&self.status())
    }

    fn first(&self) -> Option<&Answer> {
        self.answers.first()
    }
}

/// The course of a probe.
#[derive(Clone, Debug, Default)]
pub(crate) struct Exchange {
    pub(crate) first: Reply,
    /// `None` when there was nothing more to send, or the connection was closed before.
    pub(crate) second: Option<Reply>,
    /// Requests that reached the upstream, if it is one of ours.
    pub(crate) reached: Option<usize>,
}

impl Exchange {
    /// What the server did, in words.
    pub(crate) fn to_text(&self) -> String {
        let reply = |reply: &Reply| {
            let mut words: Vec<String> = reply.interim.iter().map(u16::to_string).collect();
            words.extend(
                reply
                    .answers
                    .iter()
                    .map(|answer| if answer.whole { answer.status.to_string() } else { format!("{} cut short", answer.status) }),
            );
            if !reply.stray.is_empty() {
                words.push(format!("{} stray bytes", reply.stray.len()));
            }
            if reply.closed {
                words.push("close".into());
            } else if words.is_empty() {
                words.push("waits".into());
            }
            words.join(", ")
        };
        let second = self.second.as_ref().map(|second| format!("; then {}", reply(second))).unwrap_or_default();
        reply(&self.first) + &second
    }
}

/// What is allowed, as text and as a function.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub(crate) allowed: &'static str,
    pub(crate) judge: fn(&Exchange, &str) -> Verdict,
    /// What the body has to equal or contain, if the rule checks it.
    pub(crate) want: &'static str,
}

impl Rule {
    /// The verdict on an exchange. For every rule, the upstream must not see more requests than were answered to the client.
    pub(crate) fn judge(&self, exchange: &Exchange) -> Verdict {
        let answers = |reply: &Reply| reply.answers.iter().filter(|answer| answer.header("x-upstream").is_some()).count();
        let answered = answers(&exchange.first) + exchange.second.as_ref().map_or(0, answers);
        let verdict = (self.judge)(exchange, self.want);
        if exchange.reached.is_some_and(|reached| reached > answered) { Fail } else { verdict }
    }
}

pub(crate) const fn rule(allowed: &'static str, judge: fn(&Exchange, &str) -> Verdict) -> Rule {
    Rule { allowed, judge, want: "" }
}

pub(crate) fn when(condition: bool) -> Verdict {
    if condition { Pass } else { Fail }
}

/// Pass for one of `statuses` or a close without an answer; Warn for a success; else Fail.
fn refused(exchange: &Exchange, statuses: &[u16], success: Verdict) -> Verdict {
    match &exchange.first {
        first if statuses.contains(&first.status()) || first.closed_silently() => Pass,
        first if first.success() => success,
        _ => Fail,
    }
}

pub(crate) const ONLY_400: Rule = rule("400", |e, _| when(e.first.status() == 400));
pub(crate) const REJECT: Rule = rule("400 or close", |e, _| refused(e, &[400], Fail));
pub(crate) const LENIENT: Rule = rule("400 or close; 2xx is tolerated", |e, _| refused(e, &[400], Warn));
pub(crate) const UNKNOWN_CODING: Rule = rule("400, 501 or close", |e, _| refused(e, &[400, 501], Fail));
pub(crate) const VERSION: Rule = rule("400, 505 or close", |e, _| refused(e, &[400, 505], Fail));
pub(crate) const NO_METHOD: Rule = rule("400, 403, 405, 501 or close", |e, _| refused(e, &[400, 403, 405, 501], Fail));
pub(crate) const ODD_METHOD: Rule = rule("400, 405, 501 or close; 2xx is tolerated", |e, _| refused(e, &[400, 405, 501], Warn));
pub(crate) const TRACE: Rule =
    rule("400, 403, 405, 501 or close; 2xx is tolerated", |e, _| refused(e, &[400, 403, 405, 501], Warn));
pub(crate) const EXPECTATION: Rule = rule("417 or close; 2xx is tolerated", |e, _| refused(e, &[417], Warn));
pub(crate) const TOO_LARGE: Rule = rule("400, 414, 431 or close", |e, _| refused(e, &[400, 414, 431], Fail));
pub(crate) const HTTP10_NO_HOST: Rule = LENIENT;
pub(crate) const MINOR_VERSION: Rule = rule("2xx, 505 or close", |e, _| refused(e, &[505], Pass));
pub(crate) const EITHER: Rule = rule("2xx, 400, 431 or close", |e, _| refused(e, &[400, 431], Pass));
pub(crate) const ACCEPT: Rule = rule("2xx", |e, _| when(e.first.success()));
pub(crate) const ACCEPT_OR_406: Rule = rule("406; 2xx is tolerated", |e, _| refused(e, &[406], Warn));
pub(crate) const ACCEPT_OR_415: Rule = rule("415 or 2xx", |e, _| refused(e, &[415], Pass));
pub(crate) const NOT_101: Rule = rule("anything but 101", |e, _| when(!e.first.interim.contains(&101) && !waits(e)));
pub(crate) const NOT_414: Rule = rule("anything but 414", |e, _| when(!waits(e) && e.first.status() != 414));
pub(crate) const NOT_MODIFIED: Rule = rule("304 to the second", |e, _| second(e, &[304]));
pub(crate) const NOT_CONDITIONAL: Rule = rule("2xx to the second", |e, _| second(e, &[200]));
pub(crate) const TWO_ANSWERS: Rule = rule("2xx, then 2xx", |e, _| when(e.first.success()).max(second(e, &[200])));

/// The second answer's status is one of these; Warn for another success.
fn second(exchange: &Exchange, statuses: &[u16]) -> Verdict {
    match &exchange.second {
        Some(second) if statuses.contains(&second.status()) => Pass,
        Some(second) if second.success() || second.status() == 304 => Warn,
        Some(_) => Fail,
        None => Warn,
    }
}

fn waits(exchange: &Exchange) -> bool {
    exchange.first.silent() && !exchange.first.closed
}

pub(crate) const ODD_TARGET: Rule = rule("400 or close; 2xx to 4xx is tolerated", |e, _| match e.first.status() {
    400 => Pass,
    200..500 => Warn,
    _ => when(e.first.closed_silently()),
});
pub(crate) const REJECT_OR_WAIT: Rule =
    rule("400, close, or wait for the rest", |e, _| when(e.first.status() == 400 || e.first.silent()));
pub(crate) const HUGE: Rule =
    rule("400, 413, close, or wait for the body", |e, _| when(matches!(e.first.status(), 400 | 413) || e.first.silent()));
pub(crate) const OTHER_AUTHORITY: Rule =
    rule("400, 403, 421 or close; 2xx is tolerated", |e, _| refused(e, &[400, 403, 421], Warn));
pub(crate) const PREFACE: Rule = rule("400, 505, close, wait, or HTTP/2", |e, _| {
    let settings = e.first.stray.get(3) == Some(&4);
    when(matches!(e.first.status(), 400 | 505) || settings || e.first.silent() && e.first.stray.is_empty())
});
pub(crate) const NO_SECOND: Rule = rule("400 or close, and one answer at most", |e, _| {
    when(e.first.answers.len() < 2 && (e.first.status() == 400 || e.first.closed))
});
pub(crate) const REJECT_OR_CLOSE: Rule =
    rule("400 or 501; 2xx and close is tolerated", |e, _| refused(e, &[400, 501], if e.first.closed { Warn } else { Fail }));
pub(crate) const CLOSE_AFTER: Rule =
    rule("400, or close after the answer", |e, _| when(e.first.status() == 400 || e.first.closed));
pub(crate) const IN_STEP: Rule = rule("400, 417, close, or the second request's own answer", |e, _| match &e.second {
    _ if matches!(e.first.status(), 400 | 417) || e.first.closed => Pass,
    Some(second) if e.first.success() && second.success() && second.answers.len() == 1 => Pass,
    _ => Warn,
});
pub(crate) const NOTHING_AFTER: Rule =
    rule("400 or close; reading on is tolerated", |e, _| if e.first.status() == 400 || e.first.closed { Pass } else { Warn });
pub(crate) const ABSOLUTE_FORM: Rule = rule("2xx; 400, 403 and 421 are tolerated", |e, _| match e.first.status() {
    200..300 => Pass,
    400 | 403 | 421 => Warn,
    _ => Fail,
});
pub(crate) const EXTENSION: Rule = rule("2xx with the body; 400 is tolerated", |e, _| match e.first.first() {
    Some(answer) if answer.status == 400 => Warn,
    Some(answer) => when(e.first.success() && answer.body == b"hello"),
    None => Fail,
});
pub(crate) const UPGRADE_VERSION: Rule = rule("426, another refusal; 2xx is tolerated; never 101", |e, _| {
    if e.first.interim.contains(&101) || waits(e) {
        Fail
    } else if e.first.success() {
        Warn
    } else {
        Pass
    }
});
pub(crate) const AND_CLOSE: Rule = rule("2xx, then close", |e, _| when(e.first.success() && e.first.closed));
pub(crate) const SHOULD_CLOSE: Rule = rule("2xx, then close; 2xx alone is tolerated", |e, _| match e.first.success() {
    true if e.first.closed => Pass,
    true => Warn,
    false => Fail,
});
pub(crate) const NO_RANGE: Rule = rule("2xx, not 206", |e, _| when(e.first.success() && e.first.status() != 206));
pub(crate) const RANGE_IGNORED: Rule = rule("2xx but 206, or 416", |e, _| match e.first.status() {
    206 => Warn,
    200..300 | 416 => Pass,
    _ => Warn,
});
pub(crate) const MANY_RANGES: Rule =
    rule("200, 206, 400, 416, 431 or close", |e, _| refused(e, &[200, 206, 400, 416, 431], Fail));
pub(crate) const NO_BODY: Rule = rule("2xx without a body", |e, _| when(e.first.success() && e.first.stray.is_empty()));
pub(crate) const ALLOW_ON_405: Rule = rule("405 with Allow; another status is tolerated", |e, _| match e.first.first() {
    Some(answer) if answer.status == 405 => when(answer.header("allow").is_some()),
    Some(_) => Warn,
    None => Fail,
});
pub(crate) const ALLOW: Rule = rule("2xx with Allow", |e, _| with(e, "allow", Warn));
pub(crate) const DATE: Rule = rule("2xx with Date", |e, _| with(e, "date", Fail));
pub(crate) const CONTENT_TYPE: Rule = rule("2xx with Content-Type", |e, _| with(e, "content-type", Warn));
pub(crate) const DATE_FORMAT: Rule = rule("2xx, its Date an IMF-fixdate", |e, _| {
    let date = e.first.first().and_then(|answer| answer.header("date"));
    when(e.first.success() && date.is_some_and(|date| date.len() == 29 && httpdate::parse_http_date(date).is_ok()))
});

fn with(exchange: &Exchange, name: &str, without: Verdict) -> Verdict {
    match exchange.first.first() {
        Some(answer) if exchange.first.success() => {
            if answer.header(name).is_some() {
                Pass
            } else {
                without
            }
        }
        _ => Fail,
    }
}

pub(crate) const NO_INTERIM: Rule = rule("no 1xx", |e, _| when(e.first.interim.is_empty() && !e.first.silent()));
pub(crate) const NO_LENGTH_ON_204: Rule =
    rule("204 without Content-Length; another status is tolerated", |e, _| match e.first.first() {
        Some(answer) if answer.status == 204 => when(answer.header("content-length").is_none() && e.first.stray.is_empty()),
        Some(_) => Warn,
        None => Fail,
    });
pub(crate) const TRACE_SECRETS: Rule = rule("405, 501, or no credentials in the answer", |e, _| match e.first.first() {
    Some(answer) if answer.body().to_ascii_lowercase().contains("authorization: bearer") => Warn,
    Some(_) => Pass,
    None => when(e.first.closed),
});
pub(crate) const NO_CONTROLS: Rule = rule("400, close, or 2xx without control bytes", |e, _| match e.first.first() {
    Some(answer) if answer.status == 400 => Pass,
    Some(answer) => when(e.first.success() && !answer.body.iter().any(|byte| matches!(byte, 0..=3))),
    None => when(e.first.closed),
});
pub(crate) const TWO_COOKIES: Rule = rule("2xx, both cookies upstream", |e, _| match e.first.first() {
    Some(answer) if e.first.success() => {
        if ["a=1", "b=2"].iter().all(|cookie| answer.body().contains(cookie)) {
            Pass
        } else {
            Warn
        }
    }
    Some(answer) if answer.status == 400 => Warn,
    _ => Fail,
});
pub(crate) const NOT_NORMALIZED: Rule =
    rule("4xx, close, or dropped; kept as it is is tolerated", |e, _| match e.first.first() {
        Some(answer) if answer.status >= 400 => Pass,
        Some(answer) if e.first.success() => {
            let body = answer.body();
            let standard = ["content-length: 99", "content-length: 5", "transfer-encoding: chunked"];
            if standard.iter().any(|line| body.lines().any(|this| this == *line)) {
                Fail
            } else if body.contains("content_length") || body.contains("transfer_encoding") {
                Warn
            } else {
                Pass
            }
        }
        Some(_) => Fail,
        None => when(e.first.closed),
    });

/// A success whose body is `want`, or contains it if it shows what the upstream saw.
pub(crate) const fn echo(want: &'static str) -> Rule {
    let judge = |e: &Exchange, want: &str| when(e.first.success() && e.first.first().is_some_and(|a| a.body().contains(want)));
    Rule { allowed: "2xx, and the upstream got what was sent", judge, want }
}
