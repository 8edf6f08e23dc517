//! The JSON schema of the configuration file, for editors and for everything here that has to know which keys there are.

use std::sync::LazyLock;

use schemars::{
    generate::SchemaSettings,
    transform::{Transform, transform_subschemas},
};
use serde_json::Value;

use super::{
    settings::Settings,
    text::{quoted, toml_value},
};

/// The model in the headers of examples: `[limits.model."…"]`.
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

/// Removes what TOML does not have: `null`, and defaults that are not set.
#[derive(Clone)]
struct Toml;

impl Transform for Toml {
    fn transform(&mut self, schema: &mut schemars::Schema) {
        let Some(object) = schema.as_object_mut() else { return };
        if let Some(Value::Array(types)) = object.get("type") {
            let kind = types[0].clone();
            object.insert("type".into(), kind);
        }
        // A table's defaults are those of its keys.
        if object.get("default").is_some_and(|value| value.is_object() || toml_value(value).is_none_or(|text| text == "\"\"")) {
            object.shift_remove("default");
        }
        // How a number is stored, not which are valid.
        object.shift_remove("format");
        transform_subschemas(self, schema);
    }
}

/// One table of the file.
pub(super) struct Table {
    /// `limits.model`
    pub(super) path: String,
    /// As it is in the file, with brackets: `[queue]`, `[[app]]`, `[limits.model."…"]`.
    pub(super) header: String,
    pub(super) description: &'static str,
    /// Whether there is one, and not one for each app or model.
    pub(super) is_single: bool,
    pub(super) has_required_keys: bool,
    pub(super) keys: Vec<(&'static str, &'static Value)>,
}

impl Table {
    /// Its keys, except for `limits.model`, whose keys are those of `limits.default`.
    pub(super) fn documented_keys(&self) -> &[(&'static str, &'static Value)] {
        if self.path == "limits.model" { &[] } else { &self.keys }
    }

    /// The variable that sets this key of a single table: `GROQ_SHIELD_QUEUE_MAX_WAIT`.
    pub(super) fn variable(&self, key: &str) -> String {
        format!("GROQ_SHIELD_{}_{key}", self.path.replace('.', "_")).to_uppercase()
    }
}

/// All tables, in the order of the example file.
pub(super) fn tables() -> &'static [Table] {
    static TABLES: LazyLock<Vec<Table>> = LazyLock::new(|| {
        let mut tables = Vec::new();
        collect("", schema(), &mut tables);
        tables
    });
    &TABLES
}

/// Adds the tables inside this one, each with its keys that are not tables.
fn collect(outer: &str, schema: &'static Value, tables: &mut Vec<Table>) {
    for (name, schema) in keys(schema) {
        let Some(element) = element(schema) else { continue };
        let path = if outer.is_empty() { name.to_owned() } else { format!("{outer}.{name}") };
        tables.push(Table {
            header: match &schema["type"] {
                _ if std::ptr::eq(element, schema) => format!("[{path}]"),
                kind if kind == "array" => format!("[[{path}]]"),
                _ => format!("[{path}.{}]", quoted(MODEL)),
            },
            path: path.clone(),
            description: description(schema),
            is_single: std::ptr::eq(element, schema),
            has_required_keys: element.get("required").is_some(),
            keys: keys(element).filter(|(_, schema)| self::element(schema).is_none()).collect(),
        });
        collect(&path, element, tables);
    }
}

/// The schema of one table, for a key that holds a table, a list of tables, or tables by name.
pub(super) fn element(schema: &Value) -> Option<&Value> {
    [schema, &schema["items"], &schema["additionalProperties"]].into_iter().find(|element| element["properties"].is_object())
}

/// A table's keys and the tables inside it.
pub(super) fn keys(schema: &Value) -> impl Iterator<Item = (&str, &Value)> {
    schema["properties"].as_object().into_iter().flatten().map(|(name, schema)| (name.as_str(), schema))
}

/// The schema of this key of a table.
pub(super) fn under<'a>(schema: &'a Value, key: &str) -> Option<&'a Value> {
    schema["properties"].get(key).or_else(|| schema.get("additionalProperties").filter(|inner| inner.is_object()))
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
    if let [head @ .., last] = choices(schema).as_slice() {
        return format!("{} or {}", head.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(", "), quoted(last));
    }
    if let Some(title) = schema["title"].as_str() {
        return title.to_owned();
    }
    let range = match ["minimum", "maximum", "exclusiveMinimum"].map(|bound| schema[bound].as_f64()) {
        [Some(least), Some(most), _] => format!(" from {least} to {most}"),
        [Some(least), ..] => format!(" of at least {least}"),
        [.., Some(least)] => format!(" over {least}"),
        _ => String::new(),
    };
    match schema["type"].as_str() {
        Some("boolean") => "true or false".into(),
        Some("integer") => format!("a whole number{range}"),
        Some("number") => format!("a number{range}"),
        Some("array") if element(schema).is_some() => "a list of tables".into(),
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
    toml_value(&schema["examples"][0]).or_else(|| default(schema))
}
