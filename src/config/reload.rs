//! Reloading: live keys change at once, the others wait for a restart, and a bad file changes nothing.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    sync::{Mutex, PoisonError},
};

use super::{
    effective::{self, Entry},
    faults::Faults,
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
    /// Whether it takes effect now; the others wait for a restart.
    pub live: bool,
}

/// What a reload comes to.
#[derive(Clone, Debug)]
pub struct Next {
    /// The settings to put in force: the new ones where they are live, the old ones elsewhere.
    pub settings: Settings,
    /// What differs.
    pub changes: Vec<Change>,
    /// What is good to know, and was not told before.
    pub notes: Vec<Note>,
}

/// Reads a source again, and sees when its file has changed.
#[derive(Debug)]
pub struct Reload {
    source: Source,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    settings: Settings,
    notes: Vec<Note>,
    text: String,
    /// The file as it was last read.
    read: Option<Print>,
    /// The file as it was last looked at.
    looked: Option<Print>,
}

/// Tells one state of a file from another, through symbolic links: device, inode, length, time of change.
type Print = (u64, u64, u64, i64, i64);

impl Reload {
    /// Starts from what was loaded at the start.
    pub fn new(source: Source, loaded: &Loaded) -> Self {
        let read = print(&source);
        let (settings, notes) = (loaded.settings.clone(), loaded.notes.clone());
        let seen = Seen { settings, notes, text: loaded.faults.text.clone(), read, looked: read };
        Self { source, seen: Mutex::new(seen) }
    }

    /// Whether the file is another one than was read, and has come to rest since the last look.
    ///
    /// To be asked about once a second: a file that is being written is left alone until the next look.
    pub fn is_due(&self) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = print(&self.source);
        let rests = seen.looked == now;
        seen.looked = now;
        if now == seen.read || !rests {
            return false;
        }
        seen.read = now;
        self.source.text().as_deref() != Some(&seen.text)
    }

    /// Reads everything again.
    ///
    /// # Errors
    /// Every fault; the settings in force stay.
    pub fn again(&self) -> Result<Next, Faults> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.read = print(&self.source);
        let loaded = self.source.load();
        seen.text.clone_from(&loaded.faults.text);
        let mut notes = loaded.notes.clone();
        let wanted = loaded.settings()?;
        let settings = in_force(&seen.settings, wanted.clone());
        let changes = changes(&seen.settings, &wanted, &settings);
        seen.settings.clone_from(&settings);
        let told = std::mem::replace(&mut seen.notes, notes.clone());
        notes.retain(|note| !told.contains(note));
        Ok(Next { settings, changes, notes })
    }
}

fn print(source: &Source) -> Option<Print> {
    let file = fs::metadata(source.file()?).ok()?;
    Some((file.dev(), file.ino(), file.len(), file.mtime(), file.mtime_nsec()))
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
    let [old_keys, wanted_keys] = [old, wanted].map(effective::entries);
    let values = |settings: &Settings| -> BTreeMap<String, Option<String>> {
        effective::entries(settings).into_iter().map(|Entry { path, value, .. }| (path, value)).collect()
    };
    let (old, wanted, next) = (values(old), values(wanted), values(next));
    let gone = old_keys.iter().filter(|entry| !wanted.contains_key(&entry.path));
    let all = wanted_keys.iter().chain(gone).map(|Entry { path, .. }| {
        let [old, new, next] = [&old, &wanted, &next].map(|values| values.get(path).cloned().flatten());
        Change { key: path.clone(), live: next == new, old, new }
    });
    all.filter(|change| change.old != change.new).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{
        LogFormat,
        document::Document,
        example,
        schema::{Table, description, tables},
        source::read,
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
                ("app[0].name", None, true),
                ("app[0].weight", None, true),
                ("app[0].class", None, true),
                ("app[0].fallback", None, true),
            ]
        );
        assert_eq!((next.settings.queue.max_wait.as_secs(), next.settings.log.level.as_str()), (2, "debug"));
        assert_eq!((next.settings.server.threads, next.settings.log.format), (None, LogFormat::Text));
        assert_eq!(next.settings.app, []);
        assert!(reload.again().expect("no fault").changes.iter().all(|change| !change.live), "what waits is told again");
    }

    #[test]
    fn keys_are_live_where_the_documentation_says_so() {
        let every_key = read(&mut Document::parse(&example::every_key()));
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
        assert!(reload.again().expect_err("a fault").to_string().contains("there is no such file"));
        write(&file, "[retry]\nattempts = 3\n");
        let next = reload.again().expect("no fault");
        assert_eq!(next.settings.retry.attempts, 3);
        assert_eq!(next.changes[0].old.as_deref(), Some("2"));
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
