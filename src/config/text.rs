//! Text as it is shown: TOML values, masked URLs, and the word that was probably meant.

use serde_json::Value;

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

/// A JSON value as TOML, passwords masked; `None` for what is not set.
pub(super) fn toml_value(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(quoted(&masked_url(text))),
        Value::Array(items) if items.is_empty() => None,
        Value::Array(items) => Some(format!("[{}]", items.iter().filter_map(toml_value).collect::<Vec<_>>().join(", "))),
        value => Some(value.to_string()),
    }
}

/// A URL with its password, if it has one, masked.
pub(super) fn masked_url(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    match rest[..end].rsplit_once('@') {
        Some((user, host)) => {
            let user = user.split_once(':').map_or("***".into(), |(name, _)| format!("{name}:***"));
            format!("{scheme}://{user}@{host}{}", &rest[end..])
        }
        None => text.to_owned(),
    }
}
