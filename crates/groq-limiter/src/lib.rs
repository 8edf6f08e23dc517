//! A rate limiter for clients of Groq's API.
//!
//! It tracks how much of each limit is left, so that a request is sent as soon as Groq will accept it and not before: requests
//! and tokens per minute and day, output tokens, seconds of audio. Requests that have to wait are queued fairly between apps.
//! Requests that cannot be sent before their deadline are refused at once. The headers of responses correct what is tracked, so
//! other programs may use the same limits.
//!
//! Every request is reserved ([`Limiters::reserve`]), sent ([`Permit::sent`]), observed ([`Permit::observe`]) and settled
//! ([`Permit::settle`]). The program below does so with `reqwest`. `tests/guide.rs` runs it against a simulated Groq, once alone
//! and once as two processes that share a Redis (feature `redis`).
//!
#![doc = concat!("```no_run\n", include_str!("../examples/call_groq.rs"), "```")]
//!
//! If a permit is dropped before its request was sent, all of its reservation is returned. If it is dropped later, the
//! reservation stays until the headers of a response correct it. After a 429, [`Permit::refused`] takes the parsed text of the
//! refusal, if the caller has read it, and returns a [`Requeue`] for the next [`Limiters::reserve`]. While Redis does not
//! respond, each process uses its share of every limit. Limits that Groq states to one process apply to all.
//!
//! | topic | file |
//! |---|---|
//! | the bucket of one limit: reservations, refunds, debt | [`bucket`] |
//! | when a request fits: in one dimension, and in all of them | [`quota`] and `quota/margin`, [`quota_set`] |
//! | the limits: the operator's, those of a plan, those that Groq states | `quota_set/initial_limits`, `quota/statements` |
//! | corrections by headers and refusals | `quota_set/corrections`, `quota/reconcile`, `quota/send_history` |
//! | usage of the same limits by other programs | `quota/external` |
//! | what holds back all requests: a cold start, and refusals that no quota explains | `limiter/gate` |
//! | the order of the queue, and the forecast of waits | [`queue`] and `queue/service`, `queue/backfill`, `queue/forecast` |
//! | what a request costs, by the estimates learnt from responses | `limiter/pricing`, [`estimate`] |
//! | the limiter of one organization, model and tier as a state machine: admission, dispatch, settlement | [`limiter`] |
//! | the state file, which keeps used amounts over a restart | `store/file` |
//! | quotas that replicas share, and what happens without Redis | `store`, `limiter/sharing`, `quota/share`, `quota/remote` |

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use self::{limiter::sharing::Sharing, registry::Registry, request::Scope, settings::Settings, shared::Submitted, sync::lock};
pub use self::{
    limiter::{
        Requeue,
        status::{DimensionSnapshot, LimiterSnapshot, WaitingSnapshot},
    },
    permit::Permit,
    queue::forecast::RequestForecast,
    request::{ActualUsage, AdmissionError, AdmissionRequest, CostEstimate},
    store::StoreHandle,
    types::Source,
};

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

/// The limiters of this process. A cheap handle: all clones share the same limiters.
#[derive(Clone, Debug)]
pub struct Limiters(Arc<Registry>);

impl Limiters {
    /// Limiters with these settings. Used amounts that an earlier process has saved in `state_file` are restored.
    ///
    /// With `redis`, quotas are shared between replicas. As long as Redis does not respond, this process limits alone, with every
    /// limit divided by the number of replicas.
    pub fn new(settings: Settings) -> Self {
        let Some(redis) = settings.redis.clone() else { return Self(Arc::new(Registry::new(settings, None))) };
        let (store, commands) = StoreHandle::new(redis.replicas);
        let limiters = Self(Arc::new(Registry::new(settings, Some(store.clone()))));
        #[cfg(feature = "redis")]
        if let Err(error) = store::redis::start(redis, store.health, Arc::downgrade(&limiters.0), commands) {
            tracing::error!(%error, "nothing is shared: the store's thread cannot start");
        }
        #[cfg(not(feature = "redis"))]
        {
            drop(commands);
            tracing::error!("nothing is shared: built without the feature `redis`");
        }
        limiters
    }

    /// Limiters with a simulated store, and the store's end of the connection, for tests and benchmarks.
    #[doc(hidden)]
    pub fn with_simulated_store(settings: Settings, replicas: u32) -> (Self, store::simulated::StoreEnd) {
        let (store, commands) = StoreHandle::new(replicas);
        let limiters = Self(Arc::new(Registry::new(settings, Some(store))));
        let end = store::simulated::StoreEnd { commands, limiters: Arc::downgrade(&limiters.0) };
        (limiters, end)
    }

    /// Independent limiters with other settings, which start with the used amounts of these.
    #[must_use]
    pub fn copy(&self, settings: Settings) -> Self {
        let copy = Registry::new(settings, None);
        *lock(&copy.remembered) = self.0.saved().into_iter().collect();
        Self(Arc::new(copy))
    }

    /// Applies new settings. Used amounts and the queue stay. `redis` cannot be changed.
    pub fn reconfigure(&self, settings: Settings) {
        lock(&self.0.common.occupancy).bounds = settings.queue;
        let tables = settings.limits.clone();
        let mut current = lock(&self.0.settings);
        *current = Settings { redis: current.redis.take(), ..settings };
        drop(current);
        for limiter in self.0.all() {
            limiter.change(limiter.now(), |limiter, now| limiter.reconfigure(tables.clone(), now));
        }
    }

    /// Waits until `request` may be sent, at most until `deadline`, and reserves its cost. `requeue` is what [`Permit::refused`]
    /// has returned for an earlier attempt of the same request. Dropping the future removes the request from the queue.
    ///
    /// # Errors
    /// The [`AdmissionError`] says whether the same request could be sent later, or never. Nothing is reserved then.
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
        // Waits outside of the `match`, in which the future would take more than twice the memory.
        let waiting = match limiter.submit(request, deadline, requeue)? {
            Submitted::Now(grant) => return Ok(Permit::new(limiter, grant)),
            Submitted::Later(waiting) => waiting,
        };
        waiting.await.map(|grant| Permit::new(limiter, grant))
    }

    /// Reserves the cost of `request` at once, into debt if there is no room: for a request that is sent whatever the limits say.
    pub fn take(&self, request: &AdmissionRequest) -> Permit {
        if request.cost == CostEstimate::Free {
            return Permit::free();
        }
        let limiter = self.0.limiter(request);
        let grant = limiter.change(limiter.now(), |limiter, now| limiter.take(request, now));
        Permit::new(limiter, grant.into())
    }

    /// Grants all waiting requests, into debt if there is no room.
    pub fn release_waiting(&self) {
        for limiter in self.0.all() {
            limiter.change(limiter.now(), |limiter, _| limiter.release_waiting());
        }
    }

    /// The usual time from sending a request to the head of its response; zero before the first response. Changes nothing.
    pub fn usual_time_to_head(&self, request: &AdmissionRequest) -> Duration {
        self.0.get(&Scope::of(request)).map_or(Duration::ZERO, |limiter| limiter.with(|limiter| limiter.usual_time_to_head()))
    }

    /// The forecast for `request` if it were submitted now.
    pub fn forecast(&self, request: &AdmissionRequest) -> RequestForecast {
        if request.cost == CostEstimate::Free {
            return RequestForecast::default();
        }
        let shared = self.0.limiter(request);
        shared.with(|limiter| limiter.forecast_of(request, shared.now()))
    }

    /// Every known limit that applies to `request`.
    pub fn dimensions(&self, request: &AdmissionRequest) -> Vec<DimensionSnapshot> {
        let Some(limiter) = self.0.get(&Scope::of(request)) else { return Vec::new() };
        limiter.with(|inside| DimensionSnapshot::all(inside, limiter.now()))
    }

    /// Adopts the limits that Groq has stated to `others` for the model of `request`. Used amounts stay.
    pub fn adopt_limits(&self, others: &Self, request: &AdmissionRequest) {
        if let Some(other) = others.0.get(&Scope::of(request)) {
            let stated = other.with(|limiter| limiter.stated_limits());
            let own = self.0.limiter(request);
            own.change(own.now(), |limiter, now| limiter.adopt_limits(&stated, now));
        }
    }

    /// Quotas, queue and forecasts of every limiter.
    pub fn snapshot(&self) -> Vec<LimiterSnapshot> {
        let mut limiters = self.0.all();
        limiters.sort_by(|a, b| a.key.cmp(&b.key));
        limiters.iter().map(|shared| shared.with(|limiter| LimiterSnapshot::of(limiter, &shared.key, shared.now()))).collect()
    }

    /// Number of waiting requests in all limiters.
    pub fn waiting(&self) -> usize {
        lock(&self.0.common.occupancy).waiting
    }

    /// The store that replicas share; `None` if this process limits alone.
    pub fn store(&self) -> Option<StoreHandle> {
        self.0.common.store.clone()
    }

    /// Drives the timers, drops idle limiters, and saves the quotas at most once a second. Never returns; spawn it as a task.
    /// Without it, the timers start with the first waiting request, and nothing is saved.
    pub async fn run(&self) {
        tokio::join!(self.0.common.timer.drive(), self.0.keep());
    }

    /// To be called last before the process exits. Saves the quotas if there is a `limits.state_file`, and reports the last
    /// settlements to the store. Blocks until the store has answered, at most for twice its timeout.
    ///
    /// # Errors
    /// The state file cannot be written.
    #[expect(clippy::disallowed_methods, reason = "the process does nothing else any more")]
    pub fn close(&self) -> std::io::Result<()> {
        let saved = self.0.save(true);
        let Some(timeout) = lock(&self.0.settings).redis.as_ref().map(|redis| redis.timeout) else { return saved };
        let limiters = self.0.all();
        for limiter in &limiters {
            limiter.change(limiter.now(), |limiter, now| limiter.sharing(now).map(Sharing::report_last));
        }
        // Twice, because the report of a limiter may have to wait for the answer to its previous one.
        let end = Instant::now() + 2 * timeout;
        while limiters.iter().any(|limiter| limiter.with(|limiter| limiter.is_reporting())) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        saved
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests;

#[cfg(all(test, shuttle))]
#[path = "tests/schedules.rs"]
mod schedules;
