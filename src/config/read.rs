//! What does a file say, and what is wrong with it? One pass that collects every fault.

use std::{collections::BTreeMap, ops::Range};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    ModelLimits, StoreKind,
    draft::{self, Draft},
    faults::{Fault, Origin, line_of, near, quoted},
    keys::{self, APP, Key, MODEL, ORGANISATION, TABLES, Table},
    rule::{Given, Rule},
};

/// Settings as far as they could be read, where each came from, and what is wrong.
#[derive(Clone, Debug, Default)]
pub(super) struct Reading {
    pub(super) draft: Draft,
    /// By full name: `queue.max_wait`, `app[0].name`, `limits.model."x".tokens_per_minute`.
    pub(super) origins: BTreeMap<String, Origin>,
    pub(super) faults: Vec<Fault>,
}

impl Reading {
    /// Reads a file's text over the defaults.
    pub(super) fn of(text: &str) -> Self {
        let mut reading = Self::default();
        let (root, errors) = DeTable::parse_recoverable(text);
        reading.root(root.get_ref());
        let broken = broken(text, &errors);
        // A line that does not parse is told once, for that.
        let lines: Vec<_> = broken.iter().filter_map(|fault| line(text, fault)).collect();
        let end = broken.iter().find(|fault| fault.help.is_some()).and_then(|fault| line(text, fault)).unwrap_or(usize::MAX);
        reading.faults.retain(|fault| line(text, fault).is_none_or(|line| line < end && !lines.contains(&line)));
        reading.faults.extend(broken);
        reading
    }

    /// Sets one key of a table that stands once from text: a variable's or a flag's.
    pub(super) fn set(&mut self, table: &Table, key: &Key<Draft>, text: &str, origin: Origin) {
        let given = given_text(&key.rule, text);
        let mut draft = std::mem::take(&mut self.draft);
        self.put(key, &given, &mut draft, &format!("{}.{}", table.name, key.name), origin);
        self.draft = draft;
    }

    /// Sets one key of `[limits.default]` from a variable's text.
    pub(super) fn set_default_limit(&mut self, key: &Key<ModelLimits>, text: &str, origin: Origin) {
        let given = given_text(&key.rule, text);
        let mut limits = self.draft.settings.limits.default;
        self.put(key, &given, &mut limits, &format!("limits.default.{}", key.name), origin);
        self.draft.settings.limits.default = limits;
    }

    /// Adds a fault.
    pub(super) fn fault(&mut self, origin: Origin, message: impl Into<String>, help: Option<String>) {
        self.faults.push(Fault { origin, message: message.into(), help });
    }

    fn root(&mut self, root: &DeTable<'_>) {
        for (name, value) in root {
            let (name, span) = (name.get_ref().as_ref(), name.span());
            match name {
                "organisation" => self.organisations(value),
                "app" => self.apps(value),
                _ => match TABLES.iter().find(|table| table.name == name) {
                    Some(table) => self.table(table, value),
                    None => self.unknown_table(name, span, value.get_ref()),
                },
            }
        }
    }

    fn table(&mut self, table: &Table, value: &Spanned<DeValue<'_>>) {
        let Some(entries) = self.entries(&format!("[{}]", table.name), value) else { return };
        let mut draft = std::mem::take(&mut self.draft);
        let inner: &[&str] = if table.name == "limits" { &["default", "model"] } else { &[] };
        self.fill(table.keys, "", inner, entries, &mut draft, table.name);
        if table.name == "limits" {
            self.limits(entries, &mut draft);
        }
        self.draft = draft;
    }

    fn limits(&mut self, entries: &DeTable<'_>, draft: &mut Draft) {
        if let Some(entries) = entries.get("default").and_then(|value| self.entries("[limits.default]", value)) {
            self.fill(MODEL, "", &[], entries, &mut draft.settings.limits.default, "limits.default");
        }
        let Some(models) = entries.get("model").and_then(|value| self.entries("[limits.model.\"…\"]", value)) else { return };
        for (name, value) in models {
            let name = name.get_ref().as_ref();
            if MODEL.iter().any(|key| key.name == name) {
                let help = "write [limits.model.\"openai/gpt-oss-20b\"], or [limits.default] for every model";
                self.fault(Origin::File(value.span()), format!("`{name}` stands for no model"), Some(help.into()));
                continue;
            }
            let path = format!("limits.model.{}", quoted(name));
            let Some(entries) = self.entries(&format!("[{path}]"), value) else { continue };
            let mut limits = ModelLimits::default();
            self.fill(MODEL, "", &[], entries, &mut limits, &path);
            draft.settings.limits.models.insert(name.to_owned(), limits);
        }
    }

    fn organisations(&mut self, value: &Spanned<DeValue<'_>>) {
        for (index, (entries, span)) in self.items("organisation", value).into_iter().enumerate() {
            let (path, mut organisation) = (format!("organisation[{index}]"), draft::organisation());
            self.fill(ORGANISATION, "", &[], entries, &mut organisation, &path);
            self.named(&organisation.name, entries, &path, &span);
            if !entries.contains_key("api_key_env") && !entries.contains_key("api_key_sha256") {
                let help = "name its keys: api_key_env = [\"GROQ_API_KEY\"], or api_key_sha256";
                self.fault(Origin::File(span), "an organisation without keys", Some(help.into()));
            }
            self.draft.settings.organisations.push(organisation);
        }
    }

    fn apps(&mut self, value: &Spanned<DeValue<'_>>) {
        for (index, (entries, span)) in self.items("app", value).into_iter().enumerate() {
            let (path, mut app) = (format!("app[{index}]"), draft::app());
            self.fill(APP, "", &[], entries, &mut app, &path);
            self.named(&app.name, entries, &path, &span);
            self.draft.settings.apps.push(app);
        }
    }

    /// Faults of an element's name: absent, or one that an element before it has.
    fn named(&mut self, name: &str, entries: &DeTable<'_>, path: &str, span: &Range<usize>) {
        if !entries.contains_key("name") {
            self.fault(Origin::File(span.clone()), "`name` is missing", Some("every element has one".into()));
        }
        let settings = &self.draft.settings;
        let taken = if path.starts_with("app") {
            settings.apps.iter().any(|app| app.name == name)
        } else {
            settings.organisations.iter().any(|organisation| organisation.name == name)
        };
        if taken && !name.is_empty() {
            let origin = self.origin(&format!("{path}.name"));
            self.fault(origin, format!("the name {} is taken", quoted(name)), Some("every element has a name of its own".into()));
        }
    }

    /// Reads entries into `target`; `inner` are tables inside that the caller reads.
    fn fill<T>(&mut self, keys: &[Key<T>], prefix: &str, inner: &[&str], entries: &DeTable<'_>, target: &mut T, path: &str) {
        for (name, value) in entries {
            let (word, span) = (name.get_ref().as_ref(), name.span());
            let full = format!("{prefix}{word}");
            if value.span().is_empty() {
                // What does not parse leaves such a value; the syntax error tells of it.
                continue;
            }
            if let Some(key) = keys.iter().find(|key| key.name == full) {
                let given = given(value.get_ref());
                self.put(key, &given, target, &format!("{path}.{full}"), Origin::File(value.span()));
            } else if keys.iter().any(|key| key.name.starts_with(&format!("{full}."))) {
                if let Some(entries) = self.entries(&format!("[{path}.{full}]"), value) {
                    self.fill(keys, &format!("{full}."), &[], entries, target, path);
                }
            } else if !inner.contains(&word) {
                let known = keys.iter().filter_map(|key| key.name.strip_prefix(prefix)).chain(inner.iter().copied());
                self.unknown_key(word, span, path, near(word, known));
            }
        }
    }

    fn put<T>(&mut self, key: &Key<T>, given: &Given, target: &mut T, name: &str, origin: Origin) {
        match key.rule.read(given) {
            Ok(value) => {
                (key.place)(target).set(value);
                self.origins.insert(name.to_owned(), origin);
            }
            Err(wrongs) => {
                for wrong in wrongs {
                    let origin = wrong.span.map_or_else(|| origin.clone(), Origin::File);
                    self.fault(origin, format!("`{}`: {}", key.name, wrong.message), wrong.help);
                }
            }
        }
    }

    /// Where a key was set.
    pub(super) fn origin(&self, name: &str) -> Origin {
        self.origins.get(name).cloned().unwrap_or(Origin::Whole)
    }

    /// The entries of a table, or the fault that it is none.
    fn entries<'a, 'i>(&mut self, name: &str, value: &'a Spanned<DeValue<'i>>) -> Option<&'a DeTable<'i>> {
        let table = value.get_ref().as_table();
        if table.is_none() {
            let (message, help) = match value.get_ref().as_array() {
                Some(_) => (format!("{name} stands once"), format!("write {name}")),
                None => (format!("{name} is a table"), format!("write {name} on a line of its own, its keys below")),
            };
            self.fault(Origin::File(value.span()), message, Some(help));
        }
        table
    }

    /// The elements of a table that stands many times, or the fault that it is none.
    fn items<'a, 'i>(&mut self, name: &str, value: &'a Spanned<DeValue<'i>>) -> Vec<(&'a DeTable<'i>, Range<usize>)> {
        let elements = value.get_ref().as_array();
        let tables =
            elements.map(|elements| elements.iter().map(|element| Some((element.get_ref().as_table()?, element.span()))));
        tables.and_then(|tables| tables.collect()).unwrap_or_else(|| {
            let message = format!("`{name}` is a list of tables");
            self.fault(Origin::File(value.span()), message, Some(format!("write [[{name}]], once for each")));
            Vec::new()
        })
    }

    fn unknown_key(&mut self, word: &str, span: Range<usize>, path: &str, near: Option<&str>) {
        let help = near.map(|near| format!("did you mean `{near}`?")).or_else(|| belongs(word));
        let table = if path.ends_with(']') && !path.contains('"') {
            format!("[[{}]]", path.split('[').next().unwrap_or(path))
        } else {
            format!("[{path}]")
        };
        self.fault(Origin::File(span), format!("unknown key `{word}` in {table}"), help);
    }

    fn unknown_table(&mut self, word: &str, span: Range<usize>, value: &DeValue<'_>) {
        let known = TABLES.iter().map(|table| table.name).chain(["organisation", "app"]);
        let help = near(word, known).map(|near| match near {
            "organisation" | "app" => format!("did you mean [[{near}]]?"),
            _ => format!("did you mean [{near}]?"),
        });
        match value {
            DeValue::Table(_) => self.fault(Origin::File(span), format!("unknown table [{word}]"), help),
            DeValue::Array(items) if items.iter().any(|item| item.get_ref().is_table()) => {
                self.fault(Origin::File(span), format!("unknown table [[{word}]]"), help);
            }
            _ => self.fault(Origin::File(span), format!("unknown key `{word}` outside of every table"), belongs(word).or(help)),
        }
    }

    /// Faults between keys.
    pub(super) fn cross(&mut self) {
        let settings = &self.draft.settings;
        let mut faults = Vec::new();
        let mut say = |key: &str, message: &str, help: &str| {
            faults.push(Fault { origin: self.origin(key), message: message.into(), help: Some(help.into()) });
        };
        match (&self.draft.cert, &self.draft.key) {
            (Some(_), None) => say("server.tls.cert", "`tls.cert` without `tls.key`", "set both, or neither for plain HTTP"),
            (None, Some(_)) => say("server.tls.key", "`tls.key` without `tls.cert`", "set both, or neither for plain HTTP"),
            _ => {}
        }
        if settings.server.listen == settings.admin.listen && settings.server.listen.port() != 0 {
            let key = if self.origins.contains_key("admin.listen") { "admin.listen" } else { "server.listen" };
            say(key, "[server] and [admin] listen on the same address", "give each a port of its own");
        }
        if settings.retry.base_delay > settings.retry.max_delay {
            let key = if self.origins.contains_key("retry.base_delay") { "retry.base_delay" } else { "retry.max_delay" };
            say(key, "`base_delay` is longer than `max_delay`", "the first back-off is the shortest");
        }
        if settings.store.kind == StoreKind::Redis && settings.store.url.is_none() {
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
        self.faults.extend(faults);
        self.shared_keys();
    }

    /// A key belongs to one organisation, a token to one app.
    fn shared_keys(&mut self) {
        let settings = &self.draft.settings;
        let mut seen = BTreeMap::new();
        let mut faults = Vec::new();
        let mut once = |what: String, owner: &str, origin: Origin, message: String| {
            if let Some(first) = seen.insert(what, owner.to_owned()) {
                faults.push(Fault { origin, message: format!("{message} {}", quoted(&first)), help: None });
            }
        };
        for (index, organisation) in settings.organisations.iter().enumerate() {
            for env in &organisation.api_key_env {
                let origin = self.origin(&format!("organisation[{index}].api_key_env"));
                once(
                    format!("key {env}"),
                    &organisation.name,
                    origin,
                    format!("the key of {env} is already one of organisation"),
                );
            }
            for digest in &organisation.api_key_sha256 {
                let origin = self.origin(&format!("organisation[{index}].api_key_sha256"));
                once(
                    format!("key {digest:?}"),
                    &organisation.name,
                    origin,
                    "one of these keys is already one of organisation".into(),
                );
            }
        }
        for (index, app) in settings.apps.iter().enumerate() {
            if let Some(env) = &app.token_env {
                let origin = self.origin(&format!("app[{index}].token_env"));
                once(format!("token {env}"), &app.name, origin, format!("the token of {env} is already that of app"));
            }
            if let Some(digest) = &app.token_sha256 {
                let origin = self.origin(&format!("app[{index}].token_sha256"));
                once(format!("token {digest:?}"), &app.name, origin, "this token is already that of app".into());
            }
        }
        self.faults.extend(faults);
    }
}

/// Syntax errors, the first of each line; after something that is never closed no more can be told.
fn broken(text: &str, errors: &[toml::de::Error]) -> Vec<Fault> {
    let open = errors.iter().any(|error| error.message().starts_with("unclosed"));
    let mut faults: Vec<(usize, Fault)> = Vec::new();
    let mut errors: Vec<_> = errors.iter().map(|error| (error.span().unwrap_or(0..0), error)).collect();
    errors.sort_by_key(|(span, _)| span.start);
    for (span, error) in errors {
        let line = line_of(text, &span);
        if faults.iter().any(|(known, _)| *known == line || open) {
            continue;
        }
        let before = text.get(..span.start).unwrap_or_default().trim_end_matches([' ', '\t']);
        let after = text.get(span.start..).unwrap_or_default();
        let missing = before.ends_with('=') && (after.is_empty() || after.starts_with(['\r', '\n', '#']));
        let message = if missing { "the value is missing" } else { error.message() };
        let help = open.then(|| "an array or inline table is not closed; what follows is not checked".to_owned());
        faults.push((line, Fault { origin: Origin::File(span), message: message.into(), help }));
    }
    faults.into_iter().map(|(_, fault)| fault).collect()
}

fn line(text: &str, fault: &Fault) -> Option<usize> {
    match &fault.origin {
        Origin::File(span) => Some(line_of(text, span)),
        _ => None,
    }
}

fn belongs(word: &str) -> Option<String> {
    let homes = keys::homes(word);
    (!homes.is_empty()).then(|| format!("`{word}` belongs in {}", homes.join(" or ")))
}

fn given(value: &DeValue<'_>) -> Given {
    match value {
        DeValue::String(text) => Given::Text(text.to_string()),
        DeValue::Integer(n) => match i128::from_str_radix(n.as_str(), n.radix()) {
            Ok(n) => Given::Integer(n),
            Err(_) => Given::Other("so large a number"),
        },
        DeValue::Float(n) => n.as_str().parse().map_or(Given::Other("such a number"), Given::Number),
        DeValue::Boolean(flag) => Given::Flag(*flag),
        DeValue::Datetime(_) => Given::Other("a date"),
        DeValue::Array(items) => Given::List(items.iter().map(|item| (given(item.get_ref()), item.span())).collect()),
        DeValue::Table(_) => Given::Other("a table"),
    }
}

/// What a variable or flag gives: text has no types of its own, so the rule decides.
fn given_text(rule: &Rule, text: &str) -> Given {
    match rule {
        Rule::Flag => text.parse().map_or_else(|_| Given::Text(text.into()), Given::Flag),
        Rule::Count(..) => text.parse().map_or_else(|_| Given::Text(text.into()), Given::Integer),
        Rule::Number(..) | Rule::Positive => text.parse().map_or_else(|_| Given::Text(text.into()), Given::Number),
        _ => Given::Text(text.into()),
    }
}

#[cfg(test)]
mod tests;
