//! Replicas and their store in any order of events. The limiters are driven directly, and the real script runs on a real Redis with
//! a simulated clock. At each step, the test chooses which message arrives or is lost, or that time advances.

use std::collections::BTreeMap;

use groq_limiter::{
    limiter::{Grant, Limiter},
    queue::Ticket,
    store::protocol::{Answer, State, Transaction},
    types::Ns,
};
use redis::Connection;

use crate::{
    history::{Exact, Job},
    start::{MS, SECOND, START, limits, warm},
};

mod messages;
mod requests;

/// Maximum delay of messages and updates.
const MAX_DELAY: Ns = 40 * MS;

/// Where the quotas are stored.
pub(crate) enum Quotas<'a> {
    /// In the only replica.
    Local,
    /// In a Redis, under this key.
    Redis(&'a mut Connection, String),
}

/// The setup of a world.
pub(crate) struct Plan<'a> {
    pub(crate) jobs: &'a [Job],
    pub(crate) replicas: usize,
    pub(crate) tokens: u64,
    pub(crate) requests: Option<u64>,
    /// Whether response heads show the remaining quota.
    pub(crate) headers: bool,
    /// Whether messages get lost.
    pub(crate) lossy: bool,
}

/// The result of a run.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) sends: usize,
    pub(crate) refused_by_groq: usize,
    pub(crate) rejected: usize,
    pub(crate) cancelled: usize,
    /// When the last request was dispatched.
    pub(crate) last: Ns,
    /// Used tokens at the end, according to the quotas and to the upstream.
    pub(crate) used: (u64, u64),
    /// Tokens that the limiters reserved in addition to the upstream's reservation for the same requests.
    pub(crate) beyond: u64,
}

enum Step {
    Arrive(usize),
    Cancel(usize),
    End(usize, Box<Grant>),
    Reconnect(usize),
}

/// A message between a replica and the store.
enum Message {
    /// To the store.
    Transaction(Transaction),
    /// From the store, with the transaction's serial number.
    Reply(u64, Answer),
}

struct Replica {
    limiter: Limiter,
    /// The message in flight and the time at which it was sent.
    message: Option<(Message, Ns)>,
    /// Updates in flight and the times at which they were sent.
    updates: Vec<(State, Ns)>,
    waiting: BTreeMap<Ticket, usize>,
}

pub(crate) struct World<'a> {
    plan: Plan<'a>,
    quotas: Quotas<'a>,
    replicas: Vec<Replica>,
    tokens: Exact,
    requests: Option<Exact>,
    agenda: BTreeMap<(Ns, u64), Step>,
    order: u64,
    now: Ns,
    /// By dimension, the record's theoretical arrival time after the last transaction.
    last_tat: BTreeMap<String, Ns>,
    outcome: Outcome,
}

impl<'a> World<'a> {
    pub(crate) fn new(plan: Plan<'a>, quotas: Quotas<'a>) -> Self {
        let replicas = (0..plan.replicas).map(|_| {
            let mut limiter = warm(limits(plan.requests, plan.tokens));
            if matches!(quotas, Quotas::Redis(..)) {
                limiter.share(None, START);
            }
            Replica { limiter, message: None, updates: Vec::new(), waiting: BTreeMap::new() }
        });
        let mut world = Self {
            replicas: replicas.collect(),
            tokens: Exact::new(plan.tokens, 60 * SECOND),
            requests: plan.requests.map(|limit| Exact::new(limit, 60 * SECOND)),
            agenda: BTreeMap::new(),
            order: 0,
            now: START,
            last_tat: BTreeMap::new(),
            outcome: Outcome::default(),
            plan,
            quotas,
        };
        let mut at = START;
        for (n, job) in world.plan.jobs.iter().enumerate() {
            at += job.gap_ms * MS;
            world.order += 1;
            world.agenda.insert((at, world.order), Step::Arrive(n));
        }
        for replica in 0..world.replicas.len() {
            world.dispatch(replica);
        }
        world
    }

    /// Runs until there are no more events. `choose` returns a number below its argument.
    pub(crate) fn run(mut self, choose: &mut dyn FnMut(usize) -> usize) -> Outcome {
        while self.step(choose) {}
        for replica in &self.replicas {
            assert_eq!((replica.limiter.waiting(), replica.limiter.in_flight()), (0, 0), "no request is left");
        }
        let full_in = match &self.quotas {
            Quotas::Local => {
                let quota =
                    self.replicas[0].limiter.quotas().iter().find(|quota| quota.dimension.code == "TPM").expect("a limit");
                quota.bucket().tat().saturating_sub(self.now)
            }
            Quotas::Redis(..) => self.last_tat.get("TPM").map_or(0, |tat| tat.saturating_sub(self.now)),
        };
        self.tokens.drain(self.now);
        self.outcome.used = (full_in * self.plan.tokens / (60 * SECOND), self.tokens.units());
        self.outcome
    }

    /// Processes one event; `false` if there is none.
    fn step(&mut self, choose: &mut dyn FnMut(usize) -> usize) -> bool {
        let sent = |replica: &Replica| {
            let message = replica.message.as_ref().map(|&(_, at)| at);
            message.into_iter().chain(replica.updates.first().map(|&(_, at)| at)).min()
        };
        let late = self.replicas.iter().filter_map(sent).min().map(|at| at + MAX_DELAY);
        let next = self.agenda.first_key_value().map(|(&(at, _), _)| at);
        let next = next.into_iter().chain(self.replicas.iter().filter_map(|replica| replica.limiter.wake())).min();
        let mut options: Vec<(usize, u8)> = Vec::new();
        for (number, replica) in self.replicas.iter().enumerate() {
            if replica.message.is_some() {
                options.push((number, 0));
                if self.plan.lossy {
                    options.push((number, 1));
                }
            }
            if !replica.updates.is_empty() {
                options.push((number, 2));
            }
        }
        // Time only advances as far as the maximum delay of the messages in flight allows.
        if next.is_some_and(|next| late.is_none_or(|late| next <= late)) {
            options.push((0, 3));
        }
        if options.is_empty() {
            return false;
        }
        let (replica, what) = options[choose(options.len())];
        match what {
            0 => self.deliver(replica),
            1 => self.lose(replica),
            2 => {
                let (state, _) = self.replicas[replica].updates.remove(0);
                self.replicas[replica].limiter.sharing(self.now).expect("it is shared").updated(&state);
                self.dispatch(replica);
            }
            _ => self.advance(next.expect("an option")),
        }
        true
    }
}
