//! The failure table: what the upstream does, and what the app gets.

use std::time::Duration;

use groq_shield::config::Settings;

use crate::{
    client::{Answer, KEY, PROTOCOLS, Protocol, ask, ask_in, chat, chat_with, request},
    kit::{ALERT, Certificate, Kind, PAGE, Step, Upstream, answer, good, in_chunks, json, start},
};

/// One row of the table.
pub(crate) struct Row {
    pub(crate) name: String,
    upstream: Kind,
    settings: fn(&mut Settings),
    request: String,
    status: u16,
    kind: &'static str,
    code: &'static str,
    /// A part of the message.
    says: &'static str,
    /// Whether the shield made it: `x-shield-error`.
    ours: bool,
    /// The least `retry-after`.
    retry_after: Option<u64>,
    /// Requests that reach the upstream.
    seen: usize,
}

const SERVER: &str = "internal_server_error";
const INVALID: &str = "invalid_request_error";

/// A failure of Groq's that the shield rebuilds, after two attempts.
fn row(name: impl Into<String>, upstream: Kind, code: &'static str) -> Row {
    Row {
        name: name.into(),
        upstream,
        settings: |_| {},
        request: chat(),
        status: 502,
        kind: SERVER,
        code,
        says: "",
        ours: true,
        retry_after: None,
        seen: 2,
    }
}

fn plain(script: Vec<Step>) -> Kind {
    Kind::Plain(vec![script])
}

fn write(text: &str) -> Step {
    Step::Write(text.into())
}

/// No answer, or a partial one.
fn connections() -> Vec<Row> {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{\"id\":";
    let short = |settings: &mut Settings| {
        settings.upstream.response_timeout = Duration::from_millis(300);
        settings.upstream.idle_timeout = Duration::from_millis(300);
    };
    let pause = Step::Pause(Duration::from_millis(300));
    vec![
        Row {
            settings: |settings| settings.upstream.connect_timeout = Duration::from_secs(2),
            seen: 0,
            ..row("DNS", Kind::NoName, "upstream_unreachable")
        },
        Row { seen: 0, says: "refused", ..row("refused", Kind::NoPort, "upstream_unreachable") },
        Row { seen: 0, ..row("closed at once", Kind::Early(vec![]), "upstream_closed") },
        Row { seen: 0, ..row("reset, unread", Kind::Early(vec![pause.clone(), Step::Reset]), "upstream_closed") },
        row("closed before the head", plain(vec![]), "upstream_closed"),
        row("reset before the head", plain(vec![Step::Reset]), "upstream_closed"),
        row("closed in the head", plain(vec![write("HTTP/1.1 200 OK\r\ncontent-ty")]), "upstream_closed"),
        row(
            "reset in the head",
            plain(vec![write("HTTP/1.1 200 OK\r\ncontent-ty"), pause.clone(), Step::Reset]),
            "upstream_closed",
        ),
        Row { says: "cut short", ..row("body cut short", plain(vec![write(head)]), "upstream_invalid") },
        Row { says: "cut short", ..row("reset in the body", plain(vec![write(head), pause, Step::Reset]), "upstream_invalid") },
        Row { settings: short, ..row("no head in time", plain(vec![Step::Hold]), "upstream_timeout") },
        Row { settings: short, ..row("a body that stops", plain(vec![write(head), Step::Hold]), "upstream_timeout") },
        Row { says: "not HTTP", ..row("not HTTP", plain(vec![write("SSH-2.0-OpenSSH_9.6\r\n")]), "upstream_invalid") },
    ]
}

/// TLS.
fn handshakes() -> Vec<Row> {
    let tls = |certificate| Kind::Tls(certificate, good());
    let row = |name: &str, upstream, code| Row { seen: 0, ..row(name, upstream, code) };
    vec![
        row("TLS: wrong name", tls(Certificate::WrongName), "upstream_tls"),
        row("TLS: expired", tls(Certificate::Expired), "upstream_tls"),
        row("TLS: signed by nobody", tls(Certificate::Untrusted), "upstream_tls"),
        row("TLS: a plain port", Kind::PlainOnTls(vec![write("HTTP/1.1 400 Bad Request\r\n\r\n")]), "upstream_tls"),
        row("TLS: an alert", Kind::PlainOnTls(vec![write(ALERT)]), "upstream_tls"),
        row("TLS: cut off", Kind::PlainOnTls(vec![]), "upstream_unreachable"),
        Row {
            settings: |settings| settings.upstream.connect_timeout = Duration::from_millis(300),
            ..row("TLS: never done", Kind::PlainOnTls(vec![Step::Hold]), "upstream_unreachable")
        },
        row("a TLS port without TLS", Kind::TlsOnPlain, "upstream_invalid"),
    ]
}

/// Answers of the CDN in front of Groq.
fn edges() -> Vec<Row> {
    let page = |status: u16| answer(&format!("{status} X"), "content-type: text/html; charset=UTF-8\r\n", PAGE);
    let error = |name: &str, status: u16, script| Row { status, ..row(name, plain(script), "upstream_error") };
    let own = |name: &str, status, script| Row { kind: INVALID, seen: 1, ..error(name, status, script) };
    let mut rows = vec![
        error("HTML 502", 502, page(502)),
        error("HTML 503", 503, page(503)),
        own("HTML 403", 403, page(403)),
        error("HTML 502 in chunks", 502, in_chunks("502 X", "content-type: text/html; charset=UTF-8\r\n", PAGE)),
        Row {
            says: "1010",
            ..own("403 text 1010", 403, answer("403 Forbidden", "content-type: text/plain\r\n", "error code: 1010"))
        },
        error("504", 502, answer("504 Gateway Timeout", "", "")),
        Row {
            says: "took",
            ..error(
                "504 with an object",
                502,
                json("504 Gateway Timeout", r#"{"error":{"message":"It took too long.","type":"x"}}"#),
            )
        },
        own("418, which Groq does not know", 418, answer("418 I'm a teapot", "", "short and stout")),
        own("405, which Groq does not know", 405, page(405)),
        Row { says: "over", ..error("loose JSON", 503, json("503 Service Unavailable", r#"{"error":"over capacity"}"#)) },
        Row {
            settings: |settings| settings.upstream.idle_timeout = Duration::from_millis(300),
            ..error("an error that stops", 500, vec![write("HTTP/1.1 500 Oops\r\ncontent-length: 100\r\n\r\n{\"err")])
        },
        Row {
            says: "redirects",
            seen: 1,
            ..row(
                "a redirect",
                plain(answer("302 Found", "location: https://elsewhere.example/\r\ncontent-type: text/html\r\n", PAGE)),
                "upstream_error",
            )
        },
        row("200 that is a page", plain(answer("200 OK", "content-type: text/html\r\n", PAGE)), "upstream_invalid"),
        row("200 that is half JSON", plain(json("200 OK", r#"{"id":"#)), "upstream_invalid"),
        row("200 that is empty", plain(json("200 OK", "")), "upstream_invalid"),
    ];
    rows.extend((520..=530).map(|status| error(&status.to_string(), 502, page(status))));
    rows.extend(
        [400, 401, 404, 422].map(|status| own(&format!("{status}, empty"), status, answer(&format!("{status} X"), "", ""))),
    );
    rows.extend([500, 502, 503, 498].map(|status| {
        let kind = if status == 498 { INVALID } else { SERVER };
        Row { kind, ..error(&format!("{status}, empty"), status, answer(&format!("{status} X"), "", "")) }
    }));
    rows
}

/// Groq's own errors: passed with their members, ids masked.
fn own_errors() -> Vec<Row> {
    let passed = |name: &str, status: u16, kind, code, script| Row {
        status,
        kind,
        ours: false,
        seen: 1,
        ..row(name, plain(script), code)
    };
    let object = |message: &str, kind: &str| format!(r#"{{"error":{{"message":"{message}","type":"{kind}"}}}}"#);
    let busy = json("503 Service Unavailable", &object("m is currently over capacity.", SERVER));
    let after = |seconds: &str| {
        answer(
            "503 Service Unavailable",
            &format!("content-type: application/json\r\nretry-after: {seconds}\r\n"),
            &object("Busy.", SERVER),
        )
    };
    let impatient = chat_with("x-shield-max-wait-ms: 500\r\n", "");
    let refused = |text: &str, kind: &str| {
        let body = format!(r#"{{"error":{{"message":"{text}","type":"{kind}","code":"rate_limit_exceeded"}}}}"#);
        json("429 Too Many Requests", &body)
    };
    let reached = "Rate limit reached for model `m` in organization `org_01abcdef` service tier `on_demand` on";
    let large = "Request too large for model `m` in organization `org_01abcdef` service tier `on_demand` on";
    let models = request("GET", "/openai/v1/models", KEY, "");
    vec![
        Row {
            seen: 2,
            ..passed("500", 500, SERVER, "", json("500 Internal Server Error", &object("Internal Server Error", SERVER)))
        },
        Row { seen: 2, says: "over capacity", ..passed("503", 503, SERVER, "", busy) },
        Row { request: impatient.clone(), retry_after: Some(7), ..passed("503 for a while", 503, SERVER, "", after("7")) },
        Row { request: impatient, retry_after: Some(100), ..passed("503 for long", 503, SERVER, "", after("100")) },
        passed("no type", 403, INVALID, "", json("403 Forbidden", r#"{"error":{"message":"Access denied."}}"#)),
        passed("no type, 404", 404, INVALID, "", json("404 Not Found", r#"{"error":{"message":"Not Found"}}"#)),
        passed(
            "401",
            401,
            INVALID,
            "invalid_api_key",
            json(
                "401 Unauthorized",
                r#"{"error":{"message":"Invalid API Key","type":"invalid_request_error","code":"invalid_api_key"}}"#,
            ),
        ),
        passed(
            "a code that is a number",
            400,
            INVALID,
            "17",
            json("400 Bad Request", r#"{"error":{"message":"m","type":"invalid_request_error","code":17}}"#),
        ),
        Row {
            says: "Failed",
            ..passed(
                "failed generation",
                400,
                INVALID,
                "json_validate_failed",
                json(
                    "400 Bad Request",
                    r#"{"error":{"message":"Failed to generate JSON.","type":"invalid_request_error","code":"json_validate_failed","failed_generation":"{"}}"#,
                ),
            )
        },
        passed(
            "a key in the text",
            400,
            INVALID,
            "",
            json("400 Bad Request", &object("Key gsk_leak0123456789abcdef of org_0leak is odd.", INVALID)),
        ),
        passed("a megabyte of text", 400, INVALID, "", json("400 Bad Request", &object(&"long ".repeat(200_000), INVALID))),
        Row {
            seen: 2,
            ..passed(
                "498",
                498,
                SERVER,
                "capacity_exceeded",
                json("498 X", r#"{"error":{"message":"No room.","type":"internal_server_error","code":"capacity_exceeded"}}"#),
            )
        },
        passed(
            "413",
            413,
            "tokens",
            "rate_limit_exceeded",
            json(
                "413 Payload Too Large",
                &format!(
                    r#"{{"error":{{"message":"{large} tokens per minute (TPM): Limit 8000, Requested 11881, please reduce your message size and try again.","type":"tokens","code":"rate_limit_exceeded"}}}}"#
                ),
            ),
        ),
        passed(
            "429 that can never fit",
            413,
            "tokens",
            "rate_limit_exceeded",
            refused(
                &format!("{reached} tokens per minute (TPM): Limit 7000, Used 0, Requested ~12903. Please try again in 50.5s."),
                "tokens",
            ),
        ),
        Row {
            ours: true,
            retry_after: Some(1),
            ..passed(
                "429 beyond the longest wait",
                429,
                "tokens",
                "rate_limit_exceeded",
                refused(
                    &format!(
                        "{reached} tokens per day (TPD): Limit 200000, Used 196969, Requested 3464. Please try again in 3m7.055999999s. Need more tokens? Visit https://console.groq.com/settings/billing"
                    ),
                    "tokens",
                ),
            )
        },
        passed(
            "400 in chunks",
            400,
            INVALID,
            "",
            in_chunks("400 Bad Request", "content-type: application/json\r\n", &object("No.", INVALID)),
        ),
        Row {
            request: models,
            retry_after: Some(3),
            ..passed(
                "429 where no limits are kept",
                429,
                "requests",
                "rate_limit_exceeded",
                refused("Slow down. Please try again in 3s.", "requests"),
            )
        },
    ]
}

impl Row {
    /// The differences between the row and the answer over this protocol.
    async fn faults(&self, protocol: Protocol) -> Vec<String> {
        let upstream = Upstream::start(&self.upstream).await;
        let mut settings = upstream.settings();
        (self.settings)(&mut settings);
        let shield = start(settings);
        let answer = ask_in(protocol, shield.app, &self.request).await;
        let mut faults = self.differences(&answer);
        if upstream.seen() != self.seen {
            faults.push(format!("{} requests reached the upstream, not {}", upstream.seen(), self.seen));
        }
        shield.end();
        for fault in &mut faults {
            *fault = format!(
                "{} over {protocol:?}: {fault}\n    {} {} {:?}\n    {:.600}",
                self.name, answer.status, answer.reason, answer.headers, answer.body
            );
        }
        faults
    }

    fn differences(&self, answer: &Answer) -> Vec<String> {
        let mut faults = answer.faults();
        let error = answer.error();
        let mut same = |what: &str, got: &str, expected: &str| {
            if got != expected {
                faults.push(format!("{what} is {got:?}, not {expected:?}"));
            }
        };
        same("status", &answer.status.to_string(), &self.status.to_string());
        same("type", error["type"].as_str().unwrap_or_default(), self.kind);
        same("code", error["code"].as_str().unwrap_or_default(), self.code);
        same("x-shield-error", answer.header("x-shield-error"), if self.ours { self.code } else { "" });
        if !error["message"].as_str().unwrap_or_default().contains(self.says) {
            faults.push(format!("the message does not say {:?}", self.says));
        }
        let stated = answer.header("retry-after").parse::<u64>().ok();
        if stated.is_some() != self.retry_after.is_some() || stated < self.retry_after {
            faults.push(format!("retry-after is {stated:?}, not {:?} or more", self.retry_after));
        }
        faults
    }
}

async fn hold(rows: Vec<Row>) {
    let mut faults = Vec::new();
    for row in &rows {
        for protocol in PROTOCOLS {
            faults.extend(row.faults(protocol).await);
        }
    }
    assert!(faults.is_empty(), "{} of {} rows:\n{}", faults.len(), rows.len(), faults.join("\n"));
}

#[tokio::test]
async fn every_failure_in_the_contract_connections() {
    hold(connections()).await;
}

#[tokio::test]
async fn every_failure_in_the_contract_tls() {
    hold(handshakes()).await;
    // Control: the same upstream with a valid certificate is reached.
    let upstream = Upstream::start(&Kind::Tls(Certificate::Good, good())).await;
    let shield = start(upstream.settings());
    assert_eq!(ask(shield.app, chat().as_bytes()).await.status, 200);
    shield.end();
}

#[tokio::test]
async fn every_failure_in_the_contract_edges() {
    hold(edges()).await;
}

#[tokio::test]
async fn every_failure_in_the_contract_own_errors() {
    hold(own_errors()).await;
}
