//! All limiters of this process: found, made, dropped, saved.

use std::{io, sync::Arc, time::Duration};

use tokio::time::sleep;

use crate::{
    limiter::Limiter,
    request::{AdmissionRequest, Scope},
    settings::Settings,
    shared::{Shared, SharedLimiter},
    store::{
        StoreHandle,
        file::{self, Saved},
    },
    sync::{
        HashMap, Mutex, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
        lock, read, write,
    },
    types::Ns,
};

/// Limiters at once, as long as some are unused, and as many are remembered: models are the clients' to name.
const MOST_LIMITERS: usize = if cfg!(shuttle) { 2 } else { 100_000 };
/// When there are too many, one in so many goes at once: looking at all of them is what costs.
const SHARE: usize = 40;
/// A full, unused limiter that Groq has taught nothing is dropped after so long, ns.
const IDLE: Ns = 60_000_000_000;
/// Quotas are saved this often at most, if they have changed.
const SAVE: Duration = Duration::from_secs(1);
/// Idle limiters are looked for once in so many times.
const SWEEP: u64 = 10;

/// All limiters.
#[derive(Debug)]
pub(crate) struct Registry {
    pub(crate) common: Arc<Shared>,
    pub(crate) settings: Mutex<Settings>,
    limiters: RwLock<HashMap<Scope, Arc<SharedLimiter>>>,
    /// Quotas of limiters that are not there: from an earlier process, or dropped.
    pub(crate) remembered: Mutex<HashMap<Scope, Saved>>,
    numbers: AtomicU64,
    saving: Mutex<()>,
}

impl Registry {
    /// `store`: where replicas share the quotas.
    pub(crate) fn new(settings: Settings, store: Option<StoreHandle>) -> Self {
        Self {
            common: Arc::new(Shared::new(settings.queue, store)),
            limiters: RwLock::default(),
            remembered: Mutex::new(settings.state_file.as_deref().map(file::load).unwrap_or_default()),
            numbers: AtomicU64::new(0),
            saving: Mutex::new(()),
            settings: Mutex::new(settings),
        }
    }

    /// The limiter of a request, if there is one.
    pub(crate) fn find(&self, request: &AdmissionRequest) -> Option<Arc<SharedLimiter>> {
        self.get(&Scope::of(request))
    }

    /// The limiter of a scope, if there is one.
    pub(crate) fn get(&self, scope: &Scope) -> Option<Arc<SharedLimiter>> {
        read(&self.limiters).get(scope).cloned()
    }

    /// The limiter of a request.
    pub(crate) fn limiter(&self, request: &AdmissionRequest) -> Arc<SharedLimiter> {
        if let Some(limiter) = self.find(request) {
            return limiter;
        }
        let key = Scope::of(request);
        let mut limiters = write(&self.limiters);
        if limiters.len() >= MOST_LIMITERS && !limiters.contains_key(&key) {
            self.make_room(&mut limiters);
        }
        limiters.entry(key.clone()).or_insert_with(|| self.make(key).into()).clone()
    }

    fn make(&self, key: Scope) -> SharedLimiter {
        let now = self.common.clock.now();
        let mut limiter = Limiter::new(key.model.clone(), lock(&self.settings).limits.clone(), now);
        if let Some(saved) = lock(&self.remembered).remove(&key) {
            saved.restore(&mut limiter, now);
        }
        if let Some(store) = &self.common.store {
            limiter.share(store.alone(), now);
        }
        SharedLimiter::new(key, self.numbers.fetch_add(1, Relaxed), self.common.clone(), limiter)
    }

    pub(crate) fn all(&self) -> Vec<Arc<SharedLimiter>> {
        read(&self.limiters).values().cloned().collect()
    }

    /// Drops idle limiters, and saves what has changed. Never ends.
    pub(crate) async fn keep(&self) {
        let mut warned = false;
        for times in 1_u64.. {
            sleep(SAVE).await;
            if times % SWEEP == 0 {
                self.sweep();
            }
            if let Err(error) = self.save(false)
                && !std::mem::replace(&mut warned, true)
            {
                tracing::warn!(%error, "the quotas cannot be saved to limits.state_file");
            }
        }
    }

    /// Drops limiters that are full again, unused for a while, and have learnt nothing.
    pub(crate) fn sweep(&self) {
        let is_idle = |limiter: &Arc<SharedLimiter>| {
            unused_since(limiter)
                .is_some_and(|since| limiter.with(|limiter, now| now.saturating_sub(since) > IDLE && limiter.is_new(now)))
        };
        // Looked for while others find theirs: of many limiters it takes a while.
        if read(&self.limiters).values().any(is_idle) {
            self.retire(&mut write(&self.limiters), is_idle);
        }
    }

    /// Drops one in [`SHARE`] of those that are unused, for the longest time.
    fn make_room(&self, limiters: &mut HashMap<Scope, Arc<SharedLimiter>>) {
        let mut unused: Vec<Ns> = limiters.values().filter_map(unused_since).collect();
        if !unused.is_empty() {
            let place = unused.len() / SHARE;
            let (_, &mut oldest, _) = unused.select_nth_unstable(place);
            self.retire(limiters, |limiter| unused_since(limiter).is_some_and(|since| since <= oldest));
        }
    }

    /// Drops those that go. What they have learnt, and what has been taken of them, is remembered.
    fn retire(&self, limiters: &mut HashMap<Scope, Arc<SharedLimiter>>, goes: impl Fn(&Arc<SharedLimiter>) -> bool) {
        let mut remembered = lock(&self.remembered);
        for (key, limiter) in limiters.extract_if(|_, limiter| goes(limiter)) {
            let saved = limiter.with(|limiter, now| (!limiter.is_new(now)).then(|| Saved::of(limiter, now)));
            if let Some(saved) = saved.filter(|_| remembered.len() < MOST_LIMITERS) {
                remembered.insert(key, saved);
            }
        }
    }

    /// Saves every quota; `clean`: nothing will be sent after it.
    pub(crate) fn save(&self, clean: bool) -> io::Result<()> {
        let Some(path) = lock(&self.settings).state_file.clone() else { return Ok(()) };
        if !self.common.changed.swap(false, Relaxed) && !clean {
            return Ok(());
        }
        let _one_writer = lock(&self.saving);
        file::store(&path, self.saved(), clean)
    }

    /// How every limiter stands, and how those stood that are not there.
    pub(crate) fn saved(&self) -> Vec<(Scope, Saved)> {
        // Under one lock: a limiter that is dropped or made again meanwhile would be in neither. What is held is not dropped.
        let (limiters, remembered) = {
            let limiters = read(&self.limiters);
            (limiters.values().cloned().collect::<Vec<_>>(), lock(&self.remembered).clone())
        };
        let current = limiters.iter().map(|shared| (shared.key.clone(), shared.with(|limiter, now| Saved::of(limiter, now))));
        current.chain(remembered).collect()
    }

    /// The store can be reached, or it is lost. `false`: that was known.
    pub(crate) fn store_is(&self, up: bool) -> bool {
        let Some(store) = &self.common.store else { return false };
        if store.health.up.swap(up, Relaxed) == up {
            return false;
        }
        store.health.sessions.fetch_add(up.into(), Relaxed);
        let alone = (!up).then(|| store.replicas());
        self.all().iter().for_each(|limiter| limiter.change(|limiter, now| limiter.share(alone, now)));
        true
    }
}

/// When it was last used, if nobody holds or uses it.
fn unused_since(limiter: &Arc<SharedLimiter>) -> Option<Ns> {
    // Somebody who has just found it holds it.
    (Arc::strong_count(limiter) == 1).then(|| limiter.with(|limiter, _| limiter.unused_since())).flatten()
}
