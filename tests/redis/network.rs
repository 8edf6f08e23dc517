//! A relay in front of a Redis that can drop or delay bytes, close connections, send wrong replies, or connect to another Redis.

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

/// A fault of the relay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    /// No fault.
    None,
    /// Drops all bytes without closing connections, like an unplugged cable.
    Drop,
    /// Closes every connection, including new ones.
    Closed,
    /// Replaces replies by invalid ones.
    WrongReplies,
    /// Delays every part of a reply by this time.
    Slow(Duration),
}

/// A relay in front of a Redis.
pub(crate) struct Network {
    address: std::net::SocketAddr,
    fault: watch::Sender<Fault>,
    port: Arc<AtomicU16>,
}

impl Network {
    pub(crate) async fn in_front_of(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (fault, faults) = watch::channel(Fault::None);
        let port = Arc::new(AtomicU16::new(port));
        tokio::spawn(serve(listener, faults, port.clone()));
        Self { address, fault, port }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    pub(crate) fn set(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }

    /// Connects new connections to this port.
    pub(crate) fn connect_to(&self, port: u16) {
        self.port.store(port, Relaxed);
    }
}

async fn serve(listener: TcpListener, mut faults: watch::Receiver<Fault>, port: Arc<AtomicU16>) {
    let relays = Arc::new(Mutex::new(JoinSet::new()));
    let closing = relays.clone();
    let mut changes = faults.clone();
    let close = async {
        while changes.changed().await.is_ok() {
            if *changes.borrow_and_update() == Fault::Closed {
                closing.lock().expect("no panic while locked").abort_all();
            }
        }
    };
    let accept = async {
        while let Ok((client, _)) = listener.accept().await {
            let closed = *faults.borrow_and_update() == Fault::Closed;
            // If nothing listens on the port, the client's connection is closed.
            let Ok(server) = TcpStream::connect(("127.0.0.1", port.load(Relaxed))).await else { continue };
            if closed {
                continue;
            }
            let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
            let mut relays = relays.lock().expect("no panic while locked");
            relays.spawn(relay(from_client, to_server, faults.clone(), false));
            relays.spawn(relay(from_server, to_client, faults.clone(), true));
        }
    };
    tokio::join!(close, accept);
}

async fn relay(mut from: tcp::OwnedReadHalf, mut to: tcp::OwnedWriteHalf, faults: watch::Receiver<Fault>, replies: bool) {
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        let fault = *faults.borrow();
        if let Fault::Slow(by) = fault
            && replies
        {
            sleep(by).await;
        }
        let sent = match fault {
            Fault::Drop => continue,
            Fault::Closed => return,
            Fault::WrongReplies if replies => to.write_all(b"*3\r\n$2\r\nno\r\n:7\r\n$-1\r\n").await,
            _ => to.write_all(&bytes[..count]).await,
        };
        if sent.is_err() {
            return;
        }
    }
}
