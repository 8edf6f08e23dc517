//! Loads the configuration: flags and `GROQ_SHIELD_*` variables over the file over the defaults.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use super::{
    document::{Document, Override},
    effective,
    faults::Faults,
    hints,
    notes::{self, Note},
    paths, rules,
    schema::tables,
    settings::{Settings, StoreKind},
};

/// Where the file is looked for if no flag or variable names it.
pub const PLACES: [&str; 2] = ["groq-shield.toml", "/etc/groq-shield/groq-shield.toml"];

/// A flag, its short variable, and the key that both set.
const SHORT: [(&str, &str, &str); 3] = [
    ("--listen", "GROQ_SHIELD_LISTEN", "server.listen"),
    ("--upstream", "GROQ_SHIELD_UPSTREAM", "upstream.base_url"),
    ("--admin", "GROQ_SHIELD_ADMIN", "admin.listen"),
];

/// Where settings come from; each reload reads it again.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// `--config`
    pub config: Option<PathBuf>,
    /// `--listen`
    pub listen: Option<String>,
    /// `--upstream`
    pub upstream: Option<String>,
    /// `--admin`
    pub admin: Option<String>,
    /// Log warnings only, where nothing sets `log.level`.
    pub quiet: bool,
    /// The environment.
    pub variables: Vec<(OsString, OsString)>,
}

/// The result of reading a source once.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The file that was read.
    pub file: Option<PathBuf>,
    /// The settings; values with faults have their defaults.
    pub settings: Settings,
    /// Remarks that are not faults.
    pub notes: Vec<Note>,
    /// The effective configuration as TOML, secrets masked, with the origin of what is not a default.
    pub effective: String,
    /// All faults.
    pub faults: Faults,
}

impl Loaded {
    /// The settings, if there are no faults.
    ///
    /// # Errors
    /// Every fault.
    pub fn settings(self) -> Result<Settings, Faults> {
        if self.faults.faults.is_empty() { Ok(self.settings) } else { Err(self.faults) }
    }
}

impl Source {
    /// This process's environment, and a file if one is named.
    pub fn new(config: Option<PathBuf>) -> Self {
        Self { config, variables: std::env::vars_os().collect(), ..Self::default() }
    }

    /// The file to read: the one that is named, or the first place that has one.
    pub fn file(&self) -> Option<PathBuf> {
        let named = self.config.clone().or_else(|| self.variable("GROQ_SHIELD_CONFIG").map(PathBuf::from));
        named.or_else(|| PLACES.iter().map(PathBuf::from).find(|place| place.exists()))
    }

    /// The file's text, if there is a file that can be read.
    pub(super) fn text(&self) -> Option<String> {
        content(&self.file()?).ok()
    }

    /// Reads everything and collects every fault.
    pub fn load(&self) -> Loaded {
        let file = self.file();
        let (text, unreadable) = match file.as_deref().map_or(Ok(String::new()), content) {
            Ok(text) => (text, None),
            Err(why) => (String::new(), Some(why)),
        };
        let overrides = self.overrides();
        let (mut settings, mut document) = read(&text, &overrides);
        if let Some(why) = unreadable {
            document.refuse("", why, "");
        }
        if self.quiet && !document.is_set("log.level") {
            settings.log.level = "warn".into();
        }
        paths::resolve(&mut settings, &mut document, file.as_deref().and_then(Path::parent));
        self.refuse_unknown_variables(&notes::named(&settings), &mut document);
        let name = file.as_deref().map_or_else(String::new, |file| file.display().to_string());
        Loaded {
            notes: notes::of(&settings, &|name| self.variable(name).is_some()),
            effective: effective::toml(&settings, &document.origins, &name, &text),
            faults: Faults { name, faults: document.into_faults(), text },
            settings,
            file,
        }
    }

    fn variable(&self, name: &str) -> Option<&OsString> {
        self.variables.iter().find(|(known, value)| known == name && !value.is_empty()).map(|(_, value)| value)
    }

    /// The values of variables and flags, in ascending precedence.
    fn overrides(&self) -> Vec<Override> {
        let variables = variables().into_iter().filter_map(|(name, path)| {
            // `refuse_unknown_variables` reports what is not UTF-8.
            let text = self.variable(&name)?.to_str()?.to_owned();
            Some(Override { name, path, text })
        });
        let flags = SHORT.into_iter().zip([&self.listen, &self.upstream, &self.admin]);
        let flags = flags.filter_map(|((flag, _, path), text)| {
            Some(Override { name: flag.to_owned(), path: path.to_owned(), text: text.clone()? })
        });
        variables.chain(flags).collect()
    }

    /// Adds faults for variables with our prefix that set no key and are not in `secrets`, and for values that are not UTF-8.
    fn refuse_unknown_variables(&self, secrets: &[String], document: &mut Document<'_>) {
        let keys: Vec<_> = variables().into_iter().map(|(name, _)| name).chain(["GROQ_SHIELD_CONFIG".to_owned()]).collect();
        for (name, value) in self.variables.iter().filter_map(|(name, value)| Some((name.to_str()?, value))) {
            let is_ours = name.starts_with("GROQ_SHIELD_") && !value.is_empty() && !secrets.iter().any(|secret| secret == name);
            if !is_ours || is_from_kubernetes(name, &value.to_string_lossy()) {
                continue;
            }
            if !keys.iter().any(|known| known == name) {
                document.refuse_override(name, "no key has this name", hints::variable(name, &keys));
            } else if value.to_str().is_none() && name != "GROQ_SHIELD_CONFIG" {
                document.refuse_override(name, "not UTF-8", String::new());
            }
        }
    }
}

/// Reads a text and the overrides, rules between keys included. Values with faults have their defaults in the settings.
pub(super) fn read<'a>(text: &'a str, overrides: &'a [Override]) -> (Settings, Document<'a>) {
    let (mut settings, mut document) = Document::read(text, overrides);
    if document.is_set("store.url") && !document.is_set("store.kind") {
        settings.store.kind = StoreKind::Redis;
        document.origins.insert("store.kind".into(), document.origin("store.url"));
    }
    rules::between_keys(&settings, &mut document);
    (settings, document)
}

/// Every variable that sets a key, and the key's path, in ascending precedence.
fn variables() -> Vec<(String, String)> {
    let single = tables().iter().filter(|table| table.is_single);
    let long = single.flat_map(|table| table.keys.iter().map(|(key, _)| (table.variable(key), format!("{}.{key}", table.path))));
    long.chain(SHORT.map(|(_, name, path)| (name.to_owned(), path.to_owned()))).collect()
}

fn content(file: &Path) -> Result<String, String> {
    let bytes = fs::read(file).map_err(|why| format!("{} cannot be read: {why}", file.display()))?;
    String::from_utf8(bytes).map_err(|why| {
        let line = why.as_bytes()[..why.utf8_error().valid_up_to()].iter().filter(|byte| **byte == b'\n').count() + 1;
        format!("{}:{line}: not UTF-8", file.display())
    })
}

/// Kubernetes sets these in every pod of a namespace with a service called `groq-shield`.
fn is_from_kubernetes(name: &str, value: &str) -> bool {
    let port = |at: usize| name[at + 6..].split_once('_').is_some_and(|(port, _)| port.parse::<u16>().is_ok());
    name.contains("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || (name.ends_with("_PORT") && value.contains("://"))
        || name.match_indices("_PORT_").any(|(at, _)| port(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A source of this file's text and these variables.
    fn loaded(text: &str, variables: &[(&str, &str)], source: Source) -> Loaded {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("shield.toml");
        fs::write(&file, text).expect("the file is written");
        let variables = variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
        Source { config: Some(file), variables, ..source }.load()
    }

    fn faults(text: &str, variables: &[(&str, &str)], source: Source) -> String {
        loaded(text, variables, source).faults.to_string()
    }

    #[test]
    fn flags_win_over_variables_over_the_file_over_defaults() {
        let text = "[server]\nlisten = \"127.0.0.1:1\"\n[admin]\nlisten = \"127.0.0.1:2\"\n[queue]\nmax_wait = \"3s\"\nmax_waiting = 4\n";
        let variables = [
            ("GROQ_SHIELD_SERVER_LISTEN", "127.0.0.1:11"),
            ("GROQ_SHIELD_ADMIN_LISTEN", "127.0.0.1:12"),
            ("GROQ_SHIELD_ADMIN", "127.0.0.1:22"),
            ("GROQ_SHIELD_QUEUE_MAX_WAIT", "13s"),
            ("GROQ_SHIELD_LIMITS_DEFAULT_REQUESTS_PER_MINUTE", "7"),
            ("GROQ_SHIELD_LIMITS_HEADROOM", "0.25"),
            ("GROQ_SHIELD_LIMITS_FIT_CEILING", "true"),
            ("GROQ_SHIELD_SERVER_MAX_BODY", ""),
        ];
        let source = Source { listen: Some("127.0.0.1:31".into()), ..Source::default() };
        let settings = loaded(text, &variables, source).settings().expect("no fault");
        assert_eq!((settings.server.listen.port(), settings.admin.listen.port()), (31, 22));
        assert_eq!((settings.queue.max_wait.as_secs(), settings.queue.max_waiting), (13, 4));
        assert_eq!(settings.limits.default.requests_per_minute, Some(7));
        assert_eq!((settings.limits.headroom, settings.limits.fit_ceiling), (0.25, true));
        assert_eq!(settings.server.max_body, Settings::default().server.max_body, "an empty variable says nothing");
    }

    #[test]
    fn every_key_that_stands_once_has_a_variable() {
        for table in tables().iter().filter(|table| table.is_single) {
            for (key, schema) in &table.keys {
                // Free text and files apart, no key accepts this.
                if schema["type"] == "string" && matches!(schema["title"].as_str(), None | Some("a path")) {
                    continue;
                }
                let path = format!("{}.{key}", table.path);
                let name = format!("GROQ_SHIELD_{}", path.replace('.', "_").to_uppercase());
                let shown = faults("", &[(&name, "\u{1}")], Source::default());
                assert!(shown.starts_with(&format!("error: {name}: `{path}`: ")), "{name}: {shown}");
            }
        }
    }

    #[test]
    fn faults_of_variables_and_flags_name_them() {
        let source = Source { upstream: Some("api.groq.com".into()), ..Source::default() };
        let shown = faults("", &[("GROQ_SHIELD_QUEUE_MAX_WAIT", "50"), ("GROQ_SHIELD_QUEU_MAX_WAIT", "50s")], source);
        for part in [
            "error: GROQ_SHIELD_QUEUE_MAX_WAIT: `queue.max_wait`: expected a time with its unit, 0s to 24h, found 50\n",
            "error: GROQ_SHIELD_QUEU_MAX_WAIT: no key has this name\n |\n = help: did you mean GROQ_SHIELD_QUEUE_MAX_WAIT?\n",
            "error: --upstream: `upstream.base_url`: expected an http or https URL without user, query and /openai/v1, found api.groq.com\n |\n = help: for example \"https://api.groq.com\"\n",
            "3 faults",
        ] {
            assert!(shown.contains(part), "{part}\n{shown}");
        }
    }

    /// The suggestion was GROQ_SHIELD_UPSTREAM, the closest name.
    #[test]
    fn a_variable_that_names_a_table_is_told_its_keys() {
        let shown = faults("", &[("GROQ_SHIELD_SERVER_TLS", "on"), ("GROQ_SHIELD_ADMN", "127.0.0.1:1")], Source::default());
        for part in [
            "error: GROQ_SHIELD_SERVER_TLS: no key has this name\n |\n = help: a table is set by its keys: GROQ_SHIELD_SERVER_TLS_CERT, GROQ_SHIELD_SERVER_TLS_KEY\n",
            "error: GROQ_SHIELD_ADMN: no key has this name\n |\n = help: did you mean GROQ_SHIELD_ADMIN?\n",
        ] {
            assert!(shown.contains(part), "{part}\n{shown}");
        }
        let shown = faults("", &[("GROQ_SHIELD_SERVER", "127.0.0.1:1")], Source::default());
        assert!(shown.contains("a table is set by its keys: GROQ_SHIELD_SERVER_LISTEN, "), "{shown}");
    }

    #[test]
    fn a_variable_that_is_not_utf8_is_one_fault() {
        let value = std::os::unix::ffi::OsStringExt::from_vec(vec![0xff]);
        let variables = vec![("GROQ_SHIELD_LOG_LEVEL".into(), value)];
        let shown = Source { variables, ..Source::default() }.load().faults.to_string();
        assert_eq!(shown, "error: GROQ_SHIELD_LOG_LEVEL: not UTF-8\n\n1 fault in the configuration");
    }

    #[test]
    fn variables_of_kubernetes_and_those_that_hold_secrets_are_no_keys() {
        let variables = [
            ("GROQ_SHIELD_SERVICE_HOST", "10.0.0.1"),
            ("GROQ_SHIELD_SERVICE_PORT_HTTP", "8787"),
            ("GROQ_SHIELD_PORT", "tcp://10.0.0.1:8787"),
            ("GROQ_SHIELD_PORT_8787_TCP_ADDR", "10.0.0.1"),
            ("GROQ_SHIELD_ADMIN_SERVICE_PORT", "8788"),
            ("GROQ_SHIELD_ADMIN_PORT", "tcp://10.0.0.2:8788"),
            ("GROQ_SHIELD_CHAT_TOKEN", "secret"),
        ];
        let loaded = loaded("[[app]]\nname = \"a\"\ntoken_env = \"GROQ_SHIELD_CHAT_TOKEN\"\n", &variables, Source::default());
        assert_eq!(loaded.faults.faults, []);
    }

    #[test]
    fn files_that_cannot_be_read_are_faults() {
        let missing = Source { config: Some("/nowhere/shield.toml".into()), ..Source::default() }.load().faults.to_string();
        assert!(missing.contains("/nowhere/shield.toml cannot be read: No such file or directory"), "{missing}");
        let shown = faults("[server.tls]\ncert = \"/nowhere/c\"\nkey = \"/nowhere/k\"\n", &[], Source::default());
        assert!(shown.contains("shield.toml:2:8") && shown.contains("shield.toml:3:7"), "{shown}");
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("shield.toml");
        fs::write(&file, b"[server]\n# \xff\n").expect("written");
        let shown = Source { config: Some(file), ..Source::default() }.load().faults.to_string();
        assert!(shown.contains("shield.toml:2: not UTF-8"), "{shown}");
    }

    /// Levels were silently not kept.
    #[test]
    fn a_state_file_that_cannot_be_written_is_a_fault() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("file");
        fs::write(&file, "").expect("written");
        let shown = |path: &Path| faults(&format!("[limits]\nstate_file = {path:?}\n"), &[], Source::default());
        let (missing, inside) = (folder.path().join("nowhere/state"), file.join("state"));
        for (path, part) in [
            (missing.as_path(), format!("cannot be written: there is no directory {}", folder.path().join("nowhere").display())),
            (folder.path(), format!("{} is a directory: name a file in it", folder.path().display())),
            (&inside, format!("{} cannot be read: Not a directory", inside.display())),
        ] {
            let shown = shown(path);
            assert!(shown.contains(&part) && shown.contains("shield.toml:2:14"), "{part}\n{shown}");
        }
        assert_eq!(shown(&folder.path().join("state")), "0 faults in the configuration", "it need not be there yet");
        assert_eq!(shown(&file), "0 faults in the configuration");
    }

    #[test]
    fn relative_paths_in_the_file_are_relative_to_it() {
        let text = "[limits]\nstate_file = \"state\"\n";
        let loaded = loaded(text, &[], Source::default());
        let folder = loaded.file.as_deref().and_then(Path::parent).expect("its folder");
        assert_eq!(loaded.settings.limits.state_file, Some(folder.join("state")));
        let variable = ("GROQ_SHIELD_LIMITS_STATE_FILE", "state");
        let loaded = self::loaded("", &[variable], Source::default());
        assert_eq!(loaded.settings.limits.state_file, Some("state".into()), "of the working directory");
    }

    /// With a URL alone, replicas believed that they shared their limits.
    #[test]
    fn a_store_url_means_redis() {
        let load = |text: &str, variables: &[(&str, &str)]| loaded(text, variables, Source::default());
        let url = "[store]\nurl = \"redis://localhost:6379\"\n";
        let inferred = load(url, &[]);
        assert_eq!(inferred.settings.store.kind, StoreKind::Redis);
        assert!(inferred.effective.contains("kind = \"redis\"  # "), "{}", inferred.effective);
        assert_eq!(load("", &[("GROQ_SHIELD_STORE_URL", "redis://h")]).settings.store.kind, StoreKind::Redis);
        let local = load(&format!("{url}kind = \"local\"\n"), &[]);
        assert_eq!(local.settings.store.kind, StoreKind::Local);
        assert!(local.notes.iter().any(|note| note.is_warning && note.message.contains("store.url is not used")));
    }

    #[test]
    fn an_upstream_that_is_the_shield_itself_is_a_fault() {
        let shown = faults("[upstream]\nbase_url = \"http://localhost:8787\"\n", &[], Source::default());
        assert!(shown.contains("shield.toml:2:12") && shown.contains("itself listens there (server.listen)"), "{shown}");
        let source = Source { upstream: Some("http://127.0.0.1:8788".into()), ..Source::default() };
        let shown = faults("", &[], source);
        assert!(
            shown.contains("error: --upstream: `upstream.base_url`: this shield itself listens there (admin.listen)"),
            "{shown}"
        );
    }

    #[test]
    fn models_without_a_price_are_noted_where_an_app_has_a_budget_in_usd() {
        let warnings = |app: &str| {
            let text = format!(
                "[[app]]\nname = \"a\"\n{app}\n[limits.model.m]\nrequests_per_day = 1\n[limits.model.priced]\nrequests_per_day = 1\n\
                 [[fallback]]\nmodel = \"from\"\nto = [\"priced\"]\n[price.priced]\ninput = 1\noutput = 1\n"
            );
            let loaded = loaded(&text, &[], Source::default());
            assert!(loaded.faults.faults.is_empty(), "{}", loaded.faults);
            let notes = loaded.notes.into_iter().filter(|note| note.is_warning && note.message.contains("has no price"));
            notes.map(|note| note.message.split(' ').next().map(str::to_owned)).collect::<Vec<_>>()
        };
        assert_eq!(warnings("cost_per_month = 5.0"), [Some("\"from\"".to_owned()), Some("\"m\"".to_owned())]);
        assert!(warnings("tokens_per_day = 5").is_empty());
    }

    #[test]
    fn notes_name_what_is_missing() {
        let text = "[server]\nlisten = \"0.0.0.0:8787\"\n[upstream]\napi_key_env = \"THE_KEY\"\n";
        let notes =
            loaded(text, &[], Source::default()).notes.into_iter().map(|note| note.message).collect::<Vec<_>>().join("\n");
        for part in ["state_file is not set", "THE_KEY is named", "everyone who can connect to 0.0.0.0:8787"] {
            assert!(notes.contains(part), "{part}\n{notes}");
        }
    }
}
