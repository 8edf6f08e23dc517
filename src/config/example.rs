//! What does the file with every key look like? `config/groq-shield.toml` and the README's table, from the list of keys.

use super::{
    Settings,
    draft::{self, Draft},
    effective,
    keys::{APP, Key, MODEL, ORGANISATION, TABLES},
};

const HEAD: &str = "\
# groq-shield's configuration: every key at its default, commented.
#
# Looked for as ./groq-shield.toml, then /etc/groq-shield/groq-shield.toml, or named by --config or GROQ_SHIELD_CONFIG.
# Flags and variables win over the file: queue.max_wait is GROQ_SHIELD_QUEUE_MAX_WAIT.
# Times are written \"250ms\" \"30s\" \"2m\" \"1h\", sizes \"64KiB\" \"100MiB\". `groq-shield check` tells every fault at once.
# Lines that start with `#key` hold defaults; `# for example` shows keys that have none.
# Tables marked \"live\" take effect on SIGHUP or as soon as the file changes; the others with a restart.
";

/// The example file.
pub fn file() -> String {
    let mut out = HEAD.to_owned();
    let mut draft = Draft::from(&Settings::default());
    for table in TABLES {
        let live = if table.live { " Live." } else { "" };
        out.push_str(&format!("\n# {}{live}\n[{}]\n", table.doc, table.name));
        lines(table.keys, &mut draft, true, &mut out);
        match table.name {
            "limits" => {
                out.push_str("\n# Every model that has no table of its own. What is not set comes from the plan, headers or refusals. Live.\n");
                out.push_str("[limits.default]\n");
                lines(MODEL, &mut Default::default(), true, &mut out);
                out.push_str("\n# One model; the same keys. Live.\n# for example [limits.model.\"openai/gpt-oss-20b\"]\n");
            }
            "upstream" => {
                out.push_str("\n# Keys that share one set of limits. An unlisted key is an organisation of its own. Live.\n");
                out.push_str("# for example [[organisation]]\n");
                lines(ORGANISATION, &mut draft::organisation(), false, &mut out);
            }
            "breaker" => {
                out.push_str(
                    "\n# An app with a share of its own. With any token listed, a request without a known one gets 401. Live.\n",
                );
                out.push_str("# for example [[app]]\n");
                lines(APP, &mut draft::app(), false, &mut out);
            }
            _ => {}
        }
    }
    out
}

/// `stands`: the table's header is no example, so that its defaults can stand alone.
fn lines<T>(keys: &[Key<T>], target: &mut T, stands: bool, out: &mut String) {
    for key in keys {
        let line = match effective::show(key, target).filter(|_| key.example.is_empty()) {
            Some(value) if stands => format!("#{} = {value}", key.name),
            Some(value) => format!("# for example {} = {value}", key.name),
            None => format!("# for example {} = {}", key.name, key.example),
        };
        out.push_str(&format!("# {}\n{line}\n", key.doc));
    }
}

/// Every key as a Markdown table: name, default, what it does.
pub fn table() -> String {
    let mut out = "| key | accepts | default | |\n|---|---|---|---|\n".to_owned();
    let mut draft = Draft::from(&Settings::default());
    for table in TABLES {
        rows(table.name, table.keys, &mut draft, &mut out);
        match table.name {
            "limits" => rows("limits.default", MODEL, &mut Default::default(), &mut out),
            "upstream" => rows("organisation", ORGANISATION, &mut draft::organisation(), &mut out),
            "breaker" => rows("app", APP, &mut draft::app(), &mut out),
            _ => {}
        }
    }
    out
}

fn rows<T>(table: &str, keys: &[Key<T>], target: &mut T, out: &mut String) {
    for key in keys {
        let default = effective::show(key, target).filter(|_| key.example.is_empty());
        let default = default.map_or_else(|| "–".to_owned(), |value| format!("`{value}`"));
        out.push_str(&format!("| `{table}.{}` | {} | {default} | {} |\n", key.name, key.rule.expected(), key.doc));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::read::Reading;

    const FILE: &str = include_str!("../../config/groq-shield.toml");

    #[test]
    fn the_file_is_what_the_keys_say() {
        assert_eq!(FILE, file(), "run `groq-shield check --example > config/groq-shield.toml`");
    }

    #[test]
    fn commented_and_uncommented_it_holds_the_defaults() {
        assert_eq!(Reading::of(FILE).draft.finish(), Settings::default());
        let text = FILE.lines().map(|line| match line.strip_prefix('#') {
            Some(key) if !key.starts_with(' ') => key,
            _ => line,
        });
        let reading = Reading::of(&text.collect::<Vec<_>>().join("\n"));
        assert_eq!(reading.faults, []);
        assert_eq!(reading.draft.clone().finish(), Settings::default());
        let set: Vec<_> = effective::entries(&Settings::default()).into_iter().filter(|entry| entry.value.is_some()).collect();
        for entry in &set {
            assert!(reading.origins.contains_key(&entry.path), "{} is not in the file", entry.path);
        }
        assert_eq!(reading.origins.len(), set.len());
    }

    #[test]
    fn its_examples_read_too_and_no_key_is_missing() {
        let text: Vec<_> = FILE
            .lines()
            .map(|line| line.strip_prefix("# for example ").unwrap_or(line))
            .map(|line| line.strip_prefix('#').filter(|key| !key.starts_with(' ')).unwrap_or(line))
            .collect();
        let text = text.join("\n");
        let reading = Reading::of(&text);
        assert_eq!(reading.faults, [], "{text}");
        for entry in effective::entries(&reading.draft.clone().finish()) {
            let model = entry.path.starts_with("limits.model");
            assert!(model || reading.origins.contains_key(&entry.path), "{} is not in the file", entry.path);
        }
        let written = TABLES.iter().map(|table| table.keys.len()).sum::<usize>() + MODEL.len() + ORGANISATION.len() + APP.len();
        assert_eq!(reading.origins.len(), written);
    }

    #[test]
    fn the_table_has_a_row_for_every_key() {
        let table = table();
        for row in [
            "| `server.listen` | an address with its port | `\"127.0.0.1:8787\"` |",
            "| `app.weight` | a number over 0 | `1.0` |",
        ] {
            assert!(table.contains(row), "{table}");
        }
        assert!(table.contains("| `queue.stream_keepalive` | a time or \"off\" | `\"off\"` |"));
    }
}
