//! What Groq says about accounts, models and truncated answers, and what the shield makes of it.

use std::net::SocketAddr;

use serde_json::Value;

use crate::{
    client::{ask, chat, request},
    kit::{Kind, Upstream, good, json, start},
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
        // Whatever the status: no retry lifts a block.
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
