//! What settings have to satisfy beyond the schema: rules between keys.

use std::collections::{BTreeMap, BTreeSet};

use groq_limiter::plans;

use super::{
    document::Document,
    own_address, prices,
    schema::MODEL,
    settings::{App, Settings, StoreKind},
    text::{near, quoted},
};

/// Tells what is wrong between keys.
pub(super) fn between_keys(settings: &Settings, document: &mut Document<'_>) {
    listeners(settings, document);
    if settings.retry.base_delay > settings.retry.max_delay {
        let key = if document.is_set("retry.base_delay") { "retry.base_delay" } else { "retry.max_delay" };
        document.refuse(key, ("`base_delay` is longer than `max_delay`", "the first back-off is the shortest"));
    }
    if settings.store.kind == StoreKind::Redis && settings.store.url.is_none() && !document.is_refused("store.url") {
        document.refuse("store.kind", ("`kind = \"redis\"` needs a `url`", "such as url = \"redis://localhost:6379\""));
    }
    if settings.store.kind == StoreKind::Redis && !cfg!(feature = "redis") {
        let help = "take the release build, or `cargo install groq-shield --features redis`";
        document.refuse("store.kind", ("this groq-shield is built without Redis", help));
    }
    if settings.log.otlp_endpoint.is_some() && !cfg!(feature = "otlp") {
        let help = "take the release image, or `cargo install groq-shield --features otlp`";
        document.refuse("log.otlp_endpoint", ("this groq-shield is built without OpenTelemetry", help));
    }
    fallbacks(settings, document);
    budgets(settings, document);
    prices::complete(settings, document);
    names(settings, document);
    secrets(settings, document);
}

fn listeners(settings: &Settings, document: &mut Document<'_>) {
    if settings.server.listen == settings.admin.listen && settings.server.listen.port() != 0 {
        let key = if document.is_set("admin.listen") { "admin.listen" } else { "server.listen" };
        document.refuse(key, ("[server] and [admin] listen on the same address", "give each a port of its own"));
    }
    for (key, listen) in [("server.listen", settings.server.listen), ("admin.listen", settings.admin.listen)] {
        if own_address::reaches(&settings.upstream.base_url, listen) {
            let message =
                format!("`base_url` is where this shield itself listens ({key}): requests would come back to it for ever");
            let help = "write \"https://api.groq.com\", or the address of another server";
            document.refuse("upstream.base_url", (message, help));
        }
    }
}

/// Models fall back to other ones that are known, for each reason once, and over no other chain to themselves.
fn fallbacks(settings: &Settings, document: &mut Document<'_>) {
    // Without a price, a fallback model would be free of charge, and the budget would never end.
    let is_budgeted = |app: &&App| app.has_budget_in_usd() && app.fallback && !settings.price.is_empty();
    let budgeted = settings.app.iter().find(is_budgeted);
    let is_known = |model: &String| settings.limits.model.contains_key(model) || plans::models().any(|known| known == model);
    let mut seen = BTreeSet::new();
    for (at, chain) in settings.fallback.iter().enumerate() {
        for (n, to) in chain.to.iter().enumerate() {
            let path = format!("fallback[{at}].to[{n}]");
            if *to == chain.model {
                document.refuse(&path, "a model cannot fall back to itself");
            } else if !is_known(to) {
                let help = match near(to, plans::models()) {
                    Some(near) => format!("did you mean {}?", quoted(near)),
                    None => format!("if Groq has it, give it a table: [limits.model.{}]", quoted(to)),
                };
                document.refuse(&path, (format!("{} is no model that is known here", quoted(to)), help));
            }
            if *to != chain.model && reachable(settings, to).contains(chain.model.as_str()) {
                let message = format!("{} falls back to {} in turn", quoted(to), quoted(&chain.model));
                document.refuse(&path, (message, "let chains end: take one of them out"));
            }
            if let Some(app) = budgeted.filter(|_| !settings.price.contains_key(to)) {
                let message = format!("{} has no price, and app {} has a budget in USD", quoted(to), quoted(&app.name));
                document.refuse(&path, (message, format!("add [price.{}], or set `fallback = false` for the app", quoted(to))));
            }
        }
        let mut is_taken = |reason| !chain.model.is_empty() && !seen.insert((&chain.model, reason));
        if let Some((n, reason)) = chain.when.iter().enumerate().find(|(_, reason)| is_taken(**reason)) {
            let message = format!("{} already falls back for {}", quoted(&chain.model), reason.as_str());
            document.refuse(&format!("fallback[{at}].when[{n}]"), (message, "the first [[fallback]] counts"));
        }
    }
}

/// The models that requests for this one may be served by, and itself.
fn reachable<'a>(settings: &'a Settings, model: &'a str) -> BTreeSet<&'a str> {
    let (mut reached, mut todo) = (BTreeSet::new(), vec![model]);
    while let Some(model) = todo.pop() {
        if reached.insert(model) {
            let chains = settings.fallback.iter().filter(|chain| chain.model == model);
            todo.extend(chains.flat_map(|chain| &chain.to).map(String::as_str));
        }
    }
    reached
}

/// What budgets and the entry for everyone else need.
fn budgets(settings: &Settings, document: &mut Document<'_>) {
    for (at, app) in settings.app.iter().enumerate() {
        for (key, is_set) in [("cost_per_day", app.cost_per_day.is_some()), ("cost_per_month", app.cost_per_month.is_some())] {
            if is_set && settings.price.is_empty() {
                let help =
                    format!("give the models that it uses their prices: [price.{}] input = 0.1, output = 0.5", quoted(MODEL));
                document.refuse(&format!("app[{at}].{key}"), ("a budget in USD, and no price of any model", help));
            }
        }
        for (key, is_set) in [("token_env", app.token_env.is_some()), ("token_sha256", app.token_sha256.is_some())] {
            if is_set && app.name == App::EVERYONE_ELSE {
                let help = "give the app that has this token a name of its own";
                document.refuse(&format!("app[{at}].{key}"), ("\"*\" stands for apps without an entry: it has no token", help));
            }
        }
    }
}

/// Organizations and apps have names of their own, and organizations have keys.
fn names(settings: &Settings, document: &mut Document<'_>) {
    let organizations =
        settings.organization.iter().enumerate().map(|(at, organization)| ("organization", at, &organization.name));
    let apps = settings.app.iter().enumerate().map(|(at, app)| ("app", at, &app.name));
    let mut seen = BTreeSet::new();
    for (table, at, name) in organizations.chain(apps).filter(|(_, _, name)| !name.is_empty()) {
        if !seen.insert((table, name)) {
            let message = format!("the name {} is taken", quoted(name));
            document.refuse(&format!("{table}[{at}].name"), (message, "every element has a name of its own"));
        }
    }
    for (at, organization) in settings.organization.iter().enumerate() {
        let path = format!("organization[{at}]");
        let is_refused = ["api_key_env", "api_key_sha256"].iter().any(|key| document.is_refused(&format!("{path}.{key}")));
        if organization.api_key_env.is_empty() && organization.api_key_sha256.is_empty() && !is_refused {
            let help = "name its keys: api_key_env = [\"GROQ_API_KEY\"], or api_key_sha256";
            document.refuse(&path, ("an organization without keys", help));
        }
    }
}

/// A key belongs to one organization, a token to one app.
fn secrets(settings: &Settings, document: &mut Document<'_>) {
    // Where the secret stands, what identifies it, words for it, and its owner.
    let mut secrets = Vec::new();
    for (at, organization) in settings.organization.iter().enumerate() {
        for (n, env) in organization.api_key_env.iter().enumerate() {
            let words = format!("the key of {env} is already one of organization");
            secrets.push((format!("organization[{at}].api_key_env[{n}]"), format!("key of {env}"), words, &organization.name));
        }
        for (n, digest) in organization.api_key_sha256.iter().enumerate() {
            let words = "this key is already one of organization".to_owned();
            secrets.push((
                format!("organization[{at}].api_key_sha256[{n}]"),
                format!("key {digest:?}"),
                words,
                &organization.name,
            ));
        }
    }
    for (at, app) in settings.app.iter().enumerate() {
        if let Some(env) = &app.token_env {
            let words = format!("the token of {env} is already that of app");
            secrets.push((format!("app[{at}].token_env"), format!("token of {env}"), words, &app.name));
        }
        if let Some(digest) = &app.token_sha256 {
            let words = "this token is already that of app".to_owned();
            secrets.push((format!("app[{at}].token_sha256"), format!("token {digest:?}"), words, &app.name));
        }
    }
    let mut owners = BTreeMap::new();
    for (path, secret, words, owner) in secrets {
        if let Some(other) = owners.insert(secret, owner) {
            document.refuse(&path, format!("{words} {}", quoted(other)));
        }
    }
}
