//! What is wrong with the configuration, and where? Every fault with its place, its line and what to do.

use std::{fmt, ops::Range};

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
        for fault in &self.faults {
            self.show(fault, f)?;
            writeln!(f)?;
        }
        let count = self.faults.len();
        write!(f, "{count} fault{} in the configuration", if count == 1 { "" } else { "s" })
    }
}

impl std::error::Error for Faults {}

impl Faults {
    fn show(&self, fault: &Fault, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut gutter = 2;
        match &fault.origin {
            Origin::File(span) => {
                let place = Place::of(&self.text, span);
                gutter = place.line.to_string().len() + 1;
                writeln!(f, "error: {}", fault.message)?;
                writeln!(f, "{:gutter$}--> {}:{}:{}", "", self.name, place.line, place.column, gutter = gutter - 1)?;
                writeln!(f, "{:gutter$}|", "")?;
                writeln!(f, "{} | {}", place.line, masked(place.text))?;
                writeln!(f, "{:gutter$}| {}{}", "", place.indent, "^".repeat(place.width))?;
            }
            Origin::Variable(name) | Origin::Flag(name) => writeln!(f, "error: {name}: {}", fault.message)?,
            Origin::Whole => writeln!(f, "error: {}", fault.message)?,
        }
        if let Some(help) = &fault.help {
            writeln!(f, "{:gutter$}= help: {help}", "")?;
        }
        Ok(())
    }
}

/// One line's part of a text.
#[derive(Debug, PartialEq)]
struct Place<'a> {
    line: usize,
    column: usize,
    text: &'a str,
    /// As wide as what stands before the caret; tabs stay tabs.
    indent: String,
    width: usize,
}

impl<'a> Place<'a> {
    /// Lines and columns count from 1, columns in characters.
    fn of(text: &'a str, span: &Range<usize>) -> Self {
        let start = floor(text, span.start);
        let head = &text[..start];
        let first = head.rfind('\n').map_or(0, |at| at + 1);
        let last = text[first..].find('\n').map_or(text.len(), |at| first + at);
        let line = text[first..last].trim_end_matches('\r');
        let before = &text[first..start];
        let end = floor(text, span.end).clamp(start, (first + line.len()).max(start));
        Self {
            line: head.matches('\n').count() + 1,
            column: before.chars().count() + 1,
            text: line,
            indent: before.chars().map(|c| if c == '\t' { '\t' } else { ' ' }).collect(),
            width: text[start..end].chars().count().max(1),
        }
    }
}

/// A line with keys and passwords starred, as wide as it was.
fn masked(line: &str) -> String {
    let starred = |secret: &str| "*".repeat(secret.chars().count());
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
    let ends = ['"', '\'', ' '];
    line.split_inclusive(ends)
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

/// Line and column of a place in a text, both from 1.
pub(super) fn line_of(text: &str, span: &Range<usize>) -> usize {
    Place::of(text, span).line
}

/// The word that was probably meant.
pub(super) fn near<'a>(word: &str, words: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_lowercase();
    let (best, distance) = words
        .into_iter()
        .map(|known| (known, strsim::damerau_levenshtein(&lower, &known.to_lowercase())))
        .min_by_key(|(_, distance)| *distance)?;
    (distance <= 1 + best.len() / 4 && distance < best.len()).then_some(best)
}

/// Text as a TOML string.
pub(super) fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}
