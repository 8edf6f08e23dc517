//! The registry of this process's limiters. It creates a limiter for the first request of a scope (organization, model and tier),
//! drops limiters that are idle, and saves their quotas to the state file.

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

/// Maximum number of limiters, and of saved quotas of dropped limiters. Clients choose the names of models, so there must be a
/// bound. It is exceeded only if all limiters are in use.
const MAX_LIMITERS: usize = if cfg!(shuttle) { 2 } else { 100_000 };
/// At the maximum, one in this number of the unused limiters is dropped at once, because finding the oldest takes a pass
/// over all, and dropping all takes 0.4 s.
const DROPPED_PART: usize = 40;
/// A limiter with full buckets and without stated limits is dropped if it was not used for this time, ns.
const IDLE_TIME: Ns = 60_000_000_000;
/// Time between two searches for idle limiters, and minimum time between two saves.
const KEEP_INTERVAL: Duration = Duration::from_secs(1);

/// All limiters.
#[derive(Debug)]
pub(crate) struct Registry {
    pub(crate) common: Arc<Shared>,
    pub(crate) settings: Mutex<Settings>,
    limiters: RwLock<HashMap<Scope, Arc<SharedLimiter>>>,
    /// Saved quotas of limiters that do not exist now: they are from an earlier process, or were dropped.
    pub(crate) remembered: Mutex<HashMap<Scope, Saved>>,
    /// The next limiter's number in the timer.
    numbers: AtomicU64,
    /// Held while the state file is written.
    saving: Mutex<()>,
}

impl Registry {
    /// A registry with the quotas of the state file. `store` is `None` if quotas are not shared between replicas.
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

    /// The limiter of a scope; `None` if it has not been created.
    pub(crate) fn get(&self, scope: &Scope) -> Option<Arc<SharedLimiter>> {
        read(&self.limiters).get(scope).cloned()
    }

    /// The limiter of a request, created if necessary.
    pub(crate) fn limiter(&self, request: &AdmissionRequest) -> Arc<SharedLimiter> {
        let key = Scope::of(request);
        if let Some(limiter) = self.get(&key) {
            return limiter;
        }
        let mut limiters = write(&self.limiters);
        if limiters.len() >= MAX_LIMITERS && !limiters.contains_key(&key) {
            self.make_room(&mut limiters);
        }
        limiters.entry(key.clone()).or_insert_with(|| self.make(key).into()).clone()
    }

    /// A new limiter, with the quotas saved for its scope.
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

    /// All limiters, in no particular order.
    pub(crate) fn all(&self) -> Vec<Arc<SharedLimiter>> {
        read(&self.limiters).values().cloned().collect()
    }

    /// Drops idle limiters and saves changed quotas, periodically. Never returns.
    pub(crate) async fn keep(&self) {
        let mut warned = false;
        loop {
            sleep(KEEP_INTERVAL).await;
            self.sweep();
            if let Err(error) = self.save(false)
                && !std::mem::replace(&mut warned, true)
            {
                tracing::warn!(%error, "the quotas cannot be saved to limits.state_file");
            }
        }
    }

    /// Drops limiters that were not used for [`IDLE_TIME`] and whose state is that of a new one.
    pub(crate) fn sweep(&self) {
        let now = self.common.clock.now();
        write(&self.limiters).retain(|_, limiter| {
            let is_idle = unused_since(limiter).is_some_and(|since| now.saturating_sub(since) > IDLE_TIME);
            !is_idle || !limiter.with(|limiter| limiter.is_new(now))
        });
    }

    /// Drops one in [`DROPPED_PART`] of the unused limiters, those unused for the longest time. Their used amounts and stated
    /// limits are remembered.
    fn make_room(&self, limiters: &mut HashMap<Scope, Arc<SharedLimiter>>) {
        let mut unused: Vec<Ns> = limiters.values().filter_map(unused_since).collect();
        unused.sort_unstable();
        let Some(&oldest) = unused.get(unused.len() / DROPPED_PART) else { return };
        let (now, mut remembered) = (self.common.clock.now(), lock(&self.remembered));
        for (key, limiter) in limiters.extract_if(|_, limiter| unused_since(limiter).is_some_and(|since| since <= oldest)) {
            limiter.with(|limiter| {
                if !limiter.is_new(now) && remembered.len() < MAX_LIMITERS {
                    remembered.insert(key, Saved::of(limiter, now));
                }
            });
        }
    }

    /// Saves all quotas to the state file, if there is one and they have changed. `clean` marks the file as final, because
    /// nothing will be sent after it. It is written then even without changes.
    pub(crate) fn save(&self, clean: bool) -> io::Result<()> {
        let Some(path) = lock(&self.settings).state_file.clone() else { return Ok(()) };
        if !self.common.changed.swap(false, Relaxed) && !clean {
            return Ok(());
        }
        let _one_writer = lock(&self.saving);
        file::store(&path, self.saved(), clean)
    }

    /// The quotas of all limiters, and the remembered ones.
    pub(crate) fn saved(&self) -> Vec<(Scope, Saved)> {
        // Both are read under the lock of `limiters`, or else a limiter that is dropped or created meanwhile could be in neither.
        // The clones keep these limiters from being dropped.
        let (limiters, remembered) = {
            let limiters = read(&self.limiters);
            (limiters.values().cloned().collect::<Vec<_>>(), lock(&self.remembered).clone())
        };
        let now = self.common.clock.now();
        let current = limiters.iter().map(|shared| (shared.key.clone(), shared.with(|limiter| Saved::of(limiter, now))));
        current.chain(remembered).collect()
    }

    /// Notes whether the store can be reached, and attaches or detaches all limiters. Returns `false` if nothing has changed.
    pub(crate) fn store_is(&self, up: bool) -> bool {
        let Some(store) = &self.common.store else { return false };
        if store.health.up.swap(up, Relaxed) == up {
            return false;
        }
        store.health.sessions.fetch_add(up.into(), Relaxed);
        for limiter in self.all() {
            limiter.change(limiter.now(), |limiter, now| limiter.share(store.alone(), now));
        }
        true
    }
}

/// When a limiter was last used; `None` while it is in use.
fn unused_since(limiter: &Arc<SharedLimiter>) -> Option<Ns> {
    // A second reference belongs to a request that has found the limiter and is about to use it.
    (Arc::strong_count(limiter) == 1).then(|| limiter.with(|limiter| limiter.unused_since())).flatten()
}
