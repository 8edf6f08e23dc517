//! Settings that are names: of apps, of environment variables, of log levels.

use super::{
    faults::Wrong,
    text::{near, quoted},
};

/// What an operator calls something.
pub(super) fn label(text: &str) -> Result<(), Wrong> {
    let is_label = text.len() <= 128 && !text.trim().is_empty() && !text.contains(char::is_control);
    let message = || "not a name of 1 to 128 printable bytes".into();
    if is_label { Ok(()) } else { Err((message(), "it is a label of metrics: choose a short one".into())) }
}

/// The name of an environment variable.
pub(super) fn variable(text: &str) -> Result<(), Wrong> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if text.starts_with("gsk_") || text.starts_with("sk-") {
        return Err(("a key, not the name of a variable that holds it".into(), "keys never stand in the file".into()));
    }
    if !text.is_empty() && text.chars().all(is_name) && !text.starts_with(|c: char| c.is_ascii_digit()) {
        return Ok(());
    }
    let message = format!("{} is not the name of an environment variable", quoted(text));
    Err((message, "its name alone, without `$`, such as \"GROQ_API_KEY\"".into()))
}

/// A tracing filter; a bare word that is no level would be taken for a target, and log nothing.
pub(super) fn log_filter(text: &str) -> Result<(), Wrong> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let is_level = |part: &str| LEVELS.contains(&part.to_ascii_lowercase().as_str());
    let mut parts = text.split(',').map(str::trim);
    if let Some(word) = parts.find(|part| !part.contains(['=', ':', '[']) && *part != "groq_shield" && !is_level(part)) {
        let level = near(word, LEVELS).map_or_else(|| LEVELS.join(", "), |level| format!("did you mean \"{level}\"?"));
        return Err((format!("{} is not a log level", quoted(word)), level));
    }
    let parsed = tracing_subscriber::EnvFilter::builder().parse(text);
    parsed.map(drop).map_err(|why| (format!("not a log filter: {why}"), "such as \"groq_shield=debug,warn\"".into()))
}
