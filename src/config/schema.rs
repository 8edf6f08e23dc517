//! The JSON schema of the configuration file, for editors and for everything here that has to know which keys there are.

use std::sync::LazyLock;

use schemars::{
    generate::SchemaSettings,
    transform::{Transform, transform_subschemas},
};
use serde_json::{Map, Value};

use super::{settings::Settings, text::toml_value};

/// The model that stands for all in headers: `[limits.model."…"]`.
pub(super) const MODEL: &str = "openai/gpt-oss-20b";

/// The schema: JSON Schema 2020-12, without references.
pub fn schema() -> &'static Value {
    static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
        let mut settings = SchemaSettings::draft2020_12().with_transform(Toml);
        settings.inline_subschemas = true;
        settings.into_generator().into_root_schema_for::<Settings>().to_value()
    });
    &SCHEMA
}

/// Takes out what TOML has not: `null`.
#[derive(Clone)]
struct Toml;

impl Transform for Toml {
    fn transform(&mut self, schema: &mut schemars::Schema) {
        let Some(object) = schema.as_object_mut() else { return };
        if let Some(types) = object.get_mut("type")
            && let Some([kind, null]) = types.as_array().map(Vec::as_slice)
            && null == "null"
        {
            *types = kind.clone();
        }
        let is_table = object.contains_key("properties");
        // Empty is not set, and the default of a table is those of its keys.
        let is_empty = |value: &Value| match value {
            Value::Null | Value::Object(_) => true,
            Value::String(text) => text.is_empty(),
            Value::Array(items) => items.is_empty(),
            _ => false,
        };
        object.retain(|key, value| match key.as_str() {
            "default" => !is_table && !is_empty(value),
            // How a number is kept, not what it may be.
            "format" => false,
            _ => true,
        });
        transform_subschemas(self, schema);
    }
}

/// How often a table stands in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `[queue]`
    Once,
    /// `[[app]]`
    Listed,
    /// `[limits.model."…"]`
    Named,
}

/// One table of the file.
pub(super) struct Table {
    /// `limits.model`
    pub(super) path: String,
    pub(super) kind: Kind,
    pub(super) description: &'static str,
    pub(super) has_required_keys: bool,
    pub(super) keys: Vec<(&'static str, &'static Value)>,
}

impl Table {
    /// Whether it has the keys of a table that is listed already: `limits.model` those of `limits.default`.
    pub(super) fn repeats_another(&self) -> bool {
        self.path == "limits.model"
    }

    /// As it stands in the file, brackets included.
    pub(super) fn header(&self) -> String {
        match self.kind {
            Kind::Once => format!("[{}]", self.path),
            Kind::Listed => format!("[[{}]]", self.path),
            Kind::Named => format!("[{}.\"{MODEL}\"]", self.path),
        }
    }
}

/// All tables, in the order of the example file.
pub(super) fn tables() -> &'static [Table] {
    static TABLES: LazyLock<Vec<Table>> = LazyLock::new(|| {
        let mut tables = Vec::new();
        collect("", Kind::Once, "", schema(), &mut tables);
        tables.retain(|table| !table.path.is_empty());
        tables
    });
    &TABLES
}

fn collect(path: &str, kind: Kind, about: &'static str, schema: &'static Value, tables: &mut Vec<Table>) {
    let (mut keys, mut inner) = (Vec::new(), Vec::new());
    for (name, schema) in properties(schema).into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let element = [(Kind::Once, schema), (Kind::Listed, &schema["items"]), (Kind::Named, &schema["additionalProperties"])];
        match element.into_iter().find(|(_, schema)| properties(schema).is_some()) {
            Some((kind, element)) => inner.push((path, kind, description(schema), element)),
            None => keys.push((name.as_str(), schema)),
        }
    }
    let has_required_keys = schema.get("required").is_some();
    tables.push(Table { path: path.to_owned(), kind, description: about, has_required_keys, keys });
    for (path, kind, about, schema) in inner {
        collect(&path, kind, about, schema, tables);
    }
}

/// A table's keys and the tables inside it.
pub(super) fn properties(schema: &Value) -> Option<&Map<String, Value>> {
    schema.get("properties")?.as_object()
}

/// The schema of what stands under this key of a table.
pub(super) fn under<'a>(schema: &'a Value, key: &str) -> Option<&'a Value> {
    let known = properties(schema).and_then(|properties| properties.get(key));
    known.or_else(|| schema.get("additionalProperties").filter(|inner| inner.is_object()))
}

/// A key's doc comment.
pub(super) fn description(schema: &Value) -> &str {
    schema["description"].as_str().unwrap_or_default()
}

/// The words that a key accepts, if it accepts certain words only.
pub(super) fn choices(schema: &Value) -> Vec<&str> {
    let listed = schema["enum"].as_array().into_iter().flatten();
    let documented = schema["oneOf"].as_array().into_iter().flatten().map(|choice| &choice["const"]);
    listed.chain(documented).filter_map(Value::as_str).collect()
}

/// What a key accepts, in words.
pub(super) fn expected(schema: &Value) -> String {
    let choices = choices(schema);
    if let [head @ .., last] = choices.as_slice() {
        let head: Vec<_> = head.iter().map(|word| format!("\"{word}\"")).collect();
        return format!("{} or \"{last}\"", head.join(", "));
    }
    if let Some(title) = schema["title"].as_str() {
        return title.to_owned();
    }
    match schema["type"].as_str() {
        Some("boolean") => "true or false".into(),
        Some("integer") => "a whole number".into(),
        Some("number") => match (schema["minimum"].as_f64(), schema["maximum"].as_f64()) {
            (Some(least), Some(most)) => format!("a number from {least} to {most}"),
            _ => "a number over 0".into(),
        },
        Some("array") if properties(&schema["items"]).is_some() => "a list of tables".into(),
        Some("array") => format!("a list, each {}", expected(&schema["items"])),
        Some("object") => "a table".into(),
        _ => "text".into(),
    }
}

/// A key's default as TOML; `None`: it is not set.
pub(super) fn default(schema: &Value) -> Option<String> {
    toml_value(schema.get("default")?)
}

/// A value that a key accepts, as TOML.
pub(super) fn example(schema: &Value) -> Option<String> {
    let choice = choices(schema).first().map(|choice| Value::from(*choice));
    let item = || Some(Value::Array(vec![schema["items"]["examples"].get(0)?.clone()]));
    let by_type = || match schema["type"].as_str()? {
        "boolean" => Some(Value::from(true)),
        "integer" => Some(schema.get("minimum").filter(|least| **least != 0).cloned().unwrap_or_else(|| 1.into())),
        "number" => Some(Value::from(0.1)),
        _ => None,
    };
    let example = schema["examples"].get(0).cloned().or(choice).or_else(item).or_else(by_type);
    toml_value(&example.or_else(|| schema.get("default").cloned())?)
}
