//! The state shared by all requests: settings, limiters, breakers, the upstream.

use std::{io, path::PathBuf, sync::Arc};

use arc_swap::{ArcSwap, ArcSwapOption};
use groq_limiter::Limiters;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::{
    body_buffer::BodyBudget, breaker::Breakers, observer::Observer, request::identity::IdentityIndex, retry::Budget,
    served_models::ServedModels, via::Via,
};
use crate::{
    accounts::{self, SharedLedger},
    config::{Mode, Settings},
    shutdown::Shutdown,
    telemetry::Telemetry,
    upstream::Upstream,
    wall_clock::WallClock,
};

/// The state shared by all requests.
pub struct Shield {
    /// The configuration in effect; swapped on reload.
    pub settings: ArcSwap<Settings>,
    /// Known keys and app tokens; swapped with the settings.
    pub identities: ArcSwap<IdentityIndex>,
    /// Usage and budgets of apps.
    pub accounts: Arc<SharedLedger>,
    /// Caps of apps: limiters in front of Groq's limits, keyed by app in place of the model.
    pub caps: Limiters,
    /// Limiters of Groq's limits, with their queues.
    pub limits: Limiters,
    /// Observes requests while limits are not enforced (`limits.mode`).
    pub observer: ArcSwapOption<Observer>,
    /// Circuit breakers by organization and model.
    pub breakers: Breakers,
    /// The budget of retries over all requests.
    pub budget: Budget,
    /// The connection pool to Groq.
    pub upstream: Upstream,
    /// The models that organizations have recently used successfully.
    pub served_models: ServedModels,
    /// Logs and metrics.
    pub telemetry: Arc<Telemetry>,
    /// The budget of bytes for request bodies in memory.
    pub body_budget: BodyBudget,
    /// Signals a shutdown to connections and requests.
    pub shutdown: Arc<Shutdown>,
    /// The name of this process in `Via`.
    pub via: Via,
    /// Every running connection.
    pub connections: TaskTracker,
    /// The clock for the days and months of budgets and for HTTP dates.
    pub wall_clock: WallClock,
}

impl Shield {
    /// A shield with these settings.
    ///
    /// # Errors
    /// If `upstream.ca_file` cannot be used.
    pub fn new(settings: Settings) -> io::Result<Arc<Self>> {
        let upstream = Upstream::new(&settings.upstream)?;
        Ok(Self::over(settings, upstream))
    }

    /// A shield in front of this upstream.
    pub fn over(settings: Settings, upstream: Upstream) -> Arc<Self> {
        Self::with_clock(settings, upstream, WallClock::default())
    }

    /// As [`Self::over`], with this wall clock.
    pub fn with_clock(settings: Settings, upstream: Upstream, wall_clock: WallClock) -> Arc<Self> {
        let limits = Limiters::new(settings.limiter());
        Self::with_limits(settings, limits, upstream, wall_clock)
    }

    /// As [`Self::with_clock`], with these limiters.
    pub fn with_limits(settings: Settings, limits: Limiters, upstream: Upstream, wall_clock: WallClock) -> Arc<Self> {
        let accounts = SharedLedger::new(limits.store(), &settings.store.prefix);
        if let Some(state_file) = &settings.limits.state_file {
            accounts::file::restore(accounts.ledger(), &accounts::file::path(state_file));
        }
        accounts.ledger().name_apps(settings.named_apps());
        let telemetry = Arc::<Telemetry>::default();
        telemetry.name_apps(settings.named_apps());
        let caps = Limiters::new(settings.caps());
        Arc::new(Self {
            observer: ArcSwapOption::from(Observer::new(&limits, &caps, &settings)),
            identities: ArcSwap::from_pointee(IdentityIndex::new(&settings, |name| std::env::var(name).ok())),
            accounts: Arc::new(accounts),
            caps,
            limits,
            breakers: Breakers::default(),
            budget: Budget::new(Instant::now()),
            upstream,
            served_models: ServedModels::default(),
            telemetry,
            body_budget: BodyBudget::new(settings.queue.max_bytes),
            shutdown: Arc::default(),
            via: Via::default(),
            connections: TaskTracker::new(),
            wall_clock,
            settings: ArcSwap::from_pointee(settings),
        })
    }

    /// The file of the usage of apps, if `limits.state_file` is set.
    pub fn ledger_file(&self) -> Option<PathBuf> {
        self.settings.load().limits.state_file.as_deref().map(accounts::file::path)
    }

    /// Whether limits are observed and not enforced.
    pub fn observes(&self) -> bool {
        self.observer.load().is_some()
    }

    /// Applies the live parts of new settings: limits, organizations, queue, retry, breaker, apps. Usage of the limits and places
    /// in the queue are kept.
    pub fn reload(&self, settings: Settings) {
        self.identities.store(Arc::new(IdentityIndex::new(&settings, |name| std::env::var(name).ok())));
        self.telemetry.name_apps(settings.named_apps());
        self.limits.reconfigure(settings.limiter());
        self.caps.reconfigure(settings.caps());
        self.accounts.ledger().name_apps(settings.named_apps());
        match (settings.limits.mode, &*self.observer.load()) {
            (Mode::Observe, Some(observer)) => observer.reconfigure(&settings),
            _ => self.observer.store(Observer::new(&self.limits, &self.caps, &settings)),
        }
        if self.observes() {
            // Those that began to wait while limits were enforced.
            self.caps.release_waiting();
            self.limits.release_waiting();
        }
        if settings.price != self.settings.load().price {
            self.telemetry.forget_unpriced();
        }
        self.body_budget.resize(settings.queue.max_bytes);
        self.settings.store(Arc::new(settings));
    }
}
