//! The apps that a queue knows, by number and by name.

use std::sync::Arc;

use super::{
    app::App,
    request::{AppId, Start},
};
use crate::types::{Ns, Priority};

/// Apps without a queued request are forgotten beyond so many.
const IDLE_APPS: usize = 256;
/// Beyond so many apps at once, all further ones share one place: names are the clients' to choose.
const MOST_APPS: usize = 2048;
/// The name of that place.
const EVERYONE_ELSE: &str = "other";

/// The apps of one limiter.
#[derive(Debug, Default)]
pub struct Apps {
    /// Boxed: most limiters have one, and a vector has room for four.
    apps: Vec<Option<Box<App>>>,
    free: Vec<AppId>,
    /// By priority class and name: a search takes eleven steps at most, and most limiters have one app.
    sorted: Vec<AppId>,
    /// Idle apps are looked for when so many are known.
    forget_at: usize,
}

impl Apps {
    /// The app with this number.
    pub fn get(&self, id: AppId) -> Option<&App> {
        self.apps.get(id as usize)?.as_deref()
    }

    /// The same, to be changed in what does not order the queue.
    pub fn get_mut(&mut self, id: AppId) -> Option<&mut App> {
        self.apps.get_mut(id as usize)?.as_deref_mut()
    }

    /// Every app that is known.
    pub fn iter(&self) -> impl Iterator<Item = &App> {
        self.apps.iter().filter_map(Option::as_deref)
    }

    /// The app's number; it is taken up if it was unknown. `served_starts`: where newcomers begin, by priority class.
    pub(super) fn id(&mut self, name: &Arc<str>, class: Priority, weight: f64, served_starts: [Start; 2], now: Ns) -> AppId {
        let weight = if weight.is_finite() { weight.clamp(1e-3, 1e3) } else { 1.0 };
        if let Ok(place) = self.search(name, class) {
            let id = self.sorted[place];
            if let Some(app) = self.get_mut(id) {
                app.weight = weight;
            }
            return id;
        }
        if self.known() >= self.forget_at.max(IDLE_APPS) {
            self.forget_idle(served_starts, now);
            self.forget_at = 2 * self.known();
        }
        if self.known() >= MOST_APPS && **name != *EVERYONE_ELSE {
            return self.id(&EVERYONE_ELSE.into(), class, 1.0, served_starts, now);
        }
        let id = self.free.pop().unwrap_or_else(|| {
            self.apps.reserve_exact(usize::from(self.apps.is_empty()));
            self.apps.push(None);
            (self.apps.len() - 1) as AppId
        });
        self.apps[id as usize] = Some(Box::new(App::new(name.clone(), class, weight, now)));
        let (Ok(place) | Err(place)) = self.search(name, class);
        self.sorted.reserve_exact(usize::from(self.sorted.is_empty()));
        self.sorted.insert(place, id);
        id
    }

    fn search(&self, name: &str, class: Priority) -> Result<usize, usize> {
        let key = |&id: &AppId| self.get(id).map(|app| (app.class, &*app.name));
        self.sorted.binary_search_by(|id| key(id).cmp(&Some((class, name))))
    }

    fn known(&self) -> usize {
        self.sorted.len()
    }

    /// Forgets apps that have nothing in the queue and whose late use is over.
    fn forget_idle(&mut self, served_starts: [Start; 2], now: Ns) {
        let Self { apps, free, sorted, .. } = self;
        sorted.retain(|&id| {
            let place = &mut apps[id as usize];
            let is_idle = place.take_if(|app| app.is_idle(served_starts[app.class as usize], now)).is_some();
            if is_idle {
                free.push(id);
            }
            !is_idle
        });
    }
}
