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
