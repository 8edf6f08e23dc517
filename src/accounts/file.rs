//! Saves the ledger to a file next to `limits.state_file`.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::time::{MissedTickBehavior, interval};

use super::ledger::{Ledger, Saved};

/// How often the ledger is saved if it has changed.
const SAVE_INTERVAL: Duration = Duration::from_secs(1);

/// The path of the ledger's file: `limits.state_file` with `.apps` appended.
pub fn path(state_file: &Path) -> PathBuf {
    let mut name = OsString::from(state_file);
    name.push(".apps");
    name.into()
}

/// Restores what an earlier process saved. A missing file is normal on the first start.
pub fn restore(ledger: &Ledger, path: &Path) {
    let saved = match fs::read(path) {
        Ok(saved) => saved,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "cannot read the usage of apps: budgets start from zero");
            return;
        }
    };
    match serde_json::from_slice::<Saved>(&saved) {
        Ok(saved) => ledger.restore(saved),
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "the saved usage of apps is invalid: budgets start from zero");
        }
    }
}

/// Saves the ledger if it has changed. The file is replaced atomically, so a crash leaves either the old or the new one.
///
/// # Errors
/// The error of the file system.
pub fn save(ledger: &Ledger, path: &Path) -> io::Result<()> {
    let Some(saved) = ledger.take_changes() else { return Ok(()) };
    let mut new = OsString::from(path);
    new.push(".new");
    let mut file = File::create(&new)?;
    file.write_all(&serde_json::to_vec(&saved)?)?;
    file.sync_data()?;
    fs::rename(&new, path)
}

/// Saves the ledger once a second. Never returns.
pub async fn keep_saved(ledger: Arc<Ledger>, path: Option<PathBuf>) {
    let Some(path) = path else { return std::future::pending().await };
    let mut ticks = interval(SAVE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let (ledger, path) = (ledger.clone(), path.clone());
        match tokio::task::spawn_blocking(move || save(&ledger, &path)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "cannot save the usage of apps beside limits.state_file"),
            Err(error) => tracing::error!(%error, "saving the usage of apps panicked"),
        }
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::accounts::Amounts;

    #[test]
    fn a_restart_restores_what_was_used_and_in_flight() {
        let folder = TempDir::new().expect("a folder");
        let file = path(&folder.path().join("state.json"));
        assert!(file.ends_with("state.json.apps"));
        let ledger = Arc::<Ledger>::default();
        let amounts = |tokens| Amounts { requests: 1, tokens, nano_usd: 0 };
        ledger.reserve(&"a".into(), &[], amounts(1), 86_400, 1).expect("no budget").used(amounts(70));
        let _in_flight = ledger.reserve(&"a".into(), &[], amounts(30), 86_400, 1).expect("no budget");
        save(&ledger, &file).expect("it can be written");
        let next = Ledger::default();
        restore(&next, &file);
        assert_eq!(next.usage("a", 86_400).day, Amounts { requests: 2, tokens: 100, nano_usd: 0 });
    }

    #[test]
    fn a_truncated_file_starts_from_zero() {
        let folder = TempDir::new().expect("a folder");
        let file = folder.path().join("x");
        let ledger = Ledger::default();
        restore(&ledger, &file);
        fs::write(&file, r#"{"a":{"day":{"start":1"#).expect("written");
        restore(&ledger, &file);
        assert!(ledger.list(0).is_empty());
    }
}
