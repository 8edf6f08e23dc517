//! Locks and atomics between threads: the standard library's, or those with which `crates/schedules` decides which thread runs next.

#[cfg(not(shuttle))]
pub(crate) use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, atomic};

#[cfg(not(shuttle))]
pub(crate) use hashbrown::HashMap;
#[cfg(shuttle)]
pub(crate) use shuttle::sync::{Mutex, MutexGuard, PoisonError, RwLock, atomic};

/// The same order in every run, so that a schedule can be replayed.
#[cfg(shuttle)]
pub(crate) type HashMap<K, V> =
    hashbrown::HashMap<K, V, std::hash::BuildHasherDefault<std::collections::hash_map::DefaultHasher>>;

/// Locks it. What a thread that panicked has left behind is taken as it is.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
