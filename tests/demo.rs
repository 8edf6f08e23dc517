//! The commands that need no configuration and no network: `demo` and `simulate`.
#![cfg(feature = "demo")]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Command, Stdio},
};

use serde_json::Value;

fn groq_shield(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_groq-shield"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn the_demo_compares_direct_and_shielded_clients() {
    let ended = groq_shield(&["demo", "--seconds", "3", "--load", "4", "--json"]).output().expect("runs");
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    let result: Value = serde_json::from_slice(&ended.stdout).expect("JSON and nothing else");
    for way in ["alone", "shield"] {
        let count = |name: &str| result[way][name].as_u64().expect("a count");
        assert_eq!(count("served") + count("failed"), result["requests"].as_u64().expect("a count"), "{result}");
        assert!(count("served") > 0, "{result}");
    }
    assert!(result["alone"]["refused"].as_u64() > result["shield"]["refused"].as_u64(), "{result}");
    let progress = String::from_utf8_lossy(&ended.stderr);
    assert!(progress.contains("through the shield"), "plain lines where there is no terminal: {progress}");
}

#[test]
fn an_invalid_load_is_reported() {
    for arguments in [["demo", "--load", "0"], ["demo", "--load", "x"], ["demo", "--seconds", "1"]] {
        let ended = groq_shield(&arguments).output().expect("runs");
        assert_eq!(ended.status.code(), Some(64), "{arguments:?}");
    }
}

#[test]
fn the_simulator_enforces_the_limits_of_its_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("limits.toml");
    std::fs::write(&file, "[limits.default]\nrequests_per_minute = 1\n").expect("written");
    let file = file.to_str().expect("UTF-8");
    let mut child =
        groq_shield(&["simulate", "--listen", "127.0.0.1:0", "--limits", file, "--algorithm", "fixed"]).spawn().expect("runs");
    let mut ready = String::new();
    BufReader::new(child.stderr.take().expect("piped")).read_line(&mut ready).expect("a line");
    let address = ready.trim().rsplit("http://").next().expect("an address").to_owned();
    let body = r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;
    let mut answers = Vec::new();
    for _ in 0..3 {
        let mut socket = TcpStream::connect(&address).expect("connects");
        let head = "POST /openai/v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer k\r\nconnection: close";
        write!(socket, "{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).expect("sent");
        let mut answer = String::new();
        socket.read_to_string(&mut answer).expect("answered");
        answers.push(answer);
    }
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id().cast_signed()), nix::sys::signal::Signal::SIGTERM)
        .expect("signalled");
    assert!(child.wait().expect("ends").success());
    assert!(answers[0].starts_with("HTTP/1.1 200 "), "{}", answers[0]);
    // One window may end between two of the requests, but not more than one.
    assert!(
        answers[1..].iter().any(|answer| answer.starts_with("HTTP/1.1 429 ") && answer.contains("Limit 1, Used 1, Requested 1."))
    );
}

#[test]
fn a_fault_in_the_limits_file_is_reported_with_its_position() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("limits.toml");
    std::fs::write(&file, "[limits.default]\nrequests_per_minuet = 1\n").expect("written");
    let ended = groq_shield(&["simulate", "--limits", file.to_str().expect("UTF-8")]).output().expect("runs");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(64), "{said}");
    assert!(said.contains("limits.toml") && said.contains("line 2") && said.contains("requests_per_minuet"), "{said}");
}

/// The simulator shares no code with the limiter, so both have their own tables of Groq's plans.
#[test]
fn the_simulator_and_the_limiter_have_the_same_plans() {
    use groq_limiter::{
        plans,
        settings::{ModelLimits, Plan},
    };
    for (plan, simulated) in [(Plan::Free, groq_sim::Plan::free()), (Plan::Developer, groq_sim::Plan::developer())] {
        assert!(simulated.models.len() >= 10);
        for (model, limits) in simulated.models {
            let expected = ModelLimits {
                requests_per_minute: limits.requests_per_minute,
                requests_per_day: limits.requests_per_day,
                tokens_per_minute: limits.tokens_per_minute,
                tokens_per_day: limits.tokens_per_day,
                input_tokens_per_minute: limits.input_tokens_per_minute,
                output_tokens_per_minute: limits.output_tokens_per_minute,
                audio_seconds_per_hour: limits.audio_seconds_per_hour,
                audio_seconds_per_day: limits.audio_seconds_per_day,
                assumed_completion_tokens: limits.assumed_completion_tokens,
            };
            assert_eq!(plans::limits(plan, &model), Some(expected), "{model}");
        }
    }
}
