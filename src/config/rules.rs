//! Rules beyond the schema, most of them between keys.

use std::collections::{BTreeMap, BTreeSet};

use groq_limiter::plans;

use super::{
    document::Document,
    own_address, prices,
    schema::MODEL,
    settings::{App, Settings, StoreKind},
    text::{near, quoted},
};

/// Adds the faults between keys.
pub(super) fn between_keys(settings: &Settings, document: &mut Document<'_>) {
    listeners(settings, document);
    if settings.retry.base_delay > settings.retry.max_delay {
        let key = if document.is_set("retry.base_delay") { "retry.base_delay" } else { "retry.max_delay" };
        document.refuse(key, "`base_delay` must not be longer than `max_delay`", "the first back-off is the shortest");
    }
    if settings.store.kind == StoreKind::Redis {
        if settings.store.url.is_none() && !document.is_refused("store.url") {
            document.refuse("store.kind", "\"redis\" needs a `url`", "such as url = \"redis://localhost:6379\"");
        }
        if !cfg!(feature = "redis") {
            let help = "take the release build, or `cargo install groq-shield --features redis`";
            document.refuse("store.kind", "this groq-shield is built without Redis", help);
        }
    }
    if settings.log.otlp_endpoint.is_some() && !cfg!(feature = "otlp") {
        let help = "take the release image, or `cargo install groq-shield --features otlp`";
        document.refuse("log.otlp_endpoint", "this groq-shield is built without OpenTelemetry", help);
    }
    fallbacks(settings, document);
    budgets(settings, document);
    prices::complete(settings, document);
    owners(settings, document);
}

fn listeners(settings: &Settings, document: &mut Document<'_>) {
    if settings.server.listen == settings.admin.listen && settings.server.listen.port() != 0 {
        let key = if document.is_set("admin.listen") { "admin.listen" } else { "server.listen" };
        document.refuse(key, "[server] and [admin] listen on the same address", "give each a port of its own");
    }
    for (key, listen) in [("server.listen", settings.server.listen), ("admin.listen", settings.admin.listen)] {
        if own_address::reaches(&settings.upstream.base_url, listen) {
            let message = format!("this shield itself listens there ({key}): requests would come back to it forever");
            document.refuse("upstream.base_url", message, "write \"https://api.groq.com\", or the address of another server");
        }
    }
}

/// Fallback models are known and priced, each reason has one chain, and no chain leads back to its model.
fn fallbacks(settings: &Settings, document: &mut Document<'_>) {
    // Without a price, requests to a fallback model would not count towards the budget.
    let is_budgeted = |app: &&App| app.has_budget_in_usd() && app.fallback && !settings.price.is_empty();
    let budgeted = settings.app.iter().find(is_budgeted);
    let is_known = |model: &String| settings.limits.model.contains_key(model) || plans::models().any(|known| known == model);
    let mut seen = BTreeSet::new();
    for (at, chain) in settings.fallback.iter().enumerate() {
        for (n, to) in chain.to.iter().enumerate() {
            let path = format!("fallback[{at}].to[{n}]");
            let model = quoted(to);
            if *to == chain.model {
                document.refuse(&path, "a model cannot fall back to itself", "");
            } else if reachable(settings, to).contains(chain.model.as_str()) {
                let message = format!("{model} falls back to {} in turn", quoted(&chain.model));
                document.refuse(&path, message, "let chains end: take one of them out");
            }
            if !is_known(to) && *to != chain.model {
                let help = near(to, plans::models()).map_or_else(
                    || format!("if Groq has it, give it a table: [limits.model.{model}]"),
                    |near| format!("did you mean {}?", quoted(near)),
                );
                document.refuse(&path, format!("{model} is not a known model"), help);
            }
            if let Some(app) = budgeted.filter(|_| !settings.price.contains_key(to)) {
                let message = format!("{model} has no price, and app {} has a budget in USD", quoted(&app.name));
                document.refuse(&path, message, format!("add [price.{model}], or set `fallback = false` for the app"));
            }
        }
        let mut is_taken = |reason| !chain.model.is_empty() && !seen.insert((&chain.model, reason));
        if let Some((n, reason)) = chain.when.iter().enumerate().find(|(_, reason)| is_taken(**reason)) {
            let message = format!("{} already falls back for {}", quoted(&chain.model), reason.as_str());
            document.refuse(&format!("fallback[{at}].when[{n}]"), message, "the first [[fallback]] counts");
        }
    }
}

/// The models that may serve requests for this one, and itself.
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

/// Budgets in USD need prices, and the entry for other apps has no token.
fn budgets(settings: &Settings, document: &mut Document<'_>) {
    for (at, app) in settings.app.iter().enumerate() {
        let keys = [
            ("cost_per_day", app.cost_per_day.is_some() && settings.price.is_empty()),
            ("cost_per_month", app.cost_per_month.is_some() && settings.price.is_empty()),
            ("token_env", app.token_env.is_some() && app.name == App::EVERYONE_ELSE),
            ("token_sha256", app.token_sha256.is_some() && app.name == App::EVERYONE_ELSE),
        ];
        for (key, _) in keys.into_iter().filter(|(_, is_wrong)| *is_wrong) {
            let path = format!("app[{at}].{key}");
            if key.starts_with("cost") {
                let help =
                    format!("add the prices of the models that it uses: [price.{}] input = 0.1, output = 0.5", quoted(MODEL));
                document.refuse(&path, "a budget in USD, and no price of any model", help);
            } else {
                let help = "give the app that has this token a name of its own";
                document.refuse(&path, "\"*\" stands for apps without an entry: it has no token", help);
            }
        }
    }
}

/// Names, keys and tokens belong to one organization or app each, and organizations have keys.
fn owners(settings: &Settings, document: &mut Document<'_>) {
    // The path of each name or secret, the secret itself, and its owner.
    let mut claims = Vec::new();
    for (at, organization) in settings.organization.iter().enumerate() {
        let path = format!("organization[{at}]");
        let mut claim = |key: String, kind, text: String| {
            claims.push((format!("{path}.{key}"), ("organization", kind, text), &organization.name));
        };
        claim("name".into(), "name", organization.name.clone());
        for (n, variable) in organization.api_key_env.iter().enumerate() {
            claim(format!("api_key_env[{n}]"), "key", variable.clone());
        }
        for (n, digest) in organization.api_key_sha256.iter().enumerate() {
            claim(format!("api_key_sha256[{n}]"), "key", format!("{digest:?}"));
        }
        let is_refused = ["api_key_env", "api_key_sha256"].iter().any(|key| document.is_refused(&format!("{path}.{key}")));
        if organization.api_key_env.is_empty() && organization.api_key_sha256.is_empty() && !is_refused {
            let help = "name its keys: api_key_env = [\"GROQ_API_KEY\"], or api_key_sha256";
            document.refuse(&path, "an organization without keys", help);
        }
    }
    for (at, app) in settings.app.iter().enumerate() {
        let mut claim = |key, kind, text| claims.push((format!("app[{at}].{key}"), ("app", kind, text), &app.name));
        claim("name", "name", app.name.clone());
        app.token_env.iter().for_each(|variable| claim("token_env", "token", variable.clone()));
        app.token_sha256.iter().for_each(|digest| claim("token_sha256", "token", format!("{digest:?}")));
    }
    let mut owners = BTreeMap::new();
    for (path, claim, owner) in claims.into_iter().filter(|(_, (.., text), _)| !text.is_empty()) {
        let (table, kind, _) = claim;
        if let Some(other) = owners.insert(claim, owner) {
            document.refuse(&path, format!("already the {kind} of {table} {}", quoted(other)), "");
        }
    }
}
