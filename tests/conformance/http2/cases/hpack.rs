//! h2spec's `hpack`: header blocks that cannot be decoded.

use super::case;
use crate::http2::{
    Allowed::ConnectionError,
    Case, Limits,
    frames::{COMPRESSION_ERROR, END_HEADERS, END_STREAM, HEADERS, block, frame},
    step::{Step, packed, request},
};

pub(super) fn cases() -> Vec<Case> {
    let row = |name, clause, steps| case(name, clause, [steps], ConnectionError(&[COMPRESSION_ERROR]));
    let after = |bytes: &[u8]| packed(&[], bytes);
    vec![
        // Index 70 of 61 entries and those of an empty table.
        row("hpack/2.3.3/1", "RFC 7541 §2.3.3", after(b"\xc6")),
        row("hpack/2.3.3/2", "RFC 7541 §2.3.3", after(b"\x7f\x07\x00")),
        row("hpack/4.2/1", "RFC 7541 §4.2", after(b"\x21")),
        // Padding of more than seven bits, of zeros, and the end-of-string symbol.
        row("hpack/5.2/1", "RFC 7541 §5.2", after(b"\x00\x85\xf2\xb2\x4a\x84\xff\x84\x49\x50\x9f\xff")),
        row("hpack/5.2/2", "RFC 7541 §5.2", after(b"\x00\x85\xf2\xb2\x4a\x84\xff\x83\x49\x50\x90")),
        row("hpack/5.2/3", "RFC 7541 §5.2", after(b"\x00\x85\xf2\xb2\x4a\x84\xff\x87\x49\x51\xff\xff\xff\xfa\x7f")),
        row("hpack/6.1/1", "RFC 7541 §6.1", after(b"\x80")),
        row(
            "hpack/6.3/1",
            "RFC 7541 §6.3",
            Step::Limit {
                bytes: table_too_large,
                text: "HEADERS(1, END_STREAM, END_HEADERS, a table larger than announced, GET)",
            },
        ),
    ]
}

/// A dynamic table size update by one over what the server announces.
fn table_too_large(limits: &Limits) -> Vec<u8> {
    let mut update = vec![0x3f];
    let mut size = limits.header_table + 1 - 31;
    while size >= 128 {
        update.push(size as u8 | 128);
        size >>= 7;
    }
    update.push(size as u8);
    frame(HEADERS, END_STREAM | END_HEADERS, 1, &[update, block(&request("GET"))].concat())
}
