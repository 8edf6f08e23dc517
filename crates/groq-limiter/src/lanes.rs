//! Which lane does a request fall in? The lanes of this process: found, made, swept, saved.

use std::{
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use foldhash::HashMap;
use tokio::time::Instant;

use super::{
    Ask, LaneSnapshot, StoreSnapshot,
    alarm::{Alarm, Duty},
    bucket::Ns,
    lane::Lane,
    saved::{self, Saved},
    store::{self, Store},
    turn::Inside,
};
use crate::{settings::Settings, types::Priority};

/// Lane clocks start here, so that levels from before the start have room: 100 days.
const ORIGIN: Ns = 8_640_000_000_000_000;
/// Lanes at once, as long as some are unused, and as many are remembered: models are the clients' to name.
const MOST_LANES: usize = 100_000;
/// When there are too many, one in so many goes at once: looking at all of them is what costs.
const SHARE: usize = 40;
/// A full, unused lane that Groq has taught nothing is dropped after so long, ns.
const IDLE: Ns = 60_000_000_000;
/// Idle lanes are looked for this often.
const SWEEP: Duration = Duration::from_secs(10);
/// Levels are saved this often at most.
const SAVE: Duration = Duration::from_secs(1);

/// Whose limits, which model, which tier.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct LaneKey {
    pub(super) organization: Arc<str>,
    pub(super) model: Arc<str>,
    pub(super) tier: Arc<str>,
}

impl LaneKey {
    fn of(ask: &Ask) -> Self {
        Self { organization: ask.organization.clone(), model: ask.model.clone(), tier: ask.tier.clone() }
    }
}

/// The clock of all lanes: tokio's, in ns.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock(Instant);

impl Clock {
    pub(super) fn now(&self) -> Ns {
        self.at(Instant::now())
    }

    pub(super) fn at(&self, at: Instant) -> Ns {
        let since = at.saturating_duration_since(self.0).as_nanos();
        ORIGIN.saturating_add(Ns::try_from(since).unwrap_or(Ns::MAX))
    }

    pub(super) fn instant(&self, at: Ns) -> Instant {
        // Waits of more than a year are looked at again after one.
        let year = Duration::from_secs(31_536_000);
        self.0 + Duration::from_nanos(at.saturating_sub(ORIGIN)).min(self.0.elapsed() + year)
    }
}

/// What all lanes share.
#[derive(Debug)]
pub(super) struct Common {
    pub(super) clock: Clock,
    pub(super) alarm: Arc<Alarm>,
    pub(super) waiting: AtomicUsize,
    pub(super) bytes: AtomicU64,
    /// Whether a level has changed since the last save.
    pub(super) changed: AtomicBool,
    /// Where replicas share levels.
    pub(super) store: Option<Store>,
    max_waiting: AtomicUsize,
    max_bytes: AtomicU64,
}

impl Common {
    /// Whether one more of this class may wait, holding so many bytes. The last quarter is not batch's.
    pub(super) fn has_room(&self, class: Priority, bytes: u64) -> bool {
        let (mut count, mut most) = (self.max_waiting.load(Relaxed), self.max_bytes.load(Relaxed));
        if class == Priority::Batch {
            (count, most) = (count - count / 4, most - most / 4);
        }
        self.waiting.load(Relaxed) < count && self.bytes.load(Relaxed).saturating_add(bytes) <= most
    }
}

/// One lane, shared by the connections that use it.
#[derive(Debug)]
pub(super) struct SharedLane {
    pub(super) key: LaneKey,
    pub(super) number: u64,
    pub(super) common: Arc<Common>,
    pub(super) inside: Mutex<Inside>,
}

impl SharedLane {
    pub(super) fn at(&self, now: Instant) -> Ns {
        self.common.clock.at(now)
    }
}

/// A lane in its place.
#[derive(Debug)]
struct Kept {
    lane: Arc<SharedLane>,
    /// How many lanes had been made when it was last asked for: an age without a clock, found without going to the lane.
    used: AtomicU64,
}

/// All lanes.
#[derive(Debug)]
pub(super) struct Shared {
    common: Arc<Common>,
    settings: RwLock<Settings>,
    lanes: RwLock<HashMap<LaneKey, Kept>>,
    /// Levels of lanes that are not there: from an earlier process, or dropped.
    remembered: Mutex<HashMap<LaneKey, Saved>>,
    numbers: AtomicU64,
    saving: Mutex<()>,
    /// So long the store may take at the end.
    patience: Duration,
    warned: AtomicBool,
}

impl Shared {
    pub(super) fn new(settings: Settings) -> Arc<Self> {
        let (link, calls) = settings.redis.as_ref().map(|redis| Store::new(redis.replicas)).unzip();
        let common = Common {
            clock: Clock(Instant::now()),
            alarm: Arc::default(),
            waiting: AtomicUsize::new(0),
            bytes: AtomicU64::new(0),
            changed: AtomicBool::new(false),
            store: link,
            max_waiting: AtomicUsize::new(settings.queue.max_waiting),
            max_bytes: AtomicU64::new(settings.queue.max_bytes),
        };
        let remembered = settings.state_file.as_deref().map(saved::load).unwrap_or_default();
        let lanes = Arc::new(Self {
            common: Arc::new(common),
            settings: RwLock::new(settings.clone()),
            lanes: RwLock::default(),
            remembered: Mutex::new(remembered),
            numbers: AtomicU64::new(0),
            saving: Mutex::new(()),
            patience: settings.redis.as_ref().map_or(Duration::ZERO, |redis| 2 * redis.timeout + Duration::from_millis(100)),
            warned: AtomicBool::new(false),
        });
        if let Some(((link, calls), redis)) = lanes.common.store.as_ref().zip(calls).zip(settings.redis)
            && let Err(error) = store::start(redis, Arc::downgrade(&lanes), calls, link.reach.clone())
        {
            tracing::error!(%error, "nothing is shared: the store's thread cannot start");
        }
        lanes
    }

    #[cfg(feature = "redis")]
    pub(super) fn clock(&self) -> Clock {
        self.common.clock
    }

    pub(super) fn store(&self) -> Option<StoreSnapshot> {
        self.common.store.as_ref().map(Store::snapshot)
    }

    pub(super) fn reconfigure(&self, settings: Settings) {
        self.common.max_waiting.store(settings.queue.max_waiting, Relaxed);
        self.common.max_bytes.store(settings.queue.max_bytes, Relaxed);
        let tables = settings.limits.clone();
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = settings;
        for lane in self.all() {
            let now = self.common.clock.now();
            lane.change(|lane| lane.reconfigure(tables.clone(), now));
        }
    }

    /// The lane of a request, if there is one.
    pub(super) fn find(&self, ask: &Ask) -> Option<Arc<SharedLane>> {
        let lanes = self.lanes.read().unwrap_or_else(PoisonError::into_inner);
        let kept = lanes.get(&LaneKey::of(ask))?;
        let made = self.numbers.load(Relaxed);
        // Looked at first: as long as no lane is made, nobody writes to memory that all cores read.
        if kept.used.load(Relaxed) != made {
            kept.used.store(made, Relaxed);
        }
        Some(kept.lane.clone())
    }

    /// The lane of a request.
    pub(super) fn lane(&self, ask: &Ask) -> Arc<SharedLane> {
        if let Some(lane) = self.find(ask) {
            return lane;
        }
        let key = LaneKey::of(ask);
        let mut lanes = self.lanes.write().unwrap_or_else(PoisonError::into_inner);
        if lanes.len() >= MOST_LANES && !lanes.contains_key(&key) {
            self.evict(&mut lanes);
        }
        let make = || {
            let now = self.common.clock.now();
            let tables = self.settings.read().unwrap_or_else(PoisonError::into_inner).limits.clone();
            let mut lane = Lane::new(key.model.clone(), tables, now);
            if let Some(saved) = self.remembered().remove(&key) {
                saved.restore(&mut lane, now);
            }
            if let Some(store) = &self.common.store {
                lane.link(store.reach.up.load(Relaxed), store.reach.replicas.load(Relaxed), now);
            }
            let number = self.numbers.fetch_add(1, Relaxed);
            Kept { lane: SharedLane::new(key.clone(), number, self.common.clone(), lane), used: AtomicU64::new(number + 1) }
        };
        lanes.entry(key.clone()).or_insert_with(make).lane.clone()
    }

    pub(super) fn snapshot(&self) -> Vec<LaneSnapshot> {
        let mut lanes = self.all();
        lanes.sort_by(|a, b| a.key.cmp(&b.key));
        lanes
            .iter()
            .map(|shared| shared.now(|lane, now| lane.snapshot(&shared.key.organization, &shared.key.tier, now)))
            .collect()
    }

    pub(super) fn waiting(&self) -> usize {
        self.common.waiting.load(Relaxed)
    }

    pub(super) async fn run(&self) {
        let drive = async {
            match Duty::take(&self.common.alarm) {
                Some(duty) => duty.drive(self.common.clock).await,
                None => std::future::pending().await,
            }
        };
        let sweep = async {
            loop {
                tokio::time::sleep(SWEEP).await;
                self.sweep();
            }
        };
        let save = async {
            loop {
                tokio::time::sleep(SAVE).await;
                if let Err(error) = self.save(false)
                    && !self.warned.swap(true, Relaxed)
                {
                    tracing::warn!(%error, "the levels cannot be saved to limits.state_file");
                }
            }
        };
        tokio::join!(drive, sweep, save);
    }

    /// Saves every level; `clean`: nothing will be sent after it.
    pub(super) fn save(&self, clean: bool) -> std::io::Result<()> {
        let path = self.settings.read().unwrap_or_else(PoisonError::into_inner).state_file.clone();
        let Some(path) = path.as_deref() else { return Ok(()) };
        if !self.common.changed.swap(false, Relaxed) && !clean {
            return Ok(());
        }
        let _one_writer = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        let mut saved: Vec<(LaneKey, Saved)> =
            self.all().iter().map(|shared| (shared.key.clone(), shared.now(|lane, now| Saved::of(lane, now)))).collect();
        saved.extend(self.remembered().iter().map(|(key, saved)| (key.clone(), saved.clone())));
        saved::store(path, saved, clean)
    }

    /// Tells the store what it does not know yet, and that this replica leaves.
    pub(super) fn leave(&self) {
        let Some(store) = &self.common.store else { return };
        for lane in self.all() {
            lane.change(|inside| inside.hurry(self.common.clock.now()));
        }
        store.end(self.patience);
    }

    /// Drops lanes that are full again, unused for a while, and have learnt nothing.
    fn sweep(&self) {
        let is_idle = |kept: &Kept| {
            let idle =
                |lane: &mut Lane, now: Ns| now.saturating_sub(lane.used_at()) > IDLE && !lane.has_learnt() && lane.is_idle(now);
            // Somebody who has just found it holds it.
            Arc::strong_count(&kept.lane) == 1 && kept.lane.now(idle)
        };
        // Looked for while others find theirs: of many lanes it takes a while.
        let lanes = self.lanes.read().unwrap_or_else(PoisonError::into_inner);
        let idle: Vec<LaneKey> = lanes.iter().filter(|(_, kept)| is_idle(kept)).map(|(key, _)| key.clone()).collect();
        drop(lanes);
        let mut lanes = self.lanes.write().unwrap_or_else(PoisonError::into_inner);
        for key in idle {
            if lanes.get(&key).is_some_and(is_idle) {
                lanes.remove(&key);
            }
        }
    }

    /// Makes room: of the lanes that were asked for longest ago, one in [`SHARE`], those that are unused; or any, where all of these
    /// are in use. What they have learnt, and what has been taken of them, is remembered.
    fn evict(&self, lanes: &mut HashMap<LaneKey, Kept>) {
        let many = (lanes.len() / SHARE).max(1);
        let mut ages: Vec<u64> = lanes.values().map(|kept| kept.used.load(Relaxed)).collect();
        let (_, &mut old, _) = ages.select_nth_unstable(many - 1);
        let gone = self.forget(lanes, many, |kept| kept.used.load(Relaxed) <= old);
        if gone == 0 {
            self.forget(lanes, many, |_| true);
        }
    }

    /// Drops `many` unused lanes of which `which` says so; how many there were.
    fn forget(&self, lanes: &mut HashMap<LaneKey, Kept>, many: usize, which: impl Fn(&Kept) -> bool) -> usize {
        let mut remembered = self.remembered();
        let mut gone = 0;
        let going = lanes.extract_if(|_, kept| {
            // Somebody who has just found it holds it.
            let goes =
                gone < many && which(kept) && Arc::strong_count(&kept.lane) == 1 && kept.lane.with(|lane| lane.is_unused());
            gone += usize::from(goes);
            goes
        });
        for (key, kept) in going {
            let saved = kept.lane.now(|lane, now| (lane.has_learnt() || !lane.is_idle(now)).then(|| Saved::of(lane, now)));
            if let Some(saved) = saved.filter(|_| remembered.len() < MOST_LANES) {
                remembered.insert(key, saved);
            }
        }
        gone
    }

    pub(super) fn all(&self) -> Vec<Arc<SharedLane>> {
        self.lanes.read().unwrap_or_else(PoisonError::into_inner).values().map(|kept| kept.lane.clone()).collect()
    }

    fn remembered(&self) -> std::sync::MutexGuard<'_, HashMap<LaneKey, Saved>> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.common.alarm.end();
    }
}
