//! The configuration in effect: every key as TOML, secrets masked, with the origin of what is not a default.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{
    faults::{Origin, line_of},
    settings::Settings,
    text::{quoted, toml_value},
};

/// One key as it is in effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// The header of its table, without brackets: `limits.model."a/b"`, `[app]`.
    table: String,
    /// By full name: `queue.max_wait`, `app[0].name`.
    pub(super) path: String,
    key: String,
    /// Its value as TOML, masked; `None`: not set.
    pub(super) value: Option<String>,
}

/// Every key of these settings, in the order of the structs.
///
/// # Panics
/// Never: settings are plain data with strings for keys.
pub(super) fn entries(settings: &Settings) -> Vec<Entry> {
    let all = serde_json::to_value(settings).expect("settings can be written as JSON");
    let mut entries = Vec::new();
    for (name, value) in all.as_object().into_iter().flatten() {
        table(value, name, name, &mut entries);
    }
    entries
}

fn table(value: &Value, header: &str, path: &str, entries: &mut Vec<Entry>) {
    match value {
        Value::Object(keys) => self::keys(keys, header, path, entries),
        Value::Array(elements) => {
            for (index, element) in elements.iter().enumerate() {
                table(element, &format!("[{header}]"), &format!("{path}[{index}]"), entries);
            }
        }
        _ => {}
    }
}

fn keys(keys: &Map<String, Value>, header: &str, path: &str, entries: &mut Vec<Entry>) {
    for (key, value) in keys {
        let path = format!("{path}.{key}");
        if value.is_object() {
            let is_bare = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            let name = if is_bare { key.clone() } else { quoted(key) };
            table(value, &format!("{header}.{name}"), &path, entries);
        } else {
            entries.push(Entry { table: header.to_owned(), path, key: key.clone(), value: toml_value(value) });
        }
    }
}

/// All of it as TOML. `name` and `text` are the file's, for line numbers.
pub(super) fn toml(settings: &Settings, origins: &BTreeMap<String, Origin>, name: &str, text: &str) -> String {
    let mut out = String::new();
    let mut last = String::new();
    for Entry { table, path, key, value } in entries(settings) {
        let parent = &path[..path.len() - key.len()];
        if last != parent {
            out += &format!("{}[{table}]\n", if last.is_empty() { "" } else { "\n" });
            last = parent.to_owned();
        }
        let Some(value) = value else {
            out += &format!("# {key} is not set\n");
            continue;
        };
        let origin = match origins.get(&path) {
            Some(Origin::File(span)) => format!("  # {name}:{}", line_of(text, span.start)),
            Some(Origin::Override(from)) => format!("  # {from}"),
            Some(Origin::Whole) | None => String::new(),
        };
        out += &format!("{key} = {value}{origin}\n");
    }
    out
}
