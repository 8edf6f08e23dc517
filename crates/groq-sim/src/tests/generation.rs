//! Generated chat completions and responses, and their duration.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{answer, answer_json, chat, request};
use crate::{Options, Pace, Sim};

fn events(body: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(body).expect("UTF-8");
    assert!(text.ends_with("\n\n"));
    let data = text.split("\n\n").filter_map(|event| event.lines().find_map(|line| line.strip_prefix("data: ")));
    data.map(|data| serde_json::from_str(data).unwrap_or_else(|_| json!(data))).collect()
}

#[tokio::test(start_paused = true)]
async fn a_chat_completion_has_usage_and_rate_limit_headers() {
    let sim = Sim::new(Options::default());
    let (status, headers, body) = answer(&sim, chat("[[sim completion=40 cached=10]]", json!({"max_tokens": 500}))).await;
    let body: Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!((status, &body["object"]), (200, &json!("chat.completion")));
    let prompt = body["usage"]["prompt_tokens"].as_u64().expect("tokens");
    assert_eq!(body["usage"]["completion_tokens"], 40);
    assert_eq!(body["usage"]["prompt_tokens_details"]["cached_tokens"], 10);
    assert_eq!(headers["x-ratelimit-remaining-tokens"], (250_000 - prompt - 500).to_string());
    assert!(!headers.contains_key("x-ratelimit-limit-requests"), "the developer plan has no RPD");
    for name in ["x-request-id", "x-groq-region", "cf-ray", "set-cookie"] {
        assert!(headers.contains_key(name), "{name}");
    }
    assert_eq!(sim.stats().scopes[0].limits["TPM"].charged, i128::from(prompt - 10 + 40));
}

#[tokio::test(start_paused = true)]
async fn a_stream_begins_with_its_id_and_ends_with_usage_and_done() {
    let sim = Sim::new(Options::default());
    let more = json!({"stream": true, "stream_options": {"include_usage": true}});
    let (status, headers, body) = answer(&sim, chat("[[sim completion=450]]", more)).await;
    let events = events(&body);
    assert_eq!((status, &headers["content-type"]), (200, &"text/event-stream".parse().expect("ascii")));
    assert!(headers.contains_key("x-ratelimit-remaining-tokens"));
    assert!(events[0]["x_groq"]["id"].is_string());
    let last = events.len() - 1;
    assert_eq!(events[last], "[DONE]");
    assert_eq!((&events[last - 1]["choices"], &events[last - 1]["usage"]["completion_tokens"]), (&json!([]), &json!(450)));
    assert_eq!(events[last - 2]["x_groq"]["usage"]["completion_tokens"], 450);
    assert_eq!(events[last - 2]["choices"][0]["finish_reason"], "stop");
}

#[tokio::test(start_paused = true)]
async fn generation_takes_time_and_stops_at_max_completion_tokens() {
    let pace = Pace { head: Duration::from_millis(200), head_sigma: 0.0, tokens_per_second: 100.0, ..Pace::default() };
    let sim = Sim::new(Options { pace, ..Options::default() });
    let started = Instant::now();
    let (_, body) = answer_json(&sim, chat("[[sim completion=1000]]", json!({"max_completion_tokens": 300}))).await;
    assert_eq!(body["choices"][0]["finish_reason"], "length");
    assert_eq!(started.elapsed().as_millis() / 10, 320);
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_generates_the_same() {
    let run = async |seed| {
        let sim = Sim::new(Options { seed, ..Options::default() });
        let started = Instant::now();
        let mut said = Vec::new();
        for _ in 0..5 {
            said.push(answer(&sim, chat("hello", json!({"stream": true}))).await.2);
        }
        (said, started.elapsed())
    };
    let first = run(7).await;
    assert_eq!(first, run(7).await);
    assert_ne!(first.0, run(8).await.0);
}

#[tokio::test(start_paused = true)]
async fn tools_and_schemas_are_respected() {
    let sim = Sim::new(Options { pace: Pace::instant(), ..Options::default() });
    let schema = json!({"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}});
    let tools =
        json!({"tools": [{"type": "function", "function": {"name": "weather", "parameters": schema}}], "tool_choice": "auto"});
    let (_, body) = answer_json(&sim, chat("x", tools)).await;
    let call = &body["choices"][0]["message"]["tool_calls"][0]["function"];
    assert_eq!(
        (call, &body["choices"][0]["finish_reason"]),
        (&json!({"name": "weather", "arguments": "{\"city\":\"simulated\",\"days\":1}"}), &json!("tool_calls"))
    );
    let (_, body) =
        answer_json(&sim, chat("x", json!({"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}})))
            .await;
    assert_eq!(body["choices"][0]["message"]["content"], "{\"city\":\"simulated\",\"days\":1}");
}

#[tokio::test(start_paused = true)]
async fn streamed_responses_are_typed_events() {
    let sim = Sim::new(Options::default());
    let cost = |stream: bool| {
        let body =
            json!({"model": "openai/gpt-oss-20b", "input": "[[sim completion=10]]", "stream": stream, "max_output_tokens": 100});
        request("POST", "/openai/v1/responses", body.to_string())
    };
    let (_, whole) = answer_json(&sim, cost(false)).await;
    assert_eq!((&whole["object"], &whole["usage"]["output_tokens"]), (&json!("response"), &json!(10)));
    let (_, _, body) = answer(&sim, cost(true)).await;
    let events = events(&body);
    assert_eq!(events[0]["type"], "response.created");
    let last = events.last().expect("events");
    assert_eq!((&last["type"], &last["response"]["usage"]["output_tokens"]), (&json!("response.completed"), &json!(10)));
    assert!(body.starts_with(b"event: response.created\ndata: "));
}
