//! Remarks on a configuration without faults, for `check` and the start log.

use super::{Settings, StoreKind};

/// Notes on these settings; `has` tells whether an environment variable is set.
pub(super) fn of(settings: &Settings, has: &dyn Fn(&str) -> bool) -> Vec<String> {
    let mut notes = Vec::new();
    if settings.limits.state_file.is_none() && settings.store.kind == StoreKind::Local {
        notes.push("limits.state_file is not set: what is left of each limit is not kept across restarts".into());
    }
    for name in named(settings).into_iter().filter(|name| !has(name)) {
        notes.push(format!("the variable {name} is named in the configuration and not set"));
    }
    let listed = settings.app.iter().any(|app| app.token_env.is_some() || app.token_sha256.is_some());
    if settings.upstream.api_key_env.is_some() && !listed && !settings.server.listen.ip().is_loopback() {
        notes.push(format!(
            "everybody who reaches {} can use the key of upstream.api_key_env: give apps tokens with [[app]], or listen on loopback",
            settings.server.listen
        ));
    }
    notes
}

/// The variables that settings name, which hold keys and tokens.
pub(super) fn named(settings: &Settings) -> Vec<String> {
    let organizations = settings.organization.iter().flat_map(|organization| &organization.api_key_env);
    let apps = settings.app.iter().filter_map(|app| app.token_env.as_ref());
    settings.upstream.api_key_env.iter().chain(organizations).chain(apps).cloned().collect()
}
