//! Draining and replacement: no accepted request is lost.

use std::{net::SocketAddr, process::Command};

use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};

use crate::kit::{LONGEST_WAIT, one, request, rest, settings, start, upstream};

#[tokio::test]
async fn a_drain_closes_idle_connections_and_waits_for_running_requests() {
    let (address, _) = upstream().await;
    let shield = start(settings(address));
    let app = shield.app;
    let mut idle = TcpStream::connect(app).await.expect("the listener accepts");
    idle.write_all(request("a").as_bytes()).await.expect("the request is written");
    one(&mut idle).await.expect("a response");
    let mut running = TcpStream::connect(app).await.expect("the listener accepts");
    running.write_all(request("slow").as_bytes()).await.expect("the request is written");
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let (idle, answer, ()) = tokio::join!(rest(&mut idle), rest(&mut running), shield.drained());
    assert_eq!(idle, "");
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains("connection: close"), "{answer}");
    assert!(TcpStream::connect(app).await.is_err(), "the listener is closed");
}

/// Sends `count` requests in sequence like a pooling client, which does not reuse a connection after `connection: close`.
async fn send_in_sequence(app: SocketAddr, count: usize) -> usize {
    let mut answered = 0;
    let mut socket = None;
    for _ in 0..count {
        let mut connected = match socket.take() {
            Some(connected) => connected,
            None => TcpStream::connect(app).await.expect("a listener"),
        };
        connected.write_all(request("x").as_bytes()).await.expect("the request is written");
        let answer = one(&mut connected).await.expect("a response");
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        answered += 1;
        if !answer.contains("connection: close") {
            socket = Some(connected);
        }
    }
    answered
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shield_is_replaced_on_its_port_without_losing_requests() {
    let (address, _) = upstream().await;
    let mut settings = settings(address);
    settings.server.reuse_port = true;
    let old = start(settings.clone());
    let app = old.app;
    let clients: Vec<_> = (0..4).map(|_| tokio::spawn(send_in_sequence(app, 400))).collect();
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    settings.server.listen = app;
    settings.admin.listen = old.admin;
    let new = start(settings);
    assert_eq!((new.app, new.admin), (app, old.admin));
    timeout(LONGEST_WAIT, old.drained()).await.expect("drained under load");
    for client in clients {
        assert_eq!(client.await.expect("no request fails"), 400);
    }
}

/// The child process of `a_passed_socket_is_served`, which has the socket at descriptor 3.
async fn serve_passed_socket(upstream: &str, app: &str) {
    let shield = start(settings(upstream.parse().expect("an address")));
    assert_eq!(shield.app, app.parse().expect("an address"));
    let mut socket = TcpStream::connect(shield.app).await.expect("the listener accepts");
    socket.write_all(request("passed").as_bytes()).await.expect("the request is written");
    one(&mut socket).await.expect("a response");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_passed_socket_is_served() {
    if let (Ok(upstream), Ok(app)) = (std::env::var("TEST_UPSTREAM"), std::env::var("TEST_APP")) {
        return serve_passed_socket(&upstream, &app).await;
    }
    let (address, log) = upstream().await;
    let app = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let bound = app.local_addr().expect("a bound address");
    // Like systemd: the socket is descriptor 3, and environment variables announce it.
    let mut child = Command::new("sh");
    child.args(["-c", "exec 3<&0 0</dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\"", "sh"]);
    child.arg(std::env::current_exe().expect("this test"));
    // The child process runs this test, with an environment variable that makes it serve.
    child.args(["--exact", "drain::a_passed_socket_is_served", "--nocapture"]);
    child.env("TEST_UPSTREAM", address.to_string()).env("TEST_APP", bound.to_string());
    child.stdin(std::os::fd::OwnedFd::from(app));
    let ended = tokio::task::spawn_blocking(move || child.output()).await.expect("no panic").expect("sh runs");
    let wrote = [String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr)].concat();
    assert!(ended.status.success() && wrote.contains("1 passed"), "{wrote}");
    assert_eq!(log.lock().expect("no panic").len(), 1);
}
