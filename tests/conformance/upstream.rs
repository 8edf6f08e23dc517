//! Upstreams: an echo on bare hyper that counts requests, and one that sends the bytes of a row.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::SystemTime,
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::case::Case;

const MODIFIED: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

/// Serves the echo on a free port. The counter is the number of requests read completely.
pub(crate) async fn echo() -> io::Result<(SocketAddr, Arc<AtomicUsize>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let seen = Arc::new(AtomicUsize::new(0));
    let counter = seen.clone();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let counter = counter.clone();
            let service = service_fn(move |request| answer(request, counter.clone()));
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(socket), service));
        }
    });
    Ok((address, seen))
}

/// The same over HTTP/2, for the comparison.
pub(crate) async fn echo_http2() -> io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let service = service_fn(|request| answer(request, Arc::default()));
            tokio::spawn(http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(socket), service));
        }
    });
    Ok(address)
}

async fn answer(request: Request<Incoming>, seen: Arc<AtomicUsize>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    seen.fetch_add(1, Relaxed);
    let lines =
        || head.headers.iter().fold(String::new(), |all, (name, value)| format!("{all}{name}: {}\n", text(value.as_bytes())));
    let cookies =
        || head.headers.get_all(header::COOKIE).iter().map(|value| text(value.as_bytes())).collect::<Vec<_>>().join("; ");
    let (status, body) = match (&head.method, head.uri.path()) {
        (&Method::CONNECT, _) => (StatusCode::METHOD_NOT_ALLOWED, Bytes::new()),
        (&Method::DELETE, _) => (StatusCode::METHOD_NOT_ALLOWED, "no\n".into()),
        (&Method::OPTIONS, _) => (StatusCode::NO_CONTENT, Bytes::new()),
        (&Method::TRACE, _) => (StatusCode::OK, lines().into()),
        (_, "/echo") => (StatusCode::OK, lines().into()),
        (_, "/cookie") => (StatusCode::OK, cookies().into()),
        (&Method::POST, _) => (StatusCode::OK, body),
        (&(Method::GET | Method::HEAD), _) if not_modified(&head.headers) => (StatusCode::NOT_MODIFIED, Bytes::new()),
        (&(Method::GET | Method::HEAD), _) => (StatusCode::OK, "hello\n".into()),
        _ => (StatusCode::NOT_IMPLEMENTED, "no\n".into()),
    };
    let response = Response::builder()
        .status(status)
        .header("x-upstream", "echo")
        .header(header::ETAG, "\"v1\"")
        .header(header::LAST_MODIFIED, MODIFIED)
        .header(header::ALLOW, "GET, HEAD, POST, OPTIONS, TRACE")
        .header(header::CONTENT_TYPE, "text/plain");
    Ok(response.body(Full::new(body)).expect("valid headers"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn not_modified(headers: &HeaderMap) -> bool {
    let value = |name| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(tags) = value(header::IF_NONE_MATCH) {
        return tags == "*" || tags.split(',').any(|tag| tag.trim().trim_start_matches("W/") == "\"v1\"");
    }
    let since = value(header::IF_MODIFIED_SINCE).and_then(|date| httpdate::parse_http_date(date).ok());
    since.is_some_and(|since| since <= SystemTime::now() && since >= httpdate::parse_http_date(MODIFIED).expect("a date"))
}

/// Answers `/rule/NAME` with the bytes of the row of that name, then closes.
pub(crate) async fn scripted(cases: &'static [&'static [Case]]) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(play(socket, cases));
        }
    });
    Ok(address)
}

async fn play(mut socket: TcpStream, cases: &[&[Case]]) -> io::Result<()> {
    let mut request = Vec::new();
    while memchr::memmem::find(&request, b"\r\n\r\n").is_none() {
        if socket.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let line = text(&request);
    let path = line.split(' ').nth(1).unwrap_or_default();
    let case = cases.iter().copied().flatten().find(|case| path.ends_with(&format!("/rule/{}", case.name)));
    socket.write_all(case.and_then(|case| case.answer).unwrap_or_default()).await?;
    socket.shutdown().await?;
    // Waits for the other side to close, so that nothing is lost in a reset.
    while socket.read_buf(&mut request).await? > 0 {}
    Ok(())
}
