//! The soak's clients, which send calls and streams over HTTP/1.1 and HTTP/2. Some disconnect early or send malformed requests.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Uri, header};
use http_body_util::Full;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};

use super::{
    BoxError, CLIENTS, LIMIT,
    client::{Answer, KEY, chat_with, in_http2, request, try_ask},
    tally::Tally,
};

/// A request that takes longer counts as hung. All waits and timeouts of the configuration are well below.
const HUNG: Duration = Duration::from_secs(90);

/// How a client uses connections.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Kind {
    /// HTTP/1.1 with a new connection for each request.
    Http1PerRequest,
    /// HTTP/1.1 with a persistent connection.
    Http1,
    /// HTTP/2 with a persistent connection.
    Http2,
}

/// A persistent connection.
enum Connection {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// Runs one client until `over` is set. All clients together send three times [`LIMIT`] on average.
pub(super) async fn client(kind: Kind, app: SocketAddr, tally: Arc<Tally>, over: Arc<AtomicBool>) {
    let pause = Duration::from_secs_f64(60.0 * CLIENTS as f64 / (3.0 * LIMIT as f64));
    let mut connection = None;
    while !over.load(Relaxed) {
        let text = random_request(kind);
        tally.sent.fetch_add(1, Relaxed);
        let time_limit = if fastrand::u8(..10) == 0 { Duration::from_millis(fastrand::u64(1..2000)) } else { HUNG };
        let response = async {
            match kind {
                Kind::Http1PerRequest => Ok(try_ask(app, text.as_bytes()).await?),
                Kind::Http1 | Kind::Http2 => send_on_persistent(kind, app, &mut connection, &text).await,
            }
        };
        match timeout(time_limit, response).await {
            Err(_) if time_limit == HUNG => drop(tally.hung.fetch_add(1, Relaxed)),
            Err(_) => {
                tally.abandoned.fetch_add(1, Relaxed);
                // Disconnecting closes an HTTP/1.1 connection and resets an HTTP/2 stream.
                connection = connection.filter(|_| kind == Kind::Http2);
            }
            Ok(response) => tally.judge(&text, response),
        }
        sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
    }
}

/// Sends the request on the persistent connection, or on a new one if it has been closed.
async fn send_on_persistent(
    kind: Kind,
    app: SocketAddr,
    connection: &mut Option<Connection>,
    text: &str,
) -> Result<Answer, BoxError> {
    let usable = match connection {
        Some(Connection::Http1(sender)) => sender.ready().await.is_ok(),
        Some(Connection::Http2(sender)) => sender.ready().await.is_ok(),
        None => false,
    };
    if !usable {
        *connection = Some(connect(kind, app).await?);
    }
    let mut request = in_http2(app, text)?;
    match connection {
        Some(Connection::Http1(sender)) => {
            *request.uri_mut() = request.uri().path_and_query().cloned().map(Uri::from).unwrap_or_default();
            request.headers_mut().insert(header::HOST, HeaderValue::from_static("shield"));
            Answer::of(sender.send_request(request).await?).await
        }
        Some(Connection::Http2(sender)) => Answer::of(sender.send_request(request).await?).await,
        None => Err("no connection".into()),
    }
}

async fn connect(kind: Kind, app: SocketAddr) -> Result<Connection, BoxError> {
    let io = TokioIo::new(TcpStream::connect(app).await?);
    if kind == Kind::Http2 {
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
        tokio::spawn(connection);
        Ok(Connection::Http2(sender))
    } else {
        let (sender, connection) = http1::handshake(io).await?;
        tokio::spawn(connection);
        Ok(Connection::Http1(sender))
    }
}

/// A random request: mostly calls, of which a third stream, some large or malformed.
fn random_request(kind: Kind) -> String {
    let limit = r#","max_completion_tokens":200"#;
    match fastrand::u8(..20) {
        0 if kind == Kind::Http1PerRequest => "GET\r\n\r\n".into(),
        1 => request("POST", "/openai/v1/chat/completions", KEY, "{\"model\":"),
        2 => request("GET", "/openai/v1/models", KEY, ""),
        3 => chat_with("x-shield-class: batch\r\n", &format!(r#"{limit},"user":"{}""#, "x".repeat(60_000))),
        4 => chat_with("x-shield-max-wait-ms: 700\r\n", limit),
        5..=10 => chat_with("", &format!(r#"{limit},"stream":true"#)),
        _ => chat_with("", limit),
    }
}
