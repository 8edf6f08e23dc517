//! Where do the listening sockets come from? From whoever started us (systemd), or bound here.

use std::{
    io,
    net::{SocketAddr, TcpListener},
};

use listenfd::ListenFd;
use socket2::{Domain, Protocol, Socket, Type};

use crate::config::Settings;

/// Connections that wait to be accepted.
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
    /// Takes the sockets that systemd passed on (the first for apps, the second for operators), binds the others.
    ///
    /// # Errors
    /// When an address cannot be bound, which the error names, or what was passed on is no TCP listener.
    pub fn open(settings: &Settings) -> io::Result<Self> {
        let mut passed = ListenFd::from_env();
        let mut listener = |index, address, share| match passed.take_tcp_listener(index)? {
            Some(listener) => listener.set_nonblocking(true).map(|()| listener),
            None => bind(address, share),
        };
        Ok(Self { app: listener(0, settings.server.listen, true)?, admin: listener(1, settings.admin.listen, false)? })
    }
}

/// With `share` a second process can listen beside this one, so that it can be replaced without a gap:
/// both then get connections until one of them drains.
fn bind(address: SocketAddr, share: bool) -> io::Result<TcpListener> {
    let listen = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(share)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        io::Result::Ok(TcpListener::from(socket))
    };
    listen().map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}")))
}
