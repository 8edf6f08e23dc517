//! `config/groq-shield.toml` and the documentation's tables of keys, from the schema.

use super::schema::{default, description, example, expected, tables};

const HEAD: &str = "\
#:schema ./groq-shield.schema.json
# groq-shield's configuration: every key at its default, commented.
#
# Looked for as ./groq-shield.toml, then /etc/groq-shield/groq-shield.toml, or named by --config or GROQ_SHIELD_CONFIG.
# Flags and variables win over the file: queue.max_wait is GROQ_SHIELD_QUEUE_MAX_WAIT.
# Times are written \"250ms\" \"30s\" \"2m\" \"1h\", sizes \"64KiB\" \"100MiB\". `groq-shield check` reports every fault at once.
# Lines that start with `#key` are defaults; `# for example` shows keys without one.
# Tables marked \"live\" take effect on SIGHUP or as soon as the file changes; the others with a restart.
";

/// The example file.
pub fn file() -> String {
    let mut out = HEAD.to_owned();
    for table in tables() {
        let stands = table.is_single && !table.has_required_keys;
        out += &format!("\n# {}\n{}{}\n", table.description, if stands { "" } else { "# for example " }, table.header);
        for (key, schema) in table.documented_keys() {
            out += &format!("# {}\n", description(schema));
            out += &match default(schema).filter(|_| stands) {
                Some(value) => format!("#{key} = {value}\n"),
                None => format!("# for example {key} = {}\n", example(schema).unwrap_or_default()),
            };
        }
    }
    out
}

/// Every table and its keys in Markdown, for `docs/configuration.md`.
pub fn markdown() -> String {
    let mut out = String::new();
    for table in tables() {
        out += &format!("\n### `{}`\n\n{}\n", table.header, table.description);
        for (index, (key, schema)) in table.documented_keys().iter().enumerate() {
            out += if index == 0 { "\n| key | accepts | default | |\n|---|---|---|---|\n" } else { "" };
            let default = default(schema).map_or_else(|| "–".to_owned(), |value| format!("`{value}`"));
            out += &format!("| `{key}` | {} | {default} | {} |\n", expected(schema), description(schema));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::config::{effective, schema::schema, settings::Settings, source::read as read_document, tests::every_key};

    const MARK: &str = "<!-- generated from src/config/settings.rs: `just config` -->";

    const FILE: &str = include_str!("../../config/groq-shield.toml");

    /// Settings that are read without faults, and how many keys the text sets.
    fn read(text: &str) -> (Settings, usize) {
        let (settings, document) = read_document(text, &[]);
        let entries = effective::entries(&settings);
        let set = entries.iter().filter(|entry| document.is_set(&entry.path)).count();
        let mut faults = document.into_faults();
        faults.retain(|fault| !fault.message.contains("is built without"));
        assert_eq!(faults, [], "{text}");
        (settings, set)
    }

    /// With UPDATE_CONFIG set, writes them.
    #[test]
    fn generated_files_are_what_the_structs_say() {
        let path = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
        let docs = fs::read_to_string(path("docs/configuration.md")).expect("the documentation");
        let (head, _) = docs.split_once(MARK).expect("the mark before the generated part");
        for (name, content) in [
            ("config/groq-shield.toml", file()),
            ("config/groq-shield.schema.json", format!("{:#}\n", schema())),
            ("docs/configuration.md", format!("{head}{MARK}\n{}", markdown())),
        ] {
            if std::env::var_os("UPDATE_CONFIG").is_some() {
                fs::write(path(name), &content).expect("it is written");
            }
            let found = fs::read_to_string(path(name)).unwrap_or_default();
            assert_eq!(found, content, "{name}: run `just config`");
        }
    }

    #[test]
    fn commented_and_uncommented_it_holds_the_defaults() {
        assert_eq!(read(FILE).0, Settings::default());
        let text = FILE.lines().map(|line| line.strip_prefix('#').filter(|key| !key.starts_with([' ', ':'])).unwrap_or(line));
        let (settings, set) = read(&text.collect::<Vec<_>>().join("\n"));
        assert_eq!(settings, Settings::default());
        let entries = effective::entries(&Settings::default());
        assert_eq!(set, entries.iter().filter(|entry| entry.value.is_some()).count());
    }

    #[test]
    fn its_examples_read_too_and_no_key_is_missing() {
        let (_, set) = read(&every_key());
        let keys: usize = tables().iter().map(|table| table.documented_keys().len()).sum();
        assert_eq!(set, keys);
    }

    #[test]
    fn every_key_has_a_description() {
        for table in tables() {
            assert!(!table.description.is_empty(), "{}", table.path);
            for (key, schema) in &table.keys {
                let text = description(schema);
                assert!(text.len() > 2 && !text.contains('\n'), "{}.{key}: one line", table.path);
                assert!(default(schema).or_else(|| example(schema)).is_some(), "{}.{key}: no example", table.path);
            }
        }
    }

    #[test]
    fn the_documentation_has_a_row_for_every_key() {
        let text = markdown();
        for row in [
            "| `listen` | an IP address with its port | `\"127.0.0.1:8787\"` |",
            "| `weight` | a number over 0 | `1.0` |",
            "| `threads` | a whole number from 1 to 1024 | – |",
            "| `stream_keepalive` | a time with its unit, 100ms to 24h, or \"off\" | `\"off\"` |",
            "| `api_key_env` | a list, each the name of an environment variable | – |",
        ] {
            assert!(text.contains(row), "{row}\n{text}");
        }
    }
}
