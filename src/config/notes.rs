//! What should an operator know though it is no fault? Said by `check` and in the start log.

use super::{Settings, effective, keys::NOT_IN_EFFECT};

/// Notes on these settings; `has` tells whether an environment variable is set.
pub(super) fn of(settings: &Settings, has: &dyn Fn(&str) -> bool) -> Vec<String> {
    let usual = effective::entries(&Settings::default());
    let set: Vec<_> = effective::entries(settings).into_iter().filter(|entry| !usual.contains(entry)).collect();
    let waits = |key: &&&str| set.iter().any(|entry| covers(key, &entry.path));
    let mut notes: Vec<_> = NOT_IN_EFFECT.iter().filter(waits).map(|key| format!("{key} is not in effect yet")).collect();
    if settings.limits.state_file.is_none() {
        notes.push("limits.state_file is not set: levels are not kept across restarts".into());
    }
    for name in named(settings).into_iter().filter(|name| !has(name)) {
        notes.push(format!("the variable {name} is named in the configuration and not set"));
    }
    let listed = settings.apps.iter().any(|app| app.token_env.is_some() || app.token_sha256.is_some());
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
    let organisations = settings.organisations.iter().flat_map(|organisation| &organisation.api_key_env);
    let apps = settings.apps.iter().filter_map(|app| app.token_env.as_ref());
    settings.upstream.api_key_env.iter().chain(organisations).chain(apps).cloned().collect()
}

/// Whether a key of the list, such as `app.weight` or all of `store`, is this one, such as `app[0].weight`.
fn covers(key: &str, name: &str) -> bool {
    let mut plain = String::new();
    let mut inside = false;
    for c in name.chars() {
        match c {
            '[' => inside = true,
            ']' => inside = false,
            c if !inside => plain.push(c),
            _ => {}
        }
    }
    plain == key || plain.strip_prefix(key).is_some_and(|rest| rest.starts_with('.'))
}
