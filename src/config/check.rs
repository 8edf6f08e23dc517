//! The file's tree against the schema: every fault in one walk, and what is right as JSON, which serde reads.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Number, Value};
use toml::{
    Spanned,
    de::{DeArray, DeTable, DeValue},
};

use super::{
    faults::{Fault, Origin, Wrong},
    formats, hints,
    schema::{MODEL, choices, example, expected, properties, schema, under},
    text::{near, quoted},
};

/// What a walk has found.
///
/// Paths are written `queue.max_wait`, `app[0].name`, `limits.model.a/b`.
#[derive(Default)]
pub(super) struct Check {
    /// Where the values come from that are not the file's.
    pub(super) given: BTreeMap<String, Origin>,
    /// Where each value comes from.
    pub(super) origins: BTreeMap<String, Origin>,
    /// The paths of values that are wrong or missing.
    pub(super) refused: BTreeSet<String>,
    pub(super) faults: Vec<Fault>,
}

/// Where a value stands.
#[derive(Clone)]
struct Place<'t> {
    name: &'t str,
    path: String,
    /// The header that the value has if it is a table.
    header: String,
    /// The schema of the table around it.
    table: &'static Value,
    schema: &'static Value,
}

impl Check {
    /// Checks the whole tree. What is wrong is left out of the result.
    pub(super) fn tree(&mut self, tree: &DeTable<'_>) -> Value {
        self.table(tree, "", "", schema())
    }

    fn table(&mut self, entries: &DeTable<'_>, path: &str, header: &str, table: &'static Value) -> Value {
        let (mut read, mut misspelled) = (Map::new(), Vec::new());
        for (key, value) in entries {
            let name = key.get_ref().as_ref();
            let path = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
            // toml's parser puts an empty value where it found none.
            if value.span().is_empty() && !value.get_ref().is_table() && !self.given.contains_key(&path) {
                continue;
            }
            let Some(schema) = under(table, name) else {
                self.refuse(path, Origin::File(key.span()), unknown(name, value.get_ref(), header, table));
                misspelled.push(name);
                continue;
            };
            let header = match header.trim_matches(['[', ']']) {
                _ if properties(&schema["items"]).is_some() => format!("[[{name}]]"),
                "" => format!("[{name}]"),
                outer if properties(table).is_none() => format!("[{outer}.{}]", quoted(name)),
                outer => format!("[{outer}.{name}]"),
            };
            if let Some(value) = self.value(&Place { name, path, header, table, schema }, value) {
                read.insert(name.to_owned(), value);
            }
        }
        for key in table["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            let is_misspelled = misspelled.iter().any(|name| near(name, [key]).is_some());
            if !is_misspelled && !entries.keys().any(|name| name.get_ref() == key) {
                let example = under(table, key).and_then(example).unwrap_or_default();
                let origin = self.origins.get(path).cloned().unwrap_or(Origin::Whole);
                self.refuse(
                    format!("{path}.{key}"),
                    origin,
                    (format!("`{key}` is missing in {header}"), format!("such as {key} = {example}")),
                );
            }
        }
        Value::Object(read)
    }

    fn value(&mut self, place: &Place<'_>, value: &Spanned<DeValue<'_>>) -> Option<Value> {
        let origin = self.origin(&place.path, value);
        self.origins.insert(place.path.clone(), origin.clone());
        match (value.get_ref(), place.schema["type"].as_str()) {
            (DeValue::Table(entries), Some("object")) => Some(self.table(entries, &place.path, &place.header, place.schema)),
            (DeValue::Array(items), Some("array")) => Some(self.list(place, items, origin)),
            (value, _) => match scalar(place, value) {
                Ok(value) => Some(value),
                Err(Wrong { message, help }) => {
                    let message = format!("`{}`: {message}", place.name);
                    self.refuse(place.path.clone(), origin, Wrong { message, help });
                    None
                }
            },
        }
    }

    fn list(&mut self, place: &Place<'_>, items: &DeArray<'_>, origin: Origin) -> Value {
        let (mut read, is_set) = (Vec::new(), place.schema["uniqueItems"] == true);
        for (index, item) in items.iter().enumerate() {
            let place = Place { path: format!("{}[{index}]", place.path), schema: &place.schema["items"], ..place.clone() };
            let Some(value) = self.value(&place, item) else { continue };
            if is_set && read.contains(&value) {
                self.refuse(place.path, Origin::File(item.span()), format!("`{}`: listed twice", place.name));
            } else {
                read.push(value);
            }
        }
        if items.is_empty() && place.schema["minItems"] == 1 {
            self.refuse(place.path.clone(), origin, format!("`{}` is empty", place.name));
        }
        Value::Array(read)
    }

    fn refuse(&mut self, path: String, origin: Origin, wrong: impl Into<Wrong>) {
        self.refused.insert(path);
        self.faults.push(Fault::new(origin, wrong));
    }

    fn origin(&self, path: &str, value: &Spanned<DeValue<'_>>) -> Origin {
        let given = self.given.get(path).or_else(|| {
            // A variable has made the table.
            let inside = |given: &str| given.strip_prefix(path).is_some_and(|rest| rest.starts_with('.'));
            self.given.iter().find(|(given, _)| value.span().is_empty() && inside(given)).map(|(_, origin)| origin)
        });
        given.cloned().unwrap_or_else(|| Origin::File(value.span()))
    }
}

/// A key or table that does not exist.
fn unknown(name: &str, value: &DeValue<'_>, header: &str, table: &Value) -> Wrong {
    let is_table = value.is_table();
    let is_list = value.as_array().is_some_and(|items| items.iter().any(|item| item.get_ref().is_table()));
    if !header.is_empty() {
        let known: Vec<_> = properties(table).into_iter().flatten().map(|(known, _)| known.as_str()).collect();
        let help = hints::unknown_key(name, header, &known, is_table);
        return Wrong { message: format!("unknown key `{name}` in {header}"), help };
    }
    let message = match (is_table, is_list) {
        (true, _) => format!("unknown table [{name}]"),
        (_, true) => format!("unknown table [[{name}]]"),
        _ => format!("unknown key `{name}` outside of every table"),
    };
    Wrong { message, help: hints::unknown_table(name, is_table || is_list) }
}

/// A value that is neither a table nor a list.
fn scalar(place: &Place<'_>, value: &DeValue<'_>) -> Result<Value, Wrong> {
    let schema = place.schema;
    let (words, kind) = (choices(schema), schema["type"].as_str().unwrap_or_default());
    match value {
        DeValue::String(text) if words.contains(&text.as_ref()) => Ok(text.as_ref().into()),
        DeValue::String(text) if !words.is_empty() => {
            let near = near(text, words).map(|word| format!("did you mean {}?", quoted(word)));
            Err((format!("{} is not known here", quoted(text)), near.unwrap_or_else(|| format!("one of {}", expected(schema))))
                .into())
        }
        DeValue::String(text) if kind == "string" => {
            formats::check(schema["title"].as_str(), text).map(|()| text.as_ref().into())
        }
        DeValue::Boolean(flag) if kind == "boolean" => Ok((*flag).into()),
        DeValue::Integer(n) if kind == "integer" || kind == "number" => {
            let n = i128::from_str_radix(n.as_str(), n.radix()).map_err(|_| mismatch(place, value))?;
            in_range(schema, n as f64, &n.to_string())?;
            i64::try_from(n).map(Value::from).map_err(|_| mismatch(place, value))
        }
        DeValue::Float(n) if kind == "number" => {
            let float = n.as_str().parse().map_err(|_| mismatch(place, value))?;
            in_range(schema, float, n.as_str())?;
            Number::from_f64(float).map(Value::Number).ok_or_else(|| mismatch(place, value))
        }
        _ => Err(mismatch(place, value)),
    }
}

fn in_range(schema: &Value, n: f64, shown: &str) -> Result<(), Wrong> {
    let bound = |key: &str| schema[key].as_f64();
    if let Some(least) = bound("minimum").filter(|least| n < *least) {
        let no_limit = schema["type"] == "integer" && least == 1.0 && schema["default"].is_null();
        let help = schema["x-too-small"].as_str().or(no_limit.then_some("leave the key out where there is no such limit"));
        return Err(Wrong { message: format!("{shown} is too small: at least {least}"), help: help.map(str::to_owned) });
    }
    if let Some(least) = bound("exclusiveMinimum").filter(|least| n <= *least) {
        return Err(format!("{shown} is too small: more than {least}").into());
    }
    let Some(most) = bound("maximum").filter(|most| n > *most) else { return Ok(()) };
    let help = (n <= 100.0 && most <= 1.0).then(|| format!("a share: {n} % is {}", n / 100.0));
    Err(Wrong { message: format!("{shown} is too large: at most {most}"), help })
}

/// A value of a kind that the key does not take.
fn mismatch(place: &Place<'_>, value: &DeValue<'_>) -> Wrong {
    let schema = place.schema;
    if let (DeValue::Integer(n), Some(unit)) = (value, schema["x-unit"].as_str()) {
        return (format!("{} with its unit was expected, not {n}", expected(schema)), format!("write \"{n}{unit}\"")).into();
    }
    let is_table =
        [schema, &schema["items"], &schema["additionalProperties"]].into_iter().any(|inner| properties(inner).is_some());
    let is_key_of_model =
        properties(place.table).is_none() && properties(schema).is_some_and(|keys| keys.contains_key(place.name));
    let help = match (is_key_of_model, is_table) {
        (true, _) => Some(format!("write it in [limits.model.{}], or in [limits.default] for every model", quoted(MODEL))),
        (_, true) => Some(format!("write {} on a line of its own, its keys below", place.header)),
        _ => example(schema).map(|example| format!("for example {example}")),
    };
    Wrong { message: format!("{} was expected, not {}", expected(schema), found(value)), help }
}

fn found(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(n) if i64::from_str_radix(n.as_str(), n.radix()).is_err() => "so large a number",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(n) if n.as_str().ends_with(|c: char| !c.is_ascii_digit()) => "such a number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
