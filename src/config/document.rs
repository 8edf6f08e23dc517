//! Checks the file and the overrides against the schema: one walk over the parsed file collects every fault, and the valid values
//! as JSON, from which serde makes the settings.
//!
//! A text that is not TOML is refused with its first error alone: what follows it can only be guessed.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Number, Value};
use toml::{
    Spanned,
    de::{DeArray, DeInteger, DeTable, DeValue},
};

use super::{
    faults::{Fault, Origin},
    formats, hints,
    schema::{choices, example, expected, schema, under},
    settings::Settings,
    text::around,
};

/// Faults that are reported at most: a file with more is not a configuration of ours.
const MOST_FAULTS: usize = 100;

/// A value from an environment variable or a flag.
pub(super) struct Override {
    /// The variable's or flag's name.
    pub(super) name: String,
    /// The key's path.
    pub(super) path: String,
    pub(super) text: String,
}

impl Override {
    /// Overrides are untyped: unless the key takes text, they are parsed like a value in the file.
    fn value(&self) -> DeValue<'_> {
        let schema = self.path.split('.').fold(schema(), |schema, name| under(schema, name).unwrap_or(&Value::Null));
        let is_text = schema["type"] == "string" || !choices(schema).is_empty();
        let parsed = if is_text { None } else { DeValue::parse(&self.text).ok() };
        parsed.map_or_else(|| DeValue::String((&*self.text).into()), Spanned::into_inner)
    }
}

/// A configuration that has been read: where its values come from, and its faults.
///
/// Paths are written `queue.max_wait`, `app[0].name`, `limits.model.a/b`.
pub(super) struct Document<'a> {
    text: &'a str,
    overrides: &'a [Override],
    pub(super) origins: BTreeMap<String, Origin>,
    faults: Vec<Fault>,
}

impl<'a> Document<'a> {
    /// Reads a file's text and the overrides. Values with faults keep their defaults in the settings.
    pub(super) fn read(text: &'a str, overrides: &'a [Override]) -> (Settings, Self) {
        let mut document = Self { text, overrides, origins: BTreeMap::new(), faults: Vec::new() };
        let mut tree = DeTable::parse(text).map(Spanned::into_inner).unwrap_or_else(|why| {
            let (message, help) = hints::syntax(&why);
            document.push(Origin::File(why.span().unwrap_or_default()), "", message.into(), help.into());
            DeTable::new()
        });
        for (index, from) in overrides.iter().enumerate() {
            // A span after the end of the text identifies the override.
            let at = text.len() + 1 + index;
            set(&mut tree, &from.path, Spanned::new(at..at, from.value()));
        }
        let value = document.table("", &tree, schema());
        let settings = serde_json::from_value(value).unwrap_or_else(|why| {
            document.refuse("", why.to_string(), "");
            Settings::default()
        });
        (settings, document)
    }

    fn table(&mut self, path: &str, entries: &DeTable<'_>, schema: &'static Value) -> Value {
        let (mut read, mut is_misspelled) = (Map::new(), false);
        for (key, value) in entries {
            let name = key.get_ref().as_ref();
            let path = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
            if let Some(schema) = under(schema, name) {
                read.extend(self.value(&path, value, schema).map(|value| (name.to_owned(), value)));
            } else {
                is_misspelled = true;
                let is_list = |items: &DeArray<'_>| items.iter().any(|item| item.get_ref().is_table());
                let is_table = value.get_ref().is_table() || value.get_ref().as_array().is_some_and(is_list);
                let message = if is_table { "unknown table" } else { "unknown key" };
                self.origins.insert(path.clone(), Origin::File(key.span()));
                self.refuse(&path, message, hints::unknown(name, &path, is_table, schema));
            }
        }
        for key in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if !is_misspelled && !entries.contains_key(key) {
                let example = under(schema, key).and_then(example).unwrap_or_default();
                self.refuse(&format!("{path}.{key}"), "missing", format!("such as {key} = {example}"));
            }
        }
        Value::Object(read)
    }

    fn value(&mut self, path: &str, value: &Spanned<DeValue<'_>>, schema: &'static Value) -> Option<Value> {
        let origin = self.from(value).map_or_else(|| Origin::File(value.span()), |from| Origin::Override(from.name.clone()));
        self.origins.insert(path.to_owned(), origin);
        let read = match (value.get_ref(), schema["type"].as_str()) {
            (DeValue::Table(entries), Some("object")) => return Some(self.table(path, entries, schema)),
            (DeValue::Array(items), Some("array")) => return self.list(path, items, schema),
            (value, _) => scalar(value, schema),
        };
        if read.is_none() {
            let message = format!("expected {}, found {}", expected(schema), self.found(value));
            self.refuse(path, message, hints::wrong(path, value.get_ref(), schema));
        }
        read
    }

    /// A list without its wrong items would have other indexes than the file's, so one wrong item takes the list with it.
    fn list(&mut self, path: &str, items: &DeArray<'_>, schema: &'static Value) -> Option<Value> {
        let (mut read, mut seen) = (Vec::new(), BTreeSet::new());
        for (index, item) in items.iter().enumerate() {
            let path = format!("{path}[{index}]");
            let mut value = self.value(&path, item, &schema["items"]);
            if schema["uniqueItems"] == true && value.as_ref().is_some_and(|value| !seen.insert(value.to_string())) {
                self.refuse(&path, "listed twice", "");
                value = None;
            }
            read.push(value);
        }
        if items.is_empty() && schema["minItems"] == 1 {
            self.refuse(path, "the list is empty", "");
        }
        read.into_iter().collect::<Option<_>>().map(Value::Array)
    }

    /// The override that set a value, if its span is none of the file's.
    fn from(&self, value: &Spanned<DeValue<'_>>) -> Option<&'a Override> {
        self.overrides.get(value.span().start.wrapping_sub(self.text.len() + 1))
    }

    /// A value as it was written.
    fn found(&self, value: &Spanned<DeValue<'_>>) -> String {
        let text = self.from(value).map_or_else(|| &self.text[value.span()], |from| &from.text);
        let line: String = text.lines().next().unwrap_or_default().chars().take(80).collect();
        match value.get_ref() {
            DeValue::Array(_) => "a list".into(),
            DeValue::Table(_) => "a table".into(),
            DeValue::Integer(n) if integer(n).is_none() => format!("{line}, which does not fit 64 bits"),
            _ => line,
        }
    }

    /// Adds a fault of the value at this path, or of its absence.
    pub(super) fn refuse(&mut self, path: &str, message: impl Into<String>, help: impl Into<String>) {
        self.push(self.origin(path), path, message.into(), help.into());
    }

    /// Adds a fault of a variable that sets no key.
    pub(super) fn refuse_override(&mut self, name: &str, message: &str, help: String) {
        self.push(Origin::Override(name.to_owned()), "", message.to_owned(), help);
    }

    fn push(&mut self, origin: Origin, path: &str, message: String, help: String) {
        // One more than are shown, to know that there are more.
        if self.faults.len() <= MOST_FAULTS {
            self.faults.push(Fault { origin, path: path.to_owned(), message, help });
        }
    }

    /// Whether the key at this path has a value other than its default.
    pub(super) fn is_set(&self, path: &str) -> bool {
        self.origins.contains_key(path)
    }

    /// Whether the value at this path, or one inside of it, is wrong.
    pub(super) fn is_refused(&self, path: &str) -> bool {
        let inside = |rest: &str| rest.is_empty() || rest.starts_with(['.', '[']);
        self.faults.iter().any(|fault| fault.path.strip_prefix(path).is_some_and(inside))
    }

    /// Where the value at this path came from, or the closest table around it.
    pub(super) fn origin(&self, path: &str) -> Origin {
        around(path).find_map(|path| self.origins.get(path)).cloned().unwrap_or(Origin::Whole)
    }

    /// All faults, in the order of the file, then those of variables and flags; where the file as a whole is at fault, that alone.
    pub(super) fn into_faults(mut self) -> Vec<Fault> {
        let is_whole = |fault: &Fault| fault.path.is_empty() && !matches!(fault.origin, Origin::Override(_));
        if let Some(fault) = self.faults.iter().find(|fault| is_whole(fault)) {
            return vec![fault.clone()];
        }
        self.faults.sort_by_key(|fault| match &fault.origin {
            Origin::File(span) => span.start,
            Origin::Override(_) | Origin::Whole => usize::MAX,
        });
        if self.faults.len() > MOST_FAULTS {
            self.faults.truncate(MOST_FAULTS);
            self.refuse("", "there are more faults than these", "");
        }
        self.faults
    }
}

/// Sets the key at this path inside of a table.
fn set<'a>(table: &mut DeTable<'a>, path: &str, value: Spanned<DeValue<'a>>) {
    let span = value.span();
    let key = |name: &str| Spanned::new(span.clone(), name.to_owned().into());
    let Some((name, rest)) = path.split_once('.') else {
        table.insert(key(path), value);
        return;
    };
    let inner = table.entry(key(name)).or_insert_with(|| Spanned::new(span.clone(), DeValue::Table(DeTable::new())));
    // If the file has no table here, that is reported when the tree is checked.
    if let DeValue::Table(inner) = inner.get_mut() {
        set(inner, rest, value);
    }
}

/// A value that is neither a table nor a list, if its schema accepts it.
fn scalar(value: &DeValue<'_>, schema: &Value) -> Option<Value> {
    let kind = schema["type"].as_str().unwrap_or_default();
    let bound = |name: &str| schema[name].as_f64();
    let is_in_range = |n: f64| {
        bound("minimum").is_none_or(|least| n >= least)
            && bound("exclusiveMinimum").is_none_or(|least| n > least)
            && bound("maximum").is_none_or(|most| n <= most)
    };
    let read: Value = match value {
        DeValue::String(text) if choices(schema).contains(&text.as_ref()) => text.as_ref().into(),
        DeValue::String(text) if kind == "string" && formats::accepts(schema, text) => text.as_ref().into(),
        DeValue::Boolean(flag) if kind == "boolean" => (*flag).into(),
        DeValue::Integer(n) if kind == "integer" || kind == "number" => integer(n)?.into(),
        DeValue::Float(n) if kind == "number" => Number::from_f64(n.as_str().parse().ok()?)?.into(),
        _ => return None,
    };
    read.as_f64().is_none_or(is_in_range).then_some(read)
}

fn integer(n: &DeInteger<'_>) -> Option<i64> {
    i64::from_str_radix(n.as_str(), n.radix()).ok()
}
