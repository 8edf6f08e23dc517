//! The tables. Names begin with the group that MDA2AV/Http11Probe has the probe in, or with `resp`.

use crate::{
    case::{Case, case},
    response_rule::keeps,
};

mod bodies;
mod chunks;
mod conditions;
mod fields;
mod lengths;
mod malformed;
mod responses;
mod semantics;
mod smuggling;
mod syntax;

/// Raw requests: the probes of MDA2AV/Http11Probe (95bc6a9, February 2026), each tied to its clause.
pub(crate) const REQUESTS: &[&[Case]] = &[
    syntax::CASES,
    bodies::CASES,
    semantics::CASES,
    malformed::CASES,
    fields::CASES,
    lengths::CASES,
    chunks::CASES,
    smuggling::CASES,
    conditions::CASES,
];

/// Malformed answers.
pub(crate) const RESPONSES: &[&[Case]] = &[responses::FRAMING, responses::HEADS, responses::STATUSES];

/// A request without a key, for a shield that holds none.
pub(crate) const UNAUTHORIZED: Case =
    case("own-401", "RFC 9110 §15.5.2", b"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n", keeps("www-authenticate"));
