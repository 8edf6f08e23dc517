//! h2spec's `http2`, streams: their states and identifiers, and the frames that carry a request.

use super::case;
use crate::http2::{
    Allowed::{ConnectionError, Malformed, Response, StreamError},
    Case, Limits,
    frames::{
        CANCEL, DATA, END_HEADERS, END_STREAM, FRAME_SIZE_ERROR, HEADERS, PADDED, PRIORITY, PROTOCOL_ERROR, PUSH_PROMISE,
        REFUSED_STREAM, RST_STREAM, SETTINGS, STREAM_CLOSED, WITH_PRIORITY, block, frame, headers as header_frames,
    },
    step::{
        END_OF_RESPONSE, Step, continuation, data, fields, get, headers, post, post_with, priority, raw, request, reset, window,
    },
};

pub(super) fn cases() -> Vec<Case> {
    [states(), identifiers(), continuations(), single_frames()].concat()
}

fn states() -> Vec<Case> {
    let protocol = ConnectionError(&[PROTOCOL_ERROR]);
    let stream_closed = StreamError(&[STREAM_CLOSED]);
    let either = StreamError(&[STREAM_CLOSED, PROTOCOL_ERROR]);
    const CLAUSE: &str = "RFC 9113 §5.1";
    vec![
        // Idle.
        case("http2/5.1/1", CLAUSE, [data(1, END_STREAM)], either),
        case("http2/5.1/2", CLAUSE, [reset(1, CANCEL)], protocol),
        case("http2/5.1/3", CLAUSE, [window(1, 100)], protocol),
        case("http2/5.1/4", CLAUSE, [continuation(1, END_HEADERS)], protocol),
        // Half-closed.
        case("http2/5.1/5", CLAUSE, [get(1), data(1, END_STREAM)], stream_closed),
        case("http2/5.1/6", CLAUSE, [get(1), get(1)], stream_closed),
        case("http2/5.1/7", CLAUSE, [get(1), continuation(1, END_HEADERS)], either),
        // Reset by the client.
        case("http2/5.1/8", CLAUSE, [post(1), reset(1, CANCEL), data(1, END_STREAM)], stream_closed),
        case("http2/5.1/9", CLAUSE, [post(1), reset(1, CANCEL), get(1)], stream_closed),
        case("http2/5.1/10", CLAUSE, [post(1), reset(1, CANCEL), continuation(1, END_HEADERS)], either),
        // Closed by its end.
        case("http2/5.1/11", CLAUSE, [get(1), END_OF_RESPONSE, data(1, END_STREAM)], stream_closed),
        case("http2/5.1/12", CLAUSE, [get(1), END_OF_RESPONSE, get(1)], ConnectionError(&[STREAM_CLOSED])),
        case(
            "http2/5.1/13",
            CLAUSE,
            [get(1), END_OF_RESPONSE, continuation(1, END_HEADERS)],
            ConnectionError(&[STREAM_CLOSED, PROTOCOL_ERROR]),
        ),
    ]
}

/// One stream more than the server announces, or as many as no server allows; none can end.
fn too_many(limits: &Limits) -> Vec<u8> {
    let mut frames = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    for n in 0..=limits.streams.unwrap_or(2000) {
        frames.extend(header_frames(1 + 2 * n, END_STREAM, &request("GET")));
    }
    frames
}

fn identifiers() -> Vec<Case> {
    let protocol = ConnectionError(&[PROTOCOL_ERROR]);
    let itself = [&1_u32.to_be_bytes()[..], &[255], &block(&request("GET"))].concat();
    vec![
        case("http2/5.1.1/1", "RFC 9113 §5.1.1", [get(2)], protocol),
        case("http2/5.1.1/2", "RFC 9113 §5.1.1", [get(5), get(3)], protocol),
        case(
            "http2/5.1.2/1",
            "RFC 9113 §5.1.2",
            [Step::Limit { bytes: too_many, text: "SETTINGS(0, INITIAL_WINDOW_SIZE=0); a GET more than may be open at once" }],
            StreamError(&[PROTOCOL_ERROR, REFUSED_STREAM]),
        ),
        case(
            "http2/5.3.1/1",
            "RFC 7540 §5.3.1",
            [raw(HEADERS, END_STREAM | END_HEADERS | WITH_PRIORITY, 1, &itself, "on 1, 255, GET")],
            StreamError(&[PROTOCOL_ERROR]),
        ),
        case("http2/5.3.1/2", "RFC 7540 §5.3.1", [priority(1, 1, 255)], StreamError(&[PROTOCOL_ERROR])),
    ]
}

fn continuations() -> Vec<Case> {
    let protocol = ConnectionError(&[PROTOCOL_ERROR]);
    let begun = || headers(1, END_STREAM, "GET");
    const CLAUSE: &str = "RFC 9113 §6.10";
    vec![
        case("http2/6.10/1", CLAUSE, [begun(), continuation(1, 0), continuation(1, END_HEADERS)], Response),
        case("http2/6.10/2", CLAUSE, [headers(1, 0, "POST"), continuation(1, 0), data(1, END_STREAM)], protocol),
        case("http2/6.10/3", CLAUSE, [begun(), continuation(0, END_HEADERS)], protocol),
        case("http2/6.10/4", CLAUSE, [get(1), continuation(1, END_HEADERS)], protocol),
        case("http2/6.10/5", CLAUSE, [begun(), continuation(1, END_HEADERS), continuation(1, END_HEADERS)], protocol),
        case(
            "http2/6.10/6",
            CLAUSE,
            [headers(1, 0, "POST"), data(1, END_STREAM), continuation(1, 0), continuation(0, END_HEADERS)],
            protocol,
        ),
    ]
}

fn single_frames() -> Vec<Case> {
    let protocol = ConnectionError(&[PROTOCOL_ERROR]);
    let size = StreamError(&[FRAME_SIZE_ERROR]);
    let get_block = block(&request("GET"));
    let padded = [&[get_block.len() as u8 + 2], &get_block[..]].concat();
    let promised = [&3_u32.to_be_bytes()[..], &get_block].concat();
    vec![
        case("http2/6.1/1", "RFC 9113 §6.1", [data(0, END_STREAM)], protocol),
        case(
            "http2/6.1/2",
            "RFC 9113 §6.1",
            [headers(1, END_STREAM | END_HEADERS, "POST"), data(1, END_STREAM)],
            StreamError(&[STREAM_CLOSED]),
        ),
        case(
            "http2/6.1/3",
            "RFC 9113 §6.1",
            [
                post_with(&[("content-length", "4")]),
                raw(DATA, END_STREAM | PADDED, 1, b"\x06test", "test, 6 of padding announced"),
            ],
            protocol,
        ),
        case("http2/6.2/1", "RFC 9113 §6.2", [headers(1, 0, "GET"), priority(1, 0, 255), continuation(1, END_HEADERS)], protocol),
        case("http2/6.2/2", "RFC 9113 §6.2", [headers(1, 0, "GET"), get(3), continuation(1, END_HEADERS)], protocol),
        case("http2/6.2/3", "RFC 9113 §6.2", [get(0)], protocol),
        case(
            "http2/6.2/4",
            "RFC 9113 §6.2",
            [raw(HEADERS, END_STREAM | END_HEADERS | PADDED, 1, &padded, "GET, more padding than there are bytes")],
            StreamError(&[PROTOCOL_ERROR]),
        ),
        case("http2/6.3/1", "RFC 9113 §6.3", [priority(0, 0, 255)], protocol),
        case("http2/6.3/2", "RFC 9113 §6.3", [get(1), raw(PRIORITY, 0, 1, b"\x80\0\0\x01", "4 bytes")], size),
        case("http2/6.4/1", "RFC 9113 §6.4", [reset(0, CANCEL)], protocol),
        case("http2/6.4/2", "RFC 9113 §6.4", [reset(1, CANCEL)], protocol),
        case("http2/6.4/3", "RFC 9113 §6.4", [get(1), raw(RST_STREAM, 0, 1, b"\0\0\0", "3 bytes")], size),
        case("http2/8.2/1", "RFC 9113 §8.4", [raw(PUSH_PROMISE, END_HEADERS, 1, &promised, "3, GET")], protocol),
        case("http2/8.1/1", "RFC 9113 §8.1", [post(1), data(1, 0), fields(END_HEADERS, &[("x-test", "ok")])], Malformed),
    ]
}
