//! Faults of the configuration, and how they are shown.

use std::{fmt, ops::Range};

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

use super::text::masked;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// These bytes of the file.
    File(Range<usize>),
    /// The environment variable or flag of this name.
    Override(String),
    /// The configuration as a whole.
    Whole,
}

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where it is.
    pub origin: Origin,
    /// The key or table at fault: `queue.max_wait`, `app[0].name`; empty for text that is not TOML.
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// How to mend it; empty where that is not known.
    pub help: String,
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
        // Byte for byte, so that spans still fit.
        let text = masked(&self.text, |length| length);
        let hidden = |text: &str| masked(text, |_| 3);
        for Fault { origin, path, message, help } in &self.faults {
            let path = if path.is_empty() { String::new() } else { format!("`{path}`: ") };
            let (place, span) = match origin {
                Origin::File(span) => (String::new(), Some(one_line(&text, span))),
                Origin::Override(name) => (format!("{name}: "), None),
                Origin::Whole => (String::new(), None),
            };
            let snippet =
                span.map(|span| Snippet::source(&*text).path(&*self.name).annotation(AnnotationKind::Primary.span(span)));
            let help = (!help.is_empty()).then(|| Level::HELP.message(hidden(help)));
            let title = Level::ERROR.primary_title(hidden(&format!("{place}{path}{message}")));
            out += &renderer.render(&[title.elements(snippet).elements(help)]);
            out += "\n\n";
        }
        let count = self.faults.len();
        out + &format!("{count} fault{} in the configuration", if count == 1 { "" } else { "s" })
    }
}

/// The part of a span on its first line.
fn one_line(text: &str, span: &Range<usize>) -> Range<usize> {
    let floor = |at: usize| (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let start = floor(span.start);
    let line = text[start..].find(['\r', '\n']).map_or(text.len(), |at| start + at);
    start..floor(span.end).clamp(start, line)
}
