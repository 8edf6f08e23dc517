//! The commands of the real binary: exit codes, signals, faults and reloads.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Longest wait for a log line.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The binary in an empty working directory, without the developer's own GROQ_* and proxy variables.
fn shield(folder: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_groq-shield"));
    command.args(words).current_dir(folder).stdin(Stdio::null()).env("NO_COLOR", "1");
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("GROQ_") || name.to_lowercase().ends_with("_proxy")) {
            command.env_remove(name);
        }
    }
    command
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

fn write(folder: &Path, text: &str) {
    std::fs::write(folder.join("groq-shield.toml"), text).expect("the file is written");
}

fn ran(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().expect("it runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (status.code().expect("no signal ended it"), text(stdout), text(stderr))
}

/// A running shield; killed when it is dropped.
struct Running {
    child: Child,
    lines: Receiver<String>,
}

impl Running {
    fn new(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        let (sender, lines) = mpsc::channel();
        let outputs: [Box<dyn Read + Send>; 2] =
            [Box::new(child.stdout.take().expect("piped")), Box::new(child.stderr.take().expect("piped"))];
        for output in outputs {
            let sender = sender.clone();
            thread::spawn(move || BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        }
        Self { child, lines }
    }

    /// The next log line that contains `part`.
    fn line(&self, part: &str) -> String {
        let mut before = String::new();
        loop {
            match self.lines.recv_timeout(LONGEST_WAIT) {
                Ok(line) if line.contains(part) => return line,
                Ok(line) => before += &format!("{line}\n"),
                Err(_) => panic!("no line with {part:?} after:\n{before}"),
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).expect("it can be signalled");
    }

    fn ended(mut self) -> ExitStatus {
        self.child.wait().expect("it can be waited for")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `host:port` behind `name=` in a log line.
fn address(line: &str, name: &str) -> String {
    let mark = format!("{name}=");
    line.split(' ').find_map(|word| word.strip_prefix(&mark)).unwrap_or_else(|| panic!("no {mark} in {line}")).to_owned()
}

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

/// Regression: one GET opened 4,049 connections in 4 s.
#[test]
fn an_upstream_that_is_the_shield_itself_is_refused_at_start() {
    let folder = folder();
    for upstream in ["http://127.0.0.1:18787", "http://localhost:18787/"] {
        let words = ["--listen", "0.0.0.0:18787", "--admin", "127.0.0.1:0", "--upstream", upstream];
        let (code, _, errors) = ran(&mut shield(folder.path(), &words));
        assert_eq!(code, 64, "{errors}");
        assert!(errors.contains("--upstream: `base_url` is where this shield itself listens (server.listen)"), "{errors}");
    }
}

/// Regression: `check` found nothing wrong, and a shield started that saved no state.
#[test]
fn check_and_serve_refuse_a_state_file_that_cannot_be_written() {
    let folder = folder();
    write(folder.path(), "[limits]\nstate_file = \"nowhere/state\"\n");
    for words in [&["check"][..], &["--simulate", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]] {
        let (code, _, errors) = ran(&mut shield(folder.path(), words));
        assert_eq!(code, 64, "{words:?}: {errors}");
        for part in ["groq-shield.toml:2:14", "nowhere/state cannot be written: there is no directory nowhere"] {
            assert!(errors.contains(part), "{words:?}: {part}\n{errors}");
        }
    }
}

/// Regression: a relative path was resolved against the working directory.
#[test]
fn a_relative_state_file_is_relative_to_the_configuration_file() {
    let (folder, elsewhere) = (folder(), self::folder());
    write(folder.path(), "[limits]\nstate_file = \"state\"\n");
    let file = folder.path().join("groq-shield.toml");
    let words = [&["--config", file.to_str().expect("UTF-8")], &SERVE[..]].concat();
    let running = Running::new(&mut shield(elsewhere.path(), &words));
    running.line("ready");
    running.signal(Signal::SIGTERM);
    assert_eq!(running.ended().code(), Some(0));
    assert!(folder.path().join("state").exists() && !elsewhere.path().join("state").exists());

    write(folder.path(), "[queue]\nmax_wait = \"1s\"\n");
    let running = Running::new(&mut shield(elsewhere.path(), &words));
    let told = running.line("limits.state_file is not set");
    assert!(told.contains(" INFO "), "{told}");
    running.line("ready");
    running.signal(Signal::SIGHUP);
    let again = running.line("");
    assert!(again.contains("configuration read again"), "{again}");
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
        running.line("draining: 1 request, at most 25 s, again to end at once");
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

const SERVE: [&str; 5] = ["--simulate", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];

#[test]
fn check_and_serve_report_every_fault_of_a_file_and_exit_with_64() {
    let folder = folder();
    write(folder.path(), "[server]\nlisen = \"127.0.0.1:0\"\n[queue]\nmax_wait = 5\n");
    for words in [&["check"][..], &["serve"], &[], &["exec", "--", "true"]] {
        let (code, out, errors) = ran(shield(folder.path(), words).env("GROQ_SHIELD_RETRY_ATEMPTS", "2"));
        assert_eq!((code, out.as_str()), (64, ""), "{words:?}");
        for part in [
            " --> groq-shield.toml:2:1",
            "did you mean `listen`?",
            " --> groq-shield.toml:4:12",
            "did you mean GROQ_SHIELD_RETRY_ATTEMPTS?",
            "3 faults in the configuration",
        ] {
            assert!(errors.contains(part), "{words:?}: {part}\n{errors}");
        }
    }
}

#[test]
fn check_prints_the_effective_settings_with_sources_and_without_secrets() {
    let folder = folder();
    write(
        folder.path(),
        "[queue]\nmax_wait = \"2m\"\n[store]\nkind = \"redis\"\nurl = \"redis://u:hunter2@h\"\n[upstream]\napi_key_env = \"MY_KEY\"\n",
    );
    let (code, out, errors) =
        ran(shield(folder.path(), &["check"]).env("MY_KEY", "gsk_hunter2").env("GROQ_SHIELD_RETRY_ATTEMPTS", "2"));
    assert_eq!((code, errors.as_str()), (0, ""));
    for part in [
        "max_wait = \"120s\"  # groq-shield.toml:2\n",
        "url = \"redis://u:***@h\"  # groq-shield.toml:5\n",
        "attempts = 2  # GROQ_SHIELD_RETRY_ATTEMPTS\n",
        "api_key_env = \"MY_KEY\"",
        "max_delay = \"8s\"\n",
    ] {
        assert!(out.contains(part), "{part}\n{out}");
    }
    assert!(!out.contains("hunter2"), "{out}");
}

#[test]
fn the_output_of_check_is_a_valid_configuration() {
    let folder = folder();
    let (_, example, _) = ran(&mut shield(folder.path(), &["check", "--example"]));
    write(folder.path(), &example);
    let (code, first, errors) = ran(&mut shield(folder.path(), &["check"]));
    assert_eq!(code, 0, "{errors}");
    write(folder.path(), &first);
    let (code, second, errors) = ran(&mut shield(folder.path(), &["check"]));
    assert_eq!(code, 0, "{errors}");
    let keys = |text: &str| text.lines().map(|line| line.split("  # ").next().unwrap_or_default().to_owned()).collect::<Vec<_>>();
    assert_eq!(keys(&first), keys(&second));
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

#[test]
fn health_finds_the_listener_in_the_file_even_when_it_has_faults() {
    let folder = folder();
    let running = Running::new(&mut shield(folder.path(), &SERVE));
    let admin = address(&running.line("ready"), "admin");
    write(folder.path(), &format!("[admin]\nlisten = \"{admin}\"\n[queue]\nmax_wait = 5\n"));
    assert_eq!(ran(&mut shield(folder.path(), &["health"])), (0, String::new(), String::new()));
}

#[test]
fn the_configuration_is_reloaded_on_change_and_on_sighup() {
    let folder = folder();
    write(folder.path(), "[queue]\nmax_wait = \"1s\"\n");
    let running = Running::new(&mut shield(folder.path(), &SERVE));
    let admin = address(&running.line("ready"), "admin");
    let state = || {
        let (_, json, _) = ran(&mut shield(folder.path(), &["status", "--json", "--admin", &admin]));
        serde_json::from_str::<serde_json::Value>(&json).expect("JSON")["config"].clone()
    };
    write(folder.path(), "[queue]\nmax_wait = \"2s\"\n[server]\nthreads = 3\n");
    running.line("server.threads: 3 takes effect with a restart");
    running.line("queue.max_wait: \"2s\", was \"1s\"");
    running.line("configuration read again");
    write(folder.path(), "[queue]\nmax_wiat = \"3s\"\n");
    running.line("the old one stays in force");
    running.line("did you mean `max_wait`?");
    let error = state()["error"]["message"].as_str().expect("an error").to_owned();
    assert!(error.contains("groq-shield.toml:2:1"), "{error}");
    write(folder.path(), "[queue]\nmax_wait = \"4s\"\n");
    running.signal(Signal::SIGHUP);
    running.line("queue.max_wait: \"4s\", was \"2s\"");
    running.line("configuration read again");
    assert!(state()["error"].is_null());
    running.signal(Signal::SIGTERM);
    assert_eq!(running.ended().code(), Some(0));
}
