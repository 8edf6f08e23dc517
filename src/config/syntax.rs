//! Faults of text that is not TOML.

use toml::de::Error;

use super::faults::{Fault, Origin, line_of};

/// The first error of each line; after a bracket or string that is never closed no more can be told, and the fault's help says so.
pub(super) fn faults(text: &str, errors: &[Error]) -> Vec<Fault> {
    let unclosed = errors.iter().any(|error| error.message().starts_with("unclosed"));
    let mut errors: Vec<_> = errors.iter().map(|error| (error.span().unwrap_or(0..0), error)).collect();
    errors.sort_by_key(|(span, _)| span.start);
    errors.dedup_by_key(|(span, _)| line_of(text, span.start));
    if unclosed {
        errors.truncate(1);
    }
    let fault = |(span, error): (std::ops::Range<usize>, &Error)| {
        let before = text.get(..span.start).unwrap_or_default().trim_end_matches([' ', '\t']);
        let after = text.get(span.start..).unwrap_or_default();
        let missing = before.ends_with('=') && (after.is_empty() || after.starts_with(['\r', '\n', '#']));
        let message = if missing { "the value is missing" } else { error.message() };
        let help = unclosed.then(|| "an array or inline table is not closed; what follows is not checked".to_owned());
        Fault { origin: Origin::File(span), message: message.into(), help }
    };
    errors.into_iter().map(fault).collect()
}
