use std::time::{SystemTime, UNIX_EPOCH};

use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::config::Settings;

async fn get(server: &AdminServer, path: &str) -> (StatusCode, HeaderMap, String) {
    let response = server.answer(&Request::get(path).header("host", "127.0.0.1:8788").body(()).expect("a request"));
    let (head, body) = response.into_parts();
    let body = body.collect().await.expect("a body in memory").to_bytes();
    (head.status, head.headers, String::from_utf8(body.to_vec()).expect("text"))
}

fn server() -> AdminServer {
    AdminServer::new(Shield::new(Settings::default()).expect("no file to read"))
}

#[tokio::test]
async fn readiness_fails_while_draining_and_liveness_does_not() {
    let server = server();
    assert_eq!(get(&server, "/livez").await.0, StatusCode::OK);
    assert_eq!(get(&server, "/readyz").await.0, StatusCode::OK);
    server.shield.shutdown.draining.cancel();
    let (status, _, body) = get(&server, "/readyz").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(body.contains("shutting_down"), "{body}");
    assert_eq!(get(&server, "/livez").await.0, StatusCode::OK);
    let status: serde_json::Value = serde_json::from_str(&get(&server, "/status").await.2).expect("JSON");
    assert_eq!(status["state"], "draining");
}

#[tokio::test]
async fn status_has_what_the_page_shows() {
    let server = server();
    server.shield.telemetry.configured(Some("shield.toml".as_ref()));
    server.shield.telemetry.reload_refused("line 3: unknown key");
    let (_, headers, body) = get(&server, "/status").await;
    assert_eq!(headers["content-type"], "application/json");
    let status: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["config"]["file"], "shield.toml");
    assert_eq!(status["config"]["error"]["message"], "line 3: unknown key");
    assert_eq!(status["mode"], "enforce");
    assert_eq!(status["store"]["kind"], "local");
    assert_eq!(status["history"]["slice_s"], 5.0);
    for plot in ["requests", "failed", "refused_by_shield", "refused_by_groq", "resends", "wait_p50_s", "wait_p99_s"] {
        assert_eq!(status["history"][plot].as_array().map(Vec::len), Some(1), "{plot}");
    }
    assert!(status["limiters"].is_array());
    server.shield.telemetry.configured(None);
    let status: serde_json::Value = serde_json::from_str(&get(&server, "/status").await.2).expect("JSON");
    assert!(status["config"]["error"].is_null());
}

#[tokio::test]
async fn metrics_come_in_the_format_asked_for() {
    let server = server();
    server.shield.telemetry.reload_refused("bad");
    let (_, headers, body) = get(&server, "/metrics").await;
    assert!(headers["content-type"].to_str().expect("text").starts_with("text/plain; version=0.0.4"));
    assert!(body.contains("\ngroq_shield_store_degraded 0\n"), "{body}");
    assert!(body.contains("\ngroq_shield_config_valid 0\n"), "{body}");
    let open = Request::get("/metrics").header("accept", "application/openmetrics-text; version=1.0.0");
    let response = server.answer(&open.body(()).expect("a request"));
    assert!(response.headers()["content-type"].to_str().expect("text").starts_with("application/openmetrics-text"));
}

#[tokio::test]
async fn every_answer_forbids_other_origins_and_failures_are_the_error_object() {
    let server = server();
    let request = |method: &str, path: &str, headers: &[(&str, &str)]| {
        let request = headers.iter().fold(Request::builder().method(method).uri(path), |request, (n, v)| request.header(*n, *v));
        server.answer(&request.body(()).expect("a request"))
    };
    for (response, expected) in [
        (request("GET", "/", &[]), 200),
        (request("HEAD", "/status", &[]), 200),
        (request("POST", "/status", &[]), 405),
        (request("OPTIONS", "/status", &[]), 405),
        (request("GET", "/openai/v1/models", &[]), 404),
        (request("GET", "/status", &[("host", "evil.example")]), 403),
        (request("GET", "/status", &[("host", "localhost"), ("origin", "https://evil.example")]), 403),
        (request("GET", "/livez", &[("sec-fetch-site", "cross-site")]), 403),
    ] {
        assert_eq!(response.status(), expected);
        let headers = response.headers().clone();
        assert_eq!(headers["x-frame-options"], "DENY");
        assert_eq!(headers["cross-origin-resource-policy"], "same-origin");
        assert!(headers["content-security-policy"].to_str().expect("text").starts_with("default-src 'none';"));
        assert!(!headers.keys().any(|name| name.as_str().starts_with("access-control-")));
        if expected >= 400 {
            let body = response.into_body().collect().await.expect("a body in memory").to_bytes();
            let object: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
            for member in ["message", "type", "code"] {
                assert!(object["error"][member].is_string(), "{member} in {object}");
            }
        }
    }
}

#[tokio::test]
async fn it_serves_over_a_socket() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let serving = tokio::spawn(serve(listener, Shield::new(Settings::default()).expect("no file to read")));
    let mut client = TcpStream::connect(address).await.expect("a connection");
    client
        .write_all(format!("GET /livez HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").as_bytes())
        .await
        .expect("sent");
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nok\n"), "{answer}");
    serving.abort();
}

#[tokio::test]
async fn metrics_show_the_use_of_each_budget() {
    let app = crate::config::App { name: "a".into(), cost_per_day: Some(2.0), tokens_per_day: Some(100), ..Default::default() };
    let server = AdminServer::new(Shield::new(Settings { app: vec![app], ..Settings::default() }).expect("no file to read"));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let used = crate::accounts::Amounts { requests: 1, tokens: 70, nano_usd: 500_000_000 };
    server.shield.accounts.ledger().reserve(&"a".into(), &[], used, now, 1).expect("no budget").used(used);
    let (_, _, metrics) = get(&server, "/metrics").await;
    for line in [
        r#"groq_shield_app_budget{app="a",budget="tokens_per_day"} 100"#,
        r#"groq_shield_app_budget_used{app="a",budget="tokens_per_day"} 70"#,
        r#"groq_shield_app_budget{app="a",budget="cost_per_day"} 2"#,
        r#"groq_shield_app_budget_used{app="a",budget="cost_per_day"} 0.5"#,
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
}
