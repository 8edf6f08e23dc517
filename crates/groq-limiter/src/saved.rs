//! How do levels outlive the process? A small JSON file, replaced whole; a torn or foreign one counts as none.

use std::{
    borrow::Cow,
    fs, io,
    io::Write,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use foldhash::{HashMap, HashMapExt as _};
use serde::{Deserialize, Serialize};

use super::{Source, bucket::Ns, lane::Lane, lanes::LaneKey};
use crate::types::{Dimension, Unit};

/// The file's first word: what it is, and which version.
const FORMAT: &str = "groq-shield levels 1";
/// What may have been sent after the last save, in seconds of the spending at that time.
const UNSAVED: f64 = 1.5;

#[derive(Debug, Serialize, Deserialize)]
struct File {
    format: String,
    /// Whether the process ended in order.
    clean: bool,
    lanes: Vec<SavedLane>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedLane {
    organization: String,
    model: String,
    tier: String,
    #[serde(flatten)]
    saved: Saved,
}

/// One lane's levels at a moment of the wall clock.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Saved {
    /// Milliseconds since 1970.
    at: u64,
    levels: Vec<SavedLevel>,
    #[serde(skip)]
    clean: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct SavedLevel {
    code: Cow<'static, str>,
    unit: SavedUnit,
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

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum SavedUnit {
    Requests,
    Tokens,
    InputTokens,
    OutputTokens,
    AudioSeconds,
}

impl Saved {
    /// A lane as it stands.
    pub(super) fn of(lane: &Lane, now: Ns) -> Self {
        let levels = lane.levels().iter().map(|level| {
            let terms = level.terms();
            SavedLevel {
                code: level.dimension.code.clone(),
                unit: level.dimension.unit.into(),
                period_ms: u64::try_from(level.dimension.period.as_millis()).unwrap_or(u64::MAX),
                stated: terms.stated.map(|(limit, _)| limit),
                visible: level.is_visible(),
                bound: level.is_bound(),
                used: level.bucket().map_or(0.0, |bucket| bucket.used(now)),
                spending: level.spending(),
            }
        });
        Self { at: wall(), levels: levels.collect(), clean: true }
    }

    /// Puts a new lane where this one was, less what has come back since.
    pub(super) fn restore(&self, lane: &mut Lane, now: Ns) {
        let passed = Duration::from_millis(wall().saturating_sub(self.at)).as_secs_f64();
        let sane = || self.levels.iter().filter_map(|level| Some((level, level.dimension()?)));
        for (level, dimension) in sane() {
            if let Some(limit) = level.stated {
                let source = if level.visible { Source::Headers } else { Source::Refusal };
                lane.restore_limit(&dimension, limit, source, now);
            }
        }
        lane.follow_plan(now);
        for (level, dimension) in sane() {
            let unsaved = if self.clean { 0.0 } else { UNSAVED * level.spending.max(0.0) };
            lane.restore_level(&dimension, level.bound, level.used.max(0.0) + unsaved, passed, now);
        }
    }
}

impl SavedLevel {
    /// `None` for figures that no file of ours holds.
    fn dimension(&self) -> Option<Dimension> {
        let sane = self.used.is_finite() && self.spending.is_finite() && (1000..=31 * 86_400_000).contains(&self.period_ms);
        sane.then(|| {
            Dimension::KNOWN.into_iter().find(|known| known.code == self.code).unwrap_or_else(|| Dimension {
                code: self.code.clone(),
                unit: self.unit.into(),
                period: Duration::from_millis(self.period_ms),
            })
        })
    }
}

/// What an earlier process left; nothing where there is no file, or none of ours.
pub(super) fn load(path: &Path) -> HashMap<LaneKey, Saved> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return HashMap::new(),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "limits.state_file cannot be read: levels start full");
            return HashMap::new();
        }
    };
    let file = match serde_json::from_slice::<File>(&text) {
        Ok(file) if file.format == FORMAT => file,
        Ok(_) => {
            tracing::warn!(path = %path.display(), "limits.state_file is of another version: levels start full");
            return HashMap::new();
        }
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "limits.state_file is torn or foreign: levels start full");
            return HashMap::new();
        }
    };
    let clean = file.clean;
    let keyed = |lane: SavedLane| {
        let key = LaneKey { organization: lane.organization.into(), model: lane.model.into(), tier: lane.tier.into() };
        (key, Saved { clean, ..lane.saved })
    };
    file.lanes.into_iter().map(keyed).collect()
}

/// Replaces the file whole: written beside it, flushed, renamed over it.
pub(super) fn store(path: &Path, lanes: Vec<(LaneKey, Saved)>, clean: bool) -> io::Result<()> {
    let named = |(key, saved): (LaneKey, Saved)| SavedLane {
        organization: own(&key.organization),
        model: own(&key.model),
        tier: own(&key.tier),
        saved,
    };
    let file = File { format: FORMAT.into(), clean, lanes: lanes.into_iter().map(named).collect() };
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

impl From<Unit> for SavedUnit {
    fn from(unit: Unit) -> Self {
        match unit {
            Unit::Requests => Self::Requests,
            Unit::Tokens => Self::Tokens,
            Unit::InputTokens => Self::InputTokens,
            Unit::OutputTokens => Self::OutputTokens,
            Unit::AudioSeconds => Self::AudioSeconds,
        }
    }
}

impl From<SavedUnit> for Unit {
    fn from(unit: SavedUnit) -> Self {
        match unit {
            SavedUnit::Requests => Self::Requests,
            SavedUnit::Tokens => Self::Tokens,
            SavedUnit::InputTokens => Self::InputTokens,
            SavedUnit::OutputTokens => Self::OutputTokens,
            SavedUnit::AudioSeconds => Self::AudioSeconds,
        }
    }
}
