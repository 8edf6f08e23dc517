//! The configuration in effect: every key as TOML, secrets masked, with the origin of what is not a default.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    faults::{Origin, line_of},
    schema::{Kind, Table, tables},
    settings::Settings,
    text::{quoted, toml_value},
};

/// One key as it is in effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// The table's header, brackets included.
    pub(super) table: String,
    /// By full name: `queue.max_wait`, `app[0].name`.
    pub(super) path: String,
    pub(super) key: &'static str,
    /// Its value as TOML, masked; `None`: not set.
    pub(super) value: Option<String>,
}

/// Every key of these settings, in the order of the example file.
///
/// # Panics
/// Never: settings are plain data with names for keys.
pub(super) fn entries(settings: &Settings) -> Vec<Entry> {
    let all = serde_json::to_value(settings).expect("settings can be written as JSON");
    let mut entries = Vec::new();
    for table in tables() {
        let path = &table.path;
        let value = path.split('.').fold(&all, |value, name| &value[name]);
        match table.kind {
            Kind::Once => list(table, &table.header(), path, value, &mut entries),
            Kind::Listed => {
                for (index, element) in value.as_array().into_iter().flatten().enumerate() {
                    list(table, &table.header(), &format!("{path}[{index}]"), element, &mut entries);
                }
            }
            Kind::Named => {
                for (name, element) in value.as_object().into_iter().flatten() {
                    let header = format!("[{path}.{}]", quoted(name));
                    list(table, &header, &format!("{path}.{name}"), element, &mut entries);
                }
            }
        }
    }
    entries
}

fn list(table: &Table, header: &str, path: &str, element: &Value, entries: &mut Vec<Entry>) {
    entries.extend(table.keys.iter().map(|(key, _)| Entry {
        table: header.to_owned(),
        path: format!("{path}.{key}"),
        key,
        value: toml_value(&element[key]),
    }));
}

/// All of it as TOML. `name` and `text` are the file's, for line numbers.
pub(super) fn toml(settings: &Settings, origins: &BTreeMap<String, Origin>, name: &str, text: &str) -> String {
    let mut out = String::new();
    let entries = entries(settings);
    for table in entries.chunk_by(|one, other| {
        one.path.rsplit_once('.').map(|(table, _)| table) == other.path.rsplit_once('.').map(|(table, _)| table)
    }) {
        // A table without any key that is set need not be complete: it is shown and not in force.
        let off = if table.iter().all(|entry| entry.value.is_none()) { "# " } else { "" };
        out += &format!("{}{off}{}\n", if out.is_empty() { "" } else { "\n" }, table[0].table);
        for Entry { path, key, value, .. } in table {
            let Some(value) = value else {
                out += &format!("# {key} is not set\n");
                continue;
            };
            let origin = match origins.get(path) {
                Some(Origin::File(span)) => format!("  # {name}:{}", line_of(text, span.start)),
                Some(Origin::Variable(from) | Origin::Flag(from)) => format!("  # {from}"),
                Some(Origin::Whole) | None => String::new(),
            };
            out += &format!("{key} = {value}{origin}\n");
        }
    }
    out
}
