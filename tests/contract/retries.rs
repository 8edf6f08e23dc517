//! Which failures are tried again.

use crate::{
    client::{ask, chat},
    kit::{ALERT, Certificate, Kind, PAGE, Step, Upstream, answer, good, json, start},
};

/// The app does not notice transient failures that a retry cures.
#[tokio::test]
async fn a_failure_that_a_retry_cures_is_a_success() {
    for script in [vec![], vec![Step::Reset], json("500 X", ""), json("530 X", PAGE), json("498 X", "{}"), json("200 OK", "{")] {
        let upstream = Upstream::start(&Kind::Plain(vec![script.clone(), good()])).await;
        let shield = start(upstream.settings());
        let answer = ask(shield.app, chat().as_bytes()).await;
        assert_eq!((answer.status, answer.header("x-shield-attempts"), upstream.seen()), (200, "2", 2), "{script:?}: {answer:?}");
        shield.end();
    }
}

/// A certificate stays untrusted, and a redirect is a matter of `upstream.base_url`. An alert may be a passing fault of one server,
/// like a refused connection.
#[tokio::test]
async fn only_what_may_pass_is_tried_again() {
    let redirect = |kind: &str, body: &str| {
        Kind::Plain(vec![answer("302 Found", &format!("location: https://elsewhere.example/\r\n{kind}\r\n"), body)])
    };
    for (upstream, code, attempts) in [
        (Kind::NoPort, "upstream_unreachable", "2"),
        (Kind::PlainOnTls(vec![Step::Write(ALERT.into())]), "upstream_tls", "2"),
        (Kind::Tls(Certificate::Untrusted, good()), "upstream_tls", "1"),
        (redirect("content-type: text/html", PAGE), "upstream_error", "1"),
        (redirect("content-type: application/json", "{}"), "upstream_error", "1"),
        (redirect("x: y", ""), "upstream_error", "1"),
    ] {
        let started = Upstream::start(&upstream).await;
        let shield = start(started.settings());
        let answer = ask(shield.app, chat().as_bytes()).await;
        assert_eq!(
            (answer.header("x-shield-error"), answer.header("x-shield-attempts")),
            (code, attempts),
            "{upstream:?}: {answer:?}"
        );
        shield.end();
    }
}
