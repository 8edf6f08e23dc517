//! A rate limiter for clients of Groq's API.
//!
//! It predicts Groq's limits, so that a request is sent when Groq lets it pass and not before: requests and tokens per
//! minute and day, output tokens, seconds of audio. What has to wait is queued fairly between apps; what cannot make it before
//! its deadline is refused at once. Responses correct the prediction, so that others may use the same limits.
//!
//! Every request is reserved, sent, observed and settled. The program below does so by `reqwest`; `tests/guide.rs` runs it against a
//! simulated Groq, once alone and once as two processes that share a Redis (feature `redis`).
//!
#![doc = concat!("```no_run\n", include_str!("../examples/call_groq.rs"), "```")]
//!
//! A permit that is dropped gives back what was never sent, and keeps the rest reserved until headers correct it. After a
//! 429, [`Permit::refused`] takes what its text says, where the caller has read it, and gives a [`Requeue`] for the next
//! [`Limiters::reserve`]. While Redis does not answer, each process goes on with its part of every limit; what Groq states to one
//! of them holds for all.
//!
//! | question | file |
//! |---|---|
//! | how a bucket takes, refunds and goes into debt | [`bucket`] |
//! | why a request waits: one dimension's bucket and safety margin | [`quota`], `quota/margin`; all of them together: [`quota_set`] |
//! | how a header or a refusal corrects us | `quota_set/limits`, `quota/reconcile`, `quota/send_history` |
//! | what others take of the same limits | `quota/external` |
//! | who goes next, and how long it takes | [`queue`], `limiter/dispatch`, `queue/backfill`, `queue/forecast` |
//! | what a request costs | `limiter/pricing`, by what [`estimate`] has learnt |
//! | one organization × model × tier as a state machine | [`limiter`] |
//! | what survives a restart | `store/file` |
//! | what replicas share, and what happens without Redis | `store`, `limiter/sharing`, `quota/remote` |

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

pub use self::{
    limiter::{
        RequestForecast, Requeue,
        status::{DimensionSnapshot, LimiterSnapshot, WaitingSnapshot},
    },
    permit::Permit,
    request::{ActualUsage, AdmissionError, AdmissionRequest, CostEstimate},
    store::StoreHandle,
    types::Source,
};
use self::{registry::Registry, settings::Settings, shared::Submitted, sync::lock};

#[doc(hidden)]
pub mod ablation;
pub mod bucket;
mod clock;
pub mod estimate;
pub mod limiter;
mod permit;
pub mod plans;
pub mod queue;
pub mod quota;
pub mod quota_set;
mod registry;
pub mod request;
pub mod settings;
mod shared;
pub mod store;
mod sync;
mod timer;
pub mod types;

/// The limiters of this process: a cheap handle, all clones share them.
#[derive(Clone, Debug)]
pub struct Limiters(Arc<Registry>);

impl Limiters {
    /// Limiters with these settings. What `state_file` holds from an earlier process is taken up.
    ///
    /// With `redis`, quotas are shared. Until Redis answers, and whenever it does not, this process goes on alone with
    /// every limit divided by the number of replicas.
    pub fn new(settings: Settings) -> Self {
        let Some(redis) = settings.redis.clone() else { return Self(Arc::new(Registry::new(settings, None))) };
        let (store, commands) = StoreHandle::new(redis.replicas);
        let limiters = Self(Arc::new(Registry::new(settings, Some(store))));
        #[cfg(feature = "redis")]
        let started = store::redis::start(redis, &limiters.0, commands);
        #[cfg(not(feature = "redis"))]
        let started = Err::<(), _>((std::io::Error::other("built without the feature `redis`"), redis, commands).0);
        if let Err(error) = started {
            tracing::error!(%error, "nothing is shared: the store's thread cannot start");
        }
        limiters
    }

    /// Limiters whose store is simulated by whoever holds its other end.
    #[doc(hidden)]
    pub fn with_simulated_store(settings: Settings, replicas: u32) -> (Self, store::simulated::StoreEnd) {
        let (store, commands) = StoreHandle::new(replicas);
        let limiters = Self(Arc::new(Registry::new(settings, Some(store))));
        let end = store::simulated::StoreEnd { commands, limiters: Arc::downgrade(&limiters.0) };
        (limiters, end)
    }

    /// Limiters of their own with other settings, where these stand now.
    #[must_use]
    pub fn copy(&self, settings: Settings) -> Self {
        let copy = Registry::new(settings, None);
        *lock(&copy.remembered) = self.0.saved().into_iter().collect();
        Self(Arc::new(copy))
    }

    /// Other limits, bounds and state file: used amounts and places in the queue stay. `redis` cannot change.
    pub fn reconfigure(&self, settings: Settings) {
        lock(&self.0.common.occupancy).bounds = settings.queue;
        let tables = settings.limits.clone();
        *lock(&self.0.settings) = settings;
        for limiter in self.0.all() {
            limiter.change(|limiter, now| limiter.reconfigure(tables.clone(), now));
        }
    }

    /// Waits for its fair turn, at most until `deadline`. Dropping the future leaves the queue.
    ///
    /// # Errors
    /// The [`AdmissionError`] says whether the same request could go later, or never. No quota was changed then.
    pub async fn reserve(
        &self,
        request: &AdmissionRequest,
        deadline: Instant,
        requeue: Option<Requeue>,
    ) -> Result<Permit, AdmissionError> {
        if request.cost == CostEstimate::Free {
            return Ok(Permit::free());
        }
        let limiter = self.0.limiter(request);
        let waiting = match limiter.submit(request, deadline, requeue)? {
            Submitted::Now(grant) => return Ok(Permit::new(limiter, grant)),
            Submitted::Later(waiting) => waiting,
        };
        waiting.await.map(|grant| Permit::new(limiter, grant))
    }

    /// Takes what `request` costs at once, into debt if need be: for a request that is sent whatever the limits say.
    pub fn take(&self, request: &AdmissionRequest) -> Permit {
        if request.cost == CostEstimate::Free {
            return Permit::free();
        }
        let limiter = self.0.limiter(request);
        let grant = limiter.change(|limiter, now| limiter.take(request, now));
        Permit::new(limiter, grant.into())
    }

    /// Lets all requests go that wait, into debt if need be: from now on they are sent whatever the limits say.
    pub fn release_waiting(&self) {
        self.0.all().iter().for_each(|limiter| limiter.change(|limiter, _| limiter.release_waiting()));
    }

    /// What can be said of `request` before it asks.
    pub fn forecast(&self, request: &AdmissionRequest) -> RequestForecast {
        if request.cost == CostEstimate::Free {
            return RequestForecast::default();
        }
        self.0.limiter(request).with(|limiter, now| limiter.forecast_of(request, now))
    }

    /// Every limit that is known for `request`.
    pub fn dimensions(&self, request: &AdmissionRequest) -> Vec<DimensionSnapshot> {
        self.0.find(request).map(|limiter| limiter.with(|limiter, now| limiter.dimensions(now))).unwrap_or_default()
    }

    /// Takes up the limits that Groq has stated to `others` for the model of `request`. What is used stays.
    pub fn adopt_limits(&self, others: &Self, request: &AdmissionRequest) {
        if let Some(other) = others.0.find(request) {
            let stated = other.with(|limiter, _| limiter.stated_limits());
            self.0.limiter(request).change(|limiter, now| limiter.adopt_limits(&stated, now));
        }
    }

    /// Quotas, queue and forecasts of every limiter.
    pub fn snapshot(&self) -> Vec<LimiterSnapshot> {
        let mut limiters = self.0.all();
        limiters.sort_by(|a, b| a.key.cmp(&b.key));
        limiters.iter().map(|shared| shared.with(|limiter, now| limiter.snapshot(&shared.key, now))).collect()
    }

    /// How many wait, in all limiters.
    pub fn waiting(&self) -> usize {
        lock(&self.0.common.occupancy).waiting
    }

    /// The store that replicas share. `None`: quotas are kept in this process.
    pub fn store(&self) -> Option<StoreHandle> {
        self.0.common.store.clone()
    }

    /// Keeps the timers, drops idle limiters, and saves the quotas at most once a second. Never ends; the server spawns it.
    /// Without it the timers start with the first waiter, and nothing is saved.
    pub async fn run(&self) {
        tokio::join!(self.0.common.timer.drive(), self.0.keep());
    }

    /// The last thing before the end: saves the quotas, where there is a `limits.state_file`, tells the store that replicas share
    /// what it has not been told yet, and leaves it. Blocks for twice the store's time limit at most.
    ///
    /// # Errors
    /// What the file system said of the state file.
    pub fn close(&self) -> std::io::Result<()> {
        let saved = self.0.save(true);
        if let Some(store) = &self.0.common.store {
            for limiter in self.0.all() {
                limiter.change(|limiter, now| limiter.flush_pending(true, now));
            }
            let timeout = lock(&self.0.settings).redis.as_ref().map(|redis| redis.timeout);
            store.end(2 * timeout.unwrap_or_default() + Duration::from_millis(100));
        }
        saved
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests;

#[cfg(all(test, shuttle))]
#[path = "tests/schedules.rs"]
mod schedules;
