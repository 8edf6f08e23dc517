//! h2spec's `http2`, the connection: its preface, the format of frames, SETTINGS, PING, GOAWAY, flow control.

use super::{case, first};
use crate::http2::{
    Allowed::{Close, ConnectionError, GoAway, OneByte, Pong, PongOrClose, Reset, Response, Settings, SettingsAck, StreamError},
    Case, Limits,
    frames::{
        ACK, COMPRESSION_ERROR, DATA, END_HEADERS, END_STREAM, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, GOAWAY, HEADERS, PING,
        PREFACE, PROTOCOL_ERROR, SETTINGS, WINDOW_UPDATE, block, frame,
    },
    step::{
        SETTINGS_ACK, SOME_DATA, Step, bytes, continuation, get, goaway, headers, ping, post, priority, raw, request, reset,
        settings, window,
    },
};

const ZERO: [u8; 8] = [0; 8];
const TEXT: [u8; 8] = *b"h2spec\0\0";
const MAX_WINDOW: u32 = (1 << 31) - 1;

pub(super) fn cases() -> Vec<Case> {
    [format(), settings_frames(), pings(), flow_control()].concat()
}

/// A DATA frame of the largest size that is announced, and `over` more.
fn data_of(limits: &Limits, over: usize) -> Vec<u8> {
    frame(DATA, END_STREAM, 1, &vec![b'x'; limits.frame as usize + over])
}

fn headers_too_large(limits: &Limits) -> Vec<u8> {
    let value = "x".repeat(limits.frame as usize / 4);
    let names: Vec<_> = (0..5).map(|n| format!("x-dummy{n}")).collect();
    let mut fields = request("GET");
    fields.extend(names.iter().map(|name| (name.as_str(), value.as_str())));
    frame(HEADERS, END_STREAM | END_HEADERS, 1, &block(&fields))
}

fn format() -> Vec<Case> {
    const UNKNOWN: u8 = 0x16;
    const HIGH_BIT: u32 = 1 << 31;
    let unknown = || raw(UNKNOWN, 0, 0, &ZERO, "8 bytes");
    let block_cut = || headers(1, 0, "GET");
    let protocol = ConnectionError(&[PROTOCOL_ERROR]);
    vec![
        first("http2/3.5/1", "RFC 9113 §3.4", [bytes(PREFACE), settings(&[(4, 65_535)])], Settings),
        first("http2/3.5/2", "RFC 9113 §3.4", [bytes(b"INVALID CONNECTION PREFACE\r\n\r\n")], protocol),
        case("http2/4.1/1", "RFC 9113 §4.1", [unknown(), ping(0, ZERO)], Pong(ZERO)),
        case("http2/4.1/2", "RFC 9113 §4.1", [ping(0x16, ZERO)], Pong(ZERO)),
        case("http2/4.1/3", "RFC 9113 §4.1", [raw(PING, 0x16, HIGH_BIT, &ZERO, "8 bytes")], Pong(ZERO)),
        case(
            "http2/4.2/1",
            "RFC 9113 §4.2",
            [post(1), Step::Limit { bytes: |limits| data_of(limits, 0), text: "DATA(1, END_STREAM, as large as announced)" }],
            Response,
        ),
        case(
            "http2/4.2/2",
            "RFC 9113 §4.2",
            [
                post(1),
                Step::Limit { bytes: |limits| data_of(limits, 1), text: "DATA(1, END_STREAM, a byte larger than announced)" },
            ],
            StreamError(&[FRAME_SIZE_ERROR]),
        ),
        case(
            "http2/4.2/3",
            "RFC 9113 §4.2",
            [Step::Limit { bytes: headers_too_large, text: "HEADERS(1, END_STREAM, END_HEADERS, larger than announced)" }],
            ConnectionError(&[FRAME_SIZE_ERROR]),
        ),
        case(
            "http2/4.3/1",
            "RFC 9113 §4.3",
            [raw(HEADERS, END_STREAM | END_HEADERS, 1, b"\x40", "a field's first byte")],
            ConnectionError(&[COMPRESSION_ERROR]),
        ),
        case("http2/4.3/2", "RFC 9113 §4.3", [block_cut(), priority(1, 0, 255), continuation(1, END_HEADERS)], protocol),
        case("http2/4.3/3", "RFC 9113 §4.3", [block_cut(), get(3), continuation(1, END_HEADERS)], protocol),
        case("http2/5.4.1/1", "RFC 9113 §5.4.1", [raw(PING, 0, 3, &ZERO, "8 bytes")], Close),
        case("http2/5.4.1/2", "RFC 9113 §5.4.1", [raw(PING, 0, 3, &ZERO, "8 bytes")], GoAway(PROTOCOL_ERROR)),
        case("http2/5.5/1", "RFC 9113 §5.5", [unknown(), ping(0, ZERO)], Pong(ZERO)),
        case("http2/5.5/2", "RFC 9113 §5.5", [headers(1, END_STREAM, "GET"), unknown()], protocol),
    ]
}

fn settings_frames() -> Vec<Case> {
    let protocol = ConnectionError(&[PROTOCOL_ERROR]);
    let size = ConnectionError(&[FRAME_SIZE_ERROR]);
    vec![
        case("http2/6.5/1", "RFC 9113 §6.5", [raw(SETTINGS, ACK, 0, b"\0", "1 byte")], size),
        case("http2/6.5/2", "RFC 9113 §6.5", [raw(SETTINGS, 0, 1, b"\0\x03\0\0\0\x64", "MAX_CONCURRENT_STREAMS=100")], protocol),
        case(
            "http2/6.5/3",
            "RFC 9113 §6.5",
            [raw(SETTINGS, 0, 0, b"\0\x03\0", "3 bytes")],
            StreamError(&[PROTOCOL_ERROR, FRAME_SIZE_ERROR]),
        ),
        case("http2/6.5.2/1", "RFC 9113 §6.5.2", [settings(&[(2, 2)])], protocol),
        case("http2/6.5.2/2", "RFC 9113 §6.5.2", [settings(&[(4, 1 << 31)])], ConnectionError(&[FLOW_CONTROL_ERROR])),
        case("http2/6.5.2/3", "RFC 9113 §6.5.2", [settings(&[(5, 16_383)])], protocol),
        case("http2/6.5.2/4", "RFC 9113 §6.5.2", [settings(&[(5, 1 << 24)])], protocol),
        case("http2/6.5.2/5", "RFC 9113 §6.5.2", [settings(&[(0xff, 1)]), ping(0, ZERO)], Pong(ZERO)),
        case("http2/6.5.3/1", "RFC 9113 §6.5.3", [settings(&[(4, 100), (4, 1)]), SETTINGS_ACK, get(1)], OneByte),
        case("http2/6.5.3/2", "RFC 9113 §6.5.3", [settings(&[(2, 0)])], SettingsAck),
    ]
}

fn pings() -> Vec<Case> {
    let protocol = ConnectionError(&[PROTOCOL_ERROR]);
    vec![
        case("http2/6.7/1", "RFC 9113 §6.7", [ping(0, TEXT)], Pong(TEXT)),
        case("http2/6.7/2", "RFC 9113 §6.7", [ping(ACK, *b"invalid\0"), ping(0, TEXT)], Pong(TEXT)),
        case("http2/6.7/3", "RFC 9113 §6.7", [raw(PING, 0, 1, &ZERO, "8 bytes")], protocol),
        case("http2/6.7/4", "RFC 9113 §6.7", [raw(PING, 0, 0, &[0; 6], "6 bytes")], ConnectionError(&[FRAME_SIZE_ERROR])),
        case("http2/6.8/1", "RFC 9113 §6.8", [raw(GOAWAY, 0, 1, &ZERO, "NO_ERROR")], protocol),
        case("http2/7/1", "RFC 9113 §7", [goaway(0xff), ping(0, TEXT)], PongOrClose(TEXT)),
        case("http2/7/2", "RFC 9113 §7", [post(1), reset(1, 0xff), ping(0, ZERO)], PongOrClose(ZERO)),
    ]
}

fn flow_control() -> Vec<Case> {
    let too_wide = ConnectionError(&[FLOW_CONTROL_ERROR]);
    vec![
        case("http2/6.9/1", "RFC 9113 §6.9", [window(0, 0)], ConnectionError(&[PROTOCOL_ERROR])),
        case("http2/6.9/2", "RFC 9113 §6.9", [post(1), window(1, 0)], StreamError(&[PROTOCOL_ERROR])),
        case(
            "http2/6.9/3",
            "RFC 9113 §6.9",
            [raw(WINDOW_UPDATE, 0, 0, b"\0\0\x01", "3 bytes")],
            ConnectionError(&[FRAME_SIZE_ERROR]),
        ),
        case("http2/6.9.1/1", "RFC 9113 §6.9.1", [settings(&[(4, 1)]), SETTINGS_ACK, get(1)], OneByte),
        case("http2/6.9.1/2", "RFC 9113 §6.9.1", [window(0, MAX_WINDOW), window(0, MAX_WINDOW)], GoAway(FLOW_CONTROL_ERROR)),
        case(
            "http2/6.9.1/3",
            "RFC 9113 §6.9.1",
            [post(1), window(1, MAX_WINDOW), window(1, MAX_WINDOW)],
            Reset(FLOW_CONTROL_ERROR),
        ),
        case("http2/6.9.2/1", "RFC 9113 §6.9.2", [settings(&[(4, 0)]), SETTINGS_ACK, get(1), settings(&[(4, 1)])], OneByte),
        case(
            "http2/6.9.2/2",
            "RFC 9113 §6.9.2",
            [settings(&[(4, 3)]), SETTINGS_ACK, get(1), SOME_DATA, settings(&[(4, 2)]), SETTINGS_ACK, window(1, 2)],
            OneByte,
        ),
        case("http2/6.9.2/3", "RFC 9113 §6.9.2", [settings(&[(4, 1 << 31)])], too_wide),
    ]
}
