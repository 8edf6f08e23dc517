//! Real processes over loopback sockets: clients, the documentation's commands, outages, restarts.

mod bad_input;
mod configured_limits;
mod default_output;
mod docs;
mod http2;
mod kit;
mod large_bodies;
mod loops;
mod observe;
mod outage;
mod output_limits;
mod paths;
mod restart;
mod sdk;
mod streams;
