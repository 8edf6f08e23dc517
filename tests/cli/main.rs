//! The commands of the real binary: exit codes, signals, output.

mod configuration;
mod kit;

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
};

use kit::{Running, SERVE, address, folder, ran, shield, write};
use nix::sys::signal::Signal;

/// Regression: two shields on one port both became ready, and the kernel distributed connections between them.
#[test]
fn a_second_shield_on_one_port_fails_and_says_why() {
    let folder = folder();
    let first = Running::new(&mut shield(folder.path(), &SERVE));
    let app = address(&first.line("ready"), "app");
    let words = ["--simulate", "--listen", &app, "--admin", "127.0.0.1:0"];
    let (code, _, errors) = ran(&mut shield(folder.path(), &words));
    assert_eq!(code, 1, "{errors}");
    for part in [
        &format!("groq-shield: cannot listen on {app} (server.listen): another process listens there."),
        "server.reuse_port = true",
    ] {
        assert!(errors.contains(part), "{part}\n{errors}");
    }
    assert!(!errors.contains("ready"), "{errors}");
}

#[test]
fn shields_with_reuse_port_can_replace_each_other() {
    let folder = folder();
    let start = |app: &str, admin: &str| {
        let words = ["--simulate", "--listen", app, "--admin", admin];
        let running = Running::new(shield(folder.path(), &words).env("GROQ_SHIELD_SERVER_REUSE_PORT", "true"));
        let ready = running.line("ready");
        (running, address(&ready, "app"), address(&ready, "admin"))
    };
    let (old, app, admin) = start("127.0.0.1:0", "127.0.0.1:0");
    let (new, same_app, same_admin) = start(&app, &admin);
    assert_eq!((same_app, same_admin), (app, admin.clone()));
    old.signal(Signal::SIGTERM);
    assert_eq!(old.ended().code(), Some(0));
    assert_eq!(ran(&mut shield(folder.path(), &["health", "--ready", "--admin", &admin])).0, 0, "the new one answers");
    drop(new);
}

#[test]
fn the_ready_line_has_complete_urls() {
    let folder = folder();
    let words = ["--simulate", "--listen", "0.0.0.0:0", "--admin", "127.0.0.1:0"];
    let running = Running::new(&mut shield(folder.path(), &words));
    let ready = running.line("ready");
    let port = address(&ready, "app").trim_start_matches("0.0.0.0:").to_owned();
    let admin = address(&ready, "admin");
    for part in [
        format!(" GROQ_BASE_URL=http://127.0.0.1:{port} "),
        format!(" OPENAI_BASE_URL=http://127.0.0.1:{port}/openai/v1 "),
        format!(" page=http://{admin}/"),
    ] {
        assert!(ready.contains(&part), "{part}\n{ready}");
    }
}

#[test]
fn localhost_is_accepted_as_a_listen_address() {
    let folder = folder();
    let running = Running::new(&mut shield(folder.path(), &["--simulate", "--listen", "localhost:0", "--admin", "LOCALHOST:0"]));
    let ready = running.line("ready");
    assert!(address(&ready, "app").starts_with("127.0.0.1:") && address(&ready, "admin").starts_with("127.0.0.1:"), "{ready}");
}

/// Starts a stream that takes a minute, and returns when its head has come.
fn long_stream(app: &str) -> BufReader<TcpStream> {
    let body = r#"{"model": "openai/gpt-oss-20b", "stream": true, "max_tokens": 30000, "messages": [{"role": "user", "content": "[[sim completion=30000 head_ms=0]]"}]}"#;
    let mut socket = TcpStream::connect(app).expect("it listens");
    let head =
        "POST /openai/v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer k\r\ncontent-type: application/json";
    write!(socket, "{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).expect("it is taken");
    let mut socket = BufReader::new(socket);
    let mut status = String::new();
    socket.read_line(&mut status).expect("an answer");
    assert_eq!(status.trim_end(), "HTTP/1.1 200 OK");
    socket
}

#[test]
fn a_second_signal_ends_streams_with_the_error_frame() {
    let folder = folder();
    write(folder.path(), "[limits]\nplan = \"none\"\n");
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let running = Running::new(&mut shield(folder.path(), &SERVE));
        let app = address(&running.line("ready"), "app");
        let mut stream = long_stream(&app);
        running.signal(signal);
        running.line("draining: 1 request in flight, at most 25 s; signal again to end at once");
        running.signal(signal);
        let mut rest = String::new();
        stream.read_to_string(&mut rest).expect("it ends cleanly");
        assert!(
            rest.contains(r#"data: {"error":{"#) && rest.contains("shutting_down"),
            "{}",
            &rest[rest.len().saturating_sub(500)..]
        );
        assert_eq!(running.ended().code(), Some(code), "{signal}");
    }
}

#[test]
fn invalid_command_lines_exit_with_64_and_help_with_0() {
    let folder = folder();
    for words in [&["--lisen", "x"][..], &["exec"], &["serv"], &["check", "--config", "nowhere.toml"]] {
        let (code, _, errors) = ran(&mut shield(folder.path(), words));
        assert_eq!(code, 64, "{words:?}: {errors}");
        assert!(!errors.is_empty(), "{words:?}");
    }
    let version = format!("groq-shield {}\n", env!("CARGO_PKG_VERSION"));
    for word in ["-v", "-V", "--version", "version"] {
        assert_eq!(ran(&mut shield(folder.path(), &[word])), (0, version.clone(), String::new()), "{word}");
    }
    for words in [&["--help"][..], &["exec", "--help"], &["man"], &["completions", "bash"]] {
        let (code, out, errors) = ran(&mut shield(folder.path(), words));
        assert_eq!((code, errors.as_str()), (0, ""), "{words:?}");
        assert!(out.contains("groq-shield"), "{words:?}");
    }
}

#[test]
fn exec_passes_the_environment_and_the_exit_code() {
    let folder = folder();
    let script = "echo $GROQ_BASE_URL $OPENAI_BASE_URL $GROQ_API_BASE $NO_PROXY; exit 7";
    let (code, out, errors) = ran(shield(folder.path(), &["exec", "--", "sh", "-c", script]).env("NO_PROXY", "example.com"));
    let [groq, openai, base, direct] = out.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{out}\n{errors}") };
    assert_eq!(code, 7);
    assert!(groq.starts_with("http://127.0.0.1:") && !groq.ends_with(":0"), "{groq}");
    assert_eq!((openai, base, direct), (format!("{groq}/openai/v1").as_str(), groq, "example.com,127.0.0.1"));
    // No log lines between the command's own output; one line at its end.
    assert_eq!(errors.lines().count(), 1, "{errors}");
    assert!(errors.starts_with("groq-shield: no request came through. CMD ignores the base URL"), "{errors}");
    for (words, expected) in [
        (&["exec", "--", "sh", "-c", "kill -KILL $$"][..], 137),
        (&["exec", "--", "nowhere-to-be-found"], 127),
        (&["exec", "--", "."], 126),
        (&["exec", "true", "--config", "x"], 0),
    ] {
        let (code, _, errors) = ran(&mut shield(folder.path(), words));
        assert_eq!(code, expected, "{words:?}: {errors}");
    }
}

/// SDKs do not start without a key, and there is no key for a simulated Groq.
#[test]
fn exec_with_the_simulator_needs_no_key_and_prints_a_summary() {
    let folder = folder();
    let body = r#"{"model": "openai/gpt-oss-20b", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}"#;
    let script = format!(
        "echo $GROQ_API_KEY $OPENAI_API_KEY; for n in 1 2; do \
         curl -sS -o /dev/null -w '%{{http_code}}\\n' $OPENAI_API_BASE/chat/completions -H \"Authorization: Bearer $GROQ_API_KEY\" \
         -H 'Content-Type: application/json' -d '{body}'; done"
    );
    let (code, out, errors) = ran(&mut shield(folder.path(), &["exec", "--simulate", "--", "sh", "-c", &script]));
    assert_eq!((code, out.as_str()), (0, "gsk_simulated gsk_simulated\n200\n200\n"), "{errors}");
    assert_eq!(errors, "groq-shield: 2 requests came through, 0 waited, 0 retried, 0 failed\n");
    let (_, out, _) = ran(
        shield(folder.path(), &["exec", "--simulate", "--", "sh", "-c", "echo $GROQ_API_KEY"]).env("GROQ_API_KEY", "gsk_own")
    );
    assert_eq!(out, "gsk_own\n");
    let (_, _, errors) = ran(shield(folder.path(), &["exec", "--simulate", "--", "true"]).env("GROQ_SHIELD_LOG_LEVEL", "info"));
    assert!(errors.contains("ready app=127.0.0.1:"), "{errors}");
    let (_, help, _) = ran(&mut shield(folder.path(), &["exec", "--help"]));
    for name in
        ["GROQ_BASE_URL", "GROQ_API_BASE", "OPENAI_BASE_URL", "OPENAI_API_BASE", "NO_PROXY", "GROQ_API_KEY", "OPENAI_API_KEY"]
    {
        assert!(help.contains(name), "{name}\n{help}");
    }
}

#[test]
fn exec_forwards_signals() {
    let folder = folder();
    for (signal, name) in [(Signal::SIGINT, "INT"), (Signal::SIGTERM, "TERM"), (Signal::SIGHUP, "HUP")] {
        let script = format!("trap 'echo caught; exit 3' {name}; echo waiting; while :; do sleep 0.05; done");
        let running = Running::new(&mut shield(folder.path(), &["exec", "--", "sh", "-c", &script]));
        running.line("waiting");
        running.signal(signal);
        running.line("caught");
        assert_eq!(running.ended().code(), Some(3), "{name}");
    }
}

#[test]
fn health_and_status_query_the_running_shield() {
    let folder = folder();
    let running = Running::new(&mut shield(folder.path(), &SERVE));
    let admin = address(&running.line("ready"), "admin");
    for words in [&["health", "--admin", &admin][..], &["health", "--ready", "--admin", &format!("http://{admin}/")]] {
        assert_eq!(ran(&mut shield(folder.path(), words)), (0, String::new(), String::new()), "{words:?}");
    }
    let (code, table, _) = ran(shield(folder.path(), &["status"]).env("GROQ_SHIELD_ADMIN", &admin));
    assert_eq!(code, 0);
    assert!(table.starts_with("groq-shield ") && table.contains("0 requests"), "{table}");
    let (code, json, _) = ran(&mut shield(folder.path(), &["status", "--json", "--admin", &admin]));
    assert_eq!(code, 0);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["state"], "running");
    running.signal(Signal::SIGTERM);
    assert_eq!(running.ended().code(), Some(0));
    for words in [&["health", "--admin", &admin][..], &["status", "--admin", &admin]] {
        let (code, out, errors) = ran(&mut shield(folder.path(), words));
        assert_eq!((code, out.as_str()), (1, ""), "{words:?}");
        assert!(errors.contains(&format!("no shield answers at http://{admin}")), "{errors}");
    }
}
