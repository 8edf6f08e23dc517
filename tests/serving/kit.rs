//! A shield in this process, and an upstream that logs its requests.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use groq_shield::{
    config::Settings,
    proxy::Shield,
    server::{self, Listeners, Running},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    time::timeout,
};

/// Maximum time of an exchange, on a slow machine.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The request lines that the upstream has received.
pub(crate) type Log = Arc<Mutex<Vec<String>>>;

/// Starts an upstream on a free port that responds with a list of models, after a delay if the path begins with `/slow`.
pub(crate) async fn upstream() -> (SocketAddr, Log) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("a bound address");
    let log = Log::default();
    let seen = log.clone();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(answer(socket, seen.clone()));
        }
    });
    (address, log)
}

async fn answer(socket: TcpStream, log: Log) -> std::io::Result<()> {
    let mut socket = BufReader::new(socket);
    loop {
        let mut request = String::new();
        socket.read_line(&mut request).await?;
        if request.is_empty() {
            return Ok(());
        }
        log.lock().expect("no panic while locked").push(request.trim_end().to_owned());
        let mut length = 0;
        loop {
            let mut line = String::new();
            socket.read_line(&mut line).await?;
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().expect("the shield sends a number");
            }
            if line.trim().is_empty() {
                break;
            }
        }
        socket.read_exact(&mut vec![0; length]).await?;
        if request.contains("/slow") {
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        let body = r#"{"object":"list","data":[]}"#;
        let head = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
        socket.write_all((head + body).as_bytes()).await?;
    }
}

/// Settings with free ports and the given upstream.
pub(crate) fn settings(upstream: SocketAddr) -> Settings {
    let mut settings = Settings::default();
    settings.server.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    settings.admin.listen = settings.server.listen;
    settings.server.threads = Some(2);
    settings.upstream.base_url = format!("http://{upstream}").parse().expect("an address");
    settings
}

/// Starts a shield with these settings.
pub(crate) fn start(settings: Settings) -> Running {
    let listeners = Listeners::open(&settings).expect("free ports");
    server::start(Shield::new(settings).expect("valid settings"), listeners).expect("the shield starts")
}

/// A valid request; `name` identifies it in the upstream's log.
pub(crate) fn request(name: &str) -> String {
    format!("GET /openai/v1/models/{name} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer gsk_test\r\n\r\n")
}

/// Sends bytes on a new connection and returns everything until the connection is closed.
pub(crate) async fn exchange(address: SocketAddr, bytes: &[u8]) -> String {
    let mut socket = TcpStream::connect(address).await.expect("the listener accepts");
    socket.write_all(bytes).await.expect("the bytes are written");
    rest(&mut socket).await
}

/// Reads until the connection is closed.
pub(crate) async fn rest(socket: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut all = Vec::new();
    timeout(LONGEST_WAIT, socket.read_to_end(&mut all)).await.expect("the connection closes in time").expect("a clean close");
    String::from_utf8_lossy(&all).into_owned()
}

/// Reads the head and body of one response on a connection that stays open.
pub(crate) async fn one(socket: &mut (impl AsyncReadExt + Unpin)) -> std::io::Result<String> {
    let mut all = Vec::new();
    loop {
        let mut some = [0; 4096];
        let count = timeout(LONGEST_WAIT, socket.read(&mut some)).await??;
        if count == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        all.extend_from_slice(&some[..count]);
        let text = String::from_utf8_lossy(&all);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a content-length");
        if body.len() == length.parse::<usize>().expect("a number") {
            return Ok(text.into_owned());
        }
    }
}
