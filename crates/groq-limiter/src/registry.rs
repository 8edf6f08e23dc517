//! All limiters of this process: found, made, swept, saved.

use std::{sync::Arc, time::Duration};

use hashbrown::Equivalent;

use crate::{
    limiter::Limiter,
    request::{AdmissionRequest, Scope},
    settings::Settings,
    shared::{Shared, SharedLimiter},
    store::{
        Store,
        file::{self, Saved},
    },
    sync::{
        HashMap, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
        lock,
    },
    timer::TimerDriver,
    types::Ns,
};

/// Limiters at once, as long as some are unused, and as many are remembered: models are the clients' to name.
const MOST_LIMITERS: usize = if cfg!(shuttle) { 2 } else { 100_000 };
/// When there are too many, one in so many goes at once: looking at all of them is what costs.
const SHARE: usize = 40;
/// A full, unused limiter that Groq has taught nothing is dropped after so long, ns.
const IDLE: Ns = 60_000_000_000;
/// Idle limiters are looked for this often.
const SWEEP: Duration = Duration::from_secs(10);
/// Quotas are saved this often at most.
const SAVE: Duration = Duration::from_secs(1);

/// A limiter in its place.
#[derive(Debug)]
struct RegistryEntry {
    limiter: Arc<SharedLimiter>,
    /// How many limiters had been made when it was last asked for: an age without a clock, found without going to the limiter.
    used: AtomicU64,
}

/// A request's scope to look a limiter up by: as a [`Scope`], its three names would be counted up and down at each look.
#[derive(Hash)]
struct ScopeOf<'r> {
    organization: &'r str,
    model: &'r str,
    tier: &'r str,
}

impl<'r> From<&'r AdmissionRequest> for ScopeOf<'r> {
    fn from(request: &'r AdmissionRequest) -> Self {
        Self { organization: &request.organization, model: &request.model, tier: &request.tier }
    }
}

impl Equivalent<Scope> for ScopeOf<'_> {
    fn equivalent(&self, scope: &Scope) -> bool {
        *self.organization == *scope.organization && *self.model == *scope.model && *self.tier == *scope.tier
    }
}

/// All limiters.
#[derive(Debug)]
pub(crate) struct Registry {
    pub(crate) common: Arc<Shared>,
    settings: RwLock<Settings>,
    limiters: RwLock<HashMap<Scope, RegistryEntry>>,
    /// Quotas of limiters that are not there: from an earlier process, or dropped.
    remembered: Mutex<HashMap<Scope, Saved>>,
    numbers: AtomicU64,
    saving: Mutex<()>,
}

impl Registry {
    /// `store`: where replicas share the quotas.
    pub(crate) fn new(settings: Settings, store: Option<Store<SharedLimiter>>) -> Self {
        Self {
            common: Arc::new(Shared::new(settings.queue, store)),
            limiters: RwLock::default(),
            remembered: Mutex::new(settings.state_file.as_deref().map(file::load).unwrap_or_default()),
            numbers: AtomicU64::new(0),
            saving: Mutex::new(()),
            settings: RwLock::new(settings),
        }
    }

    /// Limiters of their own with other settings, where these stand now.
    pub(crate) fn copy(&self, settings: Settings) -> Self {
        let copy = Self::new(settings, None);
        *lock(&copy.remembered) = self.saved().into_iter().collect();
        copy
    }

    pub(crate) fn reconfigure(&self, settings: Settings) {
        lock(&self.common.occupancy).bounds = settings.queue;
        let tables = settings.limits.clone();
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = settings;
        for limiter in self.all() {
            limiter.change_now(|limiter, now| limiter.reconfigure(tables.clone(), now));
        }
    }

    /// The limiter of a request, if there is one.
    pub(crate) fn find(&self, request: &AdmissionRequest) -> Option<Arc<SharedLimiter>> {
        let limiters = self.limiters.read().unwrap_or_else(PoisonError::into_inner);
        let kept = limiters.get(&ScopeOf::from(request))?;
        let made = self.numbers.load(Relaxed);
        // Looked at first: as long as no limiter is made, nobody writes to memory that all cores read.
        if kept.used.load(Relaxed) != made {
            kept.used.store(made, Relaxed);
        }
        Some(kept.limiter.clone())
    }

    /// The limiter of a request.
    pub(crate) fn limiter(&self, request: &AdmissionRequest) -> Arc<SharedLimiter> {
        if let Some(limiter) = self.find(request) {
            return limiter;
        }
        let key = Scope::of(request);
        let mut limiters = self.limiters.write().unwrap_or_else(PoisonError::into_inner);
        if limiters.len() >= MOST_LIMITERS && !limiters.contains_key(&key) {
            self.evict(&mut limiters);
        }
        let make = || {
            let now = self.common.clock.now();
            let tables = self.settings.read().unwrap_or_else(PoisonError::into_inner).limits.clone();
            let mut limiter = Limiter::new(key.model.clone(), tables, now);
            if let Some(saved) = lock(&self.remembered).remove(&key) {
                saved.restore(&mut limiter, now);
            }
            if let Some(store) = &self.common.store {
                limiter.share(store.health.up.load(Relaxed), store.health.replicas.load(Relaxed), now);
            }
            let number = self.numbers.fetch_add(1, Relaxed);
            RegistryEntry {
                limiter: SharedLimiter::new(key.clone(), number, self.common.clone(), limiter),
                used: AtomicU64::new(number + 1),
            }
        };
        limiters.entry(key.clone()).or_insert_with(make).limiter.clone()
    }

    pub(crate) async fn run(&self) {
        let drive = async {
            match TimerDriver::take(&self.common.timer) {
                Some(driver) => driver.drive().await,
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
            let mut warned = false;
            loop {
                tokio::time::sleep(SAVE).await;
                if let Err(error) = self.save(false)
                    && !std::mem::replace(&mut warned, true)
                {
                    tracing::warn!(%error, "the quotas cannot be saved to limits.state_file");
                }
            }
        };
        tokio::join!(drive, sweep, save);
    }

    /// Saves every quota; `clean`: nothing will be sent after it.
    pub(crate) fn save(&self, clean: bool) -> std::io::Result<()> {
        let path = self.settings.read().unwrap_or_else(PoisonError::into_inner).state_file.clone();
        let Some(path) = path.as_deref() else { return Ok(()) };
        if !self.common.changed.swap(false, Relaxed) && !clean {
            return Ok(());
        }
        let _one_writer = lock(&self.saving);
        file::store(path, self.saved(), clean)
    }

    /// How every limiter stands, and how those stood that are not there.
    pub(crate) fn saved(&self) -> Vec<(Scope, Saved)> {
        // Under one lock: a limiter that is evicted or made again meanwhile would be in neither. What is held is not evicted.
        let (limiters, remembered) = {
            let limiters = self.limiters.read().unwrap_or_else(PoisonError::into_inner);
            (arcs(&limiters), lock(&self.remembered).clone())
        };
        let current = limiters.iter().map(|shared| (shared.key.clone(), shared.now(|limiter, now| Saved::of(limiter, now))));
        current.chain(remembered).collect()
    }

    /// Tells the store what it does not know yet, and that this replica leaves.
    pub(crate) fn leave(&self) {
        let Some(store) = &self.common.store else { return };
        for limiter in self.all() {
            limiter.change_now(|inside, now| inside.flush_pending(true, now));
        }
        let timeout = self.settings.read().unwrap_or_else(PoisonError::into_inner).redis.as_ref().map(|redis| redis.timeout);
        store.end(2 * timeout.unwrap_or_default() + Duration::from_millis(100));
    }

    /// Drops limiters that are full again, unused for a while, and have learnt nothing.
    pub(crate) fn sweep(&self) {
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
        let mut remembered = lock(&self.remembered);
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
            if let Some(saved) = saved.filter(|_| remembered.len() < MOST_LIMITERS) {
                remembered.insert(key, saved);
            }
        }
        gone
    }

    /// The store can be reached. `false`: that was known.
    pub(crate) fn store_reached(&self) -> bool {
        let Some(store) = self.common.store.as_ref().filter(|store| !store.health.up.swap(true, Relaxed)) else { return false };
        store.health.sessions.fetch_add(1, Relaxed);
        self.all().iter().for_each(|limiter| limiter.change_now(Limiter::reached));
        true
    }

    /// The store is lost. `false`: that was known.
    pub(crate) fn store_lost(&self) -> bool {
        let is_news = self.common.store.as_ref().is_some_and(|store| store.health.up.swap(false, Relaxed));
        if is_news {
            self.all().iter().for_each(SharedLimiter::lost);
        }
        is_news
    }

    pub(crate) fn all(&self) -> Vec<Arc<SharedLimiter>> {
        arcs(&self.limiters.read().unwrap_or_else(PoisonError::into_inner))
    }
}

fn arcs(limiters: &HashMap<Scope, RegistryEntry>) -> Vec<Arc<SharedLimiter>> {
    limiters.values().map(|kept| kept.limiter.clone()).collect()
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.common.timer.end();
    }
}
