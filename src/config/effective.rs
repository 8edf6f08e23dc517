//! The configuration in effect: every key as TOML, secrets masked, with the origin of what is not a default.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    faults::Origin,
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
    collect(&all, "", "", &mut entries);
    entries
}

/// The value of each key by its full name.
pub(super) fn values(settings: &Settings) -> BTreeMap<String, Option<String>> {
    entries(settings).into_iter().map(|entry| (entry.path, entry.value)).collect()
}

/// Adds the keys of the table with this header and path, then those of the tables inside it.
fn collect(table: &Value, header: &str, path: &str, entries: &mut Vec<Entry>) {
    let within = |outer: &str, name: &str| if outer.is_empty() { name.to_owned() } else { format!("{outer}.{name}") };
    for (key, value) in table.as_object().into_iter().flatten() {
        let is_bare = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        let inner = within(header, &if is_bare { key.clone() } else { quoted(key) });
        let path = within(path, key);
        match value {
            Value::Object(_) => collect(value, &inner, &path, entries),
            // At the top there are only tables and lists of tables.
            Value::Array(elements) if header.is_empty() => {
                for (index, element) in elements.iter().enumerate() {
                    collect(element, &format!("[{inner}]"), &format!("{path}[{index}]"), entries);
                }
            }
            _ => entries.push(Entry { table: header.to_owned(), path, key: key.clone(), value: toml_value(value) }),
        }
    }
}

/// All of it as TOML. `name` and `text` are the file's, for line numbers.
pub(super) fn toml(settings: &Settings, origins: &BTreeMap<String, Origin>, name: &str, text: &str) -> String {
    let mut out = String::new();
    let mut last = String::new();
    let ends: Vec<_> = text.match_indices('\n').map(|(at, _)| at).collect();
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
            Some(Origin::File(span)) => format!("  # {name}:{}", ends.partition_point(|end| *end < span.start) + 1),
            Some(Origin::Override(from)) => format!("  # {from}"),
            Some(Origin::Whole) | None => String::new(),
        };
        out += &format!("{key} = {value}{origin}\n");
    }
    out
}
