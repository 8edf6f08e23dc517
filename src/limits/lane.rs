//! May a request of this organisation × model × tier go now, later or never? The books and the line together, as a
//! pure state machine: `now` is an argument, nothing waits, nothing is spawned.
//!
//! Whoever drives it calls [`Lane::submit`], then [`Lane::pump`] after every change, takes the [`Event`]s, and calls
//! `pump` again at [`Lane::wake`] at the latest. A granted request holds a [`Charge`] that ends in exactly one of
//! [`Lane::settle`] and [`Lane::refused`].

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    sync::Arc,
    time::Duration,
};

use super::{
    Ask, Pool, Refusal, Spent,
    books::{Amount, Books, Taken},
    bucket::{Fit, Ns},
    calibrate::Calibration,
    forecast::{Asker, Forecast, forecast},
    line::{AppId, Id, Line, Ticket, Waiter},
    tables::Tables,
};
use crate::{
    config::{Class, Plan},
    groq::{RateState, RefusalText, Unit},
};

mod learn;
mod shared;
mod view;

const MILLISECOND: Ns = 1_000_000;
const SECOND: Ns = 1_000_000_000;
/// A lane that has never had an answer sends one request and waits so long for its head.
const PROBE: Ns = 2 * SECOND;
/// A blocked head lets smaller ones delay it by this share of its own time, and a little.
const SLACK: (f64, Ns) = (0.25, 50 * MILLISECOND);
/// So many heads are tried for passing.
const PASSING: usize = 32;
/// Forecasts are taken for so much too short.
const CAUTION: f64 = 1.08;
/// A place that its client left is kept for its retry for so long, ns.
const PLACE_KEPT: Ns = 20 * SECOND;
/// Places kept at most.
const PLACES: usize = 1024;
/// Completion tokens assumed where neither the client nor Groq nor the operator says.
const ASSUMED: u32 = 2048;
/// Estimates are taken for so much too high before a request is called impossible, until answers have taught better.
const LEAST: f32 = 0.8;

/// What becomes of a request that asks.
#[derive(Debug)]
pub enum Verdict {
    /// It goes.
    Go(Box<Charge>),
    /// It waits under this number; an [`Event`] will tell.
    Wait(Id),
    /// It does not.
    No(Refusal),
}

/// What happened to a waiter.
#[derive(Debug)]
pub enum Event {
    /// Its turn has come.
    Go(Id, Charge),
    /// It cannot go in time, or never.
    No(Id, Refusal),
}

/// What a granted request holds.
#[derive(Clone, Debug)]
pub struct Charge {
    taken: Taken,
    app: AppId,
    size: u8,
    probe: bool,
    ceiling_given: bool,
    /// Prompt tokens before the lane's own correction.
    estimated: u32,
    /// Cost at the time of granting, and what settles it: the slot and the price of one unit.
    cost: f32,
    price: (u8, f32),
    ticket: Ticket,
    /// How long it waited, ns.
    pub waited: Ns,
    /// The slot that made it wait.
    pub bound: Option<u8>,
}

impl Charge {
    /// Whether it has been sent.
    pub fn is_sent(&self) -> bool {
        self.taken.position > 0
    }

    /// What it took.
    pub fn amount(&self) -> Amount {
        self.taken.amount
    }
}

/// What is known of the upstream's levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Knowledge {
    /// Nothing: the first request is the probe.
    Unknown,
    /// The probe is on its way; others wait for its head until then.
    Probing { until: Ns },
    /// Answers have come, or waiting for one took too long.
    Known,
}

/// One organisation × model × tier.
#[derive(Debug)]
pub struct Lane {
    model: Arc<str>,
    tables: Arc<Tables>,
    /// The plan whose table is in force; `None`: none fits what headers say.
    plan: Option<Plan>,
    books: Books,
    /// To the store, where replicas share levels.
    link: Option<shared::Link>,
    line: Line,
    calibration: Calibration,
    knowledge: Knowledge,
    /// Until when those in line wait for probes, where the first of these failed.
    probing_until: Option<Ns>,
    /// Somebody waits against a forecast made by guess.
    guessed: bool,
    /// Who leaves when, the earliest on top; some have left before.
    deadlines: BinaryHeap<Reverse<(Ns, Id)>>,
    left: HashMap<u64, (Ticket, Ns)>,
    paused_until: Ns,
    pauses: u32,
    blocked: Option<(Option<usize>, Ns)>,
    wake: Option<Ns>,
    clock: Ns,
    in_flight: u32,
    refusals: u64,
    used_at: Ns,
}

impl Lane {
    /// An unused lane: full by its tables, nothing known of the upstream.
    pub fn new(model: Arc<str>, tables: Arc<Tables>, now: Ns) -> Self {
        let mut lane = Self {
            books: Books::default(),
            link: None,
            line: Line::default(),
            calibration: Calibration::default(),
            knowledge: Knowledge::Unknown,
            probing_until: None,
            guessed: false,
            deadlines: BinaryHeap::new(),
            left: HashMap::new(),
            paused_until: 0,
            pauses: 0,
            blocked: None,
            wake: None,
            clock: now,
            in_flight: 0,
            refusals: 0,
            used_at: now,
            model,
            plan: Some(tables.plan()),
            tables: tables.clone(),
        };
        lane.reconfigure(tables, now);
        lane
    }

    /// Asks for a turn. `place`: it was here before. `room`: whether the line may grow.
    ///
    /// After [`Verdict::Wait`] the caller pumps.
    pub fn submit(&mut self, ask: &Ask, now: Ns, deadline: Ns, place: Option<Ticket>, room: bool) -> Verdict {
        let now = self.advance(now);
        self.used_at = now;
        let app = self.line.app(&ask.app, ask.class, ask.weight, now);
        let (waiter, asker) = self.read(ask, app, now, deadline, place);
        if let Some(refusal) = self.never(&waiter, now) {
            return Verdict::No(refusal);
        }
        let open = self.line.is_empty() && self.paused_until <= now && self.is_open(now);
        let fits = open && self.books.fit(&waiter.amount, now).0 == Fit::Now;
        if fits && !self.asks_store() {
            return Verdict::Go(Box::new(self.grant(waiter, None, None, now)));
        }
        let forecast = self.forecast(&asker, now);
        if let Some(refusal) = self.not_in_time(forecast, now, now, deadline) {
            // Until the probe's head is here the limits are a guess, and nobody is refused by a guess.
            if !matches!(self.knowledge, Knowledge::Probing { .. }) {
                return Verdict::No(refusal);
            }
            self.guessed = true;
        }
        // Asking the store is not waiting yet.
        if !room && !fits {
            return Verdict::No(Refusal::Full { retry_after: forecast.wait.max(Duration::from_secs(1)) });
        }
        let id = self.line.push(waiter);
        self.deadlines.push(Reverse((deadline, id)));
        Verdict::Wait(id)
    }

    /// Grants whatever can go, refuses whatever cannot any more, and finds out when to be called again.
    pub fn pump(&mut self, now: Ns, events: &mut Vec<Event>) {
        let now = self.advance(now);
        self.expire(now, events);
        if self.guessed && self.is_open(now) {
            self.guessed = false;
            self.turn_away(now, events);
        }
        let mut bound = self.blocked.take().and_then(|(slot, _)| slot);
        self.wake = None;
        while let Some(head) = self.booked().or_else(|| self.line.head()) {
            if self.paused_until > now {
                self.block(None, self.paused_until);
                break;
            }
            if !self.is_open(now) {
                if let Knowledge::Probing { until } = self.knowledge {
                    self.block(None, until);
                }
                break;
            }
            let Some(waiter) = self.line.get(head) else { break };
            if let Some(refusal) = self.never(waiter, now) {
                self.leave(head);
                events.push(Event::No(head, refusal));
                continue;
            }
            let booked = self.due(head);
            if booked.is_none() && self.asks_store() {
                self.ask(head, now);
                if self.turn_denied_away(now, events) {
                    continue;
                }
                break;
            }
            match booked.unwrap_or_else(|| self.books.fit(&waiter.amount, now)) {
                (Fit::Now, _) => self.go(head, bound, now, events),
                (Fit::At(at), slot) => {
                    self.block(slot, at);
                    bound = slot;
                    // What is left belongs to the one that is booked.
                    if booked.is_some() {
                        break;
                    }
                    match self.passing(head, at, now) {
                        Some(small) => self.go(small, bound, now, events),
                        None => break,
                    }
                }
                // Amounts are cut to their limits, so a full bucket holds them.
                (Fit::Never, slot) => {
                    self.block(slot, now + SECOND);
                    break;
                }
            }
        }
        let deadline = self.deadlines.peek().map(|&Reverse((at, _))| at);
        self.wake = self.wake.into_iter().chain(deadline).chain(self.tell_at()).min();
    }

    /// When to pump again at the latest. `None`: nobody waits.
    pub fn wake(&self) -> Option<Ns> {
        self.wake
    }

    /// A waiter's client has left. Its place is kept for a retry of the client's own. The caller pumps.
    pub fn cancel(&mut self, id: Id, now: Ns) {
        let now = self.advance(now);
        if let Some(waiter) = self.leave(id) {
            self.keep_place(&waiter, now);
        }
    }

    /// Right before the first byte goes out.
    pub fn sent(&mut self, charge: &mut Charge, now: Ns) {
        let now = self.advance(now);
        if !charge.is_sent() {
            self.books.sent(&mut charge.taken, now);
            self.owe(now);
        }
    }

    /// The request has ended and this is the truth. The caller pumps.
    pub fn settle(&mut self, charge: Charge, spent: Spent, now: Ns) {
        let now = self.advance(now);
        self.learn_usage(&charge, spent);
        let used = used(&charge, spent);
        let unit = self.books.levels().get(usize::from(charge.price.0)).map(|level| level.dimension.unit);
        let cost =
            if spent == Spent::Nothing { 0.0 } else { unit.map_or(charge.cost, |unit| used.of(unit) as f32 * charge.price.1) };
        self.line.serve(charge.app, charge.size, f64::from(cost - charge.cost), now);
        self.line.running(charge.app, false);
        self.end_probe(&charge);
        self.in_flight = self.in_flight.saturating_sub(1);
        self.used_at = now;
        self.books.settle(charge.taken, used, now);
        self.owe(now);
    }

    /// An answer's head: its headers correct the levels. The caller pumps.
    pub fn observe(&mut self, charge: &mut Charge, state: &RateState, now: Ns) {
        let now = self.advance(now);
        self.calibration.head(now.saturating_sub(charge.taken.sent_at));
        self.knowledge = Knowledge::Known;
        self.pauses = 0;
        self.learn_headers(charge, state, true, now);
        self.owe(now);
    }

    /// Groq refused: the text (or the headers) corrects the levels and everything comes back. The place to ask again
    /// with. The caller pumps.
    pub fn refused(
        &mut self,
        mut charge: Charge,
        text: Option<&RefusalText>,
        state: &RateState,
        retry_after: Option<Duration>,
        now: Ns,
    ) -> Ticket {
        let now = self.advance(now);
        self.refusals += 1;
        if !self.learn_refusal(&mut charge, text, state, now) {
            // Nothing said which level is low: the whole lane comes to rest.
            self.pauses = (self.pauses + 1).min(6);
            let rest = retry_after.map_or(SECOND << (self.pauses - 1), nanos).min(60 * SECOND);
            self.paused_until = self.paused_until.max(now + rest);
        }
        self.knowledge = Knowledge::Known;
        let ticket = charge.ticket;
        self.settle(charge, Spent::Nothing, now);
        ticket
    }

    /// What a request asks, as a waiter would hold it.
    fn read(&mut self, ask: &Ask, app: AppId, now: Ns, deadline: Ns, place: Option<Ticket>) -> (Waiter, Asker) {
        let (amount, estimated, ceiling_given) = self.amount(ask.pool);
        let ticket = place.or_else(|| self.take_back(ask, now));
        let size = self.size(&amount);
        let usual = self.line.app_of(app).and_then(|app| app.completion.mean()).or(self.calibration.completion.mean());
        let expected = usual.map_or(amount.output, |usual| (usual as u32).min(amount.output));
        let waiter = Waiter {
            app,
            size,
            amount,
            expected,
            estimated,
            ceiling_given,
            ticket: ticket.unwrap_or_else(|| self.line.ticket()),
            since: now,
            deadline,
            slack: None,
            fingerprint: ask.fingerprint,
        };
        let asker = Asker { app, class: ask.class, size, amount, ticket };
        (waiter, asker)
    }

    /// What a pool means in units: pessimistic for the prompt, the whole ceiling for the completion.
    fn amount(&self, pool: Pool) -> (Amount, u32, bool) {
        let cut = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        match pool {
            Pool::Tokens { prompt, ceiling } => {
                let input = if prompt == 0 { 0 } else { (prompt as f32 * self.calibration.prompt.high()).ceil() as u64 + 4 };
                let output = ceiling.map_or_else(|| self.assumed(), cut);
                (Amount { requests: 1, input: cut(input), output, seconds: 0 }, cut(prompt), ceiling.is_some())
            }
            Pool::Audio { seconds } => (Amount { requests: 1, seconds: cut(seconds), ..Amount::default() }, 0, true),
            Pool::Free => (Amount::default(), 0, true),
        }
    }

    /// Completion tokens that are reserved for a request that names no ceiling.
    fn assumed(&self) -> u32 {
        let configured = self.tables.assumed(&self.model).map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        configured.or(self.calibration.assumed).unwrap_or_else(|| {
            let usual = self.calibration.completion.high().unwrap_or(0.0) as u32;
            usual.max(ASSUMED)
        })
    }

    /// Size class: by the share of the tightest limit it asks for.
    fn size(&self, amount: &Amount) -> u8 {
        let share = self
            .books
            .levels()
            .iter()
            .filter(|level| level.dimension.unit != Unit::Requests)
            .filter_map(|level| Some(level.asked(amount) as f64 / level.limit()? as f64))
            .fold(0.0, f64::max);
        [1.0 / 32.0, 1.0 / 8.0, 0.5].iter().filter(|&&bound| share > bound).count() as u8
    }

    /// Its certain sum is over a certain limit.
    fn never(&self, waiter: &Waiter, now: Ns) -> Option<Refusal> {
        let least = self.calibration.prompt.low().min(LEAST);
        let input = (waiter.estimated as f32 * least) as u32;
        let output = if waiter.ceiling_given { waiter.amount.output } else { 0 };
        let (dimension, limit, _) = self.books.never(&Amount { input, output, ..waiter.amount }, now)?;
        // What people are told is the estimate itself, not its lower bound.
        let prompt = if input == 0 { 0 } else { u64::from(waiter.estimated) };
        let told = Amount { input: waiter.estimated, output, ..waiter.amount };
        let parts = (dimension.unit == Unit::Tokens).then_some((prompt, u64::from(output)));
        Some(Refusal::Never { dimension: dimension.clone(), limit, asked: told.of(dimension.unit).max(limit + 1), parts })
    }

    /// Refused now if the forecast, taken with caution, ends after the deadline.
    fn not_in_time(&self, forecast: Forecast, since: Ns, now: Ns, deadline: Ns) -> Option<Refusal> {
        let wait = forecast.wait.mul_f64(CAUTION);
        if wait.is_zero() || wait <= Duration::from_nanos(deadline.saturating_sub(now)) {
            return None;
        }
        Some(self.late(forecast, since, deadline))
    }

    fn late(&self, forecast: Forecast, since: Ns, deadline: Ns) -> Refusal {
        let patience = Duration::from_nanos(deadline.saturating_sub(since));
        let over = forecast.wait.mul_f64(CAUTION).saturating_sub(patience).as_secs_f64().ceil();
        let slot = forecast.slot.or(self.blocked.and_then(|(slot, _)| slot)).unwrap_or(0);
        let dimension = self.books.levels().get(slot).map_or(crate::groq::Dimension::RPM, |level| level.dimension.clone());
        Refusal::NotInTime { dimension, wait: forecast.wait, retry_after: Duration::from_secs_f64(over.max(1.0)) }
    }

    fn forecast(&self, asker: &Asker, now: Ns) -> Forecast {
        let mut forecast = forecast(&self.books, &self.line, asker, now);
        forecast.wait = forecast.wait.max(Duration::from_nanos(self.paused_until.saturating_sub(now)));
        forecast
    }

    /// Whether anybody but a probe may go.
    fn is_open(&mut self, now: Ns) -> bool {
        match self.knowledge {
            Knowledge::Known => true,
            Knowledge::Unknown => self.in_flight == 0,
            Knowledge::Probing { until } if until <= now => {
                self.knowledge = Knowledge::Known;
                true
            }
            Knowledge::Probing { .. } => false,
        }
    }

    /// A small one that may pass the blocked head: it fits, and the head can still go within its slack.
    fn passing(&mut self, head: Id, at: Ns, now: Ns) -> Option<Id> {
        let waiter = self.line.get_mut(head)?;
        let slack = *waiter.slack.get_or_insert_with(|| ((at - now) as f64 * SLACK.0) as Ns + SLACK.1);
        let amount = waiter.amount;
        let urgent = self.line.app_of(self.line.get(head)?.app)?.class == Class::Interactive;
        let mut found = None;
        let mut wake = Ns::MAX;
        for id in self.line.small_heads().take(PASSING).filter(|&id| id != head) {
            let Some(small) = self.line.get(id) else { continue };
            let delay = self.books.delay(&amount, &small.amount);
            let batch = self.line.app_of(small.app).is_some_and(|app| app.class == Class::Batch);
            if delay > slack || (delay > 0 && urgent && batch) {
                continue;
            }
            match self.books.fit(&small.amount, now).0 {
                Fit::Now => {
                    found = Some((id, delay));
                    break;
                }
                Fit::At(at) => wake = wake.min(at),
                Fit::Never => {}
            }
        }
        self.wake = self.wake.map(|at| at.min(wake));
        let (id, delay) = found?;
        self.line.get_mut(head)?.slack = Some(slack - delay);
        Some(id)
    }

    fn block(&mut self, slot: Option<usize>, until: Ns) {
        self.blocked = Some((slot, until));
        self.wake = Some(until);
    }

    fn go(&mut self, id: Id, bound: Option<usize>, now: Ns, events: &mut Vec<Event>) {
        let booking = self.take_booking(id);
        if let Some(waiter) = self.leave(id) {
            let taken = booking.map(|booked| booked.booking.taken);
            events.push(Event::Go(id, self.grant(waiter, taken, bound, now)));
        }
    }

    /// `taken`: the store has charged it.
    fn grant(&mut self, waiter: Waiter, taken: Option<Taken>, bound: Option<usize>, now: Ns) -> Charge {
        let expected = Amount { output: waiter.expected, ..waiter.amount };
        let (slot, price) = self.price(&expected, now);
        let cost = self.books.levels().get(slot).map_or(0.0, |level| level.asked(&expected) as f32 * price);
        let taken = taken.unwrap_or_else(|| self.books.take(waiter.amount, now));
        self.line.serve(waiter.app, waiter.size, f64::from(cost), now);
        self.line.running(waiter.app, true);
        self.in_flight += 1;
        let probe = self.knowledge == Knowledge::Unknown;
        if probe {
            self.knowledge = Knowledge::Probing { until: self.probing_until.take().unwrap_or(now + PROBE) };
        }
        Charge {
            taken,
            app: waiter.app,
            size: waiter.size,
            probe,
            ceiling_given: waiter.ceiling_given,
            estimated: waiter.estimated,
            cost,
            price: (slot as u8, price),
            ticket: waiter.ticket,
            waited: now.saturating_sub(waiter.since),
            bound: bound.map(|slot| slot as u8),
        }
    }

    /// The dimension in which this costs most, as a share of what is there and comes within a minute; one unit's price.
    fn price(&self, amount: &Amount, now: Ns) -> (usize, f32) {
        let mut dearest = (0, 0.0, 0.0);
        for (slot, level) in self.books.levels().iter().enumerate() {
            let Some(bucket) = level.bucket() else { continue };
            let price = 1.0 / (bucket.level(now).max(0.0) + 60.0 * bucket.rate());
            let cost = level.asked(amount) as f64 * price;
            if cost > dearest.1 {
                dearest = (slot, cost, price);
            }
        }
        (dearest.0, dearest.2 as f32)
    }

    /// Out of the line, whatever the reason.
    fn leave(&mut self, id: Id) -> Option<Waiter> {
        self.give_up(id);
        let waiter = self.line.remove(id)?;
        // Most never reach their deadlines: what they leave behind stays less than the line itself.
        if self.deadlines.len() > 2 * self.line.len() + 64 {
            let line = &self.line;
            self.deadlines.retain(|&Reverse((at, id))| line.get(id).is_some_and(|waiter| waiter.deadline == at));
        }
        while let Some(&Reverse((at, id))) = self.deadlines.peek()
            && self.line.get(id).is_none_or(|waiter| waiter.deadline != at)
        {
            self.deadlines.pop();
        }
        Some(waiter)
    }

    /// Those whose patience has ended.
    fn expire(&mut self, now: Ns, events: &mut Vec<Event>) {
        while let Some(&Reverse((deadline, id))) = self.deadlines.peek()
            && deadline <= now
        {
            // At its deadline a request may still go if it is its turn.
            if self.paused_until <= now
                && !self.asks_store()
                && self.line.head() == Some(id)
                && self.line.get(id).is_some_and(|waiter| self.books.fit(&waiter.amount, now).0 == Fit::Now)
                && self.is_open(now)
            {
                let bound = self.blocked.and_then(|(slot, _)| slot);
                self.go(id, bound, now, events);
                continue;
            }
            let Some(waiter) = self.leave(id) else {
                self.deadlines.pop();
                continue;
            };
            let refusal = self.late(self.forecast(&self.asker(&waiter), now), waiter.since, deadline);
            self.keep_place(&waiter, now);
            events.push(Event::No(id, refusal));
        }
    }

    /// The limits are known now: whoever cannot make it is told at once, in the order of arrival.
    fn turn_away(&mut self, now: Ns, events: &mut Vec<Event>) {
        let mut waiting: Vec<_> = self
            .deadlines
            .iter()
            .filter_map(|&Reverse((deadline, id))| Some((self.line.get(id)?.ticket, id, deadline)))
            .collect();
        waiting.sort_unstable_by_key(|&(ticket, ..)| ticket);
        for (_, id, deadline) in waiting {
            let late = self.line.get(id).and_then(|waiter| {
                let forecast = self.forecast(&self.asker(waiter), now);
                self.not_in_time(forecast, waiter.since, now, deadline)
            });
            if let Some(refusal) = late {
                self.leave(id);
                events.push(Event::No(id, refusal));
            }
        }
    }

    fn asker(&self, waiter: &Waiter) -> Asker {
        let class = self.line.app_of(waiter.app).map_or(Class::Interactive, |app| app.class);
        Asker { app: waiter.app, class, size: waiter.size, amount: waiter.amount, ticket: Some(waiter.ticket) }
    }

    fn keep_place(&mut self, waiter: &Waiter, now: Ns) {
        if self.left.len() >= PLACES {
            self.left.retain(|_, &mut (_, until)| until > now);
        }
        if self.left.len() < PLACES {
            self.left.insert(waiter.fingerprint, (waiter.ticket, now + PLACE_KEPT));
        }
    }

    /// The place that a client's own retry left.
    fn take_back(&mut self, ask: &Ask, now: Ns) -> Option<Ticket> {
        if !ask.client_retry {
            return None;
        }
        self.left.remove(&ask.fingerprint).filter(|&(_, until)| until > now).map(|(ticket, _)| ticket)
    }

    /// A probe that ended without an answer's head makes way for the next.
    fn end_probe(&mut self, charge: &Charge) {
        if let Knowledge::Probing { until } = self.knowledge
            && charge.probe
        {
            self.knowledge = Knowledge::Unknown;
            // Who waits goes on waiting for the next, but not for longer in all.
            self.probing_until = Some(until).filter(|_| !self.line.is_empty());
        }
    }

    /// The lane's clock never goes back.
    fn advance(&mut self, now: Ns) -> Ns {
        self.clock = self.clock.max(now);
        self.books.tick(self.clock);
        self.clock
    }
}

/// What a request used, by unit.
fn used(charge: &Charge, spent: Spent) -> Amount {
    let cut = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    let asked = charge.taken.amount;
    match spent {
        Spent::Nothing => Amount::default(),
        Spent::Request => Amount { requests: asked.requests, ..Amount::default() },
        // Audio is billed by the second, whatever the answer says of tokens.
        Spent::Tokens { .. } | Spent::Partial { .. } if asked.seconds > 0 => asked,
        Spent::Tokens { prompt, completion, .. } => Amount { input: cut(prompt), output: cut(completion), ..asked },
        Spent::Partial { completion } => Amount { output: cut(completion), ..asked },
        Spent::Charge => asked,
    }
}

fn nanos(duration: Duration) -> Ns {
    Ns::try_from(duration.as_nanos()).unwrap_or(Ns::MAX)
}
