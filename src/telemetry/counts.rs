//! Counters in shards, one per thread, which a scrape sums up, so that requests on different cores do not share a lock.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread::available_parallelism,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use foldhash::HashMap;

use super::{ObservedRefusal, Outcome, Record, Source, histogram::Histogram};

/// Maximum number of client-chosen models, and of apps, with labels of their own; the others are [`OTHER`].
const MODELS: usize = 200;
const APPS: usize = 100;
/// Maximum rows of `requests_total` per thread; further combinations are counted under [`OTHER`].
const ROWS: usize = 10_000;
/// Maximum dimension codes per model; Groq chooses these names.
const DIMENSIONS: usize = 16;
/// The label of all names beyond the bounds.
pub(super) const OTHER: &str = "other";

/// The number of a name; 0 is [`OTHER`].
type Id = u16;

/// Interned names: those of the configuration, and the first ones that clients chose. Reading takes no lock.
#[derive(Debug)]
struct Names(ArcSwap<Numbered>);

#[derive(Clone, Debug)]
struct Numbered {
    ids: HashMap<Arc<str>, Id>,
    /// How many more client-chosen names are accepted.
    free: usize,
}

impl Numbered {
    fn add(&mut self, name: &str) -> bool {
        let Ok(next) = Id::try_from(self.ids.len()) else { return false };
        let new = !self.ids.contains_key(name);
        if new {
            self.ids.insert(name.into(), next);
        }
        new
    }
}

impl Names {
    fn new(bound: usize) -> Self {
        Self(ArcSwap::from_pointee(Numbered { ids: HashMap::from_iter([(OTHER.into(), 0)]), free: bound }))
    }

    fn id(&self, name: &str) -> Id {
        let numbered = self.0.load();
        if let Some(id) = numbered.ids.get(name) {
            return *id;
        }
        if numbered.free == 0 {
            return 0;
        }
        self.0.rcu(|numbered| {
            let mut numbered = Numbered::clone(numbered);
            if numbered.free > 0 && numbered.add(name) {
                numbered.free -= 1;
            }
            numbered
        });
        self.known(name).unwrap_or(0)
    }

    /// The number of a name, if it has one.
    fn known(&self, name: &str) -> Option<Id> {
        self.0.load().ids.get(name).copied()
    }

    /// Numbers a name of the configuration.
    fn reserve(&self, name: &str) {
        self.0.rcu(|numbered| {
            let mut numbered = Numbered::clone(numbered);
            numbered.add(name);
            numbered
        });
    }

    /// The names in order of their numbers.
    fn listed(&self) -> Vec<Arc<str>> {
        let ids = &self.0.load().ids;
        let mut names = vec![Arc::from(OTHER); ids.len()];
        for (name, id) in ids {
            names[usize::from(*id)] = name.clone();
        }
        names
    }
}

/// The labels of `requests_total`, names as numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Row {
    app: Id,
    model: Id,
    endpoint: &'static str,
    status: u16,
    source: Source,
}

/// What is counted per model.
#[derive(Clone, Debug, Default)]
pub(super) struct ModelCounts {
    pub(super) wait: Histogram,
    pub(super) upstream: Histogram,
    /// Observe mode: waits that would have happened.
    pub(super) observed_wait: Histogram,
    /// Responses that reached max completion tokens before they had any content.
    pub(super) truncated: u64,
    /// When the last of them ended.
    pub(super) truncated_at: Option<SystemTime>,
    pub(super) refusals: BTreeMap<String, u64>,
}

/// An app's usage of a model.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct AppCounts {
    pub(super) prompt: u64,
    pub(super) completion: u64,
    pub(super) cached: u64,
    pub(super) nano_usd: u64,
}

impl AppCounts {
    fn add(&mut self, other: Self) {
        self.prompt += other.prompt;
        self.completion += other.completion;
        self.cached += other.cached;
        self.nano_usd = self.nano_usd.saturating_add(other.nano_usd);
    }
}

#[derive(Debug, Default)]
struct Shard {
    requests: HashMap<Row, u64>,
    models: HashMap<Id, ModelCounts>,
    /// By app and model.
    apps: HashMap<(Id, Id), AppCounts>,
    attempts: [u64; Outcome::ALL.len()],
    observed_refusals: [u64; ObservedRefusal::ALL.len()],
    resends: u64,
    waited: u64,
    retried: u64,
}

/// The labels of `requests_total`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RequestLabels {
    pub(super) app: Arc<str>,
    pub(super) model: Arc<str>,
    pub(super) endpoint: &'static str,
    pub(super) status: u16,
    pub(super) source: Source,
}

/// The sum of all shards, with names.
#[derive(Debug, Default)]
pub(super) struct Sums {
    pub(super) requests: BTreeMap<RequestLabels, u64>,
    pub(super) models: BTreeMap<Arc<str>, ModelCounts>,
    /// By app and model.
    pub(super) apps: BTreeMap<(Arc<str>, Arc<str>), AppCounts>,
    pub(super) attempts: [u64; Outcome::ALL.len()],
    pub(super) observed_refusals: [u64; ObservedRefusal::ALL.len()],
    pub(super) resends: u64,
    /// Requests that waited, for a millisecond at least.
    pub(super) waited: u64,
    /// Requests that were sent more than once.
    pub(super) retried: u64,
}

/// The counters of this process.
#[derive(Debug)]
pub(super) struct Counts {
    shards: Box<[Mutex<Shard>]>,
    models: Names,
    apps: Names,
}

impl Default for Counts {
    fn default() -> Self {
        let shards = 2 * available_parallelism().map_or(1, usize::from);
        Self { shards: (0..shards).map(|_| Mutex::default()).collect(), models: Names::new(MODELS), apps: Names::new(APPS) }
    }
}

impl Counts {
    /// Counts a request that has ended.
    pub(super) fn request(&self, record: &Record) {
        let model = self.models.id(&record.model);
        let row = Row {
            app: self.apps.id(&record.app),
            model,
            endpoint: record.endpoint,
            status: record.status(),
            source: record.source,
        };
        let mut shard = self.shard();
        if shard.requests.len() < ROWS || shard.requests.contains_key(&row) {
            *shard.requests.entry(row).or_default() += 1;
        } else {
            *shard.requests.entry(Row { app: 0, model: 0, ..row }).or_default() += 1;
        }
        shard.resends += u64::from(record.attempts.saturating_sub(1));
        shard.retried += u64::from(record.attempts > 1);
        shard.waited += u64::from(record.wait >= Duration::from_millis(1));
        if record.model.is_empty() {
            return;
        }
        let counts = shard.models.entry(model).or_default();
        if record.attempts > 0 || record.wait > Duration::ZERO {
            counts.wait.observe(record.wait);
        }
        if let Some(time) = record.time_to_head {
            counts.upstream.observe(time);
        }
        let used = AppCounts {
            prompt: record.usage.prompt,
            completion: record.usage.completion.unwrap_or(0),
            cached: record.usage.cached,
            nano_usd: record.nano_usd,
        };
        // Bounded like the rows of requests: apps and models with labels of their own, and [`OTHER`].
        if record.truncated {
            counts.truncated += 1;
            counts.truncated_at = Some(SystemTime::now());
        }
        shard.apps.entry((row.app, model)).or_default().add(used);
    }

    /// Counts one attempt.
    pub(super) fn attempt(&self, outcome: Outcome) {
        self.shard().attempts[outcome as usize] += 1;
    }

    /// Counts a wait that would have happened.
    pub(super) fn observed_wait(&self, model: &str, wait: Duration) {
        let model = self.models.id(model);
        self.shard().models.entry(model).or_default().observed_wait.observe(wait);
    }

    /// Counts a refusal that would have happened.
    pub(super) fn observed_refusal(&self, reason: ObservedRefusal) {
        self.shard().observed_refusals[reason as usize] += 1;
    }

    /// Counts one refusal by Groq.
    pub(super) fn refused(&self, model: &str, dimension: &str) {
        let model = self.models.id(model);
        let mut shard = self.shard();
        let refusals = &mut shard.models.entry(model).or_default().refusals;
        let known = refusals.len() < DIMENSIONS || refusals.contains_key(dimension);
        *refusals.entry(if known { dimension } else { OTHER }.to_owned()).or_default() += 1;
    }

    /// The label of a model: itself, or [`OTHER`] beyond the bound.
    pub(super) fn model_label<'a>(&self, model: &'a str) -> &'a str {
        if self.models.id(model) == 0 { OTHER } else { model }
    }

    /// The label of an app: itself if it has one, or else [`OTHER`].
    pub(super) fn app_label<'a>(&self, app: &'a str) -> &'a str {
        if self.apps.known(app).is_some() { app } else { OTHER }
    }

    /// Gives an app of the configuration a label of its own.
    pub(super) fn name_app(&self, app: &str) {
        self.apps.reserve(app);
    }

    /// The counts since the start.
    pub(super) fn sums(&self) -> Sums {
        let mut sums = Sums::default();
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            // Names are listed under the shard's lock: by now every number in it has a name.
            let (models, apps) = (self.models.listed(), self.apps.listed());
            for (row, n) in &shard.requests {
                let labels = RequestLabels {
                    app: apps[usize::from(row.app)].clone(),
                    model: models[usize::from(row.model)].clone(),
                    endpoint: row.endpoint,
                    status: row.status,
                    source: row.source,
                };
                *sums.requests.entry(labels).or_default() += n;
            }
            for (id, counts) in &shard.models {
                sums.models.entry(models[usize::from(*id)].clone()).or_default().add(counts);
            }
            for ((app, model), used) in &shard.apps {
                let key = (apps[usize::from(*app)].clone(), models[usize::from(*model)].clone());
                sums.apps.entry(key).or_default().add(*used);
            }
            for (sum, n) in sums.attempts.iter_mut().zip(shard.attempts) {
                *sum += n;
            }
            for (sum, n) in sums.observed_refusals.iter_mut().zip(shard.observed_refusals) {
                *sum += n;
            }
            sums.resends += shard.resends;
            sums.waited += shard.waited;
            sums.retried += shard.retried;
        }
        sums
    }

    /// This thread's shard. Its lock is contended only by scrapes, or if there are more threads than shards.
    fn shard(&self) -> MutexGuard<'_, Shard> {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local!(static THREAD: usize = THREADS.fetch_add(1, Ordering::Relaxed));
        // A thread that is being destroyed has no number any more.
        let thread = THREAD.try_with(|n| *n).unwrap_or(0);
        self.shards[thread % self.shards.len()].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ModelCounts {
    fn add(&mut self, other: &Self) {
        self.wait.add(&other.wait);
        self.upstream.add(&other.upstream);
        self.observed_wait.add(&other.observed_wait);
        self.truncated += other.truncated;
        self.truncated_at = self.truncated_at.max(other.truncated_at);
        for (dimension, n) in &other.refusals {
            *self.refusals.entry(dimension.clone()).or_default() += n;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_names_are_kept_and_the_rest_is_other() {
        let counts = Counts::default();
        for n in 0..MODELS + 50 {
            counts.refused(&format!("model-{n}"), "TPM");
        }
        assert_eq!(counts.model_label("model-0"), "model-0");
        assert_eq!(counts.model_label("model-199"), "model-199");
        assert_eq!(counts.model_label("model-200"), OTHER);
        let sums = counts.sums();
        assert_eq!(sums.models.len(), MODELS + 1);
        assert_eq!(sums.models[OTHER].refusals["TPM"], 50);
    }

    #[test]
    fn apps_that_the_operator_named_have_labels_however_many_others_there_are() {
        let counts = Counts::default();
        let app = |n: usize| format!("app-{n}");
        assert!((0..APPS).all(|n| counts.apps.id(&app(n)) > 0));
        assert_eq!(counts.app_label("named"), OTHER);
        counts.name_app("named");
        counts.name_app("named");
        assert_eq!(counts.app_label("named"), "named");
        assert_eq!((counts.apps.id(&app(APPS)), counts.app_label(&app(APPS))), (0, OTHER));
        assert_eq!(counts.apps.listed().len(), APPS + 2);
    }

    #[test]
    fn dimension_codes_are_bounded() {
        let counts = Counts::default();
        for n in 0..100 {
            counts.refused("m", &format!("X{n}"));
        }
        let refusals = &counts.sums().models["m"].refusals;
        assert_eq!(refusals.len(), DIMENSIONS + 1);
        assert_eq!(refusals.values().sum::<u64>(), 100);
    }

    #[test]
    fn threads_are_summed() {
        let counts = Counts::default();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..1000).for_each(|_| counts.attempt(Outcome::Answered)));
            }
        });
        assert_eq!(counts.sums().attempts[Outcome::Answered as usize], 8000);
    }
}
