//! What do requests share? Settings, levels, breakers, the way to Groq.

use std::{future::poll_fn, io, pin::pin, sync::Arc, task::Poll, time::Duration};

use arc_swap::ArcSwap;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::request::Call;
use crate::{
    config::Settings,
    limits::{Limits, Place, Reservation},
    proxy::body_buffer::Bodies,
    proxy::breaker::{Admission, Breakers, Pass},
    proxy::error::Rejection,
    proxy::request::identity::IdentityIndex,
    proxy::retry::Budget,
    shutdown::Stop,
    telemetry::{Record, Telemetry},
    upstream::{Outgoing, Upstream},
};

/// Everything that requests share.
pub struct Shield {
    /// The configuration in force; swapped on reload.
    pub settings: ArcSwap<Settings>,
    /// Who may come, by their keys and tokens; swapped with the settings.
    pub identities: ArcSwap<IdentityIndex>,
    /// Levels and lines.
    pub limits: Limits,
    /// Whether Groq answers at all, per organisation and model.
    pub breakers: Breakers,
    /// Retries allowed over all requests.
    pub budget: Budget,
    /// The way to Groq.
    pub upstream: Upstream,
    /// Logs and metrics.
    pub telemetry: Arc<Telemetry>,
    /// Bytes of bodies in flight.
    pub bodies: Bodies,
    /// What SIGTERM begins: no new connections; and when `drain_timeout` is over, running streams end in an error frame.
    pub stop: Arc<Stop>,
    /// Every running connection.
    pub connections: TaskTracker,
}

impl Shield {
    /// A shield by these settings.
    ///
    /// # Errors
    /// A `ca_file` that cannot be used.
    pub fn new(settings: Settings) -> io::Result<Arc<Self>> {
        let upstream = Upstream::new(&settings.upstream)?;
        Ok(Self::over(settings, upstream))
    }

    /// A shield before this upstream.
    pub fn over(settings: Settings, upstream: Upstream) -> Arc<Self> {
        Arc::new(Self {
            identities: ArcSwap::from_pointee(IdentityIndex::new(&settings, |name| std::env::var(name).ok())),
            limits: Limits::shared(&settings.limits, &settings.queue, &settings.store),
            breakers: Breakers::default(),
            budget: Budget::new(Instant::now()),
            upstream,
            telemetry: Arc::default(),
            bodies: Bodies::new(settings.queue.max_bytes),
            stop: Arc::default(),
            connections: TaskTracker::new(),
            settings: ArcSwap::from_pointee(settings),
        })
    }

    /// New settings, for what is live: limits, organisations, queue, retry, breaker, apps. No level and no place is lost.
    pub fn reload(&self, settings: Settings) {
        self.identities.store(Arc::new(IdentityIndex::new(&settings, |name| std::env::var(name).ok())));
        self.limits.reconfigure(&settings.limits, &settings.queue);
        self.bodies.resize(settings.queue.max_bytes);
        self.settings.store(Arc::new(settings));
    }

    /// Lowers the ceiling of a call that could never fit only because of it, where the operator allows that.
    pub(super) fn fit(&self, settings: &Settings, call: &mut Call, outgoing: &mut Outgoing) {
        if settings.limits.fit_ceiling
            && let Some(ceiling) = self.limits.fitting_ceiling(&call.ask)
        {
            call.fit(ceiling, outgoing);
        }
    }

    /// Waits until the breaker lets it pass and the limits have room.
    pub(super) async fn admit<'a>(
        &'a self,
        settings: &'a Settings,
        call: &'a Call,
        mut place: Option<Place>,
        record: &mut Record,
    ) -> Result<(Pass<'a>, Option<Reservation>), Rejection> {
        record.waits_from(if record.attempts == 0 { call.read_at } else { Instant::now() });
        loop {
            let pass = self.pass(settings, call, record).await?;
            if !call.draws() {
                record.waited(Duration::ZERO);
                return Ok((pass, None));
            }
            let reservation = self.limits.reserve(&call.ask, call.deadline, place.take()).await.map_err(Rejection::from)?;
            record.waited(reservation.waited());
            if let Some(bound) = reservation.bound_by() {
                record.bound = Some(bound.code.to_string());
            }
            // It may have opened while the call stood in line: a dead upstream gets one probe, not the whole line.
            if pass.is_probe() || !self.breakers.is_open(&call.lane) {
                return Ok((pass, Some(reservation)));
            }
            record.waits_from(Instant::now());
        }
    }
}

impl Shield {
    /// Lets those go on that the runtime has found ready together with this one, if there may be any. Not `yield_now`: that looks for
    /// new events first, and where another wake-up has come already the task is polled once more for nothing.
    pub(super) fn round_ends(&self, call: &Call) -> impl Future<Output = ()> + use<> {
        let mut over = self.bodies.held() <= call.ask.bytes;
        poll_fn(move |cx| {
            if over {
                return Poll::Ready(());
            }
            over = true;
            cx.waker().wake_by_ref();
            Poll::Pending
        })
    }

    async fn pass<'a>(&'a self, settings: &'a Settings, call: &'a Call, record: &mut Record) -> Result<Pass<'a>, Rejection> {
        if let Admission::Go(pass) = self.breakers.admit(&call.lane, &settings.breaker, Instant::now) {
            return Ok(pass);
        }
        // On the heap: seldom, and a request that waits in line keeps no room for it.
        let began = Instant::now();
        let pass = Box::pin(self.pass_later(settings, call)).await?;
        record.waited(began.elapsed());
        record.waits_from(Instant::now());
        Ok(pass)
    }

    /// Waits while the breaker is open, where patience allows it to see the next probe; refuses at once where not.
    async fn pass_later<'a>(&'a self, settings: &'a Settings, call: &'a Call) -> Result<Pass<'a>, Rejection> {
        loop {
            let now = Instant::now();
            let (until, changed) = match self.breakers.admit(&call.lane, &settings.breaker, || now) {
                Admission::Go(pass) => return Ok(pass),
                Admission::Wait { until, changed } => (until, changed),
            };
            // Registered before the state is looked at again, so that no change is missed.
            let mut notified = pin!(changed.notified());
            notified.as_mut().enable();
            if let Admission::Go(pass) = self.breakers.admit(&call.lane, &settings.breaker, || now) {
                return Ok(pass);
            }
            if now >= call.deadline || until.is_some_and(|until| until >= call.deadline) {
                let retry_after = until.map_or(settings.breaker.open, |until| until - now);
                return Err(Rejection::BreakerOpen { retry_after });
            }
            tokio::select! {
                () = &mut notified => {}
                () = tokio::time::sleep_until(until.unwrap_or(call.deadline)) => {}
            }
        }
    }
}
