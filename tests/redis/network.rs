//! A network in between that is cut, or that brings rubbish.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp},
    time::Instant,
};

use crate::kit::{Redis, ask, replica, tokens, until};

const PASS: u8 = 0;
/// Nothing comes through, nothing is closed.
const HOLE: u8 = 1;
/// Replies become other ones.
const RUBBISH: u8 = 2;
/// Longer than a busy machine is busy.
const LIMIT: Duration = Duration::from_millis(500);

/// A network before a Redis; its address.
async fn network(port: u16, mode: Arc<AtomicU8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(("127.0.0.1", port)).await.expect("redis listens");
            let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
            tokio::spawn(pass(from_client, to_server, mode.clone(), false));
            tokio::spawn(pass(from_server, to_client, mode.clone(), true));
        }
    });
    format!("redis://{address}")
}

async fn pass(mut from: tcp::OwnedReadHalf, mut to: tcp::OwnedWriteHalf, mode: Arc<AtomicU8>, replies: bool) {
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        let sent = match mode.load(Relaxed) {
            HOLE => continue,
            RUBBISH if replies => to.write_all(b"*3\r\n$2\r\nno\r\n:7\r\n$-1\r\n").await,
            _ => to.write_all(&bytes[..count]).await,
        };
        if sent.is_err() {
            return;
        }
    }
}

/// Nobody waits for it longer than its time limit, and it is back when it is back.
async fn fails_in(mode: u8) {
    let redis = Redis::start(&[]).await;
    let now = Arc::new(AtomicU8::new(PASS));
    let replica = replica(&network(redis.port(), now.clone()).await, tokens(600_000), LIMIT);
    let this = std::slice::from_ref(&replica);
    until(false, this).await;
    let reserve = async || {
        let asked = Instant::now();
        let granted = replica.reserve(&ask("a", 10, 10), asked + Duration::from_secs(20), None).await;
        let mut granted = granted.expect("a full level");
        granted.sent(Instant::now());
        granted.observe(&groq_shield::groq::RateState::default(), Instant::now());
        asked.elapsed()
    };
    reserve().await;
    now.store(mode, Relaxed);
    let waited = reserve().await;
    assert!(waited < LIMIT + Duration::from_secs(2), "{waited:?}");
    until(true, this).await;
    now.store(PASS, Relaxed);
    until(false, this).await;
    reserve().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_network_is_no_reason_to_wait() {
    fails_in(HOLE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rubbish_is_not_believed() {
    fails_in(RUBBISH).await;
}
