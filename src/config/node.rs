//! One value of the file's tree beside its schema, and what is wrong with it in words.

use std::{collections::BTreeMap, ops::Range};

use serde_json::Value;
use toml::de::{DeArray, DeTable, DeValue};

use super::{
    faults::{near, quoted},
    hints,
    schema::{choices, example, expected, properties, schema, under},
};

/// One value of the tree.
pub(super) struct Node<'t> {
    name: &'t str,
    key: Range<usize>,
    pub(super) span: Range<usize>,
    value: &'t DeValue<'t>,
    /// The header of the table that it stands in; empty for the root.
    header: String,
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
            if let Some(schema) = schema {
                match value.get_ref() {
                    DeValue::Table(inner) => {
                        let is_named = properties(table).is_none();
                        let word = if is_named { quoted(name) } else { name.to_owned() };
                        let outer = header.trim_matches(['[', ']']);
                        let header = if outer.is_empty() { format!("[{word}]") } else { format!("[{outer}.{word}]") };
                        Self::table(inner, &path, &header, schema, nodes);
                    }
                    DeValue::Array(items) => Self::items(items, name, &path, header, schema, nodes),
                    _ => {}
                }
            }
            let node =
                Self { name, key: key.span(), span: value.span(), value: value.get_ref(), header: header.into(), table, schema };
            nodes.insert(path, node);
        }
    }

    fn items(
        items: &'t DeArray<'t>,
        name: &'t str,
        path: &str,
        header: &str,
        schema: &'static Value,
        nodes: &mut BTreeMap<String, Self>,
    ) {
        let element = &schema["items"];
        for (index, item) in items.iter().enumerate() {
            let path = format!("{path}[{index}]");
            if let DeValue::Table(inner) = item.get_ref() {
                Self::table(inner, &path, &format!("[[{name}]]"), element, nodes);
            }
            let span = item.span();
            let (value, table, header) = (item.get_ref(), schema, header.to_owned());
            let node = Self { name, key: span.clone(), span, value, header, table, schema: Some(element) };
            nodes.insert(path, node);
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
        let name = self.name;
        let (message, help) = match said.split_once('\n') {
            Some((message, help)) => (message.to_owned(), (!help.is_empty()).then(|| help.to_owned())),
            None => match self.not_a_table(schema) {
                Some(fault) => return fault,
                None => self.mismatch(schema).unwrap_or_else(|| (said.to_owned(), None)),
            },
        };
        (format!("`{name}`: {message}"), help)
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

    /// A key that should be a table, or should not.
    fn not_a_table(&self, schema: &'static Value) -> Option<(String, Option<String>)> {
        let name = self.name;
        let fault = |message: String, help: String| Some((message, Some(help)));
        if properties(&schema["items"]).is_some() || self.table["items"] == *schema && properties(schema).is_some() {
            return fault(format!("`{name}` is a list of tables"), format!("write [[{name}]], once for each"));
        }
        let is_named = properties(self.table).is_none();
        if is_named && !self.value.is_table() && properties(schema).is_some_and(|known| known.contains_key(name)) {
            let help = "write [limits.model.\"openai/gpt-oss-20b\"], or [limits.default] for every model";
            return fault(format!("`{name}` stands for no model"), help.into());
        }
        let names = properties(&schema["additionalProperties"]).is_some();
        if self.value.is_table() || (properties(schema).is_none() && !names) {
            return None;
        }
        let outer = self.header.trim_matches(['[', ']']);
        let dot = if outer.is_empty() { "" } else { "." };
        let header = format!("[{outer}{dot}{name}{}]", if names { ".\"…\"" } else { "" });
        match self.value {
            DeValue::Array(_) => fault(format!("{header} stands once"), format!("write {header}")),
            _ => fault(format!("{header} is a table"), format!("write {header} on a line of its own, its keys below")),
        }
    }

    /// A value that the schema does not allow.
    fn mismatch(&self, schema: &'static Value) -> Option<(String, Option<String>)> {
        let words = choices(schema);
        if let (DeValue::String(text), false) = (self.value, words.is_empty()) {
            let help = match near(text, words.iter().copied()) {
                Some(word) => format!("did you mean {}?", quoted(word)),
                None => format!("one of {}", expected(schema)),
            };
            return Some((format!("{} is not known here", quoted(text)), Some(help)));
        }
        let number = number(self.value);
        if let (Some(n), "integer" | "number") = (&number, schema["type"].as_str().unwrap_or_default()) {
            return out_of_range(self.value, *n, schema);
        }
        let help = example(schema).map(|example| format!("for example {example}"));
        Some((format!("{} was expected, not {}", expected(schema), found(self.value)), help))
    }
}

fn out_of_range(value: &DeValue<'_>, n: f64, schema: &Value) -> Option<(String, Option<String>)> {
    let shown = match value {
        DeValue::Integer(integer) => i128::from_str_radix(integer.as_str(), integer.radix()).ok()?.to_string(),
        _ => n.to_string(),
    };
    let (least, most) = (&schema["minimum"], &schema["maximum"]);
    if schema["type"] == "number" {
        return match (least.as_f64(), most.as_f64()) {
            (Some(least), Some(most)) => {
                let share = n > 1.0 && n <= 100.0 && most <= 1.0;
                let help = share.then(|| format!("a share: {n} % is {}", n / 100.0));
                Some((format!("{shown} is out of range: {least} to {most}"), help))
            }
            _ => Some((format!("{shown} is out of range: more than 0"), None)),
        };
    }
    if !matches!(value, DeValue::Integer(_)) {
        return Some((
            format!("{} was expected, not a number", expected(schema)),
            example(schema).map(|example| format!("for example {example}")),
        ));
    }
    if n < least.as_f64().unwrap_or_default() {
        return Some((format!("{shown} is too small: at least {least}"), schema["x-too-small"].as_str().map(str::to_owned)));
    }
    Some((format!("{shown} is too large: at most {most}"), None))
}

fn number(value: &DeValue<'_>) -> Option<f64> {
    match value {
        DeValue::Integer(n) => i128::from_str_radix(n.as_str(), n.radix()).ok().map(|n| n as f64),
        DeValue::Float(n) => n.as_str().parse().ok(),
        _ => None,
    }
}

fn found(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(n) if i64::from_str_radix(n.as_str(), n.radix()).is_err() => "so large a number",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
