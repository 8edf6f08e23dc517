//! h2spec's `generic`: what every server has to accept.

use super::{case, first};
use crate::http2::{
    Allowed::{Body, Pong, PongOrClose, Response, Settings, SettingsAck},
    Case,
    frames::{CANCEL, DATA, END_HEADERS, END_STREAM, HEADERS, NO_ERROR, PADDED, PREFACE, WITH_PRIORITY, block},
    step::{
        END_OF_RESPONSE, bytes, continued, data, fields, get, goaway, headers, packed, ping, post, post_with, priority, raw,
        request, reset, settings, window,
    },
};

const ZERO: [u8; 8] = [0; 8];
const TEXT: [u8; 8] = *b"h2spec\0\0";

pub(super) fn cases() -> Vec<Case> {
    let padded = |before: &[u8], pad: usize| [&[pad as u8], before, &vec![0; pad]].concat();
    let get_block = block(&request("GET"));
    let prioritized = [&[0, 0, 0, 0, 255], &get_block[..]].concat();
    let mut cases = vec![
        first("generic/1/1", "RFC 9113 §3.4", [bytes(PREFACE), settings(&[(4, 65_535)])], Settings),
        case("generic/2/1", "RFC 9113 §5.1", [priority(1, 0, 255), ping(0, ZERO)], Pong(ZERO)),
        case("generic/2/2", "RFC 9113 §5.1", [settings(&[(4, 0)]), get(1), window(1, 1)], Body),
        case("generic/2/3", "RFC 9113 §5.1", [settings(&[(4, 0)]), get(1), priority(1, 0, 255), window(1, 1)], Body),
        case("generic/2/4", "RFC 9113 §5.1", [get(1), reset(1, CANCEL), ping(0, ZERO)], PongOrClose(ZERO)),
        case("generic/2/5", "RFC 9113 §5.1", [get(1), END_OF_RESPONSE, priority(1, 0, 255), ping(0, ZERO)], Pong(ZERO)),
        case("generic/3.1/1", "RFC 9113 §6.1", [post(1), data(1, END_STREAM)], Response),
        case("generic/3.1/2", "RFC 9113 §6.1", [post(1), data(1, 0), data(1, END_STREAM)], Response),
        case(
            "generic/3.1/3",
            "RFC 9113 §6.1",
            [post(1), raw(DATA, END_STREAM | PADDED, 1, &padded(b"test", 5), "test, 5 of padding")],
            Response,
        ),
        case("generic/3.2/1", "RFC 9113 §6.2", [get(1)], Response),
        case(
            "generic/3.2/2",
            "RFC 9113 §6.2",
            [raw(HEADERS, END_STREAM | END_HEADERS | PADDED, 1, &padded(&get_block, 8), "GET, 8 of padding")],
            Response,
        ),
        case(
            "generic/3.2/3",
            "RFC 9113 §6.2",
            [raw(HEADERS, END_STREAM | END_HEADERS | WITH_PRIORITY, 1, &prioritized, "on 0, 255, GET")],
            Response,
        ),
        case("generic/3.3/1", "RFC 9113 §6.3", [priority(1, 0, 0), get(1)], Response),
        case("generic/3.3/2", "RFC 9113 §6.3", [priority(1, 0, 255), get(1)], Response),
        case("generic/3.3/3", "RFC 9113 §6.3", [priority(3, 1, 0), get(1)], Response),
        case("generic/3.3/4", "RFC 9113 §6.3", [priority(1, 1 << 31, 0), get(1)], Response),
        case("generic/3.3/5", "RFC 9113 §6.3", [priority(3, 0, 255), get(1)], Response),
        case("generic/3.4/1", "RFC 9113 §6.4", [post(1), reset(1, CANCEL), ping(0, ZERO)], PongOrClose(ZERO)),
        case(
            "generic/3.5/1",
            "RFC 9113 §6.5",
            [settings(&[(1, 4096), (2, 1), (3, 100), (4, 65_535), (5, 16_384), (6, 100)])],
            SettingsAck,
        ),
        case("generic/3.7/1", "RFC 9113 §6.7", [ping(0, TEXT)], Pong(TEXT)),
        case("generic/3.8/1", "RFC 9113 §6.8", [goaway(NO_ERROR), ping(0, TEXT)], PongOrClose(TEXT)),
        case("generic/3.9/1", "RFC 9113 §6.9", [window(0, 1), ping(0, ZERO)], Pong(ZERO)),
        case("generic/3.9/2", "RFC 9113 §6.9", [get(1), window(1, 1)], Response),
        Case { steps: continued(&[5]), ..case("generic/3.10/1", "RFC 9113 §6.10", [], Response) },
        Case { steps: continued(&[5, 10]), ..case("generic/3.10/2", "RFC 9113 §6.10", [], Response) },
        case("generic/4/1", "RFC 9113 §8.1", [get(1)], Response),
        case("generic/4/2", "RFC 9113 §8.1", [headers(1, END_STREAM | END_HEADERS, "HEAD")], Response),
        case("generic/4/3", "RFC 9113 §8.1", [post(1), data(1, END_STREAM)], Response),
        case(
            "generic/4/4",
            "RFC 9113 §8.1",
            [post_with(&[("trailer", "x-test")]), data(1, 0), fields(END_STREAM | END_HEADERS, &[("x-test", "ok")])],
            Response,
        ),
    ];
    cases.extend(representations());
    cases
}

/// Each representation of a field in HPACK: `user-agent: h2spec` by its index, `x-test: h2spec` by its name, each plain and
/// Huffman-coded.
fn representations() -> Vec<Case> {
    const AGENT: &[u8] = b"\x0auser-agent\x06h2spec";
    const AGENT_HUFFMAN: &[u8] = b"\x87\xb5\x05\xb1\x61\xcc\x5a\x93\x84\x9c\x48\xac\xa4";
    const TEST: &[u8] = b"\x06x-test\x06h2spec";
    const TEST_HUFFMAN: &[u8] = b"\x85\xf2\xb2\x4a\x84\xff\x84\x9c\x48\xac\xa4";
    let row = |name, clause, first: u8, rest: &[u8]| case(name, clause, [packed(&[], &[&[first], rest].concat())], Response);
    vec![
        row("generic/5/1", "RFC 7541 §6.1", 0xba, &[]),
        row("generic/5/2", "RFC 7541 §6.2.1", 0x40, AGENT_HUFFMAN),
        row("generic/5/3", "RFC 7541 §6.2.1", 0x40, AGENT),
        row("generic/5/4", "RFC 7541 §6.2.1", 0x40, TEST),
        row("generic/5/5", "RFC 7541 §6.2.1", 0x40, TEST_HUFFMAN),
        row("generic/5/6", "RFC 7541 §6.2.2", 0x00, AGENT),
        row("generic/5/7", "RFC 7541 §6.2.2", 0x00, AGENT_HUFFMAN),
        row("generic/5/8", "RFC 7541 §6.2.2", 0x00, TEST),
        row("generic/5/9", "RFC 7541 §6.2.2", 0x00, TEST_HUFFMAN),
        row("generic/5/10", "RFC 7541 §6.2.3", 0x10, AGENT),
        row("generic/5/11", "RFC 7541 §6.2.3", 0x10, AGENT_HUFFMAN),
        row("generic/5/12", "RFC 7541 §6.2.3", 0x10, TEST),
        row("generic/5/13", "RFC 7541 §6.2.3", 0x10, TEST_HUFFMAN),
        case("generic/5/14", "RFC 7541 §6.3", [packed(b"\x3f\x61", &[])], Response),
        case("generic/5/15", "RFC 7541 §4.2", [packed(b"\x3f\x61\x3f\xe1\x1f", &[])], Response),
    ]
}
