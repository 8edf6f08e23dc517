//! What happens on the wire: real processes, real sockets, the loopback device.

mod kit;
