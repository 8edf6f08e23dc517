//! Caps of apps: which requests wait for them, which do not, and the response to those that would wait too long.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, StatusCode};
use tokio::time::{Instant, sleep, timeout};

use super::{Step, chat, code, good, shield, whole};
use crate::{
    config::{App, Settings},
    headers::text,
    proxy::{Shield, handle},
};

fn with(apps: impl IntoIterator<Item = App>) -> Settings {
    let mut settings = Settings { app: apps.into_iter().collect(), ..Settings::default() };
    settings.limits.plan = crate::config::Plan::None;
    settings
}

async fn ask(shield: &Arc<Shield>, app: &str) -> (StatusCode, HeaderMap, String) {
    let mut request = chat(false);
    request.headers_mut().insert("x-shield-app", app.parse().expect("a value"));
    whole(handle(shield, request, None).await).await
}

#[tokio::test(start_paused = true)]
async fn a_capped_app_waits_and_the_others_pass() {
    let capped = App { name: "capped".into(), requests_per_minute: Some(2), ..App::default() };
    let (shield, _) = shield(with([capped]), vec![good()]);
    let began = Instant::now();
    let many = (0..4).map(|_| {
        let shield = shield.clone();
        tokio::spawn(async move { (ask(&shield, "capped").await, began.elapsed()) })
    });
    let many: Vec<_> = many.collect();
    sleep(Duration::from_millis(1)).await;
    for _ in 0..20 {
        assert_eq!(ask(&shield, "free").await.0, StatusCode::OK);
    }
    assert!(began.elapsed() < Duration::from_secs(1), "nobody waits for the cap of another app");
    let mut waits = Vec::new();
    for one in many {
        let ((status, headers, body), elapsed) = one.await.expect("it ran");
        match status {
            StatusCode::OK => waits.push(elapsed.as_secs()),
            // Beyond the max wait of 50 s.
            _ => {
                assert_eq!((status, code(&body).as_str()), (StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded"));
                assert!(body.contains("requests per minute (app RPM)"), "{body}");
                assert!(headers.contains_key("retry-after"), "{headers:?}");
            }
        }
    }
    waits.sort_unstable();
    assert_eq!((waits.len(), waits[0], waits[1]), (3, 0, 0), "two at once, the third waits: {waits:?}");
    assert!((25..=31).contains(&waits[2]), "{waits:?}");
    let waited = shield.telemetry.recent_requests();
    assert!(waited.iter().any(|request| request.waited_for.as_deref() == Some("app RPM")), "{waited:?}");
}

/// Only the shield counts a cap, so it needs no safety margin. Regression: only 28 of 30 a minute were sent at once.
#[tokio::test(start_paused = true)]
async fn a_cap_is_used_to_the_full() {
    let capped = App { name: "capped".into(), requests_per_minute: Some(30), ..App::default() };
    let (shield, _) = shield(with([capped]), vec![good()]);
    let began = Instant::now();
    for _ in 0..30 {
        assert_eq!(ask(&shield, "capped").await.0, StatusCode::OK);
    }
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(ask(&shield, "capped").await.0, StatusCode::OK);
    assert!((1.0..=2.1).contains(&began.elapsed().as_secs_f64()), "{:?}", began.elapsed());
}

/// Regression: a request that passed its cap, was then refused by the model's limit and never sent, still used up the cap.
#[tokio::test(start_paused = true)]
async fn what_the_limits_refuse_comes_back_to_the_cap() {
    let capped = App { name: "a".into(), requests_per_minute: Some(10), ..App::default() };
    let mut settings = with([capped]);
    settings.limits.default.requests_per_minute = Some(1);
    settings.queue.max_wait = Duration::from_secs(1);
    let (shield, _) = shield(settings, vec![good()]);
    assert_eq!(ask(&shield, "a").await.0, StatusCode::OK);
    let left = || shield.caps.snapshot()[0].dimensions[0].remaining;
    for _ in 0..5 {
        assert_eq!(ask(&shield, "a").await.0, StatusCode::TOO_MANY_REQUESTS);
    }
    assert!((9.0..=9.1).contains(&left()), "{} of 10 are left", left());
    // The same for one whose client disconnects while it waits for the model.
    let mut longer_wait = shield.settings.load().as_ref().clone();
    longer_wait.queue.max_wait = Duration::from_secs(120);
    shield.reload(longer_wait);
    let waiting = timeout(Duration::from_secs(1), ask(&shield, "a")).await;
    assert!(waiting.is_err(), "it waits for the model: {waiting:?}");
    assert!(left() >= 9.0, "{} of 10 are left", left());
}

/// `GOOD` uses 15 tokens, regardless of the reservation.
#[tokio::test(start_paused = true)]
async fn a_cap_on_tokens_is_settled_with_what_was_used() {
    let capped = App { name: "*".into(), tokens_per_minute: Some(200), ..App::default() };
    let (shield, _) = shield(with([capped]), vec![good()]);
    let began = Instant::now();
    let mut served = 0;
    while began.elapsed() < Duration::from_secs(600) {
        served += u32::from(ask(&shield, "x").await.0 == StatusCode::OK);
    }
    // A burst of 200 tokens and 2000 in ten minutes, at 15 a request.
    assert!((133..=148).contains(&served), "{served}");
    assert_eq!(ask(&shield, "y").await.0, StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn a_disconnect_releases_the_cap_unless_the_request_was_sent() {
    let capped = App { name: "a".into(), requests_per_minute: Some(1), ..App::default() };
    let mut settings = with([capped]);
    settings.queue.max_wait = Duration::from_secs(120);
    let (shield, seen) = shield(settings, vec![vec![Step::UntilClosed], good()]);
    assert!(timeout(Duration::from_secs(5), ask(&shield, "a")).await.is_err(), "the upstream says nothing");
    // A request that was sent counts; one whose client disconnected while it waited does not.
    assert!(timeout(Duration::from_secs(10), ask(&shield, "a")).await.is_err(), "it waits for the cap");
    let began = Instant::now();
    assert_eq!(ask(&shield, "a").await.0, StatusCode::OK);
    assert!((40..=46).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    assert_eq!(seen.lock().expect("unpoisoned").iter().filter(|line| *line != "closed").count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_cap_covers_all_models() {
    let capped = App { name: "a".into(), requests_per_minute: Some(1), ..App::default() };
    let mut settings = with([capped]);
    settings.fallback = vec![crate::config::Fallback {
        model: "m".into(),
        to: vec!["b".into()],
        when: vec![crate::config::FallbackReason::Wait],
    }];
    settings.queue.max_wait = Duration::from_secs(5);
    let (shield, _) = shield(settings, vec![good()]);
    assert_eq!(ask(&shield, "a").await.0, StatusCode::OK);
    let (status, headers, _) = ask(&shield, "a").await;
    assert_eq!((status, text(&headers, "x-shield-fallback")), (StatusCode::TOO_MANY_REQUESTS, None));
}

/// After a stop and after a kill, by the last save: a restart must not grant the whole cap once more.
#[tokio::test(start_paused = true)]
async fn a_restart_keeps_what_is_left_of_a_cap() {
    for is_killed in [false, true] {
        let directory = tempfile::tempdir().expect("a folder");
        let capped = App { name: "a".into(), requests_per_minute: Some(2), ..App::default() };
        let mut settings = with([capped]);
        settings.limits.state_file = Some(directory.path().join("limits"));
        settings.queue.max_wait = Duration::from_secs(1);
        let (before, _) = shield(settings.clone(), vec![good()]);
        for status in [StatusCode::OK, StatusCode::OK, StatusCode::TOO_MANY_REQUESTS] {
            assert_eq!(ask(&before, "a").await.0, status);
        }
        before.limits.close().expect("saved");
        if is_killed {
            let saved = timeout(Duration::from_secs(5), before.caps.run()).await;
            assert!(saved.is_err(), "it never returns");
        } else {
            before.caps.close().expect("saved");
        }
        let (after, _) = shield(settings, vec![good()]);
        assert_eq!(ask(&after, "a").await.0, StatusCode::TOO_MANY_REQUESTS, "killed: {is_killed}");
        // A minute later at most, one is served.
        sleep(Duration::from_secs(60)).await;
        assert_eq!(ask(&after, "a").await.0, StatusCode::OK, "killed: {is_killed}");
    }
}
