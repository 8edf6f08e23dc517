//! Maps of headers, used again: one is made at its real size once, not grown for each message, and no idle connection keeps one.

use std::cell::RefCell;

use http::HeaderMap;

/// Maps that are kept, a thread. As many more requests at once make their own.
const KEPT: usize = 64;

thread_local!(static MAPS: RefCell<Vec<HeaderMap>> = const { RefCell::new(Vec::new()) });

/// An empty map.
pub(crate) fn empty_map() -> HeaderMap {
    MAPS.with_borrow_mut(Vec::pop).unwrap_or_default()
}

/// Keeps a map for the next message.
pub(crate) fn give_map(mut map: HeaderMap) {
    MAPS.with_borrow_mut(|maps| {
        if maps.len() < KEPT {
            map.clear();
            maps.push(map);
        }
    });
}
