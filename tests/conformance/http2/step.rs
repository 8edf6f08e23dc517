//! The steps of a case, and how they are written in the table.

use super::{
    Limits,
    frames::{
        ACK, CANCEL, COMPRESSION_ERROR, CONTINUATION, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, FLOW_CONTROL_ERROR,
        FRAME_SIZE_ERROR, Frame, GOAWAY, HEADERS, NO_ERROR, PADDED, PING, PRIORITY, PROTOCOL_ERROR, PUSH_PROMISE, REFUSED_STREAM,
        RST_STREAM, SETTINGS, STREAM_CLOSED, WINDOW_UPDATE, WITH_PRIORITY, block, frame,
    },
};

/// One thing that the client does.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Send {
        bytes: Vec<u8>,
        text: String,
    },
    /// Sends what depends on the server's limits.
    Limit {
        bytes: fn(&Limits) -> Vec<u8>,
        text: &'static str,
    },
    Await {
        holds: fn(&Frame) -> bool,
        text: &'static str,
    },
}

impl Step {
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Send { text, .. } => text.clone(),
            Self::Limit { text, .. } | Self::Await { text, .. } => (*text).to_owned(),
        }
    }
}

type Fields<'a> = [(&'a str, &'a str)];

/// The fields of a valid request.
pub(crate) fn request(method: &'static str) -> Vec<(&'static str, &'static str)> {
    vec![(":method", method), (":scheme", "http"), (":path", "/"), (":authority", "localhost")]
}

/// A GET with additional fields, which its text in the table names.
pub(crate) fn get_with(fields: &Fields<'static>) -> Step {
    let text: Vec<_> = fields.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    let all = [&request("GET")[..], fields].concat();
    raw(HEADERS, END_STREAM | END_HEADERS, 1, &block(&all), &format!("GET, {}", text.join(", ")))
}

/// A POST without its body.
pub(crate) fn post_with(fields: &Fields<'static>) -> Step {
    let text: Vec<_> = fields.iter().map(|(name, value)| format!(", {name}: {value}")).collect();
    raw(HEADERS, END_HEADERS, 1, &block(&[&request("POST")[..], fields].concat()), &format!("POST{}", text.concat()))
}

/// A complete request.
pub(crate) fn get(stream: u32) -> Step {
    headers(stream, END_STREAM | END_HEADERS, "GET")
}

/// A request with a body to follow.
pub(crate) fn post(stream: u32) -> Step {
    headers(stream, END_HEADERS, "POST")
}

/// A request's header block with these flags.
pub(crate) fn headers(stream: u32, flags: u8, method: &'static str) -> Step {
    raw(HEADERS, flags, stream, &block(&request(method)), method)
}

/// A header block that is exactly these fields.
pub(crate) fn fields(flags: u8, fields: &Fields<'_>) -> Step {
    let text: Vec<_> = fields.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    raw(HEADERS, flags, 1, &block(fields), &text.join(", "))
}

/// A GET with these bytes of HPACK before and after its fields.
pub(crate) fn packed(before: &[u8], after: &[u8]) -> Step {
    let all = [before, &block(&request("GET")), after].concat();
    let text = match (before, after) {
        (before, []) => format!("{} GET", before.escape_ascii()),
        (_, after) => format!("GET {}", after.escape_ascii()),
    };
    raw(HEADERS, END_STREAM | END_HEADERS, 1, &all, &text)
}

/// A GET whose header block is cut at these places.
pub(crate) fn continued(cuts: &[usize]) -> Vec<Step> {
    let block = block(&request("GET"));
    let mut steps = vec![raw(HEADERS, END_STREAM, 1, &block[..cuts[0]], "GET's first bytes")];
    for (n, cut) in cuts.iter().enumerate() {
        let end = cuts.get(n + 1);
        let flags = if end.is_none() { END_HEADERS } else { 0 };
        steps.push(raw(CONTINUATION, flags, 1, &block[*cut..end.copied().unwrap_or(block.len())], "more of it"));
    }
    steps
}

/// CONTINUATION with a field of 4,000 bytes.
pub(crate) fn continuation(stream: u32, flags: u8) -> Step {
    raw(CONTINUATION, flags, stream, &block(&[("x-dummy", "x".repeat(4000).as_str())]), "x-dummy")
}

pub(crate) fn data(stream: u32, flags: u8) -> Step {
    raw(DATA, flags, stream, b"test", "test")
}

pub(crate) fn priority(stream: u32, depends_on: u32, weight: u8) -> Step {
    let payload = [&depends_on.to_be_bytes()[..], &[weight]].concat();
    raw(PRIORITY, 0, stream, &payload, &format!("on {}, {weight}", depends_on & !(1 << 31)))
}

pub(crate) fn reset(stream: u32, code: u32) -> Step {
    raw(RST_STREAM, 0, stream, &code.to_be_bytes(), &code_name(code))
}

pub(crate) fn settings(settings: &[(u16, u32)]) -> Step {
    let payload: Vec<u8> =
        settings.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
    let text: Vec<_> = settings.iter().map(|(id, value)| format!("{}={value}", setting_name(*id))).collect();
    raw(SETTINGS, 0, 0, &payload, &text.join(", "))
}

pub(crate) fn ping(flags: u8, bytes: [u8; 8]) -> Step {
    raw(PING, flags, 0, &bytes, "8 bytes")
}

pub(crate) fn goaway(code: u32) -> Step {
    raw(GOAWAY, 0, 0, &[&[0; 4][..], &code.to_be_bytes()].concat(), &code_name(code))
}

pub(crate) fn window(stream: u32, bytes: u32) -> Step {
    raw(WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes(), &bytes.to_string())
}

/// Any frame.
pub(crate) fn raw(kind: u8, flags: u8, stream: u32, payload: &[u8], text: &str) -> Step {
    let mut parts = vec![format!("{}({}", kind_name(kind), stream & !(1 << 31))];
    if stream >> 31 == 1 {
        parts.push("R".into());
    }
    parts.extend(flag_names(kind, flags));
    parts.extend((!text.is_empty()).then(|| text.to_owned()));
    Step::Send { bytes: frame(kind, flags, stream, payload), text: parts.join(", ") + ")" }
}

/// Bytes that are not a frame.
pub(crate) fn bytes(bytes: &[u8]) -> Step {
    Step::Send { bytes: bytes.to_vec(), text: bytes.escape_ascii().to_string() }
}

pub(crate) const END_OF_RESPONSE: Step = Step::Await { holds: Frame::ends_stream, text: "(the response's end)" };
pub(crate) const SOME_DATA: Step = Step::Await { holds: |frame| frame.kind == DATA, text: "(DATA)" };
pub(crate) const SETTINGS_ACK: Step =
    Step::Await { holds: |frame| frame.kind == SETTINGS && frame.flags & ACK != 0, text: "(SETTINGS with ACK)" };

fn kind_name(kind: u8) -> String {
    let name = match kind {
        DATA => "DATA",
        HEADERS => "HEADERS",
        PRIORITY => "PRIORITY",
        RST_STREAM => "RST_STREAM",
        SETTINGS => "SETTINGS",
        PUSH_PROMISE => "PUSH_PROMISE",
        PING => "PING",
        GOAWAY => "GOAWAY",
        WINDOW_UPDATE => "WINDOW_UPDATE",
        CONTINUATION => "CONTINUATION",
        other => return format!("TYPE {other}"),
    };
    name.into()
}

fn flag_names(kind: u8, flags: u8) -> impl Iterator<Item = String> {
    let named: &[(u8, &str)] = match kind {
        DATA => &[(END_STREAM, "END_STREAM"), (PADDED, "PADDED")],
        HEADERS => &[(END_STREAM, "END_STREAM"), (END_HEADERS, "END_HEADERS"), (PADDED, "PADDED"), (WITH_PRIORITY, "PRIORITY")],
        SETTINGS | PING => &[(ACK, "ACK")],
        PUSH_PROMISE | CONTINUATION => &[(END_HEADERS, "END_HEADERS")],
        _ => &[],
    };
    let rest = named.iter().fold(flags, |rest, (bit, _)| rest & !bit);
    let names = named.iter().filter(move |(bit, _)| flags & bit != 0).map(|(_, name)| (*name).to_owned());
    names.chain((rest != 0).then(|| format!("flags {rest:#x}")))
}

fn setting_name(id: u16) -> String {
    let name = match id {
        1 => "HEADER_TABLE_SIZE",
        2 => "ENABLE_PUSH",
        3 => "MAX_CONCURRENT_STREAMS",
        4 => "INITIAL_WINDOW_SIZE",
        5 => "MAX_FRAME_SIZE",
        6 => "MAX_HEADER_LIST_SIZE",
        other => return format!("{other:#x}"),
    };
    name.into()
}

pub(crate) fn code_name(code: u32) -> String {
    let name = match code {
        NO_ERROR => "NO_ERROR",
        PROTOCOL_ERROR => "PROTOCOL_ERROR",
        FLOW_CONTROL_ERROR => "FLOW_CONTROL_ERROR",
        STREAM_CLOSED => "STREAM_CLOSED",
        FRAME_SIZE_ERROR => "FRAME_SIZE_ERROR",
        REFUSED_STREAM => "REFUSED_STREAM",
        CANCEL => "CANCEL",
        COMPRESSION_ERROR => "COMPRESSION_ERROR",
        ENHANCE_YOUR_CALM => "ENHANCE_YOUR_CALM",
        other => return format!("error {other:#x}"),
    };
    name.into()
}

/// A received frame as text.
pub(crate) fn to_text(frame: &Frame) -> String {
    let ack = matches!(frame.kind, SETTINGS | PING) && frame.flags & ACK != 0;
    let code = match frame.kind {
        RST_STREAM => frame.code(0),
        GOAWAY => frame.code(4),
        _ => None,
    };
    match (code, frame.kind) {
        (Some(code), _) => format!("{} {}", kind_name(frame.kind), code_name(code)),
        (None, DATA) => format!("DATA of {}", frame.payload.len()),
        (None, _) if ack => format!("{} ACK", kind_name(frame.kind)),
        (None, _) => kind_name(frame.kind),
    }
}
