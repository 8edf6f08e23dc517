//! What happens on the wire: real processes, real sockets, the loopback device.

mod bad_input;
mod configured_limits;
mod docs;
mod http2;
mod kit;
mod observe;
mod outage;
mod output_limits;
mod paths;
mod restart;
mod ring;
mod sdk;
mod slice;
mod without_ceiling;
