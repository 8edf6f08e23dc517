//! Malformed responses on reused connections must not reach another client.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};

const CLIENTS: usize = 50;

/// A response with `body` in one of several forms, some of which have more data than one response.
const WAYS: usize = 14;

fn odd(way: usize, body: &str) -> String {
    let length = body.len();
    let forged = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged";
    let sized = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}");
    let chunks = format!("{length:x}\r\n{body}\r\n0\r\n");
    match way {
        1 => format!("{sized}{forged}"),
        2 => format!("HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: {length}\r\n\r\n{body}"),
        3 => format!("HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n{chunks}\r\n"),
        4 => format!("HTTP/1.1 200 OK\ncontent-length: {length}\n\n{body}"),
        5 => format!("HTTP/1.1 200 OK\r\nx: a\r\n b\r\ncontent-length: {length}\r\n\r\n{body}"),
        6 => "HTTP/1.1 100 Continue\r\n\r\n".repeat(30) + &sized,
        7 => format!("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n{forged}"),
        8 => format!("HTTP/1.1 204 No Content\r\n\r\n{forged}"),
        9 => format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x\r\n\r\n{chunks}x: y\r\n\r\n"),
        10 => format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{chunks}\r\n{forged}"),
        11 => format!("HTTP/1.1 304 Not Modified\r\ncontent-length: 6\r\n\r\n{forged}"),
        12 => format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", length + 9),
        _ => sized,
    }
}

/// An upstream that echoes the body of each request in the forms of `odd` in rotation. With the thirteenth, it responds before it
/// has read the body.
async fn upstream() -> io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let count = Arc::new(AtomicUsize::new(0));
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(serve(socket, count.clone()));
        }
    });
    Ok(address)
}

async fn serve(socket: TcpStream, count: Arc<AtomicUsize>) -> io::Result<()> {
    let mut socket = BufReader::new(socket);
    loop {
        let (mut head, mut length) = (String::new(), 0);
        while !head.ends_with("\r\n\r\n") {
            if socket.read_line(&mut head).await? == 0 {
                return Ok(());
            }
        }
        for line in head.lines() {
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().map_err(io::Error::other)?;
            }
        }
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let is_head = head.starts_with("HEAD ");
        let way = count.fetch_add(1, Relaxed) % WAYS;
        if way == 13 {
            socket.write_all(odd(1, &path).as_bytes()).await?;
        }
        let mut body = vec![0; length];
        socket.read_exact(&mut body).await?;
        if is_head {
            // A body, which a response to HEAD must not have.
            socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged").await?;
        } else if way < 13 {
            socket.write_all(odd(way, &format!("{path} {}", String::from_utf8_lossy(&body))).as_bytes()).await?;
        }
        if way == 12 {
            return Ok(());
        }
    }
}

/// Reads the status and body of a response, and whether the connection is closed after it. The shield's responses are delimited by
/// length or chunks.
async fn answer(socket: &mut BufReader<TcpStream>, is_head: bool) -> io::Result<(u16, String, bool)> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if socket.read_line(&mut head).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let status = head.get(9..12).and_then(|status| status.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
    let mut body = Vec::new();
    if !is_head && !matches!(status, 204 | 304) {
        if let Some(length) = header("content-length") {
            body = vec![0; length.parse().map_err(io::Error::other)?];
            socket.read_exact(&mut body).await?;
        } else {
            loop {
                let mut line = String::new();
                socket.read_line(&mut line).await?;
                let size = usize::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
                let mut chunk = vec![0; size + 2];
                socket.read_exact(&mut chunk).await?;
                body.extend_from_slice(&chunk[..size]);
                if size == 0 {
                    break;
                }
            }
        }
    }
    Ok((status, String::from_utf8_lossy(&body).into_owned(), header("connection") == Some("close")))
}

/// A client with a persistent connection. Returns the number of its own responses, and the number of failures.
///
/// # Errors
/// A response to another client.
async fn client(name: usize, to: SocketAddr, requests: usize) -> io::Result<(usize, usize)> {
    let (mut own, mut none) = (0, 0);
    let mut kept = None;
    for n in 0..requests {
        let mut socket = match kept.take() {
            Some(socket) => socket,
            None => BufReader::new(TcpStream::connect(to).await?),
        };
        let is_head = n % 10 == 9;
        let method = if is_head { "HEAD" } else { "POST" };
        let body = format!("body-{name}-{n}");
        let request = format!("{method} /client/{name}/{n} HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        socket.get_mut().write_all(request.as_bytes()).await?;
        match timeout(Duration::from_secs(60), answer(&mut socket, is_head)).await.map_err(io::Error::other)? {
            Ok((status, received, close)) => {
                if !close {
                    kept = Some(socket);
                }
                let whole = format!("/client/{name}/{n} {body}");
                let early = format!("/client/{name}/{n}");
                let mine = received == whole || received == early;
                match status {
                    200 if is_head || mine => own += 1,
                    // A failure has a body of the shield.
                    204 | 304 | 502 => none += 1,
                    _ => return Err(io::Error::other(format!("client {name}, request {n}: {status} {received:?}"))),
                }
            }
            // A truncated response of the upstream is also truncated for the client.
            Err(_) => none += 1,
        }
    }
    Ok((own, none))
}

async fn deliver(requests: usize) {
    let shield = super::shield(upstream().await.expect("a free port"), None).expect("the shield starts");
    let mut clients = JoinSet::new();
    for name in 0..CLIENTS {
        clients.spawn(client(name, shield.app, requests / CLIENTS));
    }
    let (mut own, mut none) = (0, 0);
    while let Some(done) = clients.join_next().await {
        let (mine, failed) = done.expect("no panic").expect("only own responses");
        own += mine;
        none += failed;
    }
    println!("{CLIENTS} clients, {requests} requests: {own} got their own answer, {none} a failure or no body, 0 another's");
    assert_eq!(own + none, requests / CLIENTS * CLIENTS);
    assert!(own > requests / 4, "{own} of {requests}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_response_reaches_another_client() {
    deliver(3000).await;
}

/// `cargo test --test garden -- --ignored hundred_thousand --nocapture`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes"]
async fn none_of_a_hundred_thousand_responses_reaches_another_client() {
    deliver(100_000).await;
}
