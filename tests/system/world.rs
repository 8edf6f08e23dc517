//! The shield of a simulated world, its wall clock, and the checks of the final state.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use groq_limiter::{Limiters, store::simulated::StoreEnd};
use groq_shield::{
    accounts::Amounts,
    config::{App, Limits, ModelLimits, Plan, Settings},
    proxy::Shield,
    upstream::{Io, Upstream},
    wall_clock::WallClock,
};
use groq_sim::Sim;
use tokio::time::Instant;

use crate::{client::Ends, epoch, network::Network};

/// Less than the clients send, and not reported in headers, so that usage during an outage of the store has to be reported to it.
pub(crate) const RPM: u64 = 24;
pub(crate) const TPM: u64 = 12_000;

pub(crate) fn settings() -> Settings {
    let model = ModelLimits { requests_per_minute: Some(RPM), tokens_per_minute: Some(TPM), ..Default::default() };
    let mut settings =
        Settings { limits: Limits { plan: Plan::None, default: model, ..Default::default() }, ..Default::default() };
    settings.upstream.response_timeout = Duration::from_secs(30);
    settings.upstream.idle_timeout = Duration::from_secs(20);
    // Never reached, but counted.
    settings.app = vec![App { name: "*".into(), tokens_per_day: Some(1_000_000_000), ..App::default() }];
    settings
}

/// A wall clock that follows virtual time and can be stepped.
#[derive(Clone)]
pub(crate) struct Wall {
    start: Instant,
    stepped: Arc<AtomicI64>,
}

impl Wall {
    pub(crate) fn new() -> Self {
        Self { start: Instant::now(), stepped: Arc::default() }
    }

    /// Steps the clock by `seconds`.
    pub(crate) fn step(&self, seconds: i64) {
        self.stepped.fetch_add(seconds, Relaxed);
    }

    fn now(&self) -> SystemTime {
        let stepped = self.stepped.load(Relaxed);
        let by = Duration::from_secs(stepped.unsigned_abs());
        let now = epoch() + self.start.elapsed();
        if stepped < 0 { now - by } else { now + by }
    }

    fn clock(&self) -> WallClock {
        let wall = self.clone();
        WallClock::of(move || wall.now())
    }
}

/// A shield that reaches `sim` through `network`, and the store's end of its connection to the store.
pub(crate) fn shield(sim: &Sim, network: &Network, wall: &Wall, http2: bool) -> (Arc<Shield>, StoreEnd) {
    let settings = settings();
    let (limits, store) = Limiters::with_simulated_store(settings.limiter(), 1);
    let (sim, network) = (sim.clone(), network.clone());
    let upstream = Upstream::connected_by(&settings.upstream, http2, move || {
        let (sim, network) = (sim.clone(), network.clone());
        async move {
            let (ours, theirs) = network.connect().await?;
            tokio::spawn(async move { sim.serve_connection(theirs).await });
            io::Result::Ok(Io::Simulated { stream: Box::new(ours), http2 })
        }
    });
    (Shield::with_limits(settings, limits, upstream, wall.clock()), store)
}

/// Checks that nothing is in flight and that the shield and the simulated Groq have refilled every limit. With the clients' results
/// in `exact`, also checks that all three counted the same usage.
pub(crate) fn balance(shield: &Shield, sim: &Sim, wall: &Wall, exact: Option<&Ends>) {
    assert_eq!(shield.limits.waiting(), 0);
    assert_eq!((shield.body_budget.held(), shield.telemetry.in_flight(), shield.connections.len()), (0, 0, 0));
    for limiter in shield.limits.snapshot().into_iter().chain(shield.caps.snapshot()) {
        assert_eq!((limiter.in_flight, limiter.waiting.len()), (0, 0), "{limiter:?}");
        for dimension in &limiter.dimensions {
            assert_eq!(dimension.full_in, Duration::ZERO, "{dimension:?}");
        }
    }
    let now = wall.clock().unix_seconds();
    let apps = shield.accounts.ledger().list(now);
    assert!(apps.iter().all(|(_, used)| used.reserved == Amounts::default()), "{apps:?}");
    let stats = sim.stats();
    assert!(stats.scopes.iter().flat_map(|scope| scope.limits.values()).all(|limit| limit.used == 0), "{stats:?}");
    if let Some(ends) = exact {
        let used: u64 = apps.iter().map(|(_, used)| used.month.tokens).sum();
        let charged: i128 = stats.scopes.iter().map(|scope| scope.limits["TPM"].charged).sum();
        assert_eq!((used, charged), (ends.tokens, i128::from(ends.tokens)), "{apps:?}");
    }
}
