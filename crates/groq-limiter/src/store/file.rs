//! The state file: a small JSON file, replaced whole. A torn or unknown one counts as none.

use std::{
    fs, io,
    io::Write,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use crate::{
    limiter::Limiter,
    request::Scope,
    sync::HashMap,
    types::{Dimension, Ns, Source, StatedLimit},
};

/// The file's first word: what it is, and which version.
const FORMAT: &str = "groq-shield limits 4";
/// What may have been sent after the last save, in seconds of the spending at that time.
const UNSAVED: f64 = 1.5;

#[derive(Debug, Serialize, Deserialize)]
struct File {
    format: String,
    /// Whether the process ended in order.
    clean: bool,
    limiters: Vec<(Scope, Saved)>,
}

/// One limiter's quotas at a moment of the wall clock.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Saved {
    /// Milliseconds since 1970.
    at: u64,
    quotas: Vec<SavedQuota>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct SavedQuota {
    /// Its name: the dimension's code, or the operator's bound's.
    code: String,
    dimension: Dimension,
    /// What Groq stated, where it did.
    stated: Option<(u64, Source)>,
    /// Units used, everything that runs included as charged.
    used: f64,
    /// Units a second that were being spent.
    spending: f64,
}

impl Saved {
    /// A limiter as it stands.
    pub(crate) fn of(limiter: &Limiter, now: Ns) -> Self {
        let quotas = limiter.quotas().iter().map(|quota| SavedQuota {
            code: quota.code.clone().into_owned(),
            dimension: quota.dimension.clone(),
            stated: quota.statements.stated,
            used: quota.bucket().used(now),
            spending: quota.spending(),
        });
        Self { at: wall(), quotas: quotas.collect() }
    }

    /// Puts a new limiter where this one was, less what has come back since.
    pub(crate) fn restore(&self, limiter: &mut Limiter, now: Ns) {
        let passed = Duration::from_millis(wall().saturating_sub(self.at)).as_secs_f64();
        let stated = self.quotas.iter().filter_map(|quota| {
            let (limit, source) = quota.stated?;
            Some(StatedLimit { dimension: quota.dimension.clone(), limit, source })
        });
        limiter.adopt_limits(&stated.collect::<Vec<_>>(), now);
        for SavedQuota { code, used, .. } in &self.quotas {
            limiter.restore_usage(code, used.max(0.0), passed, now);
        }
    }
}

/// What an earlier process left; nothing where there is no file, or none of ours.
pub(crate) fn load(path: &Path) -> HashMap<Scope, Saved> {
    match fs::read(path).and_then(|text| Ok(serde_json::from_slice::<File>(&text)?)) {
        Ok(File { format, clean, mut limiters }) if format == FORMAT => {
            for quota in limiters.iter_mut().flat_map(|(_, saved)| &mut saved.quotas).filter(|_| !clean) {
                quota.used = quota.used.max(0.0) + UNSAVED * quota.spending.max(0.0);
            }
            return limiters.into_iter().collect();
        }
        Ok(_) => tracing::warn!(path = %path.display(), "limits.state_file is of another version: limits start unused"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(path = %path.display(), %error, "limits.state_file cannot be read: limits start unused"),
    }
    HashMap::default()
}

/// Replaces the file whole: written beside it, flushed, renamed over it.
pub(crate) fn store(path: &Path, limiters: Vec<(Scope, Saved)>, clean: bool) -> io::Result<()> {
    let text = serde_json::to_vec(&File { format: FORMAT.into(), clean, limiters })?;
    // Appended, because another state file may differ in its extension only.
    let mut beside = path.as_os_str().to_owned();
    beside.push(".tmp");
    let mut out = fs::File::create(&beside)?;
    out.write_all(&text)?;
    out.sync_data()?;
    fs::rename(&beside, path)
}

/// Milliseconds since 1970: the only clock that a restart does not reset.
fn wall() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
