//! Locks and atomics: the standard library's, or in builds with `cfg(shuttle)` those of shuttle, with which `crates/schedules`
//! tests different schedules of the threads.

#[cfg(not(shuttle))]
pub(crate) use std::sync::{Mutex, MutexGuard, RwLock, atomic};
#[cfg(not(shuttle))]
use std::sync::{PoisonError, RwLockReadGuard, RwLockWriteGuard};

#[cfg(not(shuttle))]
pub(crate) use hashbrown::HashMap;
#[cfg(shuttle)]
pub(crate) use shuttle::sync::{Mutex, MutexGuard, RwLock, atomic};
#[cfg(shuttle)]
use shuttle::sync::{PoisonError, RwLockReadGuard, RwLockWriteGuard};

/// A map with the same order of iteration in every run, so that a schedule can be replayed.
#[cfg(shuttle)]
pub(crate) type HashMap<K, V> =
    hashbrown::HashMap<K, V, std::hash::BuildHasherDefault<std::collections::hash_map::DefaultHasher>>;

// Poisoning is ignored: after a panic in one request, the limiters stay usable for all others.

/// Locks a mutex.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Locks for reading.
pub(crate) fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

/// Locks for writing.
pub(crate) fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}
