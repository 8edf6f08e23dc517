//! The rows of the tables: the clause that is tested, what is sent, and what is allowed.

use std::net::SocketAddr;

use crate::rule::Rule;

/// One probe: a raw request, optionally a second one on the same connection, and the rule that judges the answers.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) clause: &'static str,
    send: &'static [u8],
    then: Option<&'static [u8]>,
    /// The upstream's answer, byte for byte; without it, the upstream echoes.
    pub(crate) answer: Option<&'static [u8]>,
    pub(crate) rule: Rule,
}

/// A request, and what may come back.
///
/// In `send`, `{host}` stands for the server's address and `{text*n}` for `text`, n times (`~` in it for a line end).
pub(crate) const fn case(name: &'static str, clause: &'static str, send: &'static [u8], rule: Rule) -> Case {
    Case { name, clause, send, then: None, answer: None, rule }
}

/// A malformed answer of the upstream to `send`, and what is allowed. `{path}` in `send` selects the answer.
pub(crate) const fn response(
    name: &'static str,
    clause: &'static str,
    send: &'static [u8],
    answer: &'static [u8],
    rule: Rule,
) -> Case {
    Case { name, clause, send, then: None, answer: Some(answer), rule }
}

impl Case {
    /// Sends this once the first answer is there, if the connection is still open.
    pub(crate) const fn then(mut self, send: &'static [u8]) -> Self {
        self.then = Some(send);
        self
    }

    /// The first bytes to send, and the second.
    pub(crate) fn bytes(&self, to: SocketAddr) -> (Vec<u8>, Option<Vec<u8>>) {
        (expand(self.send, self.name, to), self.then.map(|then| expand(then, self.name, to)))
    }

    /// Whether the first request is a HEAD, whose answer never has a body.
    pub(crate) fn is_head(&self) -> bool {
        self.send.starts_with(b"HEAD ")
    }

    /// What is sent, on one line.
    pub(crate) fn sent(&self) -> String {
        let escape = |bytes: &[u8]| bytes.escape_ascii().to_string().replace('|', "\\|");
        match self.then {
            Some(then) => format!("{} then {}", escape(self.send), escape(then)),
            None => escape(self.send),
        }
    }
}

/// Replaces the placeholders.
fn expand(template: &[u8], name: &str, to: SocketAddr) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = template;
    while let Some(open) = rest.iter().position(|byte| *byte == b'{') {
        let close = open + rest[open..].iter().position(|byte| *byte == b'}').expect("a brace that is closed");
        bytes.extend_from_slice(&rest[..open]);
        let inside = std::str::from_utf8(&rest[open + 1..close]).expect("text in braces");
        match inside.split_once('*') {
            None if inside == "host" => bytes.extend_from_slice(to.to_string().as_bytes()),
            None if inside == "path" => bytes.extend_from_slice(format!("/rule/{name}").as_bytes()),
            Some((text, times)) => {
                let text = text.replace('~', "\r\n");
                bytes.extend_from_slice(text.repeat(times.parse().expect("a number")).as_bytes());
            }
            None => panic!("{{{inside}}} stands for nothing"),
        }
        rest = &rest[close + 1..];
    }
    bytes.extend_from_slice(rest);
    bytes
}
