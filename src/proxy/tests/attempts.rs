//! When requests are retried, when not, and what their clients get.

use std::time::Duration;

use http::StatusCode;
use tokio::time::{Instant, sleep};

use super::{GOOD, Step, answer, ask, chat, code, good, shield, whole};
use crate::{
    config::{self, Settings},
    headers::text,
    proxy::handle,
};

/// Settings with only these limits.
fn limited(limits: config::ModelLimits) -> Settings {
    let mut settings = Settings::default();
    settings.limits.plan = config::Plan::None;
    settings.limits.model.insert("m".into(), limits);
    settings
}

fn with(headers: &[(&str, &str)], status: &str, body: &str) -> Vec<Step> {
    let mut head = format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    vec![Step::Write(format!("{head}\r\n{body}"))]
}

fn refusal(wait: &str) -> Vec<Step> {
    let text = format!(
        "Rate limit reached for model `m` in organization `org_01abc` on requests per minute (RPM): Limit 30, Used 30, Requested 1. Please try again in {wait}."
    );
    let body = format!(r#"{{"error":{{"message":"{text}","type":"requests","code":"rate_limit_exceeded"}}}}"#);
    with(&[], "429 Too Many Requests", &body)
}

#[tokio::test(start_paused = true)]
async fn transient_failures_are_retried() {
    let html = answer("502 Bad Gateway", "text/html", "<html>api.groq.com | 502: Bad gateway</html>");
    let cut = vec![Step::Write("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{\"id\"".into())];
    let (shield, seen) = shield(Settings::default(), vec![html, vec![], cut, good()]);
    let (status, headers, body) = ask(&shield, false).await;
    assert_eq!((status, body.as_str()), (StatusCode::OK, GOOD));
    assert_eq!(text(&headers, "x-shield-attempts"), Some("4"));
    assert_eq!(seen.lock().expect("unpoisoned").len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_permanent_failure_is_the_error_object() {
    for (script, status, expected) in [
        (answer("502 Bad Gateway", "text/html", "<html>Bad gateway</html>"), 502, "upstream_error"),
        (answer("200 OK", "application/json", "{\"id\":"), 502, "upstream_invalid"),
        (answer("200 OK", "text/html", "<html></html>"), 502, "upstream_invalid"),
        (answer("200 OK", "application/json", ""), 502, "upstream_invalid"),
        (vec![], 502, "upstream_closed"),
        (vec![Step::Write("SSH-2.0-OpenSSH\r\n".into())], 502, "upstream_invalid"),
    ] {
        let settings = Settings { breaker: config::Breaker { failures: 100, ..Default::default() }, ..Default::default() };
        let (shield, _) = shield(settings, vec![script]);
        let (got, headers, body) = ask(&shield, false).await;
        assert_eq!((got.as_u16(), code(&body).as_str()), (status, expected));
        assert_eq!(text(&headers, "x-should-retry"), Some("false"));
        assert_eq!(text(&headers, "x-shield-attempts"), Some("4"));
        assert_eq!(text(&headers, "content-type"), Some("application/json"));
    }
}

/// The one request a minute has failed: its retry cannot be sent in time, and its app learns of the failure, not of the limit.
#[tokio::test(start_paused = true)]
async fn a_retry_without_room_reports_the_failure() {
    let mut settings = limited(config::ModelLimits { requests_per_minute: Some(1), ..Default::default() });
    settings.queue.max_wait = Duration::from_secs(20);
    let error = r#"{"error":{"message":"Internal Server Error","type":"internal_server_error"}}"#;
    let (shield, seen) = shield(settings, vec![answer("500 Internal Server Error", "application/json", error)]);
    let (status, headers, body) = ask(&shield, false).await;
    assert_eq!((status.as_u16(), text(&headers, "x-should-retry")), (500, Some("false")), "{body}");
    assert!(body.contains("Internal Server Error"), "{body}");
    assert_eq!(seen.lock().expect("unpoisoned").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn max_wait_ends_at_dispatch() {
    let settings =
        Settings { queue: config::Queue { max_wait: Duration::from_secs(5), ..Default::default() }, ..Default::default() };
    let (shield, _) = shield(settings, vec![[vec![Step::Pause(15)], good()].concat()]);
    assert_eq!(ask(&shield, false).await.0, StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn an_open_breaker_fails_requests_and_one_probe_closes_it() {
    let failing =
        answer("500 Internal Server Error", "application/json", r#"{"error":{"message":"m","type":"internal_server_error"}}"#);
    let mut scripts = vec![failing; 8];
    scripts.push(good());
    let (shield, seen) = shield(Settings::default(), scripts);
    let impatient = || {
        let mut request = chat(false);
        request.headers_mut().insert("x-shield-max-wait-ms", 1000.into());
        request
    };
    let mut codes = Vec::new();
    for _ in 0..20 {
        let (status, _, body) = whole(handle(&shield, impatient(), None).await).await;
        codes.push((status.as_u16(), code(&body)));
    }
    assert!(codes.contains(&(503, "upstream_unavailable".into())), "{codes:?}");
    assert!(seen.lock().expect("unpoisoned").len() < 10, "a dead upstream is left alone");
    sleep(Duration::from_secs(30)).await;
    while seen.lock().expect("unpoisoned").len() < 9 {
        ask(&shield, false).await;
    }
    assert_eq!(ask(&shield, false).await.0, StatusCode::OK);
}

/// Two shields, each the upstream of the other.
#[tokio::test(start_paused = true)]
async fn a_looping_request_is_refused() {
    let (ring, seen) = shield(Settings::default(), vec![good()]);
    assert_eq!(ask(&ring, false).await.0, StatusCode::OK);
    let sent = seen.lock().expect("unpoisoned").pop().expect("one request");
    let via = sent.lines().find_map(|line| line.strip_prefix("via: ")).unwrap_or_else(|| panic!("no Via in {sent}"));
    let mut request = chat(false);
    request.headers_mut().insert("via", format!("1.1 another, {via}").parse().expect("a value"));
    let (status, headers, body) = whole(handle(&ring, request, None).await).await;
    assert_eq!((status.as_u16(), code(&body).as_str()), (403, "request_loop"), "{body}");
    assert_eq!(text(&headers, "x-should-retry"), Some("false"));
    assert!(seen.lock().expect("unpoisoned").is_empty(), "it goes no further");
}

/// Regression: each of the four attempts of a call was a probe, so an outage was reported after 15 to 20 s, or 45 s for twelve
/// concurrent calls.
#[tokio::test(start_paused = true)]
async fn an_outage_fails_calls_within_one_breaker_period() {
    let failing = || with(&[], "503 Service Unavailable", r#"{"error":{"message":"down","type":"internal_server_error"}}"#);
    let mut settings = Settings::default();
    (settings.retry.attempts, settings.breaker.failures) = (1, 1);
    let open = settings.breaker.open;
    let (down, seen) = shield(settings, (0..20).map(|_| failing()).collect());
    assert_eq!(ask(&down, false).await.0, StatusCode::SERVICE_UNAVAILABLE);

    // A single call is the probe, and gets its failure.
    let start = Instant::now();
    let (_, headers, body) = ask(&down, false).await;
    assert!(body.contains("down"), "the cause itself: {body}");
    assert_eq!(text(&headers, "x-shield-attempts"), Some("1"));
    assert!((open..open + Duration::from_millis(10)).contains(&start.elapsed()), "{:?}", start.elapsed());

    // Of twelve concurrent calls one is the probe.
    let (start, before) = (Instant::now(), seen.lock().expect("unpoisoned").len());
    let calls: Vec<_> = (0..12).map(|_| (down.clone(), chat(false))).collect();
    let calls =
        calls.into_iter().map(|(down, request)| tokio::spawn(async move { whole(handle(&down, request, None).await).await }));
    let mut refused = 0;
    for call in calls.collect::<Vec<_>>() {
        let (status, headers, body) = call.await.expect("it ran");
        assert_eq!((status.as_u16(), text(&headers, "x-should-retry")), (503, Some("false")), "{body}");
        if code(&body) == "upstream_unavailable" {
            let after: u64 = text(&headers, "retry-after").expect("it is stated").parse().expect("seconds");
            assert!((5..=9).contains(&after), "the next probe: {after}");
            refused += 1;
        }
    }
    assert!(start.elapsed() < open + Duration::from_millis(10), "{:?}", start.elapsed());
    assert_eq!((refused, seen.lock().expect("unpoisoned").len() - before), (11, 1));
}

/// Calls that wait during a short outage are served after it, though only one of them is the probe.
#[tokio::test(start_paused = true)]
async fn calls_that_wait_for_the_probe_are_served_after_it() {
    let failing = with(&[], "503 Service Unavailable", r#"{"error":{"message":"down","type":"internal_server_error"}}"#);
    let mut settings = Settings::default();
    (settings.retry.attempts, settings.breaker.failures) = (1, 1);
    let mut scripts = vec![failing];
    scripts.extend((0..12).map(|_| good()));
    let (blip, _) = shield(settings, scripts);
    assert_eq!(ask(&blip, false).await.0, StatusCode::SERVICE_UNAVAILABLE);
    let calls: Vec<_> = (0..12).map(|_| (blip.clone(), chat(false))).collect();
    let calls = calls.into_iter().map(|(blip, request)| tokio::spawn(async move { handle(&blip, request, None).await.status() }));
    for call in calls.collect::<Vec<_>>() {
        assert_eq!(call.await.expect("it ran"), StatusCode::OK);
    }
}

#[tokio::test(start_paused = true)]
async fn breaker_max_wait_bounds_the_wait() {
    for (max_wait, waits) in [(Some(0), 0), (Some(2000), 0), (Some(7000), 5000), (None, 5000)] {
        let failing = || with(&[], "503 Service Unavailable", r#"{"error":{"message":"down","type":"internal_server_error"}}"#);
        let mut settings = Settings::default();
        (settings.retry.attempts, settings.breaker.failures) = (1, 1);
        settings.breaker.max_wait = max_wait.map(Duration::from_millis);
        let (down, _) = shield(settings, vec![failing(), failing()]);
        ask(&down, false).await;
        let start = Instant::now();
        let (_, _, body) = ask(&down, false).await;
        assert_eq!(start.elapsed().as_millis() / 10 * 10, waits, "{max_wait:?}");
        // A call that may not wait for the probe fails at once.
        assert_eq!(code(&body) == "upstream_unavailable", waits == 0, "{max_wait:?}: {body}");
    }
}

#[tokio::test(start_paused = true)]
async fn every_form_of_retry_after_is_a_minimum() {
    let busy = r#"{"error":{"message":"Busy.","type":"internal_server_error"}}"#;
    let stated = r#"{"error":{"message":"Busy. Please try again in 1m2.5s.","type":"internal_server_error"}}"#;
    let date = httpdate::fmt_http_date(std::time::SystemTime::now() + Duration::from_secs(30));
    for (headers, body, floor) in [
        (vec![("retry-after", "7")], busy, 7.0),
        (vec![("retry-after", "1.5")], busy, 1.5),
        (vec![("retry-after-ms", "2500"), ("retry-after", "9")], busy, 2.5),
        // The date is read against the wall clock, which goes on while this test runs.
        (vec![("retry-after", date.as_str())], busy, 20.0),
        (vec![], stated, 62.5),
    ] {
        let mut settings = Settings::default();
        settings.queue.max_wait = Duration::from_secs(100);
        let (shield, seen) = shield(settings, vec![with(&headers, "503 Service Unavailable", body), good()]);
        let start = Instant::now();
        assert_eq!(ask(&shield, false).await.0, StatusCode::OK, "{headers:?}");
        let waited = start.elapsed().as_secs_f64();
        let most = if floor == 20.0 { 30.0 } else { floor };
        assert!((floor..=most + 0.251).contains(&waited), "{headers:?}: {waited} s");
        assert_eq!(seen.lock().expect("unpoisoned").len(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn no_attempt_begins_after_the_max_wait() {
    let busy = with(&[("retry-after", "20")], "503 Service Unavailable", r#"{"error":{"message":"m","type":"t"}}"#);
    let (shield, seen) = shield(Settings::default(), vec![busy]);
    let start = Instant::now();
    let (status, headers, _) = ask(&shield, false).await;
    assert_eq!((status.as_u16(), seen.lock().expect("unpoisoned").len()), (503, 3), "at 0, 20 and 40 s of 50");
    assert!(start.elapsed() < Duration::from_secs(42));
    let after: u64 = text(&headers, "retry-after").expect("text").parse().expect("an integer");
    assert!((20..=60).contains(&after) && text(&headers, "x-should-retry") == Some("true"), "{headers:?}");
}

/// Groq charges a request for each response, including failures.
#[tokio::test(start_paused = true)]
async fn each_attempt_reserves_under_the_limits() {
    let failing = with(&[], "500 Internal Server Error", r#"{"error":{"message":"m","type":"t"}}"#);
    let limits = config::ModelLimits { requests_per_minute: Some(60), ..Default::default() };
    let (shield, _) = shield(limited(limits), vec![failing.clone(), failing, good()]);
    let (status, headers, _) = ask(&shield, false).await;
    assert_eq!((status, text(&headers, "x-shield-attempts")), (StatusCode::OK, Some("3")));
    let limiters = shield.limits.snapshot();
    let dimension = limiters[0].dimensions.iter().find(|d| d.dimension.code == "RPM").expect("configured");
    // Back-off lets a little of it refill.
    assert!((57.0..59.0).contains(&dimension.remaining), "three of 60 were taken: {}", dimension.remaining);
}

/// Whatever `retry-after` it states.
#[tokio::test(start_paused = true)]
async fn an_upstream_that_always_refuses_gets_few_requests() {
    let text = |words: &str| {
        let message = format!("Rate limit reached for model `m` in organization `org_01` on {words}");
        format!(r#"{{"error":{{"message":"{message}","type":"tokens","code":"rate_limit_exceeded"}}}}"#)
    };
    let audio = "seconds of audio per hour (ASPH): Limit 7200, Used 7185, Requested 20. Please try again in 2.3s.";
    let lie = "tokens per minute (TPM): Limit 100000, Used 10, Requested 10. Please try again in 0s.";
    for body in [String::new(), "slow down".into(), text(audio), text(lie)] {
        let (shield, seen) = shield(Settings::default(), vec![with(&[("retry-after", "0")], "429 Too Many Requests", &body)]);
        let start = Instant::now();
        let (status, headers, _) = ask(&shield, false).await;
        let sends = seen.lock().expect("unpoisoned").len();
        assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{body}");
        assert!((1..=12).contains(&sends), "{sends} sends in 50 s of: {body}");
        assert!(start.elapsed() <= Duration::from_secs(51), "{:?} of: {body}", start.elapsed());
        assert!(headers.contains_key("retry-after"), "{headers:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_request_goes_to_the_front_of_its_queue() {
    let limits = config::ModelLimits { requests_per_minute: Some(30), ..Default::default() };
    let (shield, seen) = shield(limited(limits), vec![good(), refusal("6s"), good()]);
    ask(&shield, false).await;
    let numbered = |n: usize| {
        let mut request = chat(false);
        request.headers_mut().insert("x-number", n.into());
        let shield = shield.clone();
        tokio::spawn(async move { whole(handle(&shield, request, None).await).await })
    };
    let refused = numbered(1);
    while seen.lock().expect("unpoisoned").len() < 2 {
        sleep(Duration::from_millis(1)).await;
    }
    sleep(Duration::from_millis(1)).await;
    let later: Vec<_> = (2..5).map(numbered).collect();
    let (status, headers, body) = refused.await.expect("it ran");
    assert_eq!((status, text(&headers, "x-shield-attempts")), (StatusCode::OK, Some("2")), "no refusal is seen: {body}");
    for request in later {
        assert_eq!(request.await.expect("it ran").0, StatusCode::OK);
    }
    let seen = seen.lock().expect("unpoisoned");
    let order: Vec<_> = seen[1..].iter().filter_map(|r| r.lines().find_map(|line| line.strip_prefix("x-number: "))).collect();
    assert_eq!(order[..2], ["1", "1"], "it came before those that came after it: {order:?}");
    assert_eq!(order.len(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_beyond_the_max_wait_reaches_the_app() {
    let (shield, seen) = shield(limited(config::ModelLimits::default()), vec![refusal("2m0s")]);
    let (status, headers, body) = ask(&shield, false).await;
    assert_eq!((status.as_u16(), code(&body).as_str()), (429, "rate_limit_exceeded"), "{body}");
    assert!(headers.contains_key("retry-after") && headers.contains_key("retry-after-ms"), "{headers:?}");
    assert!(!body.contains("org_01") && seen.lock().expect("unpoisoned").len() == 1, "{body}");
}

/// Regardless of how the wait ends: by the breaker's probe, or by the end of a drain.
#[tokio::test(start_paused = true)]
async fn every_wait_is_reported() {
    let failing = with(&[], "500 Internal Server Error", r#"{"error":{"message":"m","type":"t"}}"#);
    let mut settings = limited(config::ModelLimits::default());
    (settings.retry.attempts, settings.breaker.failures, settings.breaker.open) = (1, 1, Duration::from_secs(2));
    let (broken, _) = shield(settings, vec![failing, good()]);
    let waited = async |shield| text(&ask(shield, false).await.1, "x-shield-wait-ms").map(str::to_owned);
    assert_eq!(waited(&broken).await.as_deref(), Some("0"));
    assert_eq!(waited(&broken).await.as_deref(), Some("2000"), "for the probe");

    // One of four is the safety margin, and one is refilled in fifteen seconds.
    let limits = config::ModelLimits { requests_per_minute: Some(4), ..Default::default() };
    let (full, _) = shield(limited(limits), vec![good()]);
    for _ in 0..3 {
        assert_eq!(waited(&full).await.as_deref(), Some("0"));
    }
    let (asked, stopped) = (full.clone(), full);
    stopped.shutdown.draining.cancel();
    let waiting = tokio::spawn(async move { ask(&asked, false).await });
    sleep(Duration::from_millis(3300)).await;
    stopped.shutdown.cutoff.cancel();
    let (status, headers, body) = waiting.await.expect("it ran");
    assert_eq!((status.as_u16(), code(&body).as_str()), (503, "shutting_down"));
    assert_eq!(text(&headers, "x-shield-wait-ms"), Some("3300"));
}

/// An older form of Groq's refusal of expected output: 400 `invalid_request_error`, with the same text as the current 429.
#[tokio::test(start_paused = true)]
async fn a_400_with_the_text_of_an_output_limit_is_a_refusal() {
    let text = "Request too large for model `m` in organization `org_x` service tier `on_demand` on output tokens per minute (OTPM): \
                Limit 1000, Requested 1080. The request's expected output tokens exceed the enforced limit; reduce max_tokens (or the \
                request's expected output) and try again.";
    let body = serde_json::json!({"error": {"message": text, "type": "invalid_request_error"}}).to_string();
    let refused = with(&[], "400 Bad Request", &body);
    let ask = async |fit: bool| {
        let mut settings = limited(config::ModelLimits::default());
        settings.limits.fit_ceiling = fit;
        let (shield, seen) = shield(settings, vec![refused.clone(), good()]);
        let body = r#"{"model":"m","max_completion_tokens":1800,"messages":[{"role":"user","content":"hi"}]}"#;
        let request = super::asked(http::Method::POST, "/openai/v1/chat/completions", body.into());
        let (status, headers, body) = whole(handle(&shield, request, None).await).await;
        let sent = seen.lock().expect("unpoisoned").len();
        (status.as_u16(), text_of(&headers, "x-shield-fitted"), body, sent)
    };
    let (status, fitted, body, sent) = ask(true).await;
    assert_eq!((status, body.as_str(), sent), (200, GOOD, 2));
    assert!(fitted.is_some_and(|fitted| fitted.starts_with("1800>")), "sent again once with an output limit that fits");
    let (status, _, body, sent) = ask(false).await;
    assert!((status, sent) == (429, 1) && body.contains("max_completion_tokens to 1000 or less"), "{status} {sent} {body}");
}

fn text_of(headers: &http::HeaderMap, name: &str) -> Option<String> {
    text(headers, name).map(str::to_owned)
}
