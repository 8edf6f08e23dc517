//! HTTP/2 clients of other projects: curl, httpx and the official clients that use it, Node's http2.

use std::{fs, path::Path, process::Stdio};

use serde_json::{Value, json};
use tokio::process::Command;

use crate::kit::{Shield, Simulator, node, python};

const CHAT: &str = "/openai/v1/chat/completions";
const CONFIG: &str = "[limits]\nplan = \"none\"\n";

/// Runs a command and returns its output.
async fn output(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await.expect("it is installed");
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{out}{error}", output.status);
    out.into_owned()
}

/// Runs a script of `tests/sdk` and returns its output.
async fn script(interpreter: &Path, name: &str, root: &str) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk").join(name);
    serde_json::from_str(&output(Command::new(interpreter).arg(script).arg(root)).await).expect("a JSON object")
}

/// Number of requests that the simulator has received.
async fn reached(simulator: &Simulator) -> usize {
    simulator.log().await.len()
}

#[tokio::test]
async fn curl() {
    let simulator = Simulator::generous();
    let shield = Shield::before(simulator.process.address(), CONFIG);
    let root = format!("http://{}", shield.process.address());
    let folder = tempfile::tempdir().expect("a folder");
    let large = folder.path().join("large.json");
    let padding = "x".repeat(2 << 20);
    let body = json!({"model": "m", "messages": [{"role": "user", "content": "Say three words."}], "user": padding});
    fs::write(&large, body.to_string()).expect("it is written");
    let large = format!("@{}", large.display());
    let small = r#"{"model":"m","messages":[{"role":"user","content":"Say three words."}],"max_tokens":16}"#;
    let stream = r#"{"model":"m","messages":[{"role":"user","content":"Say three words."}],"max_tokens":16,"stream":true}"#;
    let curl = |arguments: &[&str]| {
        let mut command = Command::new("curl");
        command.args(["-sS", "--max-time", "60", "--http2-prior-knowledge", "-w", "\n%{http_version} %{http_code}"]);
        command.args(arguments);
        command
    };
    let key = ["-H", "authorization: Bearer gsk_test", "-H", "content-type: application/json"];
    let (chat, models) = (format!("{root}{CHAT}"), format!("{root}/openai/v1/models"));
    for (arguments, ending, part) in [
        (vec![models.as_str()], "\n2 200", "\"object\":\"list\""),
        (vec!["-I", &models], "\n2 200", "content-length: "),
        (vec!["-d", small, &chat], "\n2 200", "\"choices\""),
        (vec!["-N", "-d", stream, &chat], "data: [DONE]\n\n\n2 200", "data: {"),
        (vec!["-d", &large, &chat], "\n2 200", "\"choices\""),
    ] {
        let told = output(curl(&key).args(&arguments)).await;
        assert!(told.ends_with(ending) && told.contains(part), "{arguments:.100?}: {told}");
    }
    assert_eq!(reached(&simulator).await, 5);
    // The response is sent before the body is read, which curl keeps sending.
    for body in [small, &large] {
        let told = output(curl(&["-d", body, &chat]).args(&key[2..])).await;
        assert!(told.ends_with("\n2 401") && told.contains("\"invalid_api_key\""), "{body:.100}: {told}");
    }
    // An upgrade from HTTP/1.1 is not accepted, so the response is HTTP/1.1.
    let mut upgrade = Command::new("curl");
    upgrade.args(["-sS", "--http2", "-w", "\n%{http_version} %{http_code}"]).args(key).arg(&models);
    let told = output(&mut upgrade).await;
    assert!(told.ends_with("\n1.1 200"), "{told}");
    assert_eq!(reached(&simulator).await, 6);
}

/// curl negotiates HTTP/2 with ALPN.
#[tokio::test]
async fn curl_over_tls() {
    let folder = tempfile::tempdir().expect("a folder");
    let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    fs::write(&cert, issued.cert.pem()).expect("it is written");
    fs::write(&key, issued.signing_key.serialize_pem()).expect("it is written");
    let simulator = Simulator::generous();
    let tls = format!("[server.tls]\ncert = {:?}\nkey = {:?}\n", cert.display().to_string(), key.display().to_string());
    let shield = Shield::before(simulator.process.address(), &format!("{CONFIG}{tls}"));
    let models = format!("https://localhost:{}/openai/v1/models", shield.process.address().port());
    for (arguments, version) in [(&["--http2"][..], "2"), (&["--http1.1"], "1.1"), (&["--no-alpn"], "1.1")] {
        let mut command = Command::new("curl");
        command.args(["-sS", "--max-time", "60", "-w", "\n%{http_version} %{http_code}", "--cacert"]).arg(&cert);
        command.args(arguments).args(["-H", "authorization: Bearer gsk_test", &models]);
        let told = output(&mut command).await;
        assert!(told.ends_with(&format!("\n{version} 200")), "{arguments:?}: {told}");
    }
}

#[tokio::test]
async fn httpx_and_the_official_clients_on_it() {
    let simulator = Simulator::generous();
    let shield = Shield::before(simulator.process.address(), CONFIG);
    let seen = script(&python(), "http2.py", &format!("http://{}", shield.process.address())).await;
    let expected = json!({
        "versions": ["HTTP/2"],
        "statuses": [200],
        "connections": 1,
        "last_lines": ["data: [DONE]"],
        "left": "data: ",
        "refused": [401, "invalid_api_key"],
        "large": 200,
        "groq": [true, true, true, true],
        "openai": [true, true, true, true],
    });
    assert_eq!(seen, expected);
    assert_eq!(reached(&simulator).await, 64 + 8 + 1 + 1 + 8, "each request once");
}

#[tokio::test]
async fn nodes_http2() {
    let simulator = Simulator::generous();
    let shield = Shield::before(simulator.process.address(), CONFIG);
    // Installs Node if it is missing.
    node();
    let seen = script(Path::new("node"), "http2.mjs", &format!("http://{}", shield.process.address())).await;
    let expected = json!({
        "statuses": [200],
        "parsed": true,
        "ends": ["data: [DONE]"],
        "left": 8,
        "refused": [401, "invalid_api_key"],
        "ping": true,
        "settings": 256,
    });
    assert_eq!(seen, expected);
    assert_eq!(reached(&simulator).await, 64 + 8 + 1, "each request once");
}
