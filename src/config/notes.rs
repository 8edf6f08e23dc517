//! Remarks on a configuration without faults, for `check` and the start log.

use std::collections::BTreeSet;

use super::{
    settings::{Mode, Settings, StoreKind},
    text::quoted,
};

/// A remark that is not a fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The remark itself.
    pub message: String,
    /// Whether it is likely a mistake.
    pub is_warning: bool,
}

/// Notes on these settings; `has` tells whether an environment variable is set.
pub(super) fn of(settings: &Settings, has: &dyn Fn(&str) -> bool) -> Vec<Note> {
    let mut notes = Vec::new();
    let mut note = |is_warning, message: String| notes.push(Note { message, is_warning });
    if settings.limits.mode == Mode::Observe {
        note(false, "limits.mode is \"observe\": nothing waits or is refused, and what would have been is counted".into());
    }
    if settings.limits.state_file.is_none() && settings.store.kind == StoreKind::Local {
        note(false, "limits.state_file is not set: what is left of each limit is not kept across restarts".into());
    }
    if settings.store.url.is_some() && settings.store.kind == StoreKind::Local {
        note(true, "store.url is not used: store.kind is \"local\"".into());
    }
    if let Some(app) = settings.app.iter().find(|app| app.has_budget_in_usd()) {
        let fallbacks = settings.fallback.iter().map(|chain| &chain.model);
        let models: BTreeSet<_> = settings.limits.model.keys().chain(fallbacks).collect();
        for model in models.into_iter().filter(|model| !settings.price.contains_key(*model)) {
            let held = "what is used of it is not held against that budget";
            note(true, format!("{} has no price, and app {} has a budget in USD: {held}", quoted(model), quoted(&app.name)));
        }
    }
    for name in named(settings).into_iter().filter(|name| !has(name)) {
        note(true, format!("the variable {name} is named in the configuration and not set"));
    }
    if settings.upstream.api_key_env.is_some() && !settings.needs_tokens() && !settings.server.listen.ip().is_loopback() {
        let listen = settings.server.listen;
        let remedy = "give apps tokens with [[app]], or listen on loopback";
        note(true, format!("everyone who can connect to {listen} can use the key of upstream.api_key_env: {remedy}"));
    }
    notes
}

/// The environment variables with keys and tokens that the settings name.
pub(super) fn named(settings: &Settings) -> Vec<String> {
    let organizations = settings.organization.iter().flat_map(|organization| &organization.api_key_env);
    let apps = settings.app.iter().filter_map(|app| app.token_env.as_ref());
    settings.upstream.api_key_env.iter().chain(organizations).chain(apps).cloned().collect()
}
