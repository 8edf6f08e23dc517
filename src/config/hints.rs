//! What someone probably meant by a key or table that does not exist.

use super::{
    schema::{MODEL, Table, tables},
    text::{near, quoted},
};

/// Names that other programs have for keys of ours, and what to write.
const ALIASES: [(&str, &str); 15] = [
    ("addr", "listen"),
    ("address", "listen"),
    ("bind", "listen"),
    ("host", "listen"),
    ("listen_addr", "listen"),
    ("listen_address", "listen"),
    ("max_attempts", "attempts"),
    ("max_retries", "attempts"),
    ("port", "listen"),
    ("rpm", "requests_per_minute"),
    ("rpd", "requests_per_day"),
    ("tpm", "tokens_per_minute"),
    ("tpd", "tokens_per_day"),
    ("timeout", "response_timeout"),
    ("url", "base_url"),
];

/// What to do about a key that its table, with this header and these names, does not have.
pub(super) fn unknown_key(name: &str, header: &str, known: &[&str], is_table: bool) -> Option<String> {
    let lower = name.to_lowercase();
    if ["api_key", "apikey", "groq_api_key", "token"].contains(&lower.as_str()) {
        let env = known.iter().find(|known| known.ends_with("_env"));
        let env = env.map_or_else(|| "`api_key_env` of [upstream]".to_owned(), |env| format!("`{env}`"));
        return Some(format!("keys never stand in the file: {env} names the variable that holds it"));
    }
    if let Some((_, key)) = ALIASES.iter().find(|(alias, _)| *alias == lower) {
        let home = if known.contains(key) { String::new() } else { format!(" in {}", homes(key)?) };
        return Some(format!("write `{key}`{home}"));
    }
    if let Some(home) = homes(name) {
        return Some(format!("`{name}` belongs in {home}"));
    }
    match near(name, known.iter().copied()) {
        Some(near) => Some(format!("did you mean `{near}`?")),
        None if is_table && header == "[limits]" => Some(format!("write [limits.model.{}]", quoted(name))),
        // A dot in a name that is not quoted begins a table inside.
        None if is_table && header.starts_with("[limits.model.") => {
            let model = header.trim_start_matches("[limits.model.").trim_end_matches(']').trim_matches('"');
            Some(format!("quote the model's name: [limits.model.{}]", quoted(&format!("{model}.{name}"))))
        }
        None => None,
    }
}

/// What to do about a table that does not exist, or a key outside of every table.
pub(super) fn unknown_table(name: &str, is_table: bool) -> Option<String> {
    let outer = || tables().iter().filter(|table| !table.path.contains('.'));
    let near = near(name, outer().map(|table| table.path.as_str()));
    let table = near.and_then(|near| outer().find(|table| table.path == near)).map(Table::header);
    match table {
        Some(header) if is_table => Some(format!("did you mean {header}?")),
        _ => unknown_key(name, "", &[], is_table),
    }
}

/// The tables that have a key of this name.
fn homes(name: &str) -> Option<String> {
    let having = tables().iter().filter(|table| table.keys.iter().any(|(key, _)| *key == name));
    let headers: Vec<_> = having.map(|table| table.header().replace(MODEL, "…")).collect();
    (!headers.is_empty()).then(|| headers.join(" or "))
}

#[cfg(test)]
mod tests {
    use crate::config::{document::Document, faults::Faults, source::read};

    /// What newcomers write, as they were seen to or as other programs have it, and the words that put them right.
    #[test]
    fn the_usual_mistakes_of_newcomers_are_put_right() {
        for (text, remedy) in [
            ("listen = \"127.0.0.1:8787\"\n", "`listen` belongs in [server] or [admin]"),
            ("[server]\nport = 8787\n", "write `listen`"),
            ("[server]\nlisten_addr = \"127.0.0.1:8787\"\n", "write `listen`"),
            ("[server]\nlisten = \"8787\"\n", "write \"127.0.0.1:8787\""),
            ("[upstream]\nbase_url = \"https://api.groq.com/openai/v1\"\n", "write \"https://api.groq.com\""),
            ("[upstream]\napi_key = \"gsk_x\"\n", "`api_key_env` names the variable that holds it"),
            ("[upstream]\napi_key_env = \"$GROQ_API_KEY\"\n", "its name alone, without `$`"),
            ("[queue]\nmax_wait = 50\n", "write \"50s\""),
            ("[retry]\nmax_attempts = 3\n", "write `attempts`"),
            ("[limits]\nheadroom = 20\n", "20 % is 0.2"),
            ("[limits]\nrpm = 30\n", "write `requests_per_minute` in [limits.default]"),
            ("[limits]\ntokens_per_minute = 8000\n", "belongs in [limits.default]"),
            ("[limits.default]\ntpm = 8000\n", "write `tokens_per_minute`"),
            ("[limits.\"openai/gpt-oss-20b\"]\ntpm = 1\n", "write [limits.model.\"openai/gpt-oss-20b\"]"),
            ("[limits.model.llama-3.1-8b-instant]\n", "[limits.model.\"llama-3.1-8b-instant\"]"),
            ("[app]\nname = \"chat\"\n", "write [[app]]"),
            ("[[app]]\nname = \"chat\"\ntoken = \"x\"\n", "`token_env` names the variable that holds it"),
            ("[store]\nkind = \"redis\"\n", "such as url = \"redis://localhost:6379\""),
            ("[store]\nurl = \"localhost:6379\"\n", "write \"redis://localhost:6379\""),
        ] {
            let mut document = Document::parse(text);
            read(&mut document);
            let shown = Faults { name: "f".into(), text: text.into(), faults: document.into_faults() }.to_string();
            let help = shown.lines().find_map(|line| line.trim_start().strip_prefix("= help: ")).unwrap_or_default();
            assert!(help.contains(remedy), "{text}{shown}");
        }
    }
}
