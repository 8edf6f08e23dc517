//! All limiters of this process: found, made, swept, saved.

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
    AdmissionRequest, LimiterSnapshot, StoreSnapshot,
    bucket::Ns,
    limiter::Limiter,
    shared::Locked,
    store::file::{self, Saved},
    store::{self, Store, StoreHandle},
    timer::{Timer, TimerDriver},
};
use crate::{settings::Settings, types::Priority};

/// Limiter clocks start here, so that quotas from before the start have room: 100 days.
const ORIGIN: Ns = 8_640_000_000_000_000;
/// Lanes at once, as long as some are unused, and as many are remembered: models are the clients' to name.
const MOST_LANES: usize = 100_000;
/// When there are too many, one in so many goes at once: looking at all of them is what costs.
const SHARE: usize = 40;
/// A full, unused limiter that Groq has taught nothing is dropped after so long, ns.
const IDLE: Ns = 60_000_000_000;
/// Idle limiters are looked for this often.
const SWEEP: Duration = Duration::from_secs(10);
/// Levels are saved this often at most.
const SAVE: Duration = Duration::from_secs(1);

/// Whose limits, which model, which tier.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Scope {
    pub(super) organization: Arc<str>,
    pub(super) model: Arc<str>,
    pub(super) tier: Arc<str>,
}

impl Scope {
    fn of(request: &AdmissionRequest) -> Self {
        Self { organization: request.organization.clone(), model: request.model.clone(), tier: request.tier.clone() }
    }
}

/// The clock of all limiters: tokio's, in ns.
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

/// What all limiters share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) clock: Clock,
    pub(super) timer: Arc<Timer>,
    pub(super) waiting: AtomicUsize,
    pub(super) bytes: AtomicU64,
    /// Whether a quota has changed since the last save.
    pub(super) changed: AtomicBool,
    /// Where replicas share quotas.
    pub(super) store: Option<Store>,
    max_waiting: AtomicUsize,
    max_bytes: AtomicU64,
}

impl Shared {
    /// Whether one more of this class may wait, holding so many bytes. The last quarter is not batch's.
    pub(super) fn has_room(&self, class: Priority, bytes: u64) -> bool {
        let (mut count, mut most) = (self.max_waiting.load(Relaxed), self.max_bytes.load(Relaxed));
        if class == Priority::Batch {
            (count, most) = (count - count / 4, most - most / 4);
        }
        self.waiting.load(Relaxed) < count && self.bytes.load(Relaxed).saturating_add(bytes) <= most
    }
}

/// One limiter, shared by the connections that use it.
#[derive(Debug)]
pub(super) struct SharedLimiter {
    pub(super) key: Scope,
    pub(super) number: u64,
    pub(super) common: Arc<Shared>,
    pub(super) inside: Mutex<Locked>,
}

impl SharedLimiter {
    pub(super) fn at(&self, now: Instant) -> Ns {
        self.common.clock.at(now)
    }
}

/// A limiter in its place.
#[derive(Debug)]
struct RegistryEntry {
    limiter: Arc<SharedLimiter>,
    /// How many limiters had been made when it was last asked for: an age without a clock, found without going to the limiter.
    used: AtomicU64,
}

/// All limiters.
#[derive(Debug)]
pub(super) struct Registry {
    common: Arc<Shared>,
    settings: RwLock<Settings>,
    limiters: RwLock<HashMap<Scope, RegistryEntry>>,
    /// Levels of limiters that are not there: from an earlier process, or dropped.
    remembered: Mutex<HashMap<Scope, Saved>>,
    numbers: AtomicU64,
    saving: Mutex<()>,
    /// So long the store may take at the end.
    max_wait: Duration,
    warned: AtomicBool,
}

impl Registry {
    pub(super) fn new(settings: Settings) -> Arc<Self> {
        let (link, calls) = settings.redis.as_ref().map(|redis| Store::new(redis.replicas)).unzip();
        let common = Shared {
            clock: Clock(Instant::now()),
            timer: Arc::default(),
            waiting: AtomicUsize::new(0),
            bytes: AtomicU64::new(0),
            changed: AtomicBool::new(false),
            store: link,
            max_waiting: AtomicUsize::new(settings.queue.max_waiting),
            max_bytes: AtomicU64::new(settings.queue.max_bytes),
        };
        let remembered = settings.state_file.as_deref().map(file::load).unwrap_or_default();
        let limiters = Arc::new(Self {
            common: Arc::new(common),
            settings: RwLock::new(settings.clone()),
            limiters: RwLock::default(),
            remembered: Mutex::new(remembered),
            numbers: AtomicU64::new(0),
            saving: Mutex::new(()),
            max_wait: settings.redis.as_ref().map_or(Duration::ZERO, |redis| 2 * redis.timeout + Duration::from_millis(100)),
            warned: AtomicBool::new(false),
        });
        if let Some(((link, calls), redis)) = limiters.common.store.as_ref().zip(calls).zip(settings.redis)
            && let Err(error) = store::start(redis, Arc::downgrade(&limiters), calls, link.reach.clone())
        {
            tracing::error!(%error, "nothing is shared: the store's thread cannot start");
        }
        limiters
    }

    /// Limiters of their own with other settings, where these stand now.
    pub(super) fn copy(&self, settings: Settings) -> Arc<Self> {
        let copy = Self::new(settings);
        let mut remembered = self.remembered().clone();
        remembered
            .extend(self.all().iter().map(|shared| (shared.key.clone(), shared.now(|limiter, now| Saved::of(limiter, now)))));
        *copy.remembered() = remembered;
        copy
    }

    #[cfg(feature = "redis")]
    pub(super) fn clock(&self) -> Clock {
        self.common.clock
    }

    pub(super) fn store(&self) -> Option<StoreSnapshot> {
        self.common.store.as_ref().map(Store::snapshot)
    }

    pub(super) fn store_handle(&self) -> Option<StoreHandle> {
        self.common.store.as_ref().map(Store::handle)
    }

    pub(super) fn reconfigure(&self, settings: Settings) {
        self.common.max_waiting.store(settings.queue.max_waiting, Relaxed);
        self.common.max_bytes.store(settings.queue.max_bytes, Relaxed);
        let tables = settings.limits.clone();
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = settings;
        for limiter in self.all() {
            let now = self.common.clock.now();
            limiter.change(|limiter| limiter.reconfigure(tables.clone(), now));
        }
    }

    /// The limiter of a request, if there is one.
    pub(super) fn find(&self, request: &AdmissionRequest) -> Option<Arc<SharedLimiter>> {
        let limiters = self.limiters.read().unwrap_or_else(PoisonError::into_inner);
        let kept = limiters.get(&Scope::of(request))?;
        let made = self.numbers.load(Relaxed);
        // Looked at first: as long as no limiter is made, nobody writes to memory that all cores read.
        if kept.used.load(Relaxed) != made {
            kept.used.store(made, Relaxed);
        }
        Some(kept.limiter.clone())
    }

    /// The limiter of a request.
    pub(super) fn limiter(&self, request: &AdmissionRequest) -> Arc<SharedLimiter> {
        if let Some(limiter) = self.find(request) {
            return limiter;
        }
        let key = Scope::of(request);
        let mut limiters = self.limiters.write().unwrap_or_else(PoisonError::into_inner);
        if limiters.len() >= MOST_LANES && !limiters.contains_key(&key) {
            self.evict(&mut limiters);
        }
        let make = || {
            let now = self.common.clock.now();
            let tables = self.settings.read().unwrap_or_else(PoisonError::into_inner).limits.clone();
            let mut limiter = Limiter::new(key.model.clone(), tables, now);
            if let Some(saved) = self.remembered().remove(&key) {
                saved.restore(&mut limiter, now);
            }
            if let Some(store) = &self.common.store {
                limiter.link(store.reach.up.load(Relaxed), store.reach.replicas.load(Relaxed), now);
            }
            let number = self.numbers.fetch_add(1, Relaxed);
            RegistryEntry {
                limiter: SharedLimiter::new(key.clone(), number, self.common.clone(), limiter),
                used: AtomicU64::new(number + 1),
            }
        };
        limiters.entry(key.clone()).or_insert_with(make).limiter.clone()
    }

    pub(super) fn snapshot(&self) -> Vec<LimiterSnapshot> {
        let mut limiters = self.all();
        limiters.sort_by(|a, b| a.key.cmp(&b.key));
        limiters
            .iter()
            .map(|shared| shared.now(|limiter, now| limiter.snapshot(&shared.key.organization, &shared.key.tier, now)))
            .collect()
    }

    pub(super) fn waiting(&self) -> usize {
        self.common.waiting.load(Relaxed)
    }

    pub(super) async fn run(&self) {
        let drive = async {
            match TimerDriver::take(&self.common.timer) {
                Some(driver) => driver.drive(self.common.clock).await,
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
                    tracing::warn!(%error, "the quotas cannot be saved to limits.state_file");
                }
            }
        };
        tokio::join!(drive, sweep, save);
    }

    /// Saves every quota; `clean`: nothing will be sent after it.
    pub(super) fn save(&self, clean: bool) -> std::io::Result<()> {
        let path = self.settings.read().unwrap_or_else(PoisonError::into_inner).state_file.clone();
        let Some(path) = path.as_deref() else { return Ok(()) };
        if !self.common.changed.swap(false, Relaxed) && !clean {
            return Ok(());
        }
        let _one_writer = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        let mut saved: Vec<(Scope, Saved)> =
            self.all().iter().map(|shared| (shared.key.clone(), shared.now(|limiter, now| Saved::of(limiter, now)))).collect();
        saved.extend(self.remembered().iter().map(|(key, saved)| (key.clone(), saved.clone())));
        file::store(path, saved, clean)
    }

    /// Tells the store what it does not know yet, and that this replica leaves.
    pub(super) fn leave(&self) {
        let Some(store) = &self.common.store else { return };
        for limiter in self.all() {
            limiter.change(|inside| inside.hurry(self.common.clock.now()));
        }
        store.end(self.max_wait);
    }

    /// Drops limiters that are full again, unused for a while, and have learnt nothing.
    fn sweep(&self) {
        let is_idle = |kept: &RegistryEntry| {
            let idle = |limiter: &mut Limiter, now: Ns| {
                now.saturating_sub(limiter.used_at()) > IDLE && !limiter.has_learnt() && limiter.is_idle(now)
            };
            // Somebody who has just found it holds it.
            Arc::strong_count(&kept.limiter) == 1 && kept.limiter.now(idle)
        };
        // Looked for while others find theirs: of many limiters it takes a while.
        let limiters = self.limiters.read().unwrap_or_else(PoisonError::into_inner);
        let idle: Vec<Scope> = limiters.iter().filter(|(_, kept)| is_idle(kept)).map(|(key, _)| key.clone()).collect();
        drop(limiters);
        let mut limiters = self.limiters.write().unwrap_or_else(PoisonError::into_inner);
        for key in idle {
            if limiters.get(&key).is_some_and(is_idle) {
                limiters.remove(&key);
            }
        }
    }

    /// Makes room: of the limiters that were asked for longest ago, one in [`SHARE`], those that are unused; or any, where all of these
    /// are in use. What they have learnt, and what has been taken of them, is remembered.
    fn evict(&self, limiters: &mut HashMap<Scope, RegistryEntry>) {
        let many = (limiters.len() / SHARE).max(1);
        let mut ages: Vec<u64> = limiters.values().map(|kept| kept.used.load(Relaxed)).collect();
        let (_, &mut old, _) = ages.select_nth_unstable(many - 1);
        let gone = self.forget(limiters, many, |kept| kept.used.load(Relaxed) <= old);
        if gone == 0 {
            self.forget(limiters, many, |_| true);
        }
    }

    /// Drops `many` unused limiters of which `which` says so; how many there were.
    fn forget(&self, limiters: &mut HashMap<Scope, RegistryEntry>, many: usize, which: impl Fn(&RegistryEntry) -> bool) -> usize {
        let mut remembered = self.remembered();
        let mut gone = 0;
        let going = limiters.extract_if(|_, kept| {
            // Somebody who has just found it holds it.
            let goes = gone < many
                && which(kept)
                && Arc::strong_count(&kept.limiter) == 1
                && kept.limiter.with(|limiter| limiter.is_unused());
            gone += usize::from(goes);
            goes
        });
        for (key, kept) in going {
            let saved =
                kept.limiter.now(|limiter, now| (limiter.has_learnt() || !limiter.is_idle(now)).then(|| Saved::of(limiter, now)));
            if let Some(saved) = saved.filter(|_| remembered.len() < MOST_LANES) {
                remembered.insert(key, saved);
            }
        }
        gone
    }

    pub(super) fn all(&self) -> Vec<Arc<SharedLimiter>> {
        self.limiters.read().unwrap_or_else(PoisonError::into_inner).values().map(|kept| kept.limiter.clone()).collect()
    }

    fn remembered(&self) -> std::sync::MutexGuard<'_, HashMap<Scope, Saved>> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.common.timer.end();
    }
}
