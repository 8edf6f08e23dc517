//! Keeps the ledger in a file, beside the one of the limits.

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

/// The ledger is saved this often, where it has changed.
const SAVE_INTERVAL: Duration = Duration::from_secs(1);

/// The file of the ledger beside `limits.state_file`: its name with `.apps` at the end.
pub fn path(state_file: &Path) -> PathBuf {
    let mut name = OsString::from(state_file);
    name.push(".apps");
    name.into()
}

/// Takes up what an earlier process has saved; a file that is not there is a first start.
pub fn restore(ledger: &Ledger, path: &Path) {
    let saved = match fs::read(path) {
        Ok(saved) => saved,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "what apps have used cannot be read: budgets start from zero");
            return;
        }
    };
    match serde_json::from_slice::<Saved>(&saved) {
        Ok(saved) => ledger.restore(saved),
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "what apps have used is not readable: budgets start from zero");
        }
    }
}

/// Saves the ledger if it has changed. The file is replaced as a whole, so that a crash leaves the old one or the new one.
///
/// # Errors
/// What the file system said.
pub fn save(ledger: &Ledger, path: &Path) -> io::Result<()> {
    let Some(saved) = ledger.take_changes() else { return Ok(()) };
    let mut new = OsString::from(path);
    new.push(".new");
    let mut file = File::create(&new)?;
    file.write_all(&serde_json::to_vec(&saved)?)?;
    file.sync_data()?;
    fs::rename(&new, path)
}

/// Saves the ledger once a second; never ends.
pub async fn keep_saved(ledger: Arc<Ledger>, path: Option<PathBuf>) {
    let Some(path) = path else { return std::future::pending().await };
    let mut ticks = interval(SAVE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let (ledger, path) = (ledger.clone(), path.clone());
        match tokio::task::spawn_blocking(move || save(&ledger, &path)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "what apps have used cannot be saved beside limits.state_file"),
            Err(error) => tracing::error!(%error, "saving what apps have used panicked"),
        }
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::accounts::Amounts;

    #[test]
    fn a_restart_takes_up_what_was_used_and_what_was_in_flight() {
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
    fn a_torn_file_is_a_start_anew() {
        let folder = TempDir::new().expect("a folder");
        let file = folder.path().join("x");
        let ledger = Ledger::default();
        restore(&ledger, &file);
        fs::write(&file, r#"{"a":{"day":{"start":1"#).expect("written");
        restore(&ledger, &file);
        assert!(ledger.list(0).is_empty());
    }
}
