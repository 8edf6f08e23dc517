//! Multipart forms: borrows the parts from the body, in any order, without copying.

use memchr::memmem;

/// Maximum number of parts; no endpoint of Groq's takes more.
const MAX_PARTS: usize = 100;

/// A parsed form.
pub(super) struct Form<'b> {
    parts: Vec<Part<'b>>,
}

struct Part<'b> {
    name: String,
    content: &'b [u8],
}

impl<'b> Form<'b> {
    /// The text of a field; empty if there is none. Of duplicate fields the first counts, as in Groq's parser.
    pub(super) fn text(&self, name: &str) -> &'b str {
        self.file(name).and_then(|content| std::str::from_utf8(content).ok()).unwrap_or_default().trim()
    }

    /// The bytes of a part.
    pub(super) fn file(&self, name: &str) -> Option<&'b [u8]> {
        self.parts.iter().find(|part| part.name == name).map(|part| part.content)
    }
}

/// Parses a form; a truncated part ends with the body. `None` if it is not a form.
pub(super) fn read<'b>(content_type: &str, body: &'b [u8]) -> Option<Form<'b>> {
    let boundary = boundary(content_type)?;
    let between = [b"\r\n--", boundary.as_bytes()].concat();
    let finder = memmem::Finder::new(&between);
    // The first boundary may be at the start of the body, without a line end before it.
    let mut rest = match body.strip_prefix(&between[2..]) {
        Some(rest) => rest,
        None => &body[finder.find(body)? + between.len()..],
    };
    let mut parts = Vec::new();
    while !rest.starts_with(b"--") && parts.len() < MAX_PARTS {
        let Some(line_end) = memmem::find(rest, b"\r\n") else { break };
        rest = &rest[line_end..];
        // A part without headers begins with the blank line.
        let Some(head_end) = memmem::find(rest, b"\r\n\r\n") else { break };
        let (head, content) = (&rest[..head_end], &rest[head_end + 4..]);
        let end = finder.find(content);
        if let Some(name) = name(head) {
            parts.push(Part { name, content: &content[..end.unwrap_or(content.len())] });
        }
        let Some(end) = end else { break };
        rest = &content[end + between.len()..];
    }
    Some(Form { parts })
}

fn boundary(content_type: &str) -> Option<&str> {
    let (kind, parameters) = content_type.split_once(';')?;
    kind.trim().eq_ignore_ascii_case("multipart/form-data").then_some(())?;
    let boundary = parameter(parameters, "boundary")?;
    (1..=200).contains(&boundary.len()).then_some(boundary)
}

/// The name in a part's `content-disposition`.
fn name(head: &[u8]) -> Option<String> {
    let head = String::from_utf8_lossy(head);
    let disposition = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.trim().eq_ignore_ascii_case("content-disposition").then_some(value)
    })?;
    parameter(disposition.split_once(';')?.1, "name").map(str::to_owned)
}

/// One parameter of a header value, without its quotes.
fn parameter<'t>(mut text: &'t str, name: &str) -> Option<&'t str> {
    loop {
        let (key, rest) = text.split_once('=')?;
        let (value, rest) = match rest.trim_start().strip_prefix('"') {
            Some(quoted) => {
                let end = quoted.bytes().enumerate().find(|(at, b)| *b == b'"' && !quoted[..*at].ends_with('\\'))?.0;
                (&quoted[..end], &quoted[end + 1..])
            }
            None => {
                let end = rest.find(';').unwrap_or(rest.len());
                (rest[..end].trim(), &rest[end..])
            }
        };
        if key.trim_matches([' ', '\t', ';']).eq_ignore_ascii_case(name) {
            return Some(value);
        }
        text = rest;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TYPE: &str = "multipart/form-data; boundary=XX";
    const BODY: &[u8] = b"--XX\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nwhisper-large-v3\r\n\
        --XX\r\ncontent-disposition: form-data; filename=\"a; name=x.wav\"; name=\"file\"\r\nContent-Type: audio/wav\r\n\r\n\
        RIFF\r\n--X\r\n\0\xff\r\n--XX\r\nContent-Disposition: form-data; name=model\r\n\r\nsecond\r\n--XX--\r\n";

    #[test]
    fn parts_lie_where_they_lie() {
        let form = read(TYPE, BODY).expect("a form");
        assert_eq!(form.text("model"), "whisper-large-v3");
        assert_eq!(form.file("file"), Some(b"RIFF\r\n--X\r\n\0\xff".as_slice()));
        assert_eq!(form.text("file"), "");
        assert_eq!(form.file("url"), None);
    }

    #[test]
    fn forms_of_all_sorts() {
        let preamble = [b"preamble\r\n", BODY].concat();
        assert_eq!(read(TYPE, &preamble).expect("a form").text("model"), "whisper-large-v3");
        let quoted = read("Multipart/Form-Data; charset=x; Boundary=\"XX\"", BODY).expect("a form");
        assert_eq!(quoted.text("model"), "whisper-large-v3");
        let cut = &BODY[..BODY.len() - 60];
        assert!(read(TYPE, cut).expect("a form").file("file").is_some_and(|file| file.starts_with(b"RIFF")));
        assert_eq!(read(TYPE, b"--XX\r\n\r\nno head\r\n--XX--").expect("a form").parts.len(), 0);
        assert!(read(TYPE, b"").is_none());
        assert!(read("multipart/form-data", BODY).is_none());
        assert!(read("application/json; boundary=XX", BODY).is_none());
        assert!(read("multipart/form-data; boundary=", BODY).is_none());
    }

    proptest! {
        #[test]
        fn never_panics(content_type in "multipart/form-data; ?(boundary=)?\\PC{0,9}", body in proptest::collection::vec(any::<u8>(), 0..200)) {
            read(&content_type, &body);
        }

        #[test]
        fn never_panics_on_broken_forms(parts in proptest::collection::vec(
            prop_oneof![Just("--XX"), Just("\r\n"), Just("--"), Just("content-disposition: form-data; "), Just("name="), Just("\""), Just("a"), Just(";"), Just("\\\"")],
            0..40)) {
            read(TYPE, parts.concat().as_bytes());
        }

        #[test]
        fn any_content_comes_back(content in proptest::collection::vec(any::<u8>(), 0..100)) {
            let body = [b"--XyX\r\ncontent-disposition: form-data; name=\"file\"\r\n\r\n".as_slice(), &content, b"\r\n--XyX--\r\n"].concat();
            let form = read("multipart/form-data; boundary=XyX", &body).expect("a form");
            prop_assert_eq!(form.file("file"), Some(content.as_slice()));
        }
    }
}
