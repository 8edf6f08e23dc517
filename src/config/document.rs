//! Checks the file and the overrides against the schema: one walk over the parsed file collects every fault, and the valid values
//! as JSON, from which serde makes the settings.
//!
//! All faults of a file are reported at once, with two exceptions: a line that is not TOML hides faults on the same line, and an
//! unclosed bracket or string hides everything after it, since toml's parser cannot tell where it should end.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use serde_json::{Map, Number, Value};
use toml::{
    Spanned,
    de::{DeArray, DeTable, DeValue},
};

use super::{
    faults::{Fault, Origin},
    formats, hints,
    schema::{choices, example, expected, is_table, schema, tables, under},
    settings::Settings,
    syntax,
    text::{Lines, near, quoted},
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

/// A configuration that has been read: where its values come from, and its faults.
///
/// Paths are written `queue.max_wait`, `app[0].name`, `limits.model.a/b`.
pub(super) struct Document<'a> {
    text: &'a str,
    lines: Lines,
    overrides: &'a [Override],
    pub(super) origins: BTreeMap<String, Origin>,
    faults: Vec<Fault>,
    /// Faults of text that is not TOML, and the first line that could not be checked.
    syntax: (Vec<Fault>, usize),
}

impl<'a> Document<'a> {
    /// Reads a file's text and the overrides. Values with faults keep their defaults in the settings.
    pub(super) fn read(text: &'a str, overrides: &'a [Override]) -> (Settings, Self) {
        let (root, errors) = DeTable::parse_recoverable(text);
        let mut tree = root.into_inner();
        for (index, value) in overrides.iter().enumerate() {
            // A span after the end of the text identifies the override.
            set(&mut tree, value, text.len() + 1 + index);
        }
        let lines = Lines::new(text);
        let syntax = syntax::faults(&lines, &errors);
        let mut document = Self { text, lines, overrides, origins: BTreeMap::new(), faults: Vec::new(), syntax };
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
            // toml's parser inserts an empty value where one is missing.
            if value.span().is_empty() && value.span().start <= self.text.len() && !value.get_ref().is_table() {
                continue;
            }
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
            if !is_misspelled && !entries.keys().any(|name| name.get_ref() == key) {
                let example = under(schema, key).and_then(example).unwrap_or_default();
                self.refuse(&format!("{path}.{key}"), "missing", format!("such as {key} = {example}"));
            }
        }
        Value::Object(read)
    }

    fn value(&mut self, path: &str, value: &Spanned<DeValue<'_>>, schema: &'static Value) -> Option<Value> {
        self.origins.insert(path.to_owned(), self.origin_of(value.span()));
        let read = match (value.get_ref(), schema["type"].as_str()) {
            (DeValue::Table(entries), Some("object")) => Ok(self.table(path, entries, schema)),
            (DeValue::Array(items), Some("array")) => Ok(self.list(path, items, schema)),
            (value, _) => scalar(path, value, schema),
        };
        read.map_err(|(message, help)| self.refuse(path, message, help)).ok()
    }

    fn list(&mut self, path: &str, items: &DeArray<'_>, schema: &'static Value) -> Value {
        let mut read = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let path = format!("{path}[{index}]");
            match self.value(&path, item, &schema["items"]) {
                Some(value) if schema["uniqueItems"] == true && read.contains(&value) => self.refuse(&path, "listed twice", ""),
                value => read.extend(value),
            }
        }
        if items.is_empty() && schema["minItems"] == 1 {
            self.refuse(path, "the list is empty", "");
        }
        Value::Array(read)
    }

    fn origin_of(&self, span: Range<usize>) -> Origin {
        match self.overrides.get(span.start.wrapping_sub(self.text.len() + 1)) {
            Some(value) => Origin::Override(value.name.clone()),
            None => Origin::File(span),
        }
    }

    /// Adds a fault of the value at this path, or of its absence.
    pub(super) fn refuse(&mut self, path: &str, message: impl Into<String>, help: impl Into<String>) {
        let origin = self.origin(path);
        self.faults.push(Fault { origin, path: path.to_owned(), message: message.into(), help: help.into() });
    }

    /// Adds a fault of a variable that sets no key.
    pub(super) fn refuse_override(&mut self, name: &str, message: &str, help: String) {
        let origin = Origin::Override(name.to_owned());
        self.faults.push(Fault { origin, path: String::new(), message: message.to_owned(), help });
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

    /// All faults, in the order of the file, then those of variables and flags.
    pub(super) fn into_faults(mut self) -> Vec<Fault> {
        let (syntax, end) = std::mem::take(&mut self.syntax);
        let broken: BTreeSet<_> = syntax.iter().filter_map(|fault| fault.line(&self.lines)).collect();
        // A fault on a line that is not TOML is most often a consequence.
        self.faults.retain(|fault| fault.line(&self.lines).is_none_or(|line| line < end && !broken.contains(&line)));
        self.faults.extend(syntax);
        self.faults.sort_by_key(|fault| match &fault.origin {
            Origin::File(span) => (0, span.start),
            Origin::Override(_) => (1, 0),
            Origin::Whole => (2, 0),
        });
        if self.faults.len() > MOST_FAULTS {
            self.faults.truncate(MOST_FAULTS);
            self.refuse("", "there are more faults than these", "");
        }
        self.faults
    }
}

/// Sets the key of an override in the tree, with `at` as its span.
fn set<'a>(tree: &mut DeTable<'a>, from: &'a Override, at: usize) {
    let schema = from.path.split('.').fold(schema(), |schema, name| under(schema, name).unwrap_or(&Value::Null));
    // Overrides are untyped: unless the key takes text, they are parsed like a value in the file.
    let is_text = schema["type"] == "string" || !choices(schema).is_empty();
    let literal = (!is_text).then(|| DeValue::parse(&from.text).ok()).flatten().map(Spanned::into_inner);
    let (tables, key) = from.path.rsplit_once('.').unwrap_or(("", &from.path));
    let mut table = tree;
    for name in tables.split('.') {
        let inner = table.entry(Spanned::new(at..at, name.into()));
        let inner = inner.or_insert_with(|| Spanned::new(at..at, DeValue::Table(DeTable::new())));
        // The file has no table here: that fault is reported when the tree is checked.
        let DeValue::Table(inner) = inner.get_mut() else { return };
        table = inner;
    }
    let value = literal.unwrap_or_else(|| DeValue::String((&*from.text).into()));
    table.insert(Spanned::new(at..at, key.into()), Spanned::new(at..at, value));
}

/// Checks a value that is not a table or list, or should not be one. An error is a message and a help.
fn scalar(path: &str, value: &DeValue<'_>, schema: &Value) -> Result<Value, (String, String)> {
    let (kind, words) = (schema["type"].as_str().unwrap_or_default(), choices(schema));
    let bound = |name: &str| schema[name].as_f64();
    let in_range = |n: f64| {
        bound("minimum").is_none_or(|least| n >= least)
            && bound("exclusiveMinimum").is_none_or(|least| n > least)
            && bound("maximum").is_none_or(|most| n <= most)
    };
    let read = match value {
        DeValue::String(text) if words.contains(&text.as_ref()) => Some(text.as_ref().into()),
        DeValue::String(text) if kind == "string" && formats::accepts(schema["title"].as_str(), text) => {
            Some(text.as_ref().into())
        }
        DeValue::Boolean(flag) if kind == "boolean" => Some((*flag).into()),
        DeValue::Integer(n) if kind == "integer" || kind == "number" => {
            i64::from_str_radix(n.as_str(), n.radix()).ok().filter(|n| in_range(*n as f64)).map(Value::from)
        }
        DeValue::Float(n) if kind == "number" => {
            n.as_str().parse().ok().filter(|n| in_range(*n)).and_then(Number::from_f64).map(Value::Number)
        }
        _ => None,
    };
    let found = match value {
        _ if read.is_some() => return Ok(read.unwrap_or_default()),
        DeValue::String(text) => quoted(&text.chars().take(80).collect::<String>()),
        DeValue::Integer(n) if i64::from_str_radix(n.as_str(), n.radix()).is_err() => format!("{n}, which does not fit 64 bits"),
        DeValue::Integer(n) => n.to_string(),
        DeValue::Float(n) => n.to_string(),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Datetime(date) => date.to_string(),
        DeValue::Array(_) => "a list".into(),
        DeValue::Table(_) => "a table".into(),
    };
    let meant =
        value.as_str().and_then(|text| near(text, words.iter().copied())).map(|word| format!("did you mean {}?", quoted(word)));
    let is_of_kind = (kind == "string") == (value.type_str() == "string");
    let remedy = || schema["x-help"].as_str().filter(|_| is_of_kind).map(str::to_owned);
    let table = || around(path).find_map(|path| tables().iter().find(|table| table.path == path)).filter(|_| is_table(schema));
    let table = || table().map(|table| format!("write {} on a line of its own, its keys below", table.header));
    let unset = if schema["default"].is_null() && matches!(kind, "integer" | "number") { ", or leave the key out" } else { "" };
    let example = || example(schema).filter(|_| words.is_empty() && kind != "boolean");
    let example = || example().map(|example| format!("for example {example}{unset}"));
    let help = meant.or_else(remedy).or_else(table).or_else(example).unwrap_or_default();
    Err((format!("expected {}, found {found}", expected(schema)), help))
}

/// A path and those of the tables and lists around it.
fn around(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path), |path| Some(path.rsplit_once(['.', '['])?.0))
}
