//! The state file: a small JSON file, replaced whole. A torn or unknown one counts as none.

use std::{
    borrow::Cow,
    fs, io,
    io::Write,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use crate::{
    limiter::Limiter,
    request::Scope,
    sync::HashMap,
    types::{Dimension, Ns, Source, StatedLimit, Unit},
};

/// The file's first word: what it is, and which version.
const FORMAT: &str = "groq-shield limits 2";
/// What may have been sent after the last save, in seconds of the spending at that time.
const UNSAVED: f64 = 1.5;

#[derive(Debug, Serialize, Deserialize)]
struct File {
    format: String,
    /// Whether the process ended in order.
    clean: bool,
    limiters: Vec<SavedLimiter>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedLimiter {
    organization: String,
    model: String,
    tier: String,
    #[serde(flatten)]
    saved: Saved,
}

/// One limiter's quotas at a moment of the wall clock.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Saved {
    /// Milliseconds since 1970.
    at: u64,
    quotas: Vec<SavedQuota>,
    #[serde(skip)]
    clean: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct SavedQuota {
    code: Cow<'static, str>,
    unit: Unit,
    period_ms: u64,
    /// What Groq stated, where it did.
    stated: Option<u64>,
    /// Whether in headers.
    visible: bool,
    /// Whether it is the operator's bound beside it.
    #[serde(default)]
    bound: bool,
    /// Units used, everything that runs included as charged.
    used: f64,
    /// Units a second that were being spent.
    spending: f64,
}

impl Saved {
    /// A limiter as it stands.
    pub(crate) fn of(limiter: &Limiter, now: Ns) -> Self {
        let quotas = limiter.quotas().iter().map(|quota| {
            let terms = quota.statements();
            SavedQuota {
                code: quota.dimension.code.clone(),
                unit: quota.dimension.unit,
                period_ms: u64::try_from(quota.dimension.period.as_millis()).unwrap_or(u64::MAX),
                stated: terms.stated.map(|(limit, _)| limit),
                visible: quota.is_visible(),
                bound: quota.is_bound(),
                used: quota.bucket().map_or(0.0, |bucket| bucket.used(now)),
                spending: quota.spending(),
            }
        });
        Self { at: wall(), quotas: quotas.collect(), clean: true }
    }

    /// Puts a new limiter where this one was, less what has come back since.
    pub(crate) fn restore(&self, limiter: &mut Limiter, now: Ns) {
        let passed = Duration::from_millis(wall().saturating_sub(self.at)).as_secs_f64();
        let sane = || self.quotas.iter().filter_map(|quota| Some((quota, quota.dimension()?)));
        let stated = sane().filter_map(|(quota, dimension)| {
            let source = if quota.visible { Source::Headers } else { Source::UpstreamRefusal };
            Some(StatedLimit { dimension, limit: quota.stated?, source })
        });
        limiter.adopt_limits(&stated.collect::<Vec<_>>(), now);
        for (quota, dimension) in sane() {
            let unsaved = if self.clean { 0.0 } else { UNSAVED * quota.spending.max(0.0) };
            limiter.restore_usage(&dimension, quota.bound, quota.used.max(0.0) + unsaved, passed, now);
        }
    }
}

impl SavedQuota {
    /// `None` for figures that no file of ours holds.
    fn dimension(&self) -> Option<Dimension> {
        let sane = self.used.is_finite() && self.spending.is_finite() && (1000..=31 * 86_400_000).contains(&self.period_ms);
        sane.then(|| {
            Dimension::KNOWN.into_iter().find(|known| known.code == self.code).unwrap_or_else(|| Dimension {
                code: self.code.clone(),
                unit: self.unit,
                period: Duration::from_millis(self.period_ms),
            })
        })
    }
}

/// What an earlier process left; nothing where there is no file, or none of ours.
pub(crate) fn load(path: &Path) -> HashMap<Scope, Saved> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return HashMap::default(),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "limits.state_file cannot be read: limits start unused");
            return HashMap::default();
        }
    };
    let file = match serde_json::from_slice::<File>(&text) {
        Ok(file) if file.format == FORMAT => file,
        Ok(_) => {
            tracing::warn!(path = %path.display(), "limits.state_file is of another version: limits start unused");
            return HashMap::default();
        }
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "limits.state_file is torn or unknown: limits start full");
            return HashMap::default();
        }
    };
    let clean = file.clean;
    let keyed = |limiter: SavedLimiter| {
        let key = Scope { organization: limiter.organization.into(), model: limiter.model.into(), tier: limiter.tier.into() };
        (key, Saved { clean, ..limiter.saved })
    };
    file.limiters.into_iter().map(keyed).collect()
}

/// Replaces the file whole: written beside it, flushed, renamed over it.
pub(crate) fn store(path: &Path, limiters: Vec<(Scope, Saved)>, clean: bool) -> io::Result<()> {
    let named = |(key, saved): (Scope, Saved)| SavedLimiter {
        organization: own(&key.organization),
        model: own(&key.model),
        tier: own(&key.tier),
        saved,
    };
    let file = File { format: FORMAT.into(), clean, limiters: limiters.into_iter().map(named).collect() };
    let text = serde_json::to_vec(&file)?;
    let beside = path.with_extension("tmp");
    let mut out = fs::File::create(&beside)?;
    out.write_all(&text)?;
    out.sync_data()?;
    fs::rename(&beside, path)
}

fn own(name: &Arc<str>) -> String {
    name.to_string()
}

/// Milliseconds since 1970: the only clock that a restart does not reset.
fn wall() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
