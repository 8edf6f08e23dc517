//! Faults of text that is not TOML.

use std::ops::Range;

use toml::de::Error;

use super::{
    faults::{Fault, Origin, line_of},
    text::quoted,
};

/// What is said where a bracket is never closed: the parser cannot tell where it should be.
const UNCLOSED: &str = "an array or inline table is not closed; what follows is not checked";

/// The first error of each line, and the line from which on nothing can be told.
pub(super) fn faults(text: &str, errors: &[Error]) -> (Vec<Fault>, usize) {
    let unclosed = errors.iter().any(|error| error.message().starts_with("unclosed"));
    let mut errors: Vec<_> = errors.iter().map(|error| (error.span().unwrap_or(0..0), error.message())).collect();
    errors.sort_by_key(|(span, _)| span.start);
    errors.dedup_by_key(|(span, _)| line_of(text, span.start));
    if unclosed {
        errors.truncate(1);
    }
    let end = errors.first().filter(|_| unclosed).map_or(usize::MAX, |(span, _)| line_of(text, span.start));
    let fault = |(span, said): (Range<usize>, &str)| {
        if let Some(fault) = unquoted(text, &span, said).filter(|_| !unclosed) {
            return fault;
        }
        let before = text.get(..span.start).unwrap_or_default().trim_end_matches([' ', '\t']);
        let after = text.get(span.start..).unwrap_or_default();
        let has_no_value = before.ends_with('=') && (after.is_empty() || after.starts_with(['\r', '\n', '#']));
        let (message, help) = match said {
            _ if unclosed => (said, Some(UNCLOSED)),
            _ if has_no_value => ("the value is missing", None),
            "duplicate key" if before.ends_with('[') => ("this table stands twice", Some("put its keys under the first one")),
            "duplicate key" => ("this key stands twice", None),
            _ if said.starts_with("invalid basic string") => (said, Some("close the text with a quote")),
            _ if after.starts_with(':') => (said, Some("write `=` between a key and its value")),
            _ => (said, None),
        };
        Fault { origin: Origin::File(span), message: message.into(), help: help.map(str::to_owned) }
    };
    (errors.into_iter().map(fault).collect(), end)
}

/// Text without its quotes, in the place of a value or within a table's header.
fn unquoted(text: &str, span: &Range<usize>, said: &str) -> Option<Fault> {
    let before = text.get(..span.start)?;
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    let line = text[line_start..].lines().next()?;
    if said.starts_with("invalid unquoted key") {
        let name = line.trim().strip_prefix("[limits.model.")?.strip_suffix(']')?;
        let help = format!("quote the model's name: [limits.model.{}]", quoted(name));
        return Some(Fault { origin: Origin::File(span.clone()), message: said.into(), help: Some(help) });
    }
    if !["string values must be quoted", "invalid float", "invalid boolean", "invalid integer"]
        .iter()
        .any(|it| said.starts_with(it))
    {
        return None;
    }
    // The parser may point into the value.
    let behind = before[line_start..].rfind(['=', '[', ',', '{'])? + 1;
    let rest = line[behind..].trim_start();
    let start = line_start + line.len() - rest.len();
    let value = rest.split(['#', ',', ']', '}']).next().unwrap_or_default().trim_end();
    let help = match value.to_ascii_lowercase().as_str() {
        "" => return None,
        "true" | "yes" => "write true".to_owned(),
        "false" | "no" => "write false".to_owned(),
        _ => format!("write {}", quoted(value)),
    };
    let origin = Origin::File(start..start + value.len());
    Some(Fault { origin, message: "string values must be quoted".into(), help: Some(help) })
}
