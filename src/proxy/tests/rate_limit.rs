//! `RateLimit-Policy` and `RateLimit`: on which responses, their syntax, and that their values are plausible.

use std::collections::BTreeMap;

use http::{HeaderMap, StatusCode};

use super::{FIRST, Step, answer, ask, asked, chat, good, shield, stream, whole};
use crate::{
    config::{App, Fallback, FallbackReason, ModelLimits, Plan, Settings},
    headers::text,
    proxy::handle,
};

fn settings() -> Settings {
    let mut settings = Settings::default();
    settings.limits.plan = Plan::None;
    settings.limits.model.insert(
        "m".into(),
        ModelLimits {
            requests_per_minute: Some(30),
            tokens_per_day: Some(200_000),
            output_tokens_per_minute: Some(1000),
            ..Default::default()
        },
    );
    settings
}

/// Parses a structured field (RFC 9651) with the crate sfv: a list of strings with integer and string parameters.
fn list(value: &str) -> BTreeMap<String, BTreeMap<String, String>> {
    let list: sfv::List = sfv::Parser::new(value).parse().unwrap_or_else(|error| panic!("{error}: {value}"));
    let count = list.len();
    let member = |member| {
        let sfv::ListEntry::Item(item) = member else { panic!("an inner list: {value}") };
        let name = item.bare_item.as_string().expect("the name is a string").as_str().to_owned();
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'), "{name}");
        let parameters = item.params.iter().map(|(key, value)| {
            let text = match value {
                sfv::BareItem::Integer(number) => i64::from(*number).to_string(),
                sfv::BareItem::String(text) => text.as_str().to_owned(),
                other => panic!("{key} is {other:?}"),
            };
            assert_eq!(key.as_str() == "qu", value.as_string().is_some(), "units alone are strings: {key}");
            (key.as_str().to_owned(), text)
        });
        (name, parameters.collect())
    };
    let list: BTreeMap<_, _> = list.into_iter().map(member).collect();
    assert_eq!(list.len(), count, "no name twice: {value}");
    list
}

/// Name, limit, remaining amount, and the time until it is full, ordered by name.
fn limits(headers: &HeaderMap) -> Vec<(String, u64, u64, u64)> {
    let (policy, left) =
        (text(headers, "ratelimit-policy").expect("a policy"), text(headers, "ratelimit").expect("what is left"));
    let (policy, left) = (list(policy), list(left));
    assert!(policy.keys().eq(left.keys()), "{policy:?} {left:?}");
    let figure = |parameters: &BTreeMap<String, String>, key: &str| parameters[key].parse::<u64>().expect("a number");
    let rows = policy.iter().map(|(name, policy)| {
        let (q, r, t) = (figure(policy, "q"), figure(&left[name], "r"), figure(&left[name], "t"));
        assert!(r <= q, "{name}: {r} of {q}");
        if let Some(window) = policy.get("w") {
            assert!(t <= window.parse::<u64>().expect("seconds"), "{name}: full in {t} s");
        }
        (name.clone(), q, r, t)
    });
    rows.collect()
}

#[tokio::test(start_paused = true)]
async fn every_response_has_the_remaining_quota_of_every_limit() {
    let failing = answer("500 Internal Server Error", "application/json", r#"{"error":{"message":"m","type":"t"}}"#);
    let mut settings = settings();
    settings.retry.attempts = 1;
    let (shield, _) = shield(settings, vec![good(), stream(&[FIRST, "data: [DONE]\n\n"], true), failing, good()]);
    let (status, headers, _) = ask(&shield, false).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(
        text(&headers, "ratelimit-policy"),
        Some(
            r#""requests-per-minute";q=30;w=60, "tokens-per-day";q=200000;w=86400;qu="tokens", "output-tokens-per-minute";q=1000;w=60;qu="tokens""#
        )
    );
    assert_eq!(
        text(&headers, "ratelimit"),
        Some(r#""requests-per-minute";r=29;t=2, "tokens-per-day";r=199985;t=7, "output-tokens-per-minute";r=995;t=1"#)
    );
    for stream in [true, false] {
        let (_, headers, _) = ask(&shield, stream).await;
        assert_eq!(limits(&headers).len(), 3);
    }
    // Refused by the shield: nothing is left.
    let mut last = HeaderMap::new();
    for _ in 0..40 {
        let mut request = chat(false);
        request.headers_mut().insert("x-shield-max-wait-ms", "0".parse().expect("a value"));
        last = whole(handle(&shield, request, None).await).await.1;
    }
    assert_eq!(text(&last, "x-shield-error"), Some("rate_limit_exceeded"));
    let requests = limits(&last).into_iter().find(|(name, ..)| name == "requests-per-minute").expect("RPM");
    assert!(requests.2 <= 2 && requests.3 >= 56, "{requests:?}");
}

#[tokio::test(start_paused = true)]
async fn caps_and_budgets_are_included() {
    let mut settings = settings();
    settings.app = vec![App {
        name: "*".into(),
        requests_per_minute: Some(10),
        tokens_per_day: Some(100),
        cost_per_month: Some(2.5),
        ..App::default()
    }];
    let (shield, _) = shield(settings, vec![good()]);
    let (_, headers, _) = ask(&shield, false).await;
    let limits = limits(&headers);
    let of = |wanted: &str| limits.iter().find(|(name, ..)| name == wanted).map(|(_, q, r, _)| (*q, *r));
    assert_eq!(of("app-requests-per-minute"), Some((10, 9)));
    assert_eq!(of("app-tokens-per-day").map(|(q, _)| q), Some(100));
    assert_eq!(of("app-cost-per-month").map(|(q, _)| q), Some(2_500_000));
}

#[tokio::test(start_paused = true)]
async fn early_streams_have_them_and_unlimited_requests_do_not() {
    let mut settings = settings();
    settings.queue.stream_keepalive = Some(std::time::Duration::from_secs(1));
    let late = [vec![Step::Pause(3)], stream(&[FIRST, "data: [DONE]\n\n"], true)].concat();
    let (shield, _) = shield(settings, vec![late, good()]);
    let (_, headers, body) = ask(&shield, true).await;
    assert!(body.starts_with(": waiting\n\n"), "{body}");
    assert_eq!(limits(&headers).len(), 3);
    let models = asked(http::Method::GET, "/openai/v1/models", String::new());
    let (_, headers, _) = whole(handle(&shield, models, None).await).await;
    assert_eq!(text(&headers, "ratelimit"), None);
}

/// The head has the limits of the fallback model that will serve the request, not those of the named model.
#[tokio::test(start_paused = true)]
async fn a_stream_that_is_opened_early_by_another_model_has_that_ones_limits() {
    let mut settings = settings();
    settings.queue.stream_keepalive = Some(std::time::Duration::from_secs(1));
    settings.limits.model.insert("m".into(), ModelLimits { requests_per_day: Some(1), ..Default::default() });
    settings.limits.model.insert("b".into(), ModelLimits { requests_per_minute: Some(7), ..Default::default() });
    settings.fallback = vec![Fallback { model: "m".into(), to: vec!["b".into()], when: FallbackReason::DEFAULT.to_vec() }];
    let late = [vec![Step::Pause(3)], stream(&[FIRST, "data: [DONE]\n\n"], true)].concat();
    let (shield, _) = shield(settings, vec![good(), late]);
    ask(&shield, false).await;
    let (_, headers, body) = ask(&shield, true).await;
    assert!(body.starts_with(": waiting\n\n"), "{body}");
    assert_eq!(text(&headers, "x-shield-fallback"), Some("m>b; reason=daily_limit"));
    assert_eq!(text(&headers, "ratelimit-policy"), Some(r#""requests-per-minute";q=7;w=60"#));
}

/// The upstream's own lines are kept: a list may be split over several lines.
#[tokio::test(start_paused = true)]
async fn the_upstreams_own_fields_are_kept() {
    let own = super::GOOD;
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nratelimit: \"default\";r=5;t=9\r\ncontent-length: {}\r\n\r\n{own}",
        own.len()
    );
    let (shield, _) = shield(settings(), vec![vec![Step::Write(head)]]);
    let (_, headers, _) = ask(&shield, false).await;
    let lines: Vec<_> = headers.get_all("ratelimit").iter().filter_map(|line| line.to_str().ok()).collect();
    assert_eq!((lines.len(), lines[0]), (2, r#""default";r=5;t=9"#));
}
