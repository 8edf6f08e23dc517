//! Which lane does a call fall in, and may it go now, later or never? Reserve, observe, settle, snapshot.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use self::{lanes::Shared, turn::Turn};
use crate::{
    settings::Settings,
    types::{Dimension, Priority},
};

#[doc(hidden)]
pub mod ablation;
mod alarm;
pub mod assumed;
pub mod books;
pub mod bucket;
pub mod calibrate;
pub mod exchange;
pub mod expected_output;
pub mod forecast;
pub mod lane;
mod lanes;
pub mod level;
pub mod line;
pub mod plans;
#[cfg(feature = "redis")]
pub mod redis;
mod reservation;
mod saved;
pub mod settings;
mod store;
mod turn;
pub mod types;

pub use reservation::Reservation;

/// What a request draws on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    /// Requests and tokens: chat, responses, embeddings, speech.
    Tokens {
        /// Estimated prompt tokens (or characters of speech), before the lane's own correction.
        prompt: u64,
        /// The request's own ceiling on completion tokens; `None`: what the lane assumes.
        ceiling: Option<u64>,
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
pub struct Ask {
    /// Whose limits: a configured organization's name or the key's digest (never the key).
    pub organization: Arc<str>,
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
    pub pool: Pool,
    /// Bytes that it holds while it waits.
    pub bytes: u64,
}

/// Why a request gets no reservation. No level was changed.
#[derive(Clone, Debug, PartialEq)]
pub enum Refusal {
    /// More than a limit can ever hold.
    Never {
        /// The limit's dimension.
        dimension: Dimension,
        /// The limit.
        limit: u64,
        /// What it would take.
        asked: u64,
        /// Prompt and ceiling, where tokens are meant.
        parts: Option<(u64, u64)>,
    },
    /// Not before the deadline.
    NotInTime {
        /// What makes it wait.
        dimension: Dimension,
        /// Forecast wait.
        wait: Duration,
        /// With a `max_completion_tokens` of at most so much it need not wait for a large answer to be forgotten.
        fits: Option<u64>,
        /// After so long the same request would be sent in time.
        retry_after: Duration,
    },
    /// The line is full, by count or bytes.
    Full {
        /// When there may be room.
        retry_after: Duration,
    },
}

/// What became of a sent request, for its charge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spent {
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
    /// A stream that was left: its prompt and the completion tokens seen so far.
    Partial {
        /// Completion tokens seen.
        completion: u64,
    },
    /// Unknown: the charge stands, headers correct it.
    Charge,
}

/// A place at the front of an app's line, kept after a refusal of Groq's. On the heap: seldom, and who waits keeps no room for it.
#[derive(Debug)]
pub struct Place(Box<lane::Again>);

/// The lanes of this process: a cheap handle, all clones share them.
#[derive(Clone, Debug)]
pub struct Limits(Arc<Shared>);

impl Limits {
    /// Limiters with these settings. What `state_file` holds from an earlier process is taken up.
    ///
    /// With `redis`, quotas are shared. Until Redis answers, and whenever it does not, this process goes on alone with
    /// every limit divided by the number of replicas.
    pub fn new(settings: Settings) -> Self {
        Self(Shared::new(settings))
    }

    /// Other limits, bounds and state file: used amounts and places in the queue stay. `redis` cannot change.
    pub fn reconfigure(&self, settings: Settings) {
        self.0.reconfigure(settings);
    }

    /// The ceiling that `ask` would have to be lowered to, where its ceiling alone is what can never fit.
    pub fn fitting_ceiling(&self, ask: &Ask) -> Option<u64> {
        self.0.lane(ask).now(|lane, now| lane.fitting_ceiling(ask, now))
    }

    /// The lane's usual time from sending to an answer's head; zero before the first one.
    pub fn usual_time_to_head(&self, ask: &Ask) -> Duration {
        self.0.find(ask).map_or(Duration::ZERO, |lane| lane.with(|lane| lane.usual_time_to_head()))
    }

    /// Waits for its fair turn, at most until `deadline`. Dropping the future leaves the line.
    ///
    /// # Errors
    /// The [`Refusal`] says whether the same request could go later, or never. No level was changed then.
    pub async fn reserve(&self, ask: &Ask, deadline: Instant, place: Option<Place>) -> Result<Reservation, Refusal> {
        if ask.pool == Pool::Free {
            return Ok(Reservation::free());
        }
        let lane = self.0.lane(ask);
        let waiting = match lane.submit(ask, deadline, place.map(|place| *place.0))? {
            Turn::Now(charge) => return Ok(Reservation::new(lane, charge)),
            Turn::Later(waiting) => waiting,
        };
        waiting.await.map(|charge| Reservation::new(lane, Box::new(charge)))
    }

    /// Levels, line and forecasts of every lane.
    pub fn snapshot(&self) -> Vec<LaneSnapshot> {
        self.0.snapshot()
    }

    /// The store that replicas share. `None`: levels are kept in this process.
    pub fn store(&self) -> Option<StoreSnapshot> {
        self.0.store()
    }

    /// How many wait, in all lanes.
    pub fn waiting(&self) -> usize {
        self.0.waiting()
    }

    /// Keeps the timers, drops idle lanes, and saves the levels at most once a second. Never ends; the server spawns it.
    /// Without it the timers start with the first waiter, and nothing is saved.
    pub async fn run(&self) {
        self.0.run().await;
    }

    /// Saves the levels now, at exit. Nothing happens without a `limits.state_file`.
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
    Refusal,
}

/// One dimension of a lane, for people.
#[derive(Clone, Debug)]
pub struct DimensionSnapshot {
    /// Which.
    pub dimension: Dimension,
    /// The limit.
    pub limit: u64,
    /// What is left now; below zero in debt.
    pub level: f64,
    /// Never spent below this.
    pub reserve: u64,
    /// Where the limit's number comes from.
    pub source: Source,
    /// The operator's bound, where there is one.
    pub configured: Option<u64>,
    /// What Groq states, where it has.
    pub stated: Option<u64>,
    /// Share of the limit's rate that others take.
    pub foreign: f64,
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

/// Who waits in a lane, per app and class.
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

/// One lane, for people.
#[derive(Clone, Debug)]
pub struct LaneSnapshot {
    /// Whose.
    pub organization: Arc<str>,
    /// Which model.
    pub model: Arc<str>,
    /// Which tier.
    pub tier: Arc<str>,
    /// Its dimensions.
    pub dimensions: Vec<DimensionSnapshot>,
    /// Its line.
    pub waiting: Vec<WaitingSnapshot>,
    /// The dimension that blocks the head of the line, and for how long.
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
