//! Locks and atomics between threads: the standard library's, or those with which `crates/schedules` decides which thread runs next.

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

/// The same order in every run, so that a schedule can be replayed.
#[cfg(shuttle)]
pub(crate) type HashMap<K, V> =
    hashbrown::HashMap<K, V, std::hash::BuildHasherDefault<std::collections::hash_map::DefaultHasher>>;

// What a thread that panicked has left behind is taken as it is.

/// Locks it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Locks it for reading.
pub(crate) fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

/// Locks it for writing.
pub(crate) fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}
