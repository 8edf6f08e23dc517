//! The official clients through a shield, and what their users see of each failure.
//!
//! Each client is a process of `tests/sdk` that executes orders. Its results are compared with a snapshot.

use std::{fmt::Write as _, process::Stdio, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use crate::kit::{Shield, Simulator, Tally, node, python};

const MODEL: &str = "openai/gpt-oss-20b";

/// Without the breaker, which would respond instead of Groq after five failures. With a retry budget for failures only, and short
/// delays.
const CONFIG: &str = r#"
[limits]
plan = "developer"
[limits.model."one-a-day"]
requests_per_day = 1
[retry]
base_delay = "1ms"
max_delay = "5ms"
budget = 10.0
[breaker]
failures = 1000
"#;

/// A client process.
struct Sdk {
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    _child: Child,
}

/// How a client decides whether to retry.
#[derive(Clone, Copy, PartialEq)]
enum Retries {
    /// By `x-should-retry`, so that every failure has one attempt.
    AsTold,
    /// Only by the status.
    ByStatus,
}

/// What a client supports in addition to chats and streams.
#[derive(Clone, Copy)]
struct Abilities {
    transcription: bool,
    models: bool,
    asynchronous: bool,
}

const CHAT_ONLY: Abilities = Abilities { transcription: false, models: false, asynchronous: false };

/// Failures that a client handles itself, so that its user gets a result. pydantic-ai takes the result from `failed_generation`,
/// which therefore has to be forwarded unchanged.
const RECOVERED: [(&str, &str); 1] = [("pydantic-ai", "400 tool_use_failed")];

/// A failure: its cause and the client's order.
struct Failure {
    name: &'static str,
    faults: Value,
    order: Value,
}

#[tokio::test(flavor = "multi_thread")]
async fn groq_python() {
    let abilities = Abilities { transcription: true, models: true, asynchronous: true };
    client("python", "groq", abilities, Retries::AsTold).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn openai_python() {
    let abilities = Abilities { transcription: true, models: true, asynchronous: true };
    client("python", "openai", abilities, Retries::AsTold).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn langchain_groq_python() {
    client("python", "langchain-groq", CHAT_ONLY, Retries::AsTold).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn litellm_python() {
    client("python", "litellm", Abilities { transcription: true, ..CHAT_ONLY }, Retries::ByStatus).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pydantic_ai_python() {
    client("python", "pydantic-ai", CHAT_ONLY, Retries::AsTold).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn groq_sdk_node() {
    client("node", "groq-sdk", Abilities { transcription: true, models: true, ..CHAT_ONLY }, Retries::AsTold).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn openai_node() {
    client("node", "openai", Abilities { transcription: true, models: true, ..CHAT_ONLY }, Retries::AsTold).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ai_sdk_groq_node() {
    client("node", "@ai-sdk/groq", Abilities { transcription: true, ..CHAT_ONLY }, Retries::ByStatus).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn langchain_groq_node() {
    client("node", "@langchain/groq", CHAT_ONLY, Retries::ByStatus).await;
}

/// Clients differ in whether `GROQ_API_BASE` includes `/openai/v1`, so users often add or omit it by mistake.
#[tokio::test(flavor = "multi_thread")]
async fn every_form_of_the_base_url_reaches_groq() {
    let simulator = Simulator::start("[limits]\nplan = \"developer\"\n");
    let shield = Shield::before(simulator.process.address(), CONFIG);
    let root = format!("http://{}", shield.process.address());
    let forms = [("groq", "/openai/v1"), ("openai", ""), ("openai", "/v1"), ("langchain-groq", "/openai/v1"), ("litellm", "")];
    for (name, form) in forms {
        let base = format!("{root}{form}");
        let mut sdk = Sdk::start("python", name, &root, &base);
        let row = sdk.ask(&json!({"call": "chat", "model": MODEL, "key": "gsk_test"})).await;
        assert!(row["text"].as_str().is_some_and(|text| !text.is_empty()), "{name} with {base}: {row}");
    }
    let log = simulator.log().await;
    assert_eq!(log.len(), forms.len());
    for request in log {
        assert_eq!(request["target"], "/openai/v1/chat/completions", "{request}");
    }
}

async fn client(language: &str, name: &str, abilities: Abilities, retries: Retries) {
    let simulator = Simulator::start("[limits]\nplan = \"developer\"\n");
    let shield = Shield::before(simulator.process.address(), CONFIG);
    let tally = Tally::before(shield.process.address()).await;
    let root = format!("http://{}", tally.address);
    // The base URL in the form that the client documents.
    let base = if matches!(name, "openai" | "litellm") { format!("{root}/openai/v1") } else { root.clone() };
    let mut sdk = Sdk::start(language, name, &root, &base);
    for order in successes(abilities) {
        let row = sdk.ask(&order).await;
        assert!(row["text"].as_str().is_some_and(|text| !text.is_empty()), "{name}: {order}: {row}");
    }
    let mut table = format!("{:<26} {:>5} {:>5}  {}\n", "failure", "asked", "sent", "what the user sees");
    for failure in failures() {
        simulator.faults(failure.faults).await;
        let (asked, sent) = (tally.requests(), simulator.log().await.len());
        let row = sdk.ask(&failure.order).await;
        let (asked, sent) = (tally.requests() - asked, simulator.log().await.len() - sent);
        if RECOVERED.contains(&(name, failure.name)) {
            let text = row["text"].as_str().unwrap_or_else(|| panic!("{name} recovers from {}: {row}", failure.name));
            writeln!(table, "{:<26} {asked:>5} {sent:>5}  an answer: {text}", failure.name).expect("a string grows");
            continue;
        }
        assert!(row["raised"].is_string(), "{name}: {} is no error: {row}", failure.name);
        let message = row["message"].as_str().unwrap_or_default();
        assert!(!message.is_empty() && !message.contains('<'), "{name}: {}: {row}", failure.name);
        if retries == Retries::AsTold {
            assert_eq!(asked, 1, "{name} asks once at {}: {row}", failure.name);
        }
        let seen = ["raised", "status", "type", "code"].map(|field| match &row[field] {
            Value::String(text) => text.clone(),
            Value::Null => "-".to_owned(),
            other => other.to_string(),
        });
        writeln!(table, "{:<26} {asked:>5} {sent:>5}  {}", failure.name, seen.join(" | ")).expect("a string grows");
    }
    println!("{name}\n{table}");
    insta::assert_snapshot!(format!("{language}_{}", name.replace(['@', '/'], "")), table);
}

fn successes(abilities: Abilities) -> Vec<Value> {
    let wav = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk/second.wav");
    let mut orders = vec![json!({"call": "chat", "model": MODEL}), json!({"call": "stream", "model": MODEL})];
    if abilities.transcription {
        orders.push(json!({"call": "transcription", "model": "whisper-large-v3", "file": wav}));
    }
    if abilities.models {
        orders.push(json!({"call": "models"}));
    }
    if abilities.asynchronous {
        orders.extend(orders.clone().into_iter().map(|mut order| {
            order["async"] = true.into();
            order
        }));
    }
    // Last, because it uses a model's whole daily limit.
    orders.push(json!({"call": "chat", "model": "one-a-day"}));
    for order in &mut orders {
        order["key"] = "gsk_test".into();
    }
    orders
}

fn failures() -> Vec<Failure> {
    let chat = json!({"call": "chat", "model": MODEL, "key": "gsk_test"});
    let with = |member: &str, value: Value| {
        let mut order = chat.clone();
        order[member] = value;
        order
    };
    let failed = json!({"error": {
        "message": "Tool call validation failed: no such tool", "type": "invalid_request_error", "code": "tool_use_failed",
        "failed_generation": "{\"name\": \"x\"}"
    }});
    let plain = |name, fault| Failure { name, faults: json!([fault]), order: chat.clone() };
    let stream = |name, fault| Failure { name, faults: json!([fault]), order: with("call", "stream".into()) };
    vec![
        Failure { name: "400 tool_use_failed", ..plain("", json!({"action": "status", "status": 400, "body": failed})) },
        Failure { name: "401 wrong key", faults: json!([]), order: with("key", "bad".into()) },
        plain("404 no such model", json!({"action": "status", "status": 404})),
        Failure { name: "413 over the limit", faults: json!([]), order: with("max_tokens", 10_000_000.into()) },
        Failure { name: "429 used up for today", faults: json!([]), order: with("model", "one-a-day".into()) },
        plain("500 each time", json!({"action": "status", "status": 500})),
        plain("502 HTML", json!({"action": "html", "status": 502})),
        plain("503 over capacity", json!({"action": "status", "status": 503})),
        plain("closed without an answer", json!({"action": "close"})),
        stream("stream cut", json!({"action": "cut", "after": 3})),
        stream("stream cut in an event", json!({"action": "cut", "after": 3, "half": true})),
        stream("stream without [DONE]", json!({"action": "no_done"})),
        stream("error frame", json!({"action": "error_frame", "after": 3})),
        stream("x_groq.error", json!({"action": "x_groq_error", "after": 3})),
    ]
}

impl Sdk {
    /// Starts a client with the base URL `base`; `root` is the URL without a path.
    fn start(language: &str, name: &str, root: &str, base: &str) -> Self {
        let mut command = match language {
            "python" => {
                let mut command = Command::new(python());
                command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk/clients.py"));
                command
            }
            _ => {
                let mut command = Command::new("node");
                command.arg(node().join("clients.mjs"));
                command
            }
        };
        let mut child = command
            .arg(name)
            .env("SHIELD", root)
            .env("GROQ_BASE_URL", base)
            .env("GROQ_API_BASE", base)
            .env("OPENAI_BASE_URL", base)
            .env("NO_PROXY", "127.0.0.1")
            .env("LITELLM_LOCAL_MODEL_COST_MAP", "True")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the client's process starts");
        let stdin = child.stdin.take().expect("stdin is piped");
        let lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        Self { stdin, lines, _child: child }
    }

    /// Sends an order and reads its result. Lines that are not JSON objects are other output of the client.
    async fn ask(&mut self, order: &Value) -> Value {
        self.stdin.write_all(format!("{order}\n").as_bytes()).await.expect("the client reads");
        loop {
            let line = tokio::time::timeout(Duration::from_secs(120), self.lines.next_line()).await;
            let line = line.unwrap_or_else(|_| panic!("no answer in two minutes: {order}"));
            let line = line.expect("UTF-8").unwrap_or_else(|| panic!("the client's process ended: {order}"));
            if let Ok(row @ Value::Object(_)) = serde_json::from_str(&line) {
                return row;
            }
        }
    }
}
