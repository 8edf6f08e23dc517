//! Streams: complete, truncated, stalled, failed, waiting, drained.

use std::time::Duration;

use http::StatusCode;
use tokio::time::{Instant, sleep};

use super::{FIRST, Step, answer, ask, chat, code, shield, stream, whole};
use crate::{
    config::{self, Settings},
    headers::text,
    proxy::handle,
};

const SECOND: &str = "data: {\"id\":\"c\",\"choices\":[{\"delta\":{\"content\":\"b\"}}]}\n\n";
const DONE: &str = "data: [DONE]\n\n";

#[tokio::test(start_paused = true)]
async fn a_valid_stream_passes_unchanged_in_any_pieces() {
    let text = [FIRST, SECOND, DONE].concat();
    for size in [1, 7, 30, 1000] {
        let pieces: Vec<&str> = text.as_bytes().chunks(size).map(|c| std::str::from_utf8(c).expect("ASCII")).collect();
        let (shield, _) = shield(Settings::default(), vec![stream(&pieces, true)]);
        let (status, _, body) = ask(&shield, true).await;
        assert_eq!((status, body.as_str()), (StatusCode::OK, text.as_str()));
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_complete_stream_ends_its_last_event() {
    for done in ["data: [DONE]", "data: [DONE]\n"] {
        let (shield, _) = shield(Settings::default(), vec![stream(&[FIRST, done], true)]);
        let (_, _, body) = ask(&shield, true).await;
        assert_eq!(body, [FIRST, done, "\n\n"].concat());
    }
}

#[tokio::test(start_paused = true)]
async fn a_cut_stream_ends_in_an_error_frame() {
    for (pieces, whole, passed) in [
        (vec![FIRST, "data: {\"half"], false, FIRST.to_owned()),
        (vec![FIRST, SECOND], true, [FIRST, SECOND].concat()),
        (vec![FIRST, SECOND], false, [FIRST, SECOND].concat()),
        (vec![FIRST, "data: {\"half"], true, FIRST.to_owned()),
        (vec![FIRST, "data: [DONE]"], false, FIRST.to_owned()),
    ] {
        let (shield, seen) = shield(Settings::default(), vec![stream(&pieces, whole)]);
        let (status, _, body) = ask(&shield, true).await;
        assert_eq!(status, StatusCode::OK);
        let frame = body.strip_prefix(&passed).expect("the whole events came first");
        assert_eq!(code(frame), "upstream_closed");
        assert!(frame.contains("\"status_code\":502"), "{frame}");
        assert_eq!(seen.lock().expect("unpoisoned").len(), 1, "never sent twice what was delivered");
    }
}

/// The Responses API puts an error into the object of a response that was accepted.
#[tokio::test(start_paused = true)]
async fn organization_ids_in_failed_responses_are_masked() {
    let failed = |id: &str| format!(r#"{{"status":"failed","usage":null,"error":{{"message":"In `org_{id}`.","code":"c"}}}}"#);
    let (plain, _) = shield(Settings::default(), vec![answer("200 OK", "application/json", &failed("01abc"))]);
    assert_eq!(ask(&plain, false).await.2, failed("*****"));
    let event = |id| format!("event: response.failed\ndata: {{\"type\":\"response.failed\",\"response\":{}}}\n\n", failed(id));
    let (streamed, _) = shield(Settings::default(), vec![stream(&[FIRST, &event("01abc")], true)]);
    assert_eq!(ask(&streamed, true).await.2, [FIRST, &event("*****")].concat());
}

#[tokio::test(start_paused = true)]
async fn a_stream_broken_before_its_first_event_is_retried() {
    let broken = stream(&["data: {\"half"], false);
    let (shield, seen) = shield(Settings::default(), vec![broken, stream(&[FIRST, DONE], true)]);
    let (_, headers, body) = ask(&shield, true).await;
    assert_eq!(body, [FIRST, DONE].concat());
    assert_eq!(text(&headers, "x-shield-attempts"), Some("2"));
    assert_eq!(seen.lock().expect("unpoisoned").len(), 2);
}

#[tokio::test(start_paused = true)]
async fn every_error_in_a_stream_becomes_a_frame_that_clients_raise_on() {
    for event in [
        "data: {\"id\":\"c\",\"choices\":[],\"x_groq\":{\"id\":\"r\",\"error\":\"over capacity\"}}\n\n",
        "event: error\ndata: {\"message\":\"over capacity\"}\n\n",
        "data: {\"error\":{\"message\":\"over capacity\",\"status_code\":400}}\n\n",
    ] {
        let (shield, _) = shield(Settings::default(), vec![stream(&[FIRST, event], true)]);
        let (_, _, body) = ask(&shield, true).await;
        let frame = body.strip_prefix(FIRST).expect("the good event came first");
        code(frame);
        assert!(frame.starts_with("data: {\"error\":{") && frame.contains("over capacity"), "{frame}");
        assert!(frame.contains("\"status_code\":"), "{frame}");
    }
}

#[tokio::test(start_paused = true)]
async fn long_gaps_are_no_stall_but_silence_is() {
    let mut steps = stream(&[FIRST], false);
    steps.push(Step::Pause(119));
    steps.extend(stream(&[SECOND], false).split_off(1));
    steps.push(Step::Pause(119));
    steps.extend(stream(&[DONE], true).split_off(1));
    let (healthy, _) = shield(Settings::default(), vec![steps]);
    assert_eq!(ask(&healthy, true).await.2, [FIRST, SECOND, DONE].concat());

    let mut steps = stream(&[FIRST], false);
    steps.push(Step::Pause(3600));
    let (stalled, _) = shield(Settings::default(), vec![steps]);
    let body = ask(&stalled, true).await.2;
    assert_eq!(code(body.strip_prefix(FIRST).expect("the first event")), "upstream_timeout");
}

#[tokio::test(start_paused = true)]
async fn streams_end_with_a_frame_when_the_drain_timeout_is_over() {
    let (shield, _) = shield(Settings::default(), vec![[stream(&[FIRST], false), vec![Step::Pause(3600)]].concat()]);
    let response = handle(&shield, chat(true), None).await;
    let start = Instant::now();
    shield.shutdown.draining.cancel();
    let ending = shield.shutdown.cutoff.clone();
    tokio::spawn(async move {
        sleep(Duration::from_secs(25)).await;
        ending.cancel();
    });
    let body = whole(response).await.2;
    assert_eq!(start.elapsed(), Duration::from_secs(25));
    assert_eq!(code(body.strip_prefix(FIRST).expect("the first event")), "shutting_down");
}

#[tokio::test(start_paused = true)]
async fn a_waiting_stream_is_kept_alive_if_asked_for() {
    let settings = Settings {
        queue: config::Queue { stream_keepalive: Some(Duration::from_secs(5)), ..Default::default() },
        ..Default::default()
    };
    let (shield, _) = shield(settings, vec![[vec![Step::Pause(12)], stream(&[FIRST, DONE], true)].concat()]);
    let (status, headers, body) = ask(&shield, true).await;
    assert_eq!((status, text(&headers, "content-type")), (StatusCode::OK, Some("text/event-stream")));
    assert_eq!(body, [": waiting\n\n", ": waiting\n\n", FIRST, DONE].concat());
    assert!(text(&headers, "x-request-id").is_some_and(|id| id.starts_with("req_shield_")), "{headers:?}");
    assert_eq!((text(&headers, "x-shield-attempts"), text(&headers, "x-shield-wait-ms")), (Some("1"), Some("0")));
}

/// A request that fails after its stream was opened early ends with an error frame.
#[tokio::test(start_paused = true)]
async fn a_waiting_stream_that_fails_ends_in_a_frame() {
    let mut settings = Settings::default();
    settings.queue.stream_keepalive = Some(Duration::from_secs(5));
    settings.retry.attempts = 1;
    let (shield, _) = shield(settings, vec![vec![Step::Pause(12)]]);
    let (status, _, body) = ask(&shield, true).await;
    let frame = body.strip_prefix(": waiting\n\n: waiting\n\n").unwrap_or_else(|| panic!("{body}"));
    assert_eq!((status, code(frame).as_str()), (StatusCode::OK, "upstream_closed"));
    assert!(frame.contains("\"status_code\":502"), "{frame}");
}
