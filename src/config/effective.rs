//! Which configuration is in effect? Every key as TOML, secrets masked, with the origin of what is not a default.

use std::collections::BTreeMap;

use super::{
    Settings,
    draft::Draft,
    faults::{Origin, line_of, quoted},
    keys::{APP, Key, MODEL, ORGANISATION, TABLES},
};

/// One key as it is in effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// The table's header, brackets included.
    pub(super) table: String,
    /// By full name: `queue.max_wait`, `app[0].name`.
    pub(super) path: String,
    /// The key.
    pub(super) key: &'static str,
    /// Its value as TOML, masked; `None`: not set.
    pub(super) value: Option<String>,
}

/// Every key of these settings, in the order of the example file.
pub(super) fn entries(settings: &Settings) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut draft = Draft::from(settings);
    for table in TABLES {
        list(table.keys, &mut draft, &format!("[{}]", table.name), table.name, &mut entries);
        match table.name {
            "limits" => limits(settings, &mut entries),
            "upstream" => many("organisation", ORGANISATION, &settings.organisations, &mut entries),
            "breaker" => many("app", APP, &settings.apps, &mut entries),
            _ => {}
        }
    }
    entries
}

fn limits(settings: &Settings, entries: &mut Vec<Entry>) {
    let tables = std::iter::once(("limits.default".to_owned(), settings.limits.default));
    let models = settings.limits.models.iter().map(|(name, limits)| (format!("limits.model.{}", quoted(name)), *limits));
    for (path, mut limits) in tables.chain(models) {
        list(MODEL, &mut limits, &format!("[{path}]"), &path, entries);
    }
}

fn many<T: Clone>(name: &str, keys: &'static [Key<T>], elements: &[T], entries: &mut Vec<Entry>) {
    for (index, element) in elements.iter().enumerate() {
        list(keys, &mut element.clone(), &format!("[[{name}]]"), &format!("{name}[{index}]"), entries);
    }
}

fn list<T>(keys: &'static [Key<T>], target: &mut T, table: &str, path: &str, entries: &mut Vec<Entry>) {
    for key in keys {
        entries.push(Entry {
            table: table.to_owned(),
            path: format!("{path}.{}", key.name),
            key: key.name,
            value: show(key, target),
        });
    }
}

/// A key's value as TOML, masked.
pub(super) fn show<T>(key: &Key<T>, target: &mut T) -> Option<String> {
    let value = (key.place)(target).get();
    let off = matches!(key.rule, super::rule::Rule::TimeOrOff(_)).then(|| quoted("off"));
    value.map(|value| key.rule.show(&value)).or(off)
}

/// All of it as TOML. `name` and `text` are the file's, for line numbers.
pub(super) fn toml(settings: &Settings, origins: &BTreeMap<String, Origin>, name: &str, text: &str) -> String {
    let mut out = String::new();
    let mut last = String::new();
    for Entry { table, path, key, value } in entries(settings) {
        let element = path.rsplit_once('.').map_or("", |_| path.strip_suffix(key).unwrap_or(&path)).to_owned();
        if element != last {
            out.push_str(if out.is_empty() { "" } else { "\n" });
            out.push_str(&format!("{table}\n"));
            last = element;
        }
        let origin = origins.get(&path).map(|origin| match origin {
            Origin::File(span) => format!("  # {name}:{}", line_of(text, span)),
            Origin::Variable(from) | Origin::Flag(from) => format!("  # {from}"),
            Origin::Whole => String::new(),
        });
        match value {
            Some(value) => out.push_str(&format!("{key} = {value}{}\n", origin.unwrap_or_default())),
            None => out.push_str(&format!("# {key} is not set\n")),
        }
    }
    out
}
