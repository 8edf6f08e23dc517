//! How to mend a fault: suggestions for keys that do not exist, values that are refused, and text that is not TOML.

use serde_json::Value;
use toml::de::{DeValue, Error};

use super::{
    schema::{MODEL, Table, choices, default, element, example, keys, tables},
    text::{around, near, quoted},
};

/// What is wrong with a text that is not TOML, and how to mend it.
pub(super) fn syntax(error: &Error) -> (&str, &'static str) {
    let message = error.message();
    let quote = "text stands in quotes, as in \"50s\"; flags are true or false";
    let close = "separate items with commas, and close every bracket";
    let about = message.split(',').next().unwrap_or_default();
    match about {
        // The parser guesses what was meant, and takes a missing value for text without quotes.
        "string values must be quoted" | "invalid boolean" | "invalid float" => {
            let is_missing = error.span().is_some_and(|span| span.is_empty());
            (if is_missing { "the value is missing" } else { "not a value" }, quote)
        }
        "duplicate key" => (message, "each key and table stands once: put everything under the first"),
        "invalid basic string" | "invalid literal string" => (message, "close the text with a quote"),
        "invalid unquoted key" => (message, "put quotes around a name such as [limits.model.\"openai/gpt-oss-20b\"]"),
        "key with no value" => (message, "write `=` before a value, as in max_wait = \"50s\""),
        about if about.starts_with("unclosed") || about.starts_with("missing comma") => (message, close),
        _ => (message, ""),
    }
}

/// How to mend the value of the key at this path.
pub(super) fn wrong(path: &str, value: &DeValue<'_>, schema: &Value) -> String {
    let (words, kind) = (choices(schema), schema["type"].as_str().unwrap_or_default());
    if let Some(word) = value.as_str().and_then(|text| near(text, words.iter().copied())) {
        return format!("did you mean {}?", quoted(word));
    }
    if let Some(help) = schema["x-help"].as_str().filter(|_| (kind == "string") == value.is_str()) {
        return help.to_owned();
    }
    if element(schema).is_some() {
        let table = around(path).find_map(|path| tables().iter().find(|table| table.path == path));
        return table.map(|table| format!("write {} on a line of its own, its keys below", table.header)).unwrap_or_default();
    }
    let unset = if default(schema).is_none() && matches!(kind, "integer" | "number") { ", or leave the key out" } else { "" };
    let example = example(schema).filter(|_| words.is_empty() && kind != "boolean");
    example.map(|example| format!("for example {example}{unset}")).unwrap_or_default()
}

/// How to mend a key or table of this name and path that its table does not have.
pub(super) fn unknown(name: &str, path: &str, holds_keys: bool, table: &'static Value) -> String {
    let known = || keys(table).map(|(key, _)| key);
    let lower = name.to_lowercase();
    if ["api_key", "apikey", "groq_api_key", "token"].contains(&lower.as_str()) {
        let env = known().find(|key| key.ends_with("_env")).unwrap_or("upstream.api_key_env");
        return format!("keys do not belong in the file: `{env}` names the environment variable with it");
    }
    // Names of our keys in other programs.
    let key = match lower.as_str() {
        "addr" | "address" | "bind" | "host" | "listen_addr" | "listen_address" | "port" => "listen",
        "max_attempts" | "max_retries" => "attempts",
        "rpm" => "requests_per_minute",
        "rpd" => "requests_per_day",
        "tpm" => "tokens_per_minute",
        "tpd" => "tokens_per_day",
        "timeout" => "response_timeout",
        "url" => "base_url",
        _ => name,
    };
    let has_key = |table: &&Table| table.keys.iter().any(|(known, _)| *known == key);
    let homes: Vec<_> = tables().iter().filter(has_key).map(|table| table.header.replace(MODEL, "…")).collect();
    let elsewhere = tables().iter().find(|table| table.path.ends_with(&format!(".{name}")));
    let is_here = known().any(|known| known == key);
    match near(key, known()) {
        Some(near) if is_here || homes.is_empty() => {
            let path = format!("{}{near}", path.strip_suffix(name).unwrap_or_default());
            let header = tables().iter().find(|table| table.path == path).map(|table| table.header.clone());
            format!("did you mean {}?", header.unwrap_or_else(|| format!("`{near}`")))
        }
        _ if !homes.is_empty() => format!("`{key}` belongs in {}", homes.join(" or ")),
        // A model's name straight under [limits], or with a dot and without its quotes.
        _ if holds_keys && path.starts_with("limits.") => {
            let model = path.trim_start_matches("limits.").trim_start_matches("model.");
            format!("write [limits.model.{}]", quoted(model))
        }
        _ => elsewhere.map(|table| format!("did you mean {}?", table.header)).unwrap_or_default(),
    }
}

/// How to mend a variable that is none of these.
pub(super) fn variable(name: &str, known: &[String]) -> String {
    let below: Vec<_> = known.iter().filter(|key| key.strip_prefix(name).is_some_and(|key| key.starts_with('_'))).collect();
    if !below.is_empty() {
        let below = below.into_iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        return format!("a table is set by its keys: {below}");
    }
    let near = near(name, known.iter().map(String::as_str)).map(|near| format!("did you mean {near}?"));
    near.unwrap_or_else(|| {
        "variables are named GROQ_SHIELD_TABLE_KEY; models, organizations and apps can only be set in the file".into()
    })
}

#[cfg(test)]
mod tests {
    use crate::config::{faults::Faults, source::read};

    /// What newcomers write, and what the help must say.
    #[test]
    fn the_usual_mistakes_of_newcomers_are_put_right() {
        for (text, remedy) in [
            ("listen = \"127.0.0.1:8787\"\n", "`listen` belongs in [server] or [admin]"),
            ("[server]\nport = 8787\n", "did you mean `listen`?"),
            ("[server]\nlisten_addr = \"127.0.0.1:8787\"\n", "did you mean `listen`?"),
            ("[server]\nlisten = \"8787\"\n", "for example \"127.0.0.1:8787\""),
            ("[upstream]\nbase_url = \"https://api.groq.com/openai/v1\"\n", "for example \"https://api.groq.com\""),
            ("[upstream]\napi_key = \"gsk_x\"\n", "`api_key_env` names the environment variable with it"),
            ("[upstream]\napi_key_env = \"$GROQ_API_KEY\"\n", "for example \"GROQ_API_KEY\""),
            ("[tls]\ncert = \"c\"\n", "did you mean [server.tls]?"),
            ("[queue]\nmax_wait = 50\n", "for example \"30s\""),
            ("[retry]\nmax_attempts = 3\n", "did you mean `attempts`?"),
            ("[limits]\nheadroom = 20\n", "20 % is 0.2"),
            ("[limits]\nrpm = 30\n", "`requests_per_minute` belongs in [limits.default]"),
            ("[limits]\ntokens_per_minute = 8000\n", "belongs in [limits.default]"),
            ("[limits.default]\ntpm = 8000\n", "did you mean `tokens_per_minute`?"),
            ("[limits.\"openai/gpt-oss-20b\"]\ntpm = 1\n", "write [limits.model.\"openai/gpt-oss-20b\"]"),
            ("[limits.model.llama-3.1-8b-instant]\n", "[limits.model.\"llama-3.1-8b-instant\"]"),
            ("[app]\nname = \"chat\"\n", "write [[app]]"),
            ("[[app]]\nname = \"chat\"\ntoken = \"x\"\n", "`token_env` names the environment variable with it"),
            ("[store]\nkind = \"redis\"\n", "such as url = \"redis://localhost:6379\""),
            ("[store]\nurl = \"localhost:6379\"\n", "for example \"redis://localhost:6379\""),
        ] {
            let (_, document) = read(text, &[]);
            let shown = Faults { name: "f".into(), text: text.into(), faults: document.into_faults() }.to_string();
            let help = shown.lines().find_map(|line| line.trim_start().strip_prefix("= help: ")).unwrap_or_default();
            assert!(help.contains(remedy), "{text}{shown}");
        }
    }
}
