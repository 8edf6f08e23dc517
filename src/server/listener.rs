//! The listening sockets, and the connections that they accept.
//!
//! The sockets are passed by the process's parent (systemd socket activation), or bound here.

use std::{
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    time::Duration,
};

use listenfd::ListenFd;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::worker::Accepted;
use crate::{config::Settings, proxy::Shield};

/// Length of the accept queue.
const BACKLOG: i32 = 1024;
/// Time for the last frames of streams after `drain_timeout`.
const LAST_FRAMES: Duration = Duration::from_secs(1);
/// How long accepting pauses when it fails, for example because the process has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The two listening sockets.
#[derive(Debug)]
pub struct Listeners {
    /// For apps.
    pub app: TcpListener,
    /// For operators.
    pub admin: TcpListener,
}

impl Listeners {
    /// Takes the sockets that systemd passed on (the first for apps, the second for operators), and binds the others.
    ///
    /// # Errors
    /// If an address cannot be bound (the error names it with its key), or if a passed socket is not a TCP listener.
    pub fn open(settings: &Settings) -> io::Result<Self> {
        let reuse_port = settings.server.reuse_port;
        let mut passed = ListenFd::from_env();
        let mut listener = |index, address, key| match passed.take_tcp_listener(index)? {
            Some(listener) => listener.set_nonblocking(true).map(|()| listener),
            None => bind(address, reuse_port)
                .map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {address} ({key}): {}", reason(&error)))),
        };
        Ok(Self {
            app: listener(0, settings.server.listen, "server.listen")?,
            admin: listener(1, settings.admin.listen, "admin.listen")?,
        })
    }
}

/// Binds and listens. With `reuse_port`, processes that all set it share the address: the kernel spreads connections over them.
fn bind(address: SocketAddr, reuse_port: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    // Connections of the last process in TIME_WAIT must not keep this one from starting. It allows no second listener.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(reuse_port)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(TcpListener::from(socket))
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => "another process listens there. Stop it, or choose another address; \
             to replace a running shield without a gap, set server.reuse_port = true in both"
            .into(),
        io::ErrorKind::AddrNotAvailable => "this machine has no such address".into(),
        io::ErrorKind::PermissionDenied => format!("{error}. Ports below 1024 need CAP_NET_BIND_SERVICE"),
        _ => error.to_string(),
    }
}

/// Accepts connections for all workers.
pub(super) struct Acceptor {
    pub(super) shield: Arc<Shield>,
    pub(super) listener: TcpListener,
    pub(super) workers: Vec<mpsc::UnboundedSender<Accepted>>,
    /// Cancelled when the drain is over.
    pub(super) stopped: CancellationToken,
}

impl Acceptor {
    /// Accepts until draining begins, waits for the connections that are open, then stops every worker.
    pub(super) async fn run(self) {
        let Self { shield, listener, workers, stopped } = self;
        let drain_timeout = shield.settings.load().server.drain_timeout;
        if let Err(error) = accept(listener, &shield, workers).await {
            tracing::error!(%error, "the listener cannot be used");
            shield.shutdown.draining.cancel();
        }
        shield.connections.close();
        tokio::select! {
            () = shield.connections.wait() => {}
            () = shield.shutdown.cutoff.cancelled() => {}
            () = sleep(drain_timeout) => {
                tracing::warn!(connections = shield.connections.len(), "drain_timeout is over: ending streams");
                shield.shutdown.cutoff.cancel();
            }
        }
        let cut_off = shield.shutdown.cutoff.is_cancelled();
        if cut_off && timeout(LAST_FRAMES, shield.connections.wait()).await.is_err() {
            tracing::warn!(connections = shield.connections.len(), "connections cut");
        }
        stopped.cancel();
    }
}

/// Distributes connections over the workers until draining begins. At `max_connections` further ones wait in the accept queue.
async fn accept(listener: TcpListener, shield: &Shield, workers: Vec<mpsc::UnboundedSender<Accepted>>) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let permits = Arc::new(Semaphore::new(shield.settings.load().server.max_connections));
    let mut turns = workers.iter().cycle();
    let mut give = |socket: TcpStream, permit: Option<OwnedSemaphorePermit>| {
        let tracked = shield.connections.token();
        if let Some(worker) = turns.next() {
            // A worker that has stopped drops the connection: the process is ending.
            let _ = worker.send(Accepted { socket, permit, tracked });
        }
    };
    let next = async || {
        let permit = permits.clone().acquire_owned().await.map_err(io::Error::other)?;
        let (socket, _) = listener.accept().await?;
        io::Result::Ok((socket.into_std()?, permit))
    };
    loop {
        let next = tokio::select! {
            biased;
            next = next() => next,
            () = shield.shutdown.draining.cancelled() => break,
        };
        match next {
            Ok((socket, permit)) => give(socket, Some(permit)),
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // Closing the listener would reset the connections in its accept queue.
    let listener = listener.into_std()?;
    while let Ok((socket, _)) = listener.accept() {
        socket.set_nonblocking(true)?;
        give(socket, None);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(reuse_port: bool, app: SocketAddr) -> Settings {
        let mut settings = Settings::default();
        settings.server.listen = app;
        settings.server.reuse_port = reuse_port;
        settings.admin.listen = SocketAddr::from(([127, 0, 0, 1], 0));
        settings
    }

    /// Regression: two shields on one port each got a part of the connections, with limits of their own.
    #[test]
    fn a_second_listener_on_one_address_fails_unless_both_ask_for_it() {
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        let first = Listeners::open(&settings(false, free)).expect("a free port");
        let taken = first.app.local_addr().expect("bound");
        for reuse_port in [false, true] {
            let error = Listeners::open(&settings(reuse_port, taken)).expect_err("taken").to_string();
            for part in [&taken.to_string(), "(server.listen)", "another process listens there", "server.reuse_port = true"] {
                assert!(error.contains(part), "{part}: {error}");
            }
        }

        let first = Listeners::open(&settings(true, free)).expect("a free port");
        let shared = first.app.local_addr().expect("bound");
        Listeners::open(&settings(false, shared)).expect_err("the second did not ask for it");
        Listeners::open(&settings(true, shared)).expect("both asked for it");
    }

    #[test]
    fn an_address_that_is_not_this_machines_is_told() {
        let elsewhere = SocketAddr::from(([192, 0, 2, 1], 8787));
        let error = Listeners::open(&settings(false, elsewhere)).expect_err("a documentation address").to_string();
        assert_eq!(error, "cannot listen on 192.0.2.1:8787 (server.listen): this machine has no such address");
    }
}
