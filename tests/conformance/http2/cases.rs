//! The cases of summerwind/h2spec (af83a65), each by its number there, with its clause in RFC 9113 or 7541.

mod connection;
mod generic;
mod hpack;
mod messages;
mod streams;

use super::{Allowed, Case, Step};

/// A case on an established connection.
fn case<const N: usize>(name: &'static str, clause: &'static str, steps: [Step; N], allowed: Allowed) -> Case {
    Case { name, clause, handshake: true, steps: steps.into(), allowed }
}

/// A case that begins with the connection's first byte.
fn first<const N: usize>(name: &'static str, clause: &'static str, steps: [Step; N], allowed: Allowed) -> Case {
    Case { handshake: false, ..case(name, clause, steps, allowed) }
}

pub(crate) fn cases() -> Vec<Case> {
    [generic::cases(), hpack::cases(), connection::cases(), streams::cases(), messages::cases()].concat()
}
