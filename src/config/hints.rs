//! What someone probably meant by a key or table that does not exist.

use super::{
    faults::{near, quoted},
    schema::{MODEL, Table, tables},
};

/// Names that other programs have for keys of ours, and what to write.
const ALIASES: [(&str, &str); 13] = [
    ("addr", "listen"),
    ("address", "listen"),
    ("bind", "listen"),
    ("listen_addr", "listen"),
    ("listen_address", "listen"),
    ("max_attempts", "attempts"),
    ("max_retries", "attempts"),
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
