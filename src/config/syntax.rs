//! Faults of text that is not TOML.

use toml::de::Error;

use super::{
    faults::{Fault, Origin},
    text::Lines,
};

/// The start of a message of the parser, and how to mend what it is about.
const HELP: [(&str, &str); 8] = [
    ("unclosed", "close it; what follows is not checked"),
    ("duplicate key", "each key and table stands once: put everything under the first"),
    ("invalid basic string", CLOSE),
    ("invalid literal string", CLOSE),
    ("invalid unquoted key", "write `=` before a value, and quotes around a name such as [limits.model.\"openai/gpt-oss-20b\"]"),
    ("string values must be quoted", QUOTE),
    ("invalid boolean", QUOTE),
    ("invalid float", QUOTE),
];

const CLOSE: &str = "close the text with a quote";
const QUOTE: &str = "text stands in quotes, as in \"50s\"; flags are true or false";

/// The first error of each line, and the first line that could not be checked.
pub(super) fn faults(lines: &Lines, errors: &[Error]) -> (Vec<Fault>, usize) {
    let fault = |error: &Error| {
        let span = error.span().unwrap_or(0..0);
        let help = HELP.iter().find(|(start, _)| error.message().starts_with(start)).map_or("", |(_, help)| help);
        // The parser guesses what was meant, and takes a missing value for text without quotes.
        let message = match (help == QUOTE, span.is_empty()) {
            (true, true) => "the value is missing",
            (true, false) => "not a value",
            _ => error.message(),
        };
        Fault { origin: Origin::File(span), path: String::new(), message: message.into(), help: help.into() }
    };
    let mut errors: Vec<_> = errors.iter().collect();
    errors.sort_by_key(|error| error.span().map(|span| span.start));
    // With an unclosed bracket, the first error is where something does not belong inside.
    if let Some(unclosed) = errors.iter().find(|error| error.message().starts_with("unclosed")) {
        let fault = Fault { origin: fault(errors[0]).origin, ..fault(unclosed) };
        let end = fault.line(lines).unwrap_or_default();
        return (vec![fault], end);
    }
    let mut faults: Vec<_> = errors.into_iter().map(fault).collect();
    faults.dedup_by_key(|fault| fault.line(lines));
    (faults, usize::MAX)
}
