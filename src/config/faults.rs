//! Faults of the configuration, and how they are shown.

use std::{fmt, ops::Range};

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// These bytes of the file.
    File(Range<usize>),
    /// This environment variable.
    Variable(String),
    /// This flag.
    Flag(String),
    /// The configuration as a whole.
    Whole,
}

/// What is wrong, and what to do about it where it is known.
#[derive(Debug)]
pub(super) struct Wrong {
    pub(super) message: String,
    pub(super) help: Option<String>,
}

impl From<&str> for Wrong {
    fn from(message: &str) -> Self {
        Self { message: message.into(), help: None }
    }
}

impl From<String> for Wrong {
    fn from(message: String) -> Self {
        Self { message, help: None }
    }
}

impl<M: Into<String>, H: Into<String>> From<(M, H)> for Wrong {
    fn from((message, help): (M, H)) -> Self {
        Self { message: message.into(), help: Some(help.into()) }
    }
}

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where it is.
    pub origin: Origin,
    /// What is wrong.
    pub message: String,
    /// What to do, where it is known.
    pub help: Option<String>,
}

impl Fault {
    pub(super) fn new(origin: Origin, wrong: impl Into<Wrong>) -> Self {
        let Wrong { message, help } = wrong.into();
        Self { origin, message, help }
    }

    /// Its line in the file, from 1.
    pub(super) fn line(&self, text: &str) -> Option<usize> {
        if let Origin::File(span) = &self.origin { Some(line_of(text, span.start)) } else { None }
    }
}

/// All faults of one reading, shown with the file's lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults {
    /// The file's name as it is shown.
    pub name: String,
    /// Its text.
    pub text: String,
    /// In the order of the file, then those of variables and flags.
    pub faults: Vec<Fault>,
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.rendered(&Renderer::plain()))
    }
}

impl std::error::Error for Faults {}

impl Faults {
    /// The same with colors, for a terminal.
    pub fn styled(&self) -> String {
        self.rendered(&Renderer::styled())
    }

    fn rendered(&self, renderer: &Renderer) -> String {
        let mut out = String::new();
        let text = masked(&self.text);
        for Fault { origin, message, help } in &self.faults {
            let (title, span) = match origin {
                Origin::File(span) => (message.clone(), Some(span.clone())),
                Origin::Variable(name) | Origin::Flag(name) => (format!("{name}: {message}"), None),
                Origin::Whole => (message.clone(), None),
            };
            let snippet = span.map(|span| {
                Snippet::source(&*text).path(&*self.name).annotation(AnnotationKind::Primary.span(one_line(&text, span)))
            });
            let help = help.as_ref().map(|help| Level::HELP.message(help));
            let group = Level::ERROR.primary_title(title).elements(snippet).elements(help);
            out += &renderer.render(&[group]);
            out += "\n\n";
        }
        let count = self.faults.len();
        out + &format!("{count} fault{} in the configuration", if count == 1 { "" } else { "s" })
    }
}

/// The part of a span on its first line.
fn one_line(text: &str, span: Range<usize>) -> Range<usize> {
    let start = floor(text, span.start);
    let line = text[start..].find(['\r', '\n']).map_or(text.len(), |at| start + at);
    start..floor(text, span.end).clamp(start, line)
}

/// The text with keys and passwords starred, byte for byte.
fn masked(text: &str) -> String {
    let starred = |secret: &str| "*".repeat(secret.len());
    let word = |word: &str| {
        if let Some((before, secret)) = ["gsk_", "sk-"].iter().find_map(|mark| Some((mark, word.strip_prefix(mark)?))) {
            return format!("{before}{}", starred(secret));
        }
        let url = word.split_once("://").and_then(|(scheme, rest)| Some((scheme, rest.rsplit_once('@')?)));
        let Some((scheme, (user, host))) = url else { return word.to_owned() };
        match user.split_once(':') {
            Some((name, password)) => format!("{scheme}://{name}:{}@{host}", starred(password)),
            None => format!("{scheme}://{}@{host}", starred(user)),
        }
    };
    let ends = ['"', '\'', ' ', '\n'];
    text.split_inclusive(ends)
        .map(|part| {
            let inner = part.trim_end_matches(ends);
            format!("{}{}", word(inner), &part[inner.len()..])
        })
        .collect()
}

/// The closest character boundary at or before.
fn floor(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// The line of a place in a text, from 1.
pub(super) fn line_of(text: &str, at: usize) -> usize {
    text[..floor(text, at)].matches('\n').count() + 1
}
