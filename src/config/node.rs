//! One value of the file's tree beside its schema, and what is wrong with it in words.

use std::{collections::BTreeMap, ops::Range};

use serde_json::Value;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    faults::{near, quoted},
    hints,
    schema::{MODEL, choices, example, expected, properties, schema, under},
};

/// One value of the tree.
pub(super) struct Node<'t> {
    name: &'t str,
    key: Range<usize>,
    pub(super) span: Range<usize>,
    value: &'t DeValue<'t>,
    /// The header of the table that it stands in; empty for the root.
    header: String,
    /// The header that it has if it is a table.
    own: String,
    /// The schema of that table.
    table: &'static Value,
    /// The schema of the value; `None`: there is no such key.
    pub(super) schema: Option<&'static Value>,
}

impl<'t> Node<'t> {
    /// Every value of a tree by its path.
    pub(super) fn all(tree: &'t DeTable<'t>) -> BTreeMap<String, Self> {
        let mut nodes = BTreeMap::new();
        Self::table(tree, "", "", schema(), &mut nodes);
        nodes
    }

    fn table(entries: &'t DeTable<'t>, path: &str, header: &str, table: &'static Value, nodes: &mut BTreeMap<String, Self>) {
        for (key, value) in entries {
            let name = key.get_ref().as_ref();
            let schema = under(table, name);
            let path = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
            let own = match header.trim_matches(['[', ']']) {
                _ if schema.is_some_and(|schema| properties(&schema["items"]).is_some()) => format!("[[{name}]]"),
                "" => format!("[{name}]"),
                outer if properties(table).is_none() => format!("[{outer}.{}]", quoted(name)),
                outer => format!("[{outer}.{name}]"),
            };
            let node = |key, value: &'t Spanned<DeValue<'t>>, table, schema| {
                let (span, value, header, own) = (value.span(), value.get_ref(), header.to_owned(), own.clone());
                Self { name, key, span, value, header, own, table, schema }
            };
            nodes.insert(path.clone(), node(key.span(), value, table, schema));
            match (schema, value.get_ref()) {
                (Some(schema), DeValue::Table(inner)) => Self::table(inner, &path, &own, schema, nodes),
                (Some(schema), DeValue::Array(items)) => {
                    for (index, item) in items.iter().enumerate() {
                        let path = format!("{path}[{index}]");
                        nodes.insert(path.clone(), node(item.span(), item, schema, Some(&schema["items"])));
                        if let DeValue::Table(inner) = item.get_ref() {
                            Self::table(inner, &path, &own, &schema["items"], nodes);
                        }
                    }
                }
                _ => {}
            }
        }
    }

    /// Whether a list stands where a table belongs.
    pub(super) fn is_list_for_table(&self) -> bool {
        matches!(self.value, DeValue::Array(_)) && self.schema.is_some_and(|schema| properties(schema).is_some())
    }

    /// What a caret should point at.
    pub(super) fn place(&self) -> Range<usize> {
        if self.schema.is_none() { self.key.clone() } else { self.span.clone() }
    }

    /// What is wrong, and what to do. `said` is serde's or garde's message: ours have a line break in them, others are used
    /// where the schema tells no more.
    pub(super) fn describe(&self, said: &str) -> (String, Option<String>) {
        let Some(schema) = self.schema else { return self.unknown() };
        let (message, help) = match said.split_once('\n') {
            Some((message, help)) => (message.to_owned(), (!help.is_empty()).then(|| help.to_owned())),
            None => self.out_of_range(schema).unwrap_or_else(|| self.mismatch(schema, said)),
        };
        (format!("`{}`: {message}", self.name), help)
    }

    fn unknown(&self) -> (String, Option<String>) {
        let name = self.name;
        let is_table = self.value.is_table();
        let is_list = self.value.as_array().is_some_and(|items| items.iter().any(|item| item.get_ref().is_table()));
        if !self.header.is_empty() {
            let known: Vec<_> = properties(self.table).into_iter().flatten().map(|(known, _)| known.as_str()).collect();
            let help = hints::unknown_key(name, &self.header, &known, is_table);
            return (format!("unknown key `{name}` in {}", self.header), help);
        }
        let what = match (is_table, is_list) {
            (true, _) => format!("unknown table [{name}]"),
            (_, true) => format!("unknown table [[{name}]]"),
            _ => format!("unknown key `{name}` outside of every table"),
        };
        (what, hints::unknown_table(name, is_table || is_list))
    }

    /// A number that is too small or too large.
    fn out_of_range(&self, schema: &Value) -> Option<(String, Option<String>)> {
        let (n, shown): (f64, _) = match self.value {
            DeValue::Integer(n) => {
                let n = i128::from_str_radix(n.as_str(), n.radix()).ok()?;
                (n as f64, n.to_string())
            }
            DeValue::Float(n) => (n.as_str().parse().ok()?, n.to_string()),
            _ => return None,
        };
        let bound = |key: &str| schema[key].as_f64();
        if let Some(least) = bound("minimum").filter(|least| n < *least) {
            return Some((format!("{shown} is too small: at least {least}"), schema["x-too-small"].as_str().map(str::to_owned)));
        }
        if let Some(least) = bound("exclusiveMinimum").filter(|least| n <= *least) {
            return Some((format!("{shown} is too small: more than {least}"), None));
        }
        let most = bound("maximum").filter(|most| n > *most)?;
        let help = (n <= 100.0 && most <= 1.0).then(|| format!("a share: {n} % is {}", n / 100.0));
        Some((format!("{shown} is too large: at most {most}"), help))
    }

    /// A value of a kind that the key does not take.
    fn mismatch(&self, schema: &'static Value, said: &str) -> (String, Option<String>) {
        let words = choices(schema);
        match (self.value, schema["x-unit"].as_str()) {
            (DeValue::String(text), _) if !words.is_empty() => {
                let near = near(text, words.iter().copied()).map(|word| format!("did you mean {}?", quoted(word)));
                let help = near.unwrap_or_else(|| format!("one of {}", expected(schema)));
                return (format!("{} is not known here", quoted(text)), Some(help));
            }
            (DeValue::String(_), _) if schema["type"] == "string" => return (said.to_owned(), None),
            (DeValue::Integer(n), Some(unit)) => {
                let message = format!("{} with its unit was expected, not {n}", expected(schema));
                return (message, Some(format!("write \"{n}{unit}\"")));
            }
            _ => {}
        }
        let is_table =
            [schema, &schema["items"], &schema["additionalProperties"]].into_iter().any(|inner| properties(inner).is_some());
        let is_key_of_model =
            properties(self.table).is_none() && properties(schema).is_some_and(|keys| keys.contains_key(self.name));
        let help = match (is_key_of_model, is_table) {
            (true, _) => Some(format!("write it in [limits.model.{}], or in [limits.default] for every model", quoted(MODEL))),
            (_, true) => Some(format!("write {} on a line of its own, its keys below", self.own)),
            _ => example(schema).map(|example| format!("for example {example}")),
        };
        (format!("{} was expected, not {}", expected(schema), found(self.value)), help)
    }
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
