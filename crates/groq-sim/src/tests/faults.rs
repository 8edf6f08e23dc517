//! Injected faults over HTTP/1.1, and clients that disconnect.

use std::time::Duration;

use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::Instant,
};

use super::{answer, chat, connection, request, send};
use crate::{Action, Fault, Options, Pace, Sim};

/// The bytes that the client receives for one request, until the connection is closed.
async fn raw(sim: &Sim, stream: bool) -> String {
    let mut connection = connection(sim);
    let body = json!({"model": "m", "messages": [{"content": "[[sim completion=20]]"}], "stream": stream}).to_string();
    let head = format!(
        "POST /openai/v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer k\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    connection.write_all((head + &body).as_bytes()).await.expect("written");
    let mut all = Vec::new();
    connection.read_to_end(&mut all).await.expect("read to its end");
    String::from_utf8_lossy(&all).into_owned()
}

#[tokio::test(start_paused = true)]
async fn a_disconnect_ends_a_stream_and_its_charge() {
    let pace = Pace { tokens_per_second: 10.0, ..Pace::default() };
    let sim = Sim::new(Options { pace, ..Options::default() });
    let response =
        send(&sim, chat("[[sim completion=1000 reasoning=0 head_ms=0]]", json!({"stream": true, "max_tokens": 2000}))).await;
    let prompt = sim.stats().scopes[0].limits["TPM"].charged - 2000;
    let mut body = response.expect("a head").into_body();
    for _ in 0..3 {
        body.frame().await.expect("an event").expect("data");
    }
    drop(body);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let spent = sim.stats().scopes[0].limits["TPM"].charged - prompt;
    assert!((1..=30).contains(&spent), "{spent}");
    assert_eq!((sim.log()[0].ended, sim.stats().dropped), (Some("dropped"), 1));
}

#[tokio::test(start_paused = true)]
async fn responses_of_faults_replace_those_of_endpoints() {
    let script = r#"[
        {"nth": 1, "action": "status", "status": 503},
        {"nth": 2, "action": "html", "status": 502},
        {"nth": 3, "action": "forbidden"},
        {"nth": 4, "action": "empty", "status": 500},
        {"nth": 5, "action": "untyped", "status": 403},
        {"nth": 6, "action": "refused", "message": "Slow down", "retry_after": "2.5"},
        {"nth": 7, "action": "status", "status": 498, "body": {"x": 1}, "headers": [["x-a", "b"]]},
        {"nth": [8], "path": "/chat", "model": "openai/gpt-oss-20b", "action": "not_json"}]"#;
    let sim = Sim::new(Options { pace: Pace::instant(), ..Options::default() });
    assert_eq!(answer(&sim, request("POST", "/_sim/faults", script)).await.0, 200);
    let mut said = Vec::new();
    for _ in 0..9 {
        let (status, headers, body) = answer(&sim, chat("x", json!({}))).await;
        said.push((status, headers.get("retry-after").cloned(), String::from_utf8_lossy(&body).into_owned()));
    }
    let statuses: Vec<u16> = said.iter().map(|(status, ..)| *status).collect();
    assert_eq!(statuses, [503, 502, 403, 500, 403, 429, 498, 200, 200]);
    assert!(said[0].2.contains("openai/gpt-oss-20b is currently over capacity."));
    assert!(said[1].2.contains("api.groq.com | 502: Bad gateway"));
    assert_eq!((said[2].2.as_str(), said[3].2.as_str(), said[6].2.as_str()), ("error code: 1010", "", "{\"x\":1}"));
    assert!(!said[4].2.contains("type"));
    assert_eq!(said[5].1.as_ref().map(|v| v.as_bytes()), Some(b"2.5".as_slice()));
    assert!(said[7].2.starts_with("<html>") && said[8].2.contains("chat.completion"));
    assert_eq!((sim.stats().admitted, sim.stats().faults, sim.stats().dropped), (1, 8, 0));
    assert_eq!(answer(&sim, request("POST", "/_sim/faults", "{")).await.0, 400);
}

#[tokio::test(start_paused = true)]
async fn faults_break_connections() {
    let sim = Sim::new(Options { pace: Pace::instant(), ..Options::default() });
    let play = async |action: Action, stream: bool| {
        sim.set_faults(vec![Fault::always(action)]);
        raw(&sim, stream).await
    };
    let whole = play(Action::None, false).await;
    let (_, json) = whole.split_once("\r\n\r\n").expect("a head");
    assert!(serde_json::from_str::<Value>(json).is_ok());

    let admitted = sim.stats().admitted;
    assert_eq!(play(Action::Close, false).await, "");
    assert_eq!(play(Action::RefuseStream, false).await, "");
    assert_eq!(sim.stats().admitted, admitted, "closed before admission, so nothing is charged");
    assert_eq!(play(Action::Garbage { bytes: Some("SSH-2.0-x\r\n".to_owned()) }, false).await, "SSH-2.0-x\r\n");
    let head = play(Action::CloseInHead, false).await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && !head.contains("\r\n\r\n"));
    let length = |all: &str| {
        let (head, body) = all.split_once("\r\n\r\n").expect("a head");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
        (length.parse::<usize>().expect("a number"), body.len())
    };
    let (announced, came) = length(&play(Action::CloseInBody, false).await);
    assert_eq!(announced / 2, came);
    let (announced, came) = length(&play(Action::WrongLength { by: 7 }, false).await);
    assert_eq!(announced, came + 7);
    let (announced, came) = length(&play(Action::TruncatedJson, false).await);
    assert_eq!(announced, came);

    let started = Instant::now();
    let slow = play(Action::SlowHead { ms: 10 }, false).await;
    let (head, json) = slow.split_once("\r\n\r\n").expect("a head");
    assert!(serde_json::from_str::<Value>(json).is_ok());
    assert!(started.elapsed() >= Duration::from_millis(10) * head.len() as u32);

    let started = Instant::now();
    play(Action::Stall { ms: 5000 }, false).await;
    play(Action::StallStream { after: 2, ms: 5000 }, true).await;
    assert!(started.elapsed() >= Duration::from_secs(10));
}

#[tokio::test(start_paused = true)]
async fn faults_end_streams() {
    let sim = Sim::new(Options { pace: Pace::instant(), ..Options::default() });
    let play = async |action: Action| {
        sim.set_faults(vec![Fault::always(action)]);
        raw(&sim, true).await
    };
    let data = |all: &str| all.matches("data: ").count();
    let whole = play(Action::None).await;
    assert!(whole.contains("data: [DONE]") && whole.ends_with("0\r\n\r\n"));

    let cut = play(Action::Cut { after: 3, half: false }).await;
    assert_eq!((data(&cut), cut.ends_with("0\r\n\r\n"), cut.ends_with("\n\n\r\n")), (3, false, true));
    let half = play(Action::Cut { after: 3, half: true }).await;
    assert_eq!((data(&half), half.ends_with("\n\n\r\n")), (4, false));
    let done = play(Action::NoDone).await;
    assert_eq!((data(&done) + 1, done.contains("[DONE]"), done.ends_with("0\r\n\r\n")), (data(&whole), false, true));
    for (action, mark) in [
        (Action::ErrorFrame { after: 2 }, "\"status_code\":400"),
        (Action::ErrorEvent { after: 2 }, "event: error\n"),
        (Action::XGroqError { after: 2 }, "\"error\":\"over_capacity\""),
    ] {
        let all = play(action).await;
        assert_eq!((data(&all), all.contains(mark), all.ends_with("0\r\n\r\n")), (3, true, true), "{all}");
    }
}

#[tokio::test(start_paused = true)]
async fn errors_can_be_injected_by_code() {
    let sim = Sim::new(Options { pace: Pace::instant(), ..Options::default() });
    for (code, status) in [
        ("blocked_api_access", 400),
        ("spend_limit_reached", 400),
        ("organization_restricted", 400),
        ("model_decommissioned", 400),
        ("model_not_found", 404),
    ] {
        let script = json!([{"action": "error", "code": code}]).to_string();
        assert_eq!(answer(&sim, request("POST", "/_sim/faults", script)).await.0, 200);
        let (got, _, body) = answer(&sim, chat("x", json!({}))).await;
        let body: Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(
            (got, &body["error"]["code"], &body["error"]["type"]),
            (status, &json!(code), &json!("invalid_request_error"))
        );
        assert!(body["error"]["message"].as_str().expect("a message").len() > 20, "{body}");
    }
    assert_eq!(sim.stats().admitted, 0);
}

#[tokio::test(start_paused = true)]
async fn truncated_responses_have_no_content() {
    let sim = Sim::new(Options { pace: Pace::instant(), ..Options::default() });
    sim.set_faults(vec![Fault::always(Action::Truncated)]);
    let body = async |request| String::from_utf8_lossy(&answer(&sim, request).await.2).into_owned();
    let whole: Value = serde_json::from_str(&body(chat("x", json!({"max_tokens": 150}))).await).expect("JSON");
    let choice = &whole["choices"][0];
    assert_eq!((&choice["finish_reason"], &choice["message"]["content"]), (&json!("length"), &json!("")));
    assert_eq!(whole["usage"]["completion_tokens_details"]["reasoning_tokens"], whole["usage"]["completion_tokens"]);
    let stream = body(chat("x", json!({"stream": true}))).await;
    assert!(stream.contains("\"finish_reason\":\"length\"") && stream.contains("\"reasoning\":\"The user"), "{stream}");
    assert_eq!(stream.matches("\"content\":").count(), 1, "only the empty one in the first chunk: {stream}");

    let responses =
        |stream: bool| request("POST", "/openai/v1/responses", json!({"model": "m", "input": "x", "stream": stream}).to_string());
    let whole: Value = serde_json::from_str(&body(responses(false)).await).expect("JSON");
    assert_eq!((&whole["status"], &whole["incomplete_details"]["reason"]), (&json!("incomplete"), &json!("max_output_tokens")));
    assert_eq!(whole["output"][0]["type"], "reasoning");
    let stream = body(responses(true)).await;
    assert!(stream.contains("event: response.incomplete\n") && !stream.contains("output_text"), "{stream}");
}

#[tokio::test(start_paused = true)]
async fn go_away_closes_after_the_response() {
    let sim = Sim::new(Options { pace: Pace::instant(), ..Options::default() });
    sim.set_faults(vec![Fault::always(Action::GoAway)]);
    let (status, headers, _) = answer(&sim, chat("x", json!({}))).await;
    assert_eq!((status, &headers["connection"]), (200, &"close".parse().expect("ascii")));
}

#[tokio::test(start_paused = true)]
async fn probabilities_follow_the_seed() {
    let run = async |seed| {
        let faults =
            vec![Fault { probability: Some(0.5), times: Some(20), action: Action::Empty { status: 500 }, ..Fault::default() }];
        let sim = Sim::new(Options { seed, faults, pace: Pace::instant(), ..Options::default() });
        let mut said = Vec::new();
        for _ in 0..60 {
            said.push(answer(&sim, chat("x", json!({}))).await.0);
        }
        said
    };
    let first = run(3).await;
    assert_eq!(first, run(3).await);
    assert_eq!(first.iter().filter(|status| **status == 500).count(), 20);
}
