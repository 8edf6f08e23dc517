//! A relay in front of a Redis that can be cut, slowed, made to send wrong replies, or redirected to another Redis.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp},
    sync::watch,
    task::JoinSet,
    time::sleep,
};

/// What the relay does to the bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Weather {
    /// Relays them.
    Fair,
    /// Drops everything without closing: a pulled cable.
    Hole,
    /// Closes every connection, new ones too.
    Closed,
    /// Replaces replies.
    Rubbish,
    /// Delays every piece of a reply by so long.
    Slow(Duration),
}

/// A relay in front of a Redis.
pub(crate) struct Network {
    address: std::net::SocketAddr,
    weather: watch::Sender<Weather>,
    port: Arc<AtomicU16>,
}

impl Network {
    pub(crate) async fn before(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (weather, seen) = watch::channel(Weather::Fair);
        let port = Arc::new(AtomicU16::new(port));
        tokio::spawn(serve(listener, seen, port.clone()));
        Self { address, weather, port }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    pub(crate) fn turn(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    /// New connections go to this port.
    pub(crate) fn lead_to(&self, port: u16) {
        self.port.store(port, Relaxed);
    }
}

async fn serve(listener: TcpListener, mut seen: watch::Receiver<Weather>, port: Arc<AtomicU16>) {
    let passing = Arc::new(Mutex::new(JoinSet::new()));
    let closing = passing.clone();
    let mut changes = seen.clone();
    let close = async {
        while changes.changed().await.is_ok() {
            if *changes.borrow_and_update() == Weather::Closed {
                closing.lock().expect("nobody panics with it").abort_all();
            }
        }
    };
    let accept = async {
        while let Ok((client, _)) = listener.accept().await {
            let closed = *seen.borrow_and_update() == Weather::Closed;
            // Nobody listens there any more: the client sees its connection close.
            let Ok(server) = TcpStream::connect(("127.0.0.1", port.load(Relaxed))).await else { continue };
            if closed {
                continue;
            }
            let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
            let mut passing = passing.lock().expect("nobody panics with it");
            passing.spawn(pass(from_client, to_server, seen.clone(), false));
            passing.spawn(pass(from_server, to_client, seen.clone(), true));
        }
    };
    tokio::join!(close, accept);
}

async fn pass(mut from: tcp::OwnedReadHalf, mut to: tcp::OwnedWriteHalf, seen: watch::Receiver<Weather>, replies: bool) {
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        let weather = *seen.borrow();
        if let Weather::Slow(by) = weather
            && replies
        {
            sleep(by).await;
        }
        let sent = match weather {
            Weather::Hole => continue,
            Weather::Closed => return,
            Weather::Rubbish if replies => to.write_all(b"*3\r\n$2\r\nno\r\n:7\r\n$-1\r\n").await,
            _ => to.write_all(&bytes[..count]).await,
        };
        if sent.is_err() {
            return;
        }
    }
}
