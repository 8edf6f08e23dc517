//! Rules beyond the schema, most of them between keys.

use std::collections::{BTreeMap, BTreeSet};

use groq_limiter::{plans, settings::Plan};

use super::{
    document::Document,
    own_address,
    schema::MODEL,
    settings::{App, Organization, Settings, StoreKind},
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
    prices(settings, document);
    keys(settings, document);
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
        let budgets = [("cost_per_day", app.cost_per_day), ("cost_per_month", app.cost_per_month)];
        for (key, _) in budgets.iter().filter(|(_, usd)| usd.is_some() && settings.price.is_empty()) {
            let help = format!("add the prices of the models that it uses: [price.{}] input = 0.1, output = 0.5", quoted(MODEL));
            document.refuse(&format!("app[{at}].{key}"), "a budget in USD, and no price of any model", help);
        }
        let tokens = [("token_env", app.token_env.is_some()), ("token_sha256", app.token_sha256.is_some())];
        for (key, _) in tokens.iter().filter(|(_, is_set)| *is_set && app.name == App::EVERYONE_ELSE) {
            let help = "give the app that has this token a name of its own";
            document.refuse(&format!("app[{at}].{key}"), "\"*\" stands for apps without an entry: it has no token", help);
        }
    }
}

/// A price has every part that its model needs: one without a price would be counted as free.
fn prices(settings: &Settings, document: &mut Document<'_>) {
    for (model, price) in &settings.price {
        let path = format!("price.{model}");
        // What was refused is not missing.
        if document.is_refused(&path) {
            continue;
        }
        let is_audio = plans::limits(Plan::Free, model).map(|limits| limits.audio_seconds_per_hour.is_some());
        let has_tokens = price.input.is_some() || price.output.is_some() || price.cached_input.is_some();
        let needs_audio = is_audio == Some(true);
        let needs_tokens = has_tokens || is_audio == Some(false) || price.audio_hour.is_none() && !needs_audio;
        let keys = [
            ("`input`", needs_tokens && price.input.is_none()),
            ("`output`", needs_tokens && price.output.is_none()),
            ("`audio_hour`", needs_audio && price.audio_hour.is_none()),
        ];
        let missing: Vec<_> = keys.into_iter().filter(|(_, is_missing)| *is_missing).map(|(key, _)| key).collect();
        if !missing.is_empty() {
            let message = format!("without {}, part of what {} takes would cost nothing", missing.join(" and "), quoted(model));
            let help = "USD for a million tokens or an hour of audio; 0.0 where it is free of charge";
            document.refuse(&path, message, help);
        }
    }
}

/// Organizations have keys.
fn keys(settings: &Settings, document: &mut Document<'_>) {
    for (at, organization) in settings.organization.iter().enumerate() {
        let path = format!("organization[{at}]");
        let is_refused = ["api_key_env", "api_key_sha256"].iter().any(|key| document.is_refused(&format!("{path}.{key}")));
        if organization.api_key_env.is_empty() && organization.api_key_sha256.is_empty() && !is_refused {
            let help = "name its keys: api_key_env = [\"GROQ_API_KEY\"], or api_key_sha256";
            document.refuse(&path, "an organization without keys", help);
        }
    }
}

/// Names, keys and tokens belong to one organization or app each.
fn owners(settings: &Settings, document: &mut Document<'_>) {
    let mut owners = BTreeMap::new();
    let mut claim = |path: String, kind: &'static str, text: String, owner| {
        // A name that was refused is empty.
        if !text.is_empty()
            && let Some(other) = owners.insert((kind, text), owner)
        {
            document.refuse(&path, format!("already the {kind} {}", quoted(other)), "");
        }
    };
    for (at, Organization { name, api_key_env, api_key_sha256 }) in settings.organization.iter().enumerate() {
        let path = format!("organization[{at}]");
        claim(format!("{path}.name"), "name of organization", name.clone(), name);
        for (n, variable) in api_key_env.iter().enumerate() {
            claim(format!("{path}.api_key_env[{n}]"), "key of organization", variable.clone(), name);
        }
        for (n, digest) in api_key_sha256.iter().enumerate() {
            claim(format!("{path}.api_key_sha256[{n}]"), "key of organization", format!("{digest:?}"), name);
        }
    }
    for (at, App { name, token_env, token_sha256, .. }) in settings.app.iter().enumerate() {
        let path = format!("app[{at}]");
        claim(format!("{path}.name"), "name of app", name.clone(), name);
        if let Some(variable) = token_env {
            claim(format!("{path}.token_env"), "token of app", variable.clone(), name);
        }
        if let Some(digest) = token_sha256 {
            claim(format!("{path}.token_sha256"), "token of app", format!("{digest:?}"), name);
        }
    }
}
