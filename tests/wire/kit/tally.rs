//! A transparent TCP relay that counts requests.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// The end of every request line. JSON bodies contain no CR LF.
const MARK: &[u8] = b" HTTP/1.1\r\n";

/// A relay in front of `upstream`.
pub(crate) struct Tally {
    pub(crate) address: SocketAddr,
    requests: Arc<AtomicU64>,
    accepting: JoinHandle<()>,
}

impl Tally {
    pub(crate) async fn before(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound listener has an address");
        let requests = Arc::new(AtomicU64::new(0));
        let count = requests.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(relay(client, upstream, count.clone()));
            }
        });
        Self { address, requests, accepting }
    }

    /// Number of requests so far.
    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn relay(client: TcpStream, upstream: SocketAddr, count: Arc<AtomicU64>) {
    let Ok(server) = TcpStream::connect(upstream).await else { return };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let there = async {
        let (mut piece, mut seen) = (vec![0; 64 << 10], Vec::new());
        while let Ok(length @ 1..) = from_client.read(&mut piece).await {
            seen.extend_from_slice(&piece[..length]);
            count.fetch_add(memchr::memmem::find_iter(&seen, MARK).count() as u64, Relaxed);
            // Keeps the end of the last read, so that a marker split over two reads is found, and none is found twice.
            let keep = seen.len() - seen.len().min(MARK.len() - 1);
            seen.drain(..keep);
            if to_server.write_all(&piece[..length]).await.is_err() {
                return;
            }
        }
        // The client has disconnected. The shutdown fails if the server has as well.
        let _ = to_server.shutdown().await;
    };
    let back = async {
        // Either side may close early, which is relayed to the other one.
        let _ = tokio::io::copy(&mut from_server, &mut to_client).await;
        let _ = to_client.shutdown().await;
    };
    tokio::join!(there, back);
}
