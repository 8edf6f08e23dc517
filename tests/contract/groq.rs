//! Blocked accounts, missing models and truncated answers of Groq's, and what the shield does about them.

use std::net::SocketAddr;

use serde_json::Value;

use crate::{
    client::{ask, chat, chat_stream, request},
    kit::{Kind, Step, Upstream, answer, good, json, start},
};

/// A page of the admin listener.
async fn admin(address: SocketAddr, path: &str) -> String {
    ask(address, request("GET", path, "", "").replace("host: shield", &format!("host: {address}")).as_bytes()).await.body
}

async fn status(address: SocketAddr) -> Value {
    serde_json::from_str(&admin(address, "/status").await).expect("JSON")
}

/// An error as Groq writes it.
fn error(message: &str, code: &str) -> String {
    format!(r#"{{"error":{{"message":"{message}","type":"invalid_request_error","code":"{code}"}}}}"#)
}

#[tokio::test]
async fn a_blocked_organization_is_passed_on_once_and_shown_until_it_is_served_again() {
    for (status_line, code) in [
        ("400 Bad Request", "blocked_api_access"),
        ("400 Bad Request", "spend_limit_reached"),
        ("403 Forbidden", "organization_restricted"),
        // Whatever the status: a block is never retried.
        ("503 Service Unavailable", "blocked_api_access"),
        ("429 Too Many Requests", "spend_alert_blocked"),
    ] {
        let body = error("API access is blocked.", code);
        let upstream = Upstream::start(&Kind::Plain(vec![json(status_line, &body), good()])).await;
        let shield = start(upstream.settings());
        assert!(!admin(shield.admin, "/metrics").await.contains("groq_shield_account_blocked{"));

        let answer = ask(shield.app, chat().as_bytes()).await;
        let expected: u16 = status_line[..3].parse().expect("a status");
        assert_eq!((answer.status, answer.body.as_str()), (expected, body.as_str()), "passed on unchanged");
        assert_eq!((answer.header("x-should-retry"), upstream.seen()), ("false", 1), "{code}: not retried");
        assert_eq!(answer.faults(), [""; 0]);
        let shown = status(shield.admin).await["blocked_accounts"].take();
        assert_eq!(shown[0]["reason"], code);
        let organization = shown[0]["organization"].as_str().expect("a name").to_owned();
        assert!(organization.starts_with("key-"), "{shown}");
        let sample = format!(r#"groq_shield_account_blocked{{organization="{organization}",reason="{code}"}}"#);
        let metrics = admin(shield.admin, "/metrics").await;
        assert!(metrics.contains(&format!("{sample} 1\n")), "{metrics}");

        assert_eq!(ask(shield.app, chat().as_bytes()).await.status, 200);
        assert_eq!(status(shield.admin).await["blocked_accounts"], serde_json::json!([]));
        assert!(admin(shield.admin, "/metrics").await.contains(&format!("{sample} 0\n")));
        shield.end();
    }
}

fn chat_of(model: &str) -> String {
    let body = format!(r#"{{"model":"{model}","messages":[{{"role":"user","content":"hi"}}]}}"#);
    request("POST", "/openai/v1/chat/completions", "authorization: Bearer gsk_x\r\ncontent-type: application/json\r\n", &body)
}

#[tokio::test]
async fn the_message_of_a_missing_model_names_those_that_the_organization_uses() {
    for (status_line, code) in [("400 Bad Request", "model_decommissioned"), ("404 Not Found", "model_not_found")] {
        let gone = format!(
            r#"{{"error":{{"message":"The model `old` is gone.","type":"invalid_request_error","param":null,"code":"{code}","more":[1]}}}}"#
        );
        let missing = json(status_line, &gone);
        let upstream = Upstream::start(&Kind::Plain(vec![missing.clone(), good(), good(), good(), missing])).await;
        let shield = start(upstream.settings());
        let first = ask(shield.app, chat_of("old").as_bytes()).await;
        assert_eq!(first.body, gone, "nothing has been used yet: passed on unchanged");
        for model in ["a", "b", "old"] {
            assert_eq!(ask(shield.app, chat_of(model).as_bytes()).await.status, 200);
        }
        let answer = ask(shield.app, chat_of("old").as_bytes()).await;
        let error = answer.error();
        assert_eq!(
            error["message"],
            "The model `old` is gone. This organization has recently used these models successfully: `b`, `a`."
        );
        let others = [&error["type"], &error["code"], &error["more"][0]].map(ToString::to_string);
        assert_eq!(others, ["\"invalid_request_error\"".to_owned(), format!("\"{code}\""), "1".to_owned()]);
        assert!(answer.body.contains(r#""param":null"#), "{}", answer.body);
        assert_eq!((answer.status, first.status), (first.status, status_line[..3].parse().expect("a status")));
        assert_eq!(answer.header("x-shield-error"), "", "the error is Groq's");
        assert_eq!(answer.faults(), [""; 0]);
        shield.end();
    }
}

/// A stream of these events.
fn events(events: &[&str]) -> Vec<Step> {
    let body: String = events.iter().map(|event| format!("data: {event}\n\n")).collect();
    answer("200 OK", "content-type: text/event-stream\r\n", &body)
}

#[tokio::test]
async fn answers_truncated_before_any_content_are_counted() {
    let responses = |stream: bool| {
        let body = format!(r#"{{"model":"m","input":"hi","stream":{stream}}}"#);
        request("POST", "/openai/v1/responses", "authorization: Bearer gsk_x\r\ncontent-type: application/json\r\n", &body)
    };
    let usage = r#""usage":{"prompt_tokens":10,"completion_tokens":150}"#;
    let whole = |content: &str| {
        let choice = format!(r#"{{"index":0,"message":{{"role":"assistant","content":{content}}},"finish_reason":"length"}}"#);
        json("200 OK", &format!(r#"{{"id":"x","choices":[{choice}],{usage}}}"#))
    };
    let role = r#"{"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#;
    let reasoning = r#"{"choices":[{"delta":{"reasoning":"hm"},"finish_reason":null}]}"#;
    let content = r#"{"choices":[{"delta":{"content":"a"},"finish_reason":null}]}"#;
    let length = r#"{"choices":[{"delta":{},"finish_reason":"length"}]}"#;
    let details = r#""incomplete_details":{"reason":"max_output_tokens"}"#;
    let response =
        format!(r#"{{"object":"response","status":"incomplete",{details},"output":[{{"type":"reasoning"}}],{usage}}}"#);
    let incomplete = format!(r#"{{"type":"response.incomplete","response":{response}}}"#);
    let table = [
        (chat(), whole("\"\""), true),
        (chat(), whole("null"), true),
        (chat(), whole("\"text\""), false),
        (chat_stream(), events(&[role, reasoning, length, "[DONE]"]), true),
        (chat_stream(), events(&[role, reasoning, content, length, "[DONE]"]), false),
        (responses(false), json("200 OK", &response), true),
        (responses(true), events(&[r#"{"type":"response.created","response":{}}"#, &incomplete]), true),
        (responses(true), events(&[r#"{"type":"response.output_text.delta","delta":"a"}"#, &incomplete]), false),
    ];
    let upstream = Upstream::start(&Kind::Plain(table.iter().map(|(_, script, _)| script.clone()).collect())).await;
    let shield = start(upstream.settings());
    let mut count = 0;
    for (request, _, truncated) in &table {
        let answer = ask(shield.app, request.as_bytes()).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        count += u32::from(*truncated);
        let metrics = admin(shield.admin, "/metrics").await;
        assert!(metrics.contains(&format!("groq_shield_truncated_total{{model=\"m\"}} {count}\n")), "{request}\n{metrics}");
    }
    let shown = status(shield.admin).await["truncated"].take();
    assert_eq!((&shown[0]["model"], &shown[0]["count"]), (&"m".into(), &count.into()), "{shown}");
    let requests: Value = serde_json::from_str(&admin(shield.admin, "/requests").await).expect("JSON");
    assert_eq!(
        requests.as_array().expect("a list").iter().filter(|request| request["truncated"] == true).count(),
        count as usize
    );
    shield.end();
}
