//! Settings that are names: of apps, of environment variables, of log levels.

use super::{
    faults::Wrong,
    text::{near, quoted},
};

pub(super) fn not_empty(text: &str) -> Result<(), Wrong> {
    if text.trim().is_empty() { Err("is empty".into()) } else { Ok(()) }
}

/// What an operator calls something.
pub(super) fn label(text: &str) -> Result<(), Wrong> {
    if text.len() > 128 {
        return Err(("is longer than 128 bytes", "it is a label of metrics: choose a short one").into());
    }
    if text.contains(char::is_control) {
        return Err(("has a control character", "it is a label of metrics: choose printable characters").into());
    }
    not_empty(text)
}

pub(super) fn env_name(text: &str) -> Result<(), Wrong> {
    if text.starts_with("gsk_") || text.starts_with("sk-") {
        return Err(("this is a key, not the name of a variable that holds it", "keys never stand in the file").into());
    }
    let first = text.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    if !first || text.chars().any(|c| !c.is_ascii_alphanumeric() && c != '_') {
        let message = format!("{} is not the name of an environment variable", quoted(text));
        return Err((message, "its name alone, without `$`, such as \"GROQ_API_KEY\"").into());
    }
    Ok(())
}

/// A tracing filter; a bare word that is no level would be taken for a target, and log nothing.
pub(super) fn log_filter(text: &str) -> Result<(), Wrong> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    for part in text.split(',').map(str::trim) {
        let is_bare = !part.contains(['=', ':', '[']) && part != "groq_shield";
        if is_bare && !LEVELS.contains(&part.to_ascii_lowercase().as_str()) {
            let help = match near(part, LEVELS) {
                Some(level) => format!("did you mean \"{level}\"?"),
                None => "a level (off, error, warn, info, debug, trace), or \"groq_shield=debug,warn\"".into(),
            };
            return Err((format!("{} is not a log level", quoted(part)), help).into());
        }
    }
    match tracing_subscriber::EnvFilter::builder().parse(text) {
        Ok(_) => Ok(()),
        Err(why) => Err((format!("{} is not a log filter: {why}", quoted(text)), "such as \"groq_shield=debug,warn\"").into()),
    }
}
