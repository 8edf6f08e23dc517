//! A rate limiter for clients of Groq's API.
//!
//! It predicts Groq's limits, so that a request is sent when Groq lets it pass and not before: requests and tokens per
//! minute and day, output tokens, seconds of audio. What has to wait is queued fairly between apps; what cannot make it before
//! its deadline is refused at once. Responses correct the prediction, so that others may use the same limits.
//!
//! Every request is reserved, sent, observed and settled:
//!
//! ```
//! use std::time::Duration;
//!
//! use groq_limiter::{
//!     ActualUsage, AdmissionError, AdmissionRequest, CostEstimate, Limiters,
//!     settings::Settings,
//!     types::{Observation, Priority, RemoteQuota},
//! };
//! use tokio::time::Instant;
//!
//! # async fn call_groq() -> (u64, u64, u64, u64) { (8000, 7900, 60, 40) }
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), AdmissionError> {
//! let limiters = Limiters::new(Settings::default());
//! let request = AdmissionRequest {
//!     organization: "mine".into(),
//!     key: 0,
//!     model: "openai/gpt-oss-20b".into(),
//!     tier: "on_demand".into(),
//!     app: "chat".into(),
//!     weight: 1.0,
//!     class: Priority::Interactive,
//!     cost: CostEstimate::Tokens { prompt: 60, max_completion_tokens: Some(500) },
//!     bytes: 0,
//! };
//!
//! // Waits for its fair turn, a minute at most. Dropping the future leaves the queue.
//! let mut permit = limiters.reserve(&request, Instant::now() + Duration::from_secs(60), None).await?;
//!
//! // Send it, with whatever HTTP client. Here: what `x-ratelimit-limit-tokens` and `-remaining-tokens` say, and `usage`.
//! permit.sent(Instant::now());
//! let (limit, remaining, prompt, completion) = call_groq().await;
//!
//! // The headers correct the prediction, and the tokens that were not used come back.
//! let tokens = RemoteQuota { limit, remaining, reset: None };
//! permit.observe(&Observation { tokens: Some(tokens), ..Observation::default() }, Instant::now());
//! permit.settle(ActualUsage::Tokens { prompt, completion, prompt_total: prompt }, Instant::now());
//! # Ok(())
//! # }
//! ```
//!
//! A permit that is dropped gives back what was never sent, and keeps the rest reserved until headers correct it. After a
//! 429, [`Permit::refused`] takes what its text says and gives a [`Requeue`] for the next [`Limiters::reserve`].
//!
//! Several processes share their quotas through Redis (feature `redis`); without an answer of Redis each goes on with its part
//! of every limit:
//!
//! ```
//! # use groq_limiter::{Limiters, settings::{RedisSettings, Settings}};
//! let redis = RedisSettings { replicas: 2, ..RedisSettings::new("redis://127.0.0.1:6379") };
//! let limiters = Limiters::new(Settings { redis: Some(redis), ..Settings::default() });
//! # drop(limiters);
//! ```
//!
//! | question | file |
//! |---|---|
//! | how a bucket takes, refunds and goes into debt | [`bucket`] |
//! | why a request waits: one dimension's bucket and safety margin | [`quota`], all of them together [`quota_set`] |
//! | how a header or a refusal corrects us | `quota/reconcile`, `quota/send_snapshot`, `limiter/learn` |
//! | who goes next, and how long it takes | [`queue`], `queue/forecast`, `limiter/backfill` |
//! | one organization × model × tier as a state machine | [`limiter`] |
//! | what is learnt of prompts, outputs and response times | [`estimate`] |
//! | what survives a restart | `store/file` |
//! | what replicas share, and what happens without Redis | `store`, `limiter/store_session`, `quota/remote` |

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use self::{registry::Registry, shared::Submitted};
use crate::{
    settings::Settings,
    types::{Dimension, Priority},
};

#[doc(hidden)]
pub mod ablation;
pub mod bucket;
pub mod estimate;
pub mod limiter;
mod permit;
pub mod plans;
pub mod queue;
pub mod quota;
pub mod quota_set;
mod registry;
pub mod settings;
mod shared;
pub mod store;
mod timer;
pub mod types;

pub use limiter::Requeue;
pub use permit::Permit;
pub use store::StoreHandle;

/// What a request draws on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CostEstimate {
    /// Requests and tokens: chat, responses, embeddings, speech.
    Tokens {
        /// Estimated prompt tokens (or characters of speech), before the limiter's own correction.
        prompt: u64,
        /// The request's own `max_completion_tokens`; `None`: what the limiter assumes.
        max_completion_tokens: Option<u64>,
    },
    /// Requests and seconds of audio, rounded up, the 10 s floor included.
    Audio {
        /// Seconds.
        seconds: u64,
    },
    /// Nothing seen: models, files, batches.
    Free,
}

/// One request as the limits see it.
#[derive(Clone, Debug)]
pub struct AdmissionRequest {
    /// Whose limits: a configured organization's name or the key's digest (never the key).
    pub organization: Arc<str>,
    /// Which of its API keys, by any number of the caller's: a limit on output expects of a request what its key's answers were
    /// like.
    pub key: u32,
    /// The model.
    pub model: Arc<str>,
    /// The service tier: `on_demand` (and `auto`), `flex`, `performance`.
    pub tier: Arc<str>,
    /// The app, for fair shares.
    pub app: Arc<str>,
    /// The app's weight.
    pub weight: f64,
    /// Interactive before batch.
    pub class: Priority,
    /// What it may cost.
    pub cost: CostEstimate,
    /// Bytes that it holds while it waits.
    pub bytes: u64,
}

/// Why a request gets no permit. No quota was changed.
#[derive(Clone, Debug, PartialEq)]
pub enum AdmissionError {
    /// More than a limit can ever hold.
    TooLarge {
        /// The limit's dimension.
        dimension: Dimension,
        /// The limit.
        limit: u64,
        /// What it would take.
        requested: u64,
        /// Prompt and `max_completion_tokens`, where tokens are meant.
        parts: Option<(u64, u64)>,
    },
    /// Not before the deadline.
    NotInTime {
        /// What makes it wait.
        dimension: Dimension,
        /// Forecast wait.
        wait: Duration,
        /// With a `max_completion_tokens` of at most so much it need not wait for a large answer to be forgotten.
        fitting_max_completion_tokens: Option<u64>,
        /// After so long the same request would be sent in time.
        retry_after: Duration,
    },
    /// The queue is full, by count or bytes.
    QueueFull {
        /// When there may be room.
        retry_after: Duration,
    },
}

/// What became of a sent request, for its charge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActualUsage {
    /// Never sent, or refused by Groq: everything comes back.
    Nothing,
    /// Answered with a failure that is not charged (5xx): tokens come back, the request counts.
    Request,
    /// The truth from `usage`.
    Tokens {
        /// Prompt tokens that count (cached ones taken off).
        prompt: u64,
        /// Completion tokens.
        completion: u64,
        /// Prompt tokens in all, for learning the estimate.
        prompt_total: u64,
    },
    /// The truth as far as it is stated: `usage` has no completion tokens, so what was reserved for them counts.
    Prompt {
        /// Prompt tokens that count (cached ones taken off).
        prompt: u64,
        /// Prompt tokens in all, for learning the estimate.
        prompt_total: u64,
    },
    /// A stream that was left: its prompt and the completion tokens seen so far.
    Partial {
        /// Completion tokens seen.
        completion: u64,
    },
    /// Unknown: what was reserved counts, until headers correct it.
    Unknown,
}

/// The limiters of this process: a cheap handle, all clones share them.
#[derive(Clone, Debug)]
pub struct Limiters(Arc<Registry>);

impl Limiters {
    /// Limiters with these settings. What `state_file` holds from an earlier process is taken up.
    ///
    /// With `redis`, quotas are shared. Until Redis answers, and whenever it does not, this process goes on alone with
    /// every limit divided by the number of replicas.
    pub fn new(settings: Settings) -> Self {
        Self(Registry::new(settings))
    }

    /// Other limits, bounds and state file: used amounts and places in the queue stay. `redis` cannot change.
    pub fn reconfigure(&self, settings: Settings) {
        self.0.reconfigure(settings);
    }

    /// What `max_completion_tokens` would have to be lowered to, where it alone is what can never fit.
    pub fn fitting_max_completion_tokens(&self, request: &AdmissionRequest) -> Option<u64> {
        self.0.limiter(request).now(|limiter, now| limiter.fitting_max_completion_tokens(request, now))
    }

    /// The limiter's usual time from sending to an answer's head; zero before the first one.
    pub fn usual_time_to_head(&self, request: &AdmissionRequest) -> Duration {
        self.0.find(request).map_or(Duration::ZERO, |limiter| limiter.with(|limiter| limiter.usual_time_to_head()))
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
            Submitted::Now(charge) => return Ok(Permit::new(limiter, charge)),
            Submitted::Later(waiting) => waiting,
        };
        waiting.await.map(|charge| Permit::new(limiter, Box::new(charge)))
    }

    /// Every limit that is known for `request`: its dimension, the limit, what is left, and the time until it is full.
    pub fn visit_quotas(&self, request: &AdmissionRequest, visit: impl FnMut(&Dimension, u64, f64, Duration)) {
        if let Some(limiter) = self.0.find(request) {
            limiter.now(|limiter, now| limiter.visit_quotas(now, visit));
        }
    }

    /// Takes what `request` costs at once, into debt if need be: for a request that is sent whatever the limits say.
    pub fn take(&self, request: &AdmissionRequest) -> Permit {
        if request.cost == CostEstimate::Free {
            return Permit::free();
        }
        let limiter = self.0.limiter(request);
        let grant = limiter.change_now(|limiter, now| limiter.take(request, now));
        Permit::new(limiter, Box::new(grant))
    }

    /// Limiters of their own with other settings, where these stand now.
    #[must_use]
    pub fn copy(&self, settings: Settings) -> Self {
        Self(self.0.copy(settings))
    }

    /// Takes up the limits that Groq has stated to `others` for the model of `request`. What is used stays.
    pub fn adopt_limits(&self, others: &Self, request: &AdmissionRequest) {
        if let Some(other) = others.0.find(request) {
            let stated = other.with(|limiter| limiter.stated_limits());
            self.0.limiter(request).change_now(|limiter, now| limiter.adopt_limits(&stated, now));
        }
    }

    /// How long a request like `request` would wait.
    pub fn forecast(&self, request: &AdmissionRequest) -> Duration {
        self.0.limiter(request).now(|limiter, now| limiter.forecast_of(request, now))
    }

    /// Completion tokens that an answer has on average; `None` before the first one.
    pub fn usual_completion(&self, request: &AdmissionRequest) -> Option<u64> {
        self.0.find(request)?.with(|limiter| limiter.usual_completion())
    }

    /// Levels, queue and forecasts of every limiter.
    pub fn snapshot(&self) -> Vec<LimiterSnapshot> {
        self.0.snapshot()
    }

    /// The store that replicas share. `None`: quotas are kept in this process.
    pub fn store(&self) -> Option<StoreSnapshot> {
        self.0.store()
    }

    /// The same store for what else the program shares. `None`: quotas are kept in this process.
    pub fn store_handle(&self) -> Option<StoreHandle> {
        self.0.store_handle()
    }

    /// How many wait, in all limiters.
    pub fn waiting(&self) -> usize {
        self.0.waiting()
    }

    /// Keeps the timers, drops idle limiters, and saves the quotas at most once a second. Never ends; the server spawns it.
    /// Without it the timers start with the first waiter, and nothing is saved.
    pub async fn run(&self) {
        self.0.run().await;
    }

    /// Saves the quotas now, at exit. Nothing happens without a `limits.state_file`.
    ///
    /// # Errors
    /// What the file system said.
    pub fn save_now(&self) -> std::io::Result<()> {
        self.0.save(true)
    }

    /// Tells the store that replicas share what it has not been told yet, and that this one leaves. Blocks for twice the
    /// store's time limit at most; the last thing before the end.
    pub fn leave(&self) {
        self.0.leave();
    }
}

/// Where a limit's number comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The operator said so.
    Configured,
    /// The plan's table.
    Plan,
    /// Groq's headers.
    Headers,
    /// A refusal's text.
    UpstreamRefusal,
}

/// One dimension of a limiter, for people.
#[derive(Clone, Debug)]
pub struct DimensionSnapshot {
    /// Which.
    pub dimension: Dimension,
    /// The limit.
    pub limit: u64,
    /// What is left now; below zero in debt.
    pub remaining: f64,
    /// Never usage below this.
    pub margin: u64,
    /// Where the limit's number comes from.
    pub source: Source,
    /// The operator's bound, where there is one.
    pub configured: Option<u64>,
    /// What Groq states, where it has.
    pub stated: Option<u64>,
    /// Share of the limit's rate that others take.
    pub external: f64,
    /// Time until exhausted at the present rate of use, `None` if it is not heading there.
    pub exhausted_in: Option<Duration>,
    /// Time until full if nothing more is sent.
    pub full_in: Duration,
}

/// The store that replicas share, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreSnapshot {
    /// It is out of reach: every limit is divided by `replicas`.
    pub degraded: bool,
    /// Why, as last heard.
    pub why: Option<Arc<str>>,
    /// How many replicas there are, as last heard.
    pub replicas: u32,
    /// Transactions sent since the start.
    pub calls: u64,
}

/// Who waits in a limiter, per app and class.
#[derive(Clone, Debug)]
pub struct WaitingSnapshot {
    /// The app.
    pub app: Arc<str>,
    /// Its class.
    pub class: Priority,
    /// How many.
    pub count: usize,
    /// The longest wait so far.
    pub oldest: Duration,
}

/// One limiter, for people.
#[derive(Clone, Debug)]
pub struct LimiterSnapshot {
    /// Whose.
    pub organization: Arc<str>,
    /// Which model.
    pub model: Arc<str>,
    /// Which tier.
    pub tier: Arc<str>,
    /// Its dimensions.
    pub dimensions: Vec<DimensionSnapshot>,
    /// Its queue.
    pub waiting: Vec<WaitingSnapshot>,
    /// The dimension that blocks the head of the queue, and for how long.
    pub blocked_by: Option<(Dimension, Duration)>,
    /// Wait that a typical new request would see.
    pub forecast: Duration,
    /// Sent and not settled.
    pub in_flight: usize,
    /// Groq's refusals so far.
    pub refusals: u64,
}

#[cfg(test)]
mod tests;
