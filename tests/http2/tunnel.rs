//! HTTP/2 through the tunnel of an HTTP proxy.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use http::StatusCode;
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, copy_bidirectional},
    net::{TcpListener, TcpStream},
};

use crate::kit::{Upstream, chats, counts, start};

/// Opens the tunnel that a client asks for.
async fn serve(client: TcpStream) -> std::io::Result<()> {
    let mut client = BufReader::new(client);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        client.read_line(&mut head).await?;
    }
    let authority = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next()).expect("a CONNECT request");
    let mut upstream = TcpStream::connect(authority).await?;
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
    copy_bidirectional(&mut client, &mut upstream).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_share_one_tunnel() {
    let upstream = Upstream::node("plain").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let proxy = format!("http://{}", listener.local_addr().expect("it is bound"));
    let tunnels = Arc::new(AtomicUsize::new(0));
    let counted = tunnels.clone();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(serve(client));
        }
    });
    let mut settings = upstream.settings();
    settings.upstream.proxy = Some(proxy.parse().expect("a URL"));
    let shield = start(settings);
    for response in chats(shield.app, 30).await {
        assert_eq!((response.status, response.attempts()), (StatusCode::OK, "1"), "{response:?}");
    }
    let counts = counts(shield.app).await;
    assert_eq!((&counts["connections"], tunnels.load(Ordering::Relaxed)), (&json!(1), 1));
    shield.drained().await;
}
