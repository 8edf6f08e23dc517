//! Text as it is shown: keys' paths, TOML values, masked secrets, and the word that was probably meant.

use serde_json::Value;

/// A path and those of the tables and lists around it.
pub(super) fn around(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path), |path| Some(path.rsplit_once(['.', '['])?.0))
}

/// The word that was probably meant.
pub(super) fn near<'a>(word: &str, words: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_lowercase();
    let distances = words.into_iter().map(|known| (strsim::damerau_levenshtein(&lower, &known.to_lowercase()), known));
    let (distance, best) = distances.min_by_key(|(distance, _)| *distance)?;
    (distance <= 1 + best.len() / 4 && distance < best.len()).then_some(best)
}

/// Text as a TOML string on one line. JSON's escapes are TOML's too; it leaves DEL as it is, which TOML does not allow.
pub(super) fn quoted(text: &str) -> String {
    Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

/// A JSON value as TOML, passwords masked; `None` for what is not set.
pub(super) fn toml_value(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(masked(&quoted(text), |_| 3)),
        Value::Array(items) if items.is_empty() => None,
        Value::Array(items) => Some(format!("[{}]", items.iter().filter_map(toml_value).collect::<Vec<_>>().join(", "))),
        value => Some(value.to_string()),
    }
}

/// The text with keys and passwords masked; `stars` says how many stars stand for a secret of so many bytes.
pub(super) fn masked(text: &str, stars: fn(usize) -> usize) -> String {
    let starred = |secret: &str| "*".repeat(stars(secret.len()));
    let word = |word: &str| {
        if let Some(mark) = ["gsk_", "sk-"].into_iter().find(|mark| word.starts_with(mark)) {
            return format!("{mark}{}", starred(&word[mark.len()..]));
        }
        let url = word.split_once("://").and_then(|(scheme, rest)| Some((scheme, rest.rsplit_once('@')?)));
        let Some((scheme, (user, host))) = url else { return word.to_owned() };
        match user.split_once(':') {
            Some((name, password)) => format!("{scheme}://{name}:{}@{host}", starred(password)),
            None => format!("{scheme}://{}@{host}", starred(user)),
        }
    };
    let ends = ['"', '\'', ' ', '\n'];
    let parts = text.split_inclusive(ends).map(|part| {
        let inner = part.trim_end_matches(ends);
        format!("{}{}", word(inner), &part[inner.len()..])
    });
    parts.collect()
}
