//! Parsing of streams, complete and in pieces.

use proptest::prelude::*;

use super::*;

const CHAT: &str = concat!(
    "data: {\"id\":\"c\",\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}],\"x_groq\":{\"id\":\"req_1\"}}\n\n",
    "data: {\"choices\":[{\"delta\":{\"content\":\"Hi, \\\"usage\\\": {} \\\"error\\\"\"}}]}\n\n",
    ": a comment\n\n",
    "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}],\"x_groq\":{\"id\":\"req_1\",\"usage\":{\"prompt_tokens\":71,\"completion_tokens\":9,\"total_tokens\":80}}}\n\n",
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":71,\"completion_tokens\":9,\"prompt_tokens_details\":{\"cached_tokens\":64}}}\n\n",
    "data: [DONE]\n\n",
);

/// Everything parsed from a stream, and how many bytes could be passed on.
#[derive(Debug, PartialEq)]
struct Parsed {
    passed: usize,
    ended: bool,
    usage: Option<Usage>,
    error: Option<StreamError>,
    events: u64,
    deltas: u64,
}

/// Feeds the stream in pieces of these lengths, repeatedly.
fn parse(stream: &[u8], lengths: &[usize]) -> Parsed {
    let mut tail = SseTail::default();
    let (mut fed, mut passed) = (0, 0);
    for length in lengths.iter().cycle() {
        if fed == stream.len() {
            break;
        }
        let piece = &stream[fed..stream.len().min(fed + length)];
        match tail.feed(piece) {
            0 => {}
            n => passed = fed + n,
        }
        fed += piece.len();
    }
    Parsed {
        passed,
        ended: tail.ended(),
        usage: tail.usage(),
        error: tail.error().cloned(),
        events: tail.events(),
        deltas: tail.completion_tokens(),
    }
}

fn whole(stream: &str) -> Parsed {
    parse(stream.as_bytes(), &[stream.len().max(1)])
}

#[test]
fn a_chat_stream() {
    let parsed = whole(CHAT);
    assert_eq!(parsed.passed, CHAT.len());
    assert!(parsed.ended);
    assert_eq!(parsed.usage, Some(Usage { prompt: 71, completion: Some(9), cached: 64 }));
    assert_eq!((parsed.error, parsed.events, parsed.deltas), (None, 5, 3));
}

#[test]
fn every_line_end_in_every_split() {
    for line_end in ["\n", "\r\n", "\r"] {
        let stream = CHAT.replace('\n', line_end);
        let expected = whole(&stream);
        assert!(expected.ended);
        assert_eq!(expected.passed, stream.len());
        for length in 1..60 {
            assert_eq!(parse(stream.as_bytes(), &[length]), expected, "{line_end:?} by {length}");
        }
    }
}

#[test]
fn an_unfinished_event_waits() {
    let mut tail = SseTail::default();
    assert_eq!(tail.feed(b"data: {}\n\ndata: {\"a\""), 10);
    assert!(tail.is_within_event());
    assert_eq!(tail.feed(b":1}\n"), 0);
    assert_eq!(tail.feed(b"\ndata"), 1);
    assert!(tail.is_within_event());
    assert!(!tail.ended());
    assert_eq!(tail.feed(b""), 0);
}

#[test]
fn a_split_crlf_holds_nothing_back() {
    let mut tail = SseTail::default();
    assert_eq!(tail.feed(b"data: [DONE]\r\n\r"), 15);
    assert_eq!(tail.feed(b"\n"), 1);
    assert!(!tail.is_within_event());
    assert!(tail.ended());
}

#[test]
fn a_responses_stream() {
    let stream = concat!(
        "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"error\":null,\"usage\":null}}\n\n",
        "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"response.completed\"}\n\n",
        "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"error\":null,\"usage\":{\"input_tokens\":8,\"output_tokens\":1}}}\n\n",
    );
    let all = whole(stream);
    assert!(all.ended);
    assert_eq!(all.usage, Some(Usage { prompt: 8, completion: Some(1), cached: 0 }));
    assert_eq!((all.error, all.deltas), (None, 1));
    let cut = stream.find("event: response.completed").expect("there");
    assert!(!whole(&stream[..cut]).ended);
    // Typed events may be named in the data only.
    let nameless: String = stream.split_inclusive('\n').filter(|line| !line.starts_with("event:")).collect();
    assert!(whole(&nameless).ended);
    assert!(!whole(&nameless[..nameless.find("data: {\"type\":\"response.completed").expect("there")]).ended);
}

#[test]
fn errors_in_the_midst() {
    let frame = whole("data: {\"error\":{\"message\":\"m\",\"type\":\"t\",\"status_code\":400}}\n\n");
    assert!(frame.ended);
    let error = frame.error.expect("an error");
    assert!(error.is_frame);
    assert!(error.data.starts_with(b"{\"error\""));
    let event = whole("event: error\ndata: {\"message\":\"m\"}\n\n").error.expect("an error");
    assert!(!event.is_frame);
    let chunk =
        whole("data: {\"choices\":[],\"x_groq\":{\"id\":\"r\",\"error\":\"over capacity\"}}\n\n").error.expect("an error");
    assert!(!chunk.is_frame);
    let typed = whole("data: {\"type\":\"error\",\"message\":\"m\"}\n\n").error.expect("an error");
    assert!(!typed.is_frame);
    for fine in
        ["data: {\"error\":null}\n\n", "data: {\"x_groq\":{\"error\":null}}\n\n", "data: \"error\"\n\n", ": \"error\"\n\n"]
    {
        assert_eq!(whole(fine).error, None, "{fine}");
    }
}

#[test]
fn events_of_megabytes_take_little_memory() {
    let stream = format!(
        "data: {{\"type\":\"response.completed\",\"x\":\"{}\",\"usage\":{{\"input_tokens\":8,\"output_tokens\":1}}}}\n\ndata: [DONE]\n\n",
        "x".repeat(8 << 20)
    );
    let mut tail = SseTail::default();
    for piece in stream.as_bytes().chunks(9999) {
        tail.feed(piece);
        assert!(tail.partial.head.capacity() + tail.partial.tail.capacity() <= 8 * EXCERPT);
    }
    assert_eq!(tail.usage(), Some(Usage { prompt: 8, completion: Some(1), cached: 0 }));
    assert!(tail.ended());
    assert_eq!(parse(stream.as_bytes(), &[stream.len()]), parse(stream.as_bytes(), &[70_001]));
}

#[test]
fn several_data_lines_are_one_event() {
    let parsed = whole("data: {\"error\":\ndata: {\"message\":\"m\"}}\n\n");
    assert_eq!(parsed.error.map(|error| error.data), Some(b"{\"error\":\n{\"message\":\"m\"}}".to_vec()));
    assert_eq!(whole("data\ndata:\nid: 7\n\n").events, 0);
}

proptest! {
    #[test]
    fn any_bytes_split_anywhere(
        parts in proptest::collection::vec(prop_oneof![
            Just(b"\n".to_vec()), Just(b"\r".to_vec()), Just(b"\r\n".to_vec()), Just(b"data: ".to_vec()), Just(b"event: error".to_vec()),
            Just(b"[DONE]".to_vec()), Just(br#"{"error":{}}"#.to_vec()), Just(br#"{"usage":{"prompt_tokens":1}}"#.to_vec()),
            proptest::collection::vec(any::<u8>(), 0..5), Just(vec![b'x'; EXCERPT - 30]),
        ], 0..30),
        lengths in proptest::collection::vec(1usize..40, 1..8),
    ) {
        let stream = parts.concat();
        prop_assert_eq!(parse(&stream, &lengths), parse(&stream, &[stream.len().max(1)]));
    }
}
