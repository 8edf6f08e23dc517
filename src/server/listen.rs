//! The listening sockets: passed on by whoever started the process (systemd socket activation), or bound here.

use std::{
    io,
    net::{SocketAddr, TcpListener},
};

use listenfd::ListenFd;
use socket2::{Domain, Protocol, Socket, Type};

use crate::config::Settings;

/// Length of the accept queue.
const BACKLOG: i32 = 1024;

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
    /// When an address cannot be bound, which the error names together with its key, or when a socket that was passed on is no
    /// TCP listener.
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

    /// Two shields on one port were each served a part of the connections, under limits of its own.
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
