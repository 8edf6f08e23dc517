//! What settings have to satisfy beyond their types: rules of single keys for garde, and those between keys.
//!
//! Messages consist of what is wrong and, after a line break, what to do about it.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    path::Path,
    time::Duration,
};

use garde::Error;
use groq_limiter::plans;

use super::{
    App, Settings, StoreKind,
    document::Document,
    faults::{near, quoted},
    formats, own_address,
    schema::MODEL,
    units,
};

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

pub(super) fn not_empty(text: &impl AsRef<OsStr>, (): &()) -> garde::Result {
    let empty = text.as_ref().to_str().is_some_and(|text| text.trim().is_empty());
    if empty { Err(Error::new("is empty\n")) } else { Ok(()) }
}

/// Longest name, bytes: it is a label of metrics and a column of tables.
const LONGEST_NAME: usize = 128;

pub(super) fn short_name(name: &str, (): &()) -> garde::Result {
    if name.len() > LONGEST_NAME {
        return Err(Error::new("is longer than 128 bytes\nit is a label of metrics: choose a short one"));
    }
    if name.contains(char::is_control) {
        return Err(Error::new("has a control character\nit is a label of metrics: choose printable characters"));
    }
    not_empty(&name, &())
}

pub(super) fn not_zero(time: &Duration, (): &()) -> garde::Result {
    at_least(*time, Duration::from_millis(1))
}

pub(super) fn at_least_100_ms(time: &Duration, (): &()) -> garde::Result {
    at_least(*time, Duration::from_millis(100))
}

fn at_least(time: Duration, least: Duration) -> garde::Result {
    if time >= least {
        return Ok(());
    }
    let [time, least] = [time, least].map(units::show_time);
    Err(Error::new(format!("{} is too short: at least {least}\n", quoted(&time))))
}

/// garde's `range` lets NaN pass.
pub(super) fn finite(number: &f64, (): &()) -> garde::Result {
    if number.is_finite() { Ok(()) } else { Err(Error::new("not finite")) }
}

pub(super) fn positive(number: &f64, (): &()) -> garde::Result {
    if number.is_finite() && *number > 0.0 { Ok(()) } else { Err(Error::new("not positive")) }
}

pub(super) fn http_url(text: &str, (): &()) -> garde::Result {
    formats::url(text, &["http", "https"]).map(drop).map_err(Error::new)
}

pub(super) fn redis_url(text: &str, (): &()) -> garde::Result {
    formats::url(text, &["redis", "rediss"]).map(drop).map_err(Error::new)
}

pub(super) fn env_name(text: &str, (): &()) -> garde::Result {
    if text.starts_with("gsk_") || text.starts_with("sk-") {
        return Err(Error::new("this is a key, not the name of a variable that holds it\nkeys never stand in the file"));
    }
    let first = text.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    if !first || text.chars().any(|c| !c.is_ascii_alphanumeric() && c != '_') {
        return Err(Error::new(format!(
            "{} is not the name of an environment variable\nits name alone, without `$`, such as \"GROQ_API_KEY\"",
            quoted(text)
        )));
    }
    Ok(())
}

/// A tracing filter; a bare word that is no level would be taken for a target, and log nothing.
pub(super) fn log_filter(text: &str, (): &()) -> garde::Result {
    for part in text.split(',').map(str::trim) {
        let bare = !part.contains(['=', ':', '[']) && part != "groq_shield";
        if bare && !LEVELS.contains(&part.to_ascii_lowercase().as_str()) {
            let help = match near(part, LEVELS) {
                Some(level) => format!("did you mean \"{level}\"?"),
                None => "a level (off, error, warn, info, debug, trace), or \"groq_shield=debug,warn\"".into(),
            };
            return Err(Error::new(format!("{} is not a log level\n{help}", quoted(part))));
        }
    }
    match tracing_subscriber::EnvFilter::builder().parse(text) {
        Ok(_) => Ok(()),
        Err(why) => {
            let text = quoted(text);
            Err(Error::new(format!("{text} is not a log filter: {why}\nsuch as \"groq_shield=debug,warn\"")))
        }
    }
}

/// A fault between keys: the key to point at, what is wrong, and what to do.
pub(super) type Conflict = (String, String, Option<String>);

/// What is wrong between keys.
pub(super) fn between_keys(settings: &Settings, document: &Document<'_>) -> Vec<Conflict> {
    let mut conflicts = Vec::new();
    let mut say =
        |key: &str, message: &str, help: &str| conflicts.push((key.to_owned(), message.to_owned(), Some(help.to_owned())));
    let either = |one, other| if document.is_set(one) { one } else { other };
    if let Some(tls) = &settings.server.tls {
        let given = |path: &Path, key| !path.as_os_str().is_empty() || document.is_refused(key);
        let both = "set both, or neither for plain HTTP";
        match (given(&tls.cert, "server.tls.cert"), given(&tls.key, "server.tls.key")) {
            (true, false) => say("server.tls.cert", "`tls.cert` without `tls.key`", both),
            (false, true) => say("server.tls.key", "`tls.key` without `tls.cert`", both),
            (false, false) if !document.is_refused("server.tls") => {
                say("server.tls", "[server.tls] without `cert` and `key`", both);
            }
            _ => {}
        }
    }
    if settings.server.listen == settings.admin.listen && settings.server.listen.port() != 0 {
        let key = either("admin.listen", "server.listen");
        say(key, "[server] and [admin] listen on the same address", "give each a port of its own");
    }
    for (key, listen) in [("server.listen", settings.server.listen), ("admin.listen", settings.admin.listen)] {
        if own_address::reaches(&settings.upstream.base_url, listen) {
            let message =
                format!("`base_url` is where this shield itself listens ({key}): requests would come back to it for ever");
            say("upstream.base_url", &message, "write \"https://api.groq.com\", or the address of another server");
        }
    }
    if settings.retry.base_delay > settings.retry.max_delay {
        let key = either("retry.base_delay", "retry.max_delay");
        say(key, "`base_delay` is longer than `max_delay`", "the first back-off is the shortest");
    }
    if settings.store.kind == StoreKind::Redis && settings.store.url.is_none() && !document.is_refused("store.url") {
        say("store.kind", "`kind = \"redis\"` needs a `url`", "such as url = \"redis://localhost:6379\"");
    }
    if settings.store.kind == StoreKind::Redis && !cfg!(feature = "redis") {
        let help = "take the release build, or `cargo install groq-shield --features redis`";
        say("store.kind", "this groq-shield is built without Redis", help);
    }
    if settings.log.otlp_endpoint.is_some() && !cfg!(feature = "otlp") {
        let help = "take the release image, or `cargo install groq-shield --features otlp`";
        say("log.otlp_endpoint", "this groq-shield is built without OpenTelemetry", help);
    }
    for (at, organization) in settings.organization.iter().enumerate() {
        let path = format!("organization[{at}]");
        let keys = ["api_key_env", "api_key_sha256"].map(|key| format!("{path}.{key}"));
        let none = organization.api_key_env.is_empty() && organization.api_key_sha256.is_empty();
        if none && !keys.iter().any(|key| document.is_refused(key)) {
            let help = "name its keys: api_key_env = [\"GROQ_API_KEY\"], or api_key_sha256";
            conflicts.push((path, "an organization without keys".into(), Some(help.into())));
        }
    }
    conflicts.extend(fallbacks(settings, document));
    conflicts.extend(circular_fallbacks(settings));
    conflicts.extend(budgets(settings));
    conflicts.extend(unpriced_fallbacks(settings));
    conflicts.extend(shared_names(settings));
    conflicts.extend(shared_secrets(settings));
    conflicts
}

/// Models fall back to other ones that are known, for each reason once.
fn fallbacks(settings: &Settings, document: &Document<'_>) -> Vec<Conflict> {
    let mut conflicts = Vec::new();
    let mut seen = BTreeSet::new();
    for (at, chain) in settings.fallback.iter().enumerate() {
        let path = format!("fallback[{at}]");
        let mut models = BTreeSet::new();
        for (n, to) in chain.to.iter().enumerate() {
            let path = format!("{path}.to[{n}]");
            if *to == chain.model {
                conflicts.push((path, "a model cannot fall back to itself".into(), None));
            } else if !models.insert(to) {
                conflicts.push((path, "`to`: listed twice".into(), None));
            } else if !to.is_empty() && !settings.limits.model.contains_key(to) && !plans::models().any(|model| model == to) {
                let help = match near(to, plans::models()) {
                    Some(near) => format!("did you mean {}?", quoted(near)),
                    None => format!("if Groq has it, give it a table: [limits.model.{}]", quoted(to)),
                };
                conflicts.push((path, format!("{} is no model that is known here", quoted(to)), Some(help)));
            }
        }
        for (n, reason) in chain.when.iter().enumerate().filter(|_| !chain.model.is_empty()) {
            if !seen.insert((&chain.model, reason)) {
                let message = format!("{} already falls back for {}", quoted(&chain.model), reason.as_str());
                conflicts.push((format!("{path}.when[{n}]"), message, Some("the first [[fallback]] counts".into())));
                break;
            }
        }
        for (key, is_empty) in [("to", chain.to.is_empty()), ("when", chain.when.is_empty())] {
            let path = format!("{path}.{key}");
            if is_empty && !document.is_refused(&path) {
                conflicts.push((path, format!("`{key}` is empty"), None));
            }
        }
    }
    conflicts
}

/// No model falls back, over other chains, to itself.
fn circular_fallbacks(settings: &Settings) -> Vec<Conflict> {
    let chains_of = |model: &str| settings.fallback.iter().filter(|chain| chain.model == model).collect::<Vec<_>>();
    let mut conflicts = Vec::new();
    for (at, chain) in settings.fallback.iter().enumerate() {
        for (n, to) in chain.to.iter().enumerate().filter(|(_, to)| **to != chain.model) {
            let (mut reached, mut todo) = (BTreeSet::new(), vec![to.as_str()]);
            while let Some(model) = todo.pop() {
                if reached.insert(model) {
                    todo.extend(chains_of(model).into_iter().flat_map(|chain| &chain.to).map(String::as_str));
                }
            }
            if reached.contains(chain.model.as_str()) {
                let message = format!("{} falls back to {} in turn", quoted(to), quoted(&chain.model));
                conflicts.push((format!("fallback[{at}].to[{n}]"), message, Some("let chains end: take one of them out".into())));
            }
        }
    }
    conflicts
}

/// What budgets and the entry for everyone else need.
fn budgets(settings: &Settings) -> Vec<Conflict> {
    let mut conflicts = Vec::new();
    for (at, app) in settings.app.iter().enumerate() {
        for (key, is_set) in [("cost_per_day", app.cost_per_day.is_some()), ("cost_per_month", app.cost_per_month.is_some())] {
            if is_set && settings.price.is_empty() {
                let help =
                    format!("give the models that it uses their prices: [price.{}] input = 0.1, output = 0.5", quoted(MODEL));
                conflicts.push((format!("app[{at}].{key}"), "a budget in USD, and no price of any model".into(), Some(help)));
            }
        }
        for (key, is_set) in [("token_env", app.token_env.is_some()), ("token_sha256", app.token_sha256.is_some())] {
            if is_set && app.name == App::EVERYONE_ELSE {
                let help = "give the app that has this token a name of its own";
                conflicts.push((
                    format!("app[{at}].{key}"),
                    "\"*\" stands for apps without an entry: it has no token".into(),
                    Some(help.into()),
                ));
            }
        }
    }
    conflicts
}

/// Fallback models that apps with a budget in USD may get have prices: without one they would be free of charge, and the budget
/// would never end.
fn unpriced_fallbacks(settings: &Settings) -> Vec<Conflict> {
    let Some(app) = settings.app.iter().find(|app| app.has_budget_in_usd() && app.fallback) else { return Vec::new() };
    // Without any price the budget itself is the fault.
    if settings.price.is_empty() {
        return Vec::new();
    }
    let mut conflicts = Vec::new();
    for (at, chain) in settings.fallback.iter().enumerate() {
        for (n, to) in chain.to.iter().enumerate().filter(|(_, to)| !to.is_empty() && !settings.price.contains_key(*to)) {
            let message = format!("{} has no price, and app {} has a budget in USD", quoted(to), quoted(&app.name));
            let help = format!("add [price.{}], or set `fallback = false` for the app", quoted(to));
            conflicts.push((format!("fallback[{at}].to[{n}]"), message, Some(help)));
        }
    }
    conflicts
}

/// Names are unique among organizations, and among apps.
fn shared_names(settings: &Settings) -> Vec<Conflict> {
    let organizations = settings.organization.iter().map(|organization| &organization.name).enumerate();
    let apps = settings.app.iter().map(|app| &app.name).enumerate();
    let all = organizations.map(|(at, name)| ("organization", at, name)).chain(apps.map(|(at, name)| ("app", at, name)));
    let mut seen = BTreeSet::new();
    let taken = all.filter(|(table, _, name)| !name.is_empty() && !seen.insert((*table, *name)));
    let conflict = |(table, at, name): (&str, usize, &String)| {
        let help = "every element has a name of its own".to_owned();
        (format!("{table}[{at}].name"), format!("the name {} is taken", quoted(name)), Some(help))
    };
    taken.map(conflict).collect()
}

/// A key belongs to one organization, a token to one app.
fn shared_secrets(settings: &Settings) -> Vec<Conflict> {
    // What identifies the secret, the path of its owner and the owner's name, the path below it, and words.
    let mut all = Vec::new();
    for (at, organization) in settings.organization.iter().enumerate() {
        let owner = (format!("organization[{at}]"), &organization.name);
        for (n, env) in organization.api_key_env.iter().enumerate() {
            let words = format!("the key of {env} is already one of organization");
            all.push((format!("key {env}"), owner.clone(), format!(".api_key_env[{n}]"), words));
        }
        for (n, digest) in organization.api_key_sha256.iter().enumerate() {
            let words = "this key is already one of organization".to_owned();
            all.push((format!("key {digest:?}"), owner.clone(), format!(".api_key_sha256[{n}]"), words));
        }
    }
    for (at, app) in settings.app.iter().enumerate() {
        let owner = (format!("app[{at}]"), &app.name);
        if let Some(env) = &app.token_env {
            let words = format!("the token of {env} is already that of app");
            all.push((format!("token {env}"), owner.clone(), ".token_env".into(), words));
        }
        if let Some(digest) = &app.token_sha256 {
            let words = "this token is already that of app".to_owned();
            all.push((format!("token {digest:?}"), owner.clone(), ".token_sha256".into(), words));
        }
    }
    let mut owners = BTreeMap::new();
    let mut conflicts = Vec::new();
    for (secret, owner, key, words) in all {
        let path = format!("{}{key}", owner.0);
        match owners.insert(secret, owner.clone()) {
            Some(first) if first.0 == owner.0 => conflicts.push((
                path,
                format!("`{}`: listed twice", key.trim_start_matches('.').split('[').next().unwrap_or_default()),
                None,
            )),
            Some((_, name)) => conflicts.push((path, format!("{words} {}", quoted(name)), None)),
            None => {}
        }
    }
    conflicts
}
