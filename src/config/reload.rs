//! Reloading: live keys change at once, others need a restart, and a file with faults changes nothing.

use std::sync::{Mutex, PoisonError};

use super::{
    effective,
    faults::{Fault, Faults, Origin},
    notes::Note,
    settings::{Log, Settings},
    source::{Loaded, Source},
};

/// One key that a reload finds different.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// By full name: `queue.max_wait`, `app[0].weight`.
    pub key: String,
    /// Its value in force as TOML, masked; `None`: not set.
    pub old: Option<String>,
    /// Its value in the file as TOML, masked; `None`: not set.
    pub new: Option<String>,
    /// Whether it takes effect now, and not after a restart.
    pub live: bool,
}

/// The result of a reload.
#[derive(Clone, Debug)]
pub struct Next {
    /// The settings to put in force: the new ones where they are live, the old ones elsewhere.
    pub settings: Settings,
    /// What differs.
    pub changes: Vec<Change>,
    /// Notes that were not there before.
    pub notes: Vec<Note>,
}

/// Reads a source again, and detects changes of its file.
#[derive(Debug)]
pub struct Reload {
    source: Source,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    settings: Settings,
    notes: Vec<Note>,
    /// The file's text as it was last read; `None`: it could not be.
    read: Option<String>,
    /// Its text at the last look.
    looked: Option<String>,
}

impl Reload {
    /// Starts from what was loaded at the start.
    pub fn new(source: Source, loaded: &Loaded) -> Self {
        let read = loaded.file.as_ref().map(|_| loaded.faults.text.clone());
        let (settings, notes) = (loaded.settings.clone(), loaded.notes.clone());
        Self { source, seen: Mutex::new(Seen { settings, notes, looked: read.clone(), read }) }
    }

    /// Whether the file's text differs from what was read, and has not changed since the last look. An empty file is ignored:
    /// it may be about to be written, even if it has been empty for a second.
    ///
    /// To be asked about once a second: a file that is being written is left alone until the next look. The text is compared and
    /// not the time of change, which misses writes within one tick of the clock and sees those that change nothing.
    pub fn is_due(&self) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.source.text();
        let rests = seen.looked == now;
        let is_empty = now.as_deref().is_some_and(|text| text.trim().is_empty());
        let is_due = rests && seen.read != now && !is_empty;
        if is_due {
            seen.read.clone_from(&now);
        }
        seen.looked = now;
        is_due
    }

    /// Reads everything again.
    ///
    /// # Errors
    /// Every fault; the settings in force stay. A file that has lost all tokens of apps is one while the shield holds a key: it is
    /// more likely truncated than meant.
    pub fn again(&self) -> Result<Next, Faults> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.read = self.source.text();
        let Loaded { settings: wanted, notes, mut faults, .. } = self.source.load();
        let settings = in_force(&seen.settings, wanted.clone());
        let is_open = settings.upstream.api_key_env.is_some() && !settings.needs_tokens();
        if faults.faults.is_empty() && is_open && seen.settings.needs_tokens() {
            faults.faults.push(Fault {
                origin: Origin::Whole,
                path: "app".into(),
                message: "no app has a token any more, so that anybody could use the key that the shield holds".into(),
                help: "complete the file, or restart the shield if this is meant".into(),
            });
        }
        if !faults.faults.is_empty() {
            return Err(faults);
        }
        let changes = changes(&seen.settings, &wanted, &settings);
        let new_notes = notes.iter().filter(|note| !seen.notes.contains(note)).cloned().collect();
        (seen.settings, seen.notes) = (settings.clone(), notes);
        Ok(Next { settings, changes, notes: new_notes })
    }
}

/// What is wanted where it is live, what is in force elsewhere.
fn in_force(old: &Settings, mut wanted: Settings) -> Settings {
    wanted.limits.state_file.clone_from(&old.limits.state_file);
    let level = wanted.log.level;
    Settings {
        server: old.server.clone(),
        admin: old.admin.clone(),
        upstream: old.upstream.clone(),
        store: old.store.clone(),
        log: Log { level, ..old.log.clone() },
        ..wanted
    }
}

/// What differs between the settings in force and those wanted; live is what `next`, the settings put in force, takes over.
fn changes(old: &Settings, wanted: &Settings, next: &Settings) -> Vec<Change> {
    let [was, will, is] = [old, wanted, next].map(effective::values);
    let gone = was.keys().filter(|key| !will.contains_key(*key)).cloned();
    let keys = effective::entries(wanted).into_iter().map(|entry| entry.path).chain(gone);
    let changes = keys.map(|key| {
        let [old, new, next] = [&was, &will, &is].map(|values| values.get(&key).cloned().flatten());
        Change { key, live: next == new, old, new }
    });
    changes.filter(|change| change.old != change.new).collect()
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::config::{
        LogFormat,
        schema::{Table, description, tables},
        source::read,
        tests::every_key,
    };

    fn reload(file: &Path) -> Reload {
        let source = Source { config: Some(file.to_owned()), ..Source::default() };
        let loaded = source.load();
        assert_eq!(loaded.faults.faults, []);
        Reload::new(source, &loaded)
    }

    fn write(file: &Path, text: &str) {
        fs::write(file, text).expect("the file is written");
    }

    #[test]
    fn live_keys_change_and_the_others_wait() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("shield.toml");
        write(&file, "[queue]\nmax_wait = \"1s\"\n[[app]]\nname = \"a\"\n");
        let reload = reload(&file);
        write(&file, "[server]\nthreads = 3\n[queue]\nmax_wait = \"2s\"\n[log]\nlevel = \"debug\"\nformat = \"json\"\n");
        let next = reload.again().expect("no fault");
        let told: Vec<_> = next.changes.iter().map(|change| (change.key.as_str(), change.new.as_deref(), change.live)).collect();
        assert_eq!(
            told,
            [
                ("server.threads", Some("3"), false),
                ("queue.max_wait", Some("\"2s\""), true),
                ("log.level", Some("\"debug\""), true),
                ("log.format", Some("\"json\""), false),
                ("app[0].class", None, true),
                ("app[0].fallback", None, true),
                ("app[0].name", None, true),
                ("app[0].weight", None, true),
            ]
        );
        assert_eq!((next.settings.queue.max_wait.as_secs(), next.settings.log.level.as_str()), (2, "debug"));
        assert_eq!((next.settings.server.threads, next.settings.log.format), (None, LogFormat::Text));
        assert_eq!(next.settings.app, []);
        assert!(reload.again().expect("no fault").changes.iter().all(|change| !change.live), "what waits is told again");
    }

    #[test]
    fn keys_are_live_where_the_documentation_says_so() {
        let text = every_key();
        let (every_key, _) = read(&text, &[]);
        let default = Settings::default();
        let changes = changes(&every_key, &default, &in_force(&every_key, default.clone()));
        assert!(changes.len() > 40, "{changes:?}");
        for Change { key, live, .. } in changes {
            let named = |table: &&Table| key.strip_prefix(&table.path).is_some_and(|rest| rest.starts_with(['.', '[']));
            let table = tables().iter().filter(named).max_by_key(|table| table.path.len()).expect("a table");
            let name = key.rsplit('.').next().expect("a name");
            let own = table.keys.iter().find(|(known, _)| *known == name).map(|(_, schema)| description(schema)).expect("a key");
            let expected = if own.ends_with("Takes a restart.") {
                false
            } else {
                own.ends_with("Live.") || table.description.ends_with("Live.")
            };
            assert_eq!(live, expected, "{key}");
        }
    }

    #[test]
    fn a_bad_file_changes_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("shield.toml");
        write(&file, "[retry]\nattempts = 2\n");
        let reload = reload(&file);
        write(&file, "[retry]\natempts = 3\n");
        let faults = reload.again().expect_err("a fault").to_string();
        assert!(faults.contains("shield.toml:2:1") && faults.contains("did you mean `attempts`?"), "{faults}");
        fs::remove_file(&file).expect("the file goes");
        assert!(reload.again().expect_err("a fault").to_string().contains("No such file or directory"));
        write(&file, "[retry]\nattempts = 3\n");
        let next = reload.again().expect("no fault");
        assert_eq!(next.settings.retry.attempts, 3);
        assert_eq!(next.changes[0].old.as_deref(), Some("2"));
    }

    /// Truncated to nothing, the file had opened the shield to everybody until it was restored.
    #[test]
    fn a_truncated_file_does_not_make_tokens_optional() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("shield.toml");
        let app = "[[app]]\nname = \"a\"\ntoken_env = \"TOKEN\"\n";
        for (held, refused) in [("[upstream]\napi_key_env = \"KEY\"\n", true), ("", false)] {
            write(&file, &format!("{held}{app}"));
            let reload = reload(&file);
            for text in ["", held] {
                write(&file, text);
                match reload.again() {
                    Ok(_) => assert!(!refused),
                    Err(faults) => assert!(refused && faults.to_string().contains("no app has a token any more"), "{faults}"),
                }
            }
            write(&file, &format!("{held}{app}[retry]\nattempts = 2\n"));
            assert_eq!(reload.again().expect("no fault").settings.retry.attempts, 2);
        }
    }

    #[test]
    fn a_file_is_due_once_when_it_has_changed_and_rests() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("shield.toml");
        write(&file, "");
        let reload = reload(&file);
        assert!(!reload.is_due());
        write(&file, "[queue]\nmax_wait = \"3s\"\n");
        let looks = [reload.is_due(), reload.is_due(), reload.is_due()];
        assert_eq!(looks, [false, true, false], "once, at the second look");
        reload.again().expect("no fault");
        assert!(!reload.is_due());
        // A disk may keep a writer waiting between truncating the file and writing it.
        write(&file, "");
        assert!(!reload.is_due() && !reload.is_due());
        write(&file, "[queue]\nmax_wait = \"4s\"\n");
        assert!(!reload.is_due() && reload.is_due());
    }

    #[test]
    fn a_swapped_symbolic_link_is_due() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        for (name, text) in [("one", "[retry]\nattempts = 1\n"), ("two", "[retry]\nattempts = 2\n")] {
            fs::create_dir(path(name)).expect("a folder");
            write(&path(name).join("shield.toml"), text);
        }
        // As a ConfigMap is mounted: the file is a link through `data`, which is swapped as a whole.
        std::os::unix::fs::symlink("one", path("data")).expect("a link");
        std::os::unix::fs::symlink("data/shield.toml", path("shield.toml")).expect("a link");
        let reload = reload(&path("shield.toml"));
        std::os::unix::fs::symlink("two", path("new")).expect("a link");
        fs::rename(path("new"), path("data")).expect("swapped");
        assert!(!reload.is_due());
        assert!(reload.is_due());
        assert_eq!(reload.again().expect("no fault").settings.retry.attempts, 2);
    }

    #[test]
    fn the_same_text_is_not_due() {
        let folder = tempfile::tempdir().expect("a folder");
        let (file, other) = (folder.path().join("shield.toml"), folder.path().join("other"));
        write(&file, "[retry]\nattempts = 1\n");
        let reload = reload(&file);
        write(&other, "[retry]\nattempts = 1\n");
        fs::rename(&other, &file).expect("replaced");
        assert_eq!([reload.is_due(), reload.is_due(), reload.is_due()], [false, false, false]);
    }
}
