//! A running shield provides everything that the dashboard, the alerts and the socket unit use.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::OwnedFd,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
    time::{sleep, timeout},
};

use super::{BINARY, files::metrics, text};

const LONGEST_WAIT: Duration = Duration::from_secs(60);
const CHAT: &str = r#"{"model":"openai/gpt-oss-20b","max_completion_tokens":8,"messages":[{"role":"user","content":"Hello"}]}"#;

/// A shield in front of its own simulator; killed when dropped.
struct Shield {
    child: Child,
    app: SocketAddr,
    admin: SocketAddr,
}

impl Shield {
    /// Starts it and waits for its ready line.
    async fn start(command: &mut Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).kill_on_drop(true).spawn().expect("it starts");
        let mut log = BufReader::new(child.stderr.take().expect("stderr is piped"));
        let mut seen = String::new();
        let ready = async {
            loop {
                let mut line = String::new();
                assert!(log.read_line(&mut line).await.expect("a log line") > 0, "ended before it was ready:\n{seen}");
                if line.contains("ready") {
                    return line;
                }
                seen.push_str(&line);
            }
        };
        let line = timeout(LONGEST_WAIT, ready).await.expect("it becomes ready");
        // Drains the pipe, which must not fill up.
        tokio::spawn(async move { tokio::io::copy(&mut log, &mut tokio::io::sink()).await });
        let words = line.split(|c: char| c.is_whitespace() || "=\",\u{1b}".contains(c));
        let addresses: Vec<SocketAddr> = words.filter_map(|word| word.parse().ok()).collect();
        let [app, admin] = addresses[..] else { panic!("not two addresses: {line}") };
        Self { child, app, admin }
    }

    /// Sends SIGTERM and waits for the exit.
    async fn end(mut self) {
        let id = self.child.id().expect("it runs");
        kill(Pid::from_raw(id.cast_signed()), Signal::SIGTERM).expect("it can be signalled");
        let status = timeout(LONGEST_WAIT, self.child.wait()).await.expect("SIGTERM ends it").expect("a child");
        assert!(status.success(), "{status}");
    }
}

/// Sends one request on a connection of its own and returns the raw answer.
async fn ask(address: SocketAddr, request: &str, body: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let length = body.len();
    let request = format!(
        "{request} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer gsk_test\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\nconnection: close\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    timeout(LONGEST_WAIT, stream.read_to_string(&mut answer)).await??;
    Ok(answer)
}

#[tokio::test]
async fn dashboards_and_alerts_use_existing_metrics() {
    let arguments = ["serve", "--simulate", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let shield = Shield::start(Command::new(BINARY).args(arguments).env("NO_COLOR", "1")).await;
    let answer = ask(shield.app, "POST /openai/v1/chat/completions", CHAT).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let exposed = metrics(&ask(shield.admin, "GET /metrics", "").await.expect("the metrics"));
    for name in ["deploy/grafana/groq-shield.json", "deploy/prometheus/alerts.yaml"] {
        let watched = metrics(&text(name));
        assert!(!watched.is_empty());
        assert_eq!(watched.difference(&exposed).collect::<Vec<_>>(), Vec::<&String>::new(), "{name}");
    }
    shield.end().await;
}

/// A shield that gets `listener` as systemd would pass it.
async fn behind(listener: &TcpListener) -> Shield {
    // The socket is inherited as standard input; the shell moves it to descriptor 3, the first that systemd passes.
    let script = r#"LISTEN_FDS=1 LISTEN_PID=$$ NO_COLOR=1 exec "$0" serve --simulate --admin 127.0.0.1:0 3<&0 </dev/null"#;
    let socket: OwnedFd = listener.try_clone().expect("a descriptor").into();
    Shield::start(Command::new("sh").args(["-c", script, BINARY]).stdin(socket)).await
}

#[tokio::test]
async fn a_restart_behind_a_passed_socket_loses_no_request() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let (over, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut shield = behind(&listener).await;
    assert_eq!(shield.app, address, "it uses the socket that is passed on");
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (over, answered) = (over.clone(), answered.clone());
            tokio::spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    let answer = ask(address, "GET /openai/v1/models", "").await.expect("an answer");
                    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                    answered.fetch_add(1, Ordering::Relaxed);
                    sleep(Duration::from_millis(5)).await;
                }
            })
        })
        .collect();
    for _ in 0..3 {
        let enough = answered.load(Ordering::Relaxed) + 50;
        while answered.load(Ordering::Relaxed) < enough && !clients.iter().any(tokio::task::JoinHandle::is_finished) {
            sleep(Duration::from_millis(5)).await;
        }
        shield.end().await;
        shield = behind(&listener).await;
    }
    over.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.expect("no request is lost");
    }
    shield.end().await;
}
