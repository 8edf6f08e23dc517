//! The state file: the quotas of all limiters as JSON, so that a restarted process continues where the previous one ended.
//! The file is replaced as a whole. A truncated file, or one of another version, is ignored.

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
    types::{Ns, StatedLimit},
};

/// The value of [`File::format`]: the kind of file and its version.
const FORMAT: &str = "groq-shield limits 5";
/// Seconds of spending that are added after a crash, for what may have been sent after the last save.
const UNSAVED: f64 = 1.5;

#[derive(Debug, Serialize, Deserialize)]
struct File {
    format: String,
    /// Whether the process exited normally.
    clean: bool,
    limiters: Vec<(Scope, Saved)>,
}

/// One limiter's quotas at one time.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Saved {
    /// When they were saved, as Unix time in milliseconds.
    at: u64,
    /// The limits that Groq has stated.
    stated: Vec<StatedLimit>,
    quotas: Vec<SavedQuota>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct SavedQuota {
    /// The code of the dimension, or that of the operator's bound.
    code: String,
    /// Units in use, including everything reserved for requests in flight.
    used: f64,
    /// Units spent per second at that time.
    spending: f64,
}

impl Saved {
    /// The present quotas of a limiter.
    pub(crate) fn of(limiter: &Limiter, now: Ns) -> Self {
        let quotas = limiter.quotas().iter().map(|quota| SavedQuota {
            code: quota.code.clone().into_owned(),
            used: quota.bucket().used(now),
            spending: quota.spending(),
        });
        Self { at: wall(), stated: limiter.stated_limits(), quotas: quotas.collect() }
    }

    /// Restores the quotas in a new limiter, less what has been regained since they were saved.
    pub(crate) fn restore(&self, limiter: &mut Limiter, now: Ns) {
        let passed = Duration::from_millis(wall().saturating_sub(self.at)).as_secs_f64();
        limiter.adopt_limits(&self.stated, now);
        for SavedQuota { code, used, .. } in &self.quotas {
            limiter.restore_usage(code, used.max(0.0), passed, now);
        }
    }
}

/// Loads what an earlier process saved. Empty if there is no file, or none that can be read.
pub(crate) fn load(path: &Path) -> HashMap<Scope, Saved> {
    match fs::read(path).and_then(|text| Ok(serde_json::from_slice::<File>(&text)?)) {
        Ok(File { format, clean, mut limiters }) if format == FORMAT => {
            if !clean {
                for quota in limiters.iter_mut().flat_map(|(_, saved)| &mut saved.quotas) {
                    quota.used = quota.used.max(0.0) + UNSAVED * quota.spending.max(0.0);
                }
            }
            return limiters.into_iter().collect();
        }
        Ok(_) => tracing::warn!(path = %path.display(), "limits.state_file is of another version: limits start unused"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(path = %path.display(), %error, "limits.state_file cannot be read: limits start unused"),
    }
    HashMap::default()
}

/// Replaces the file atomically: a new file is written beside it, flushed, and renamed over it.
pub(crate) fn store(path: &Path, limiters: Vec<(Scope, Saved)>, clean: bool) -> io::Result<()> {
    let text = serde_json::to_vec(&File { format: FORMAT.into(), clean, limiters })?;
    // The suffix is appended, because another state file may differ only in its extension.
    let mut beside = path.as_os_str().to_owned();
    beside.push(".tmp");
    let mut out = fs::File::create(&beside)?;
    out.write_all(&text)?;
    out.sync_data()?;
    fs::rename(&beside, path)
}

/// Unix time in milliseconds. The wall clock is the only clock that continues after a restart.
fn wall() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
