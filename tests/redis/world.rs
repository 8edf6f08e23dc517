//! What can happen to replicas and their store, in what order? Lanes stepped by hand and the real script on a real Redis, whose
//! clock is this world's: who is heard when, what is lost, and when time goes on is chosen from outside, step by step.

use std::{collections::BTreeMap, time::Duration};

use groq_shield::{
    groq::{RateState, Snapshot},
    limits::{
        Spent,
        books::Amount,
        bucket::Ns,
        exchange::Transaction,
        lane::{Charge, Event, Lane, Verdict},
        line::Id,
        redis::{
            SCRIPT,
            wire::{Offset, Reply},
        },
    },
};
use redis::Connection;

use crate::{
    history::{Exact, Job},
    start::{MS, SECOND, START, ask, limits, warm},
};

/// Words and news take less.
const LONGEST: Ns = 40 * MS;
/// A lane without its store looks for it after so long.
const LOOK: Ns = 500 * MS;
/// How far the server's clock is ahead of the lanes', µs.
const AHEAD: i64 = 1_700_000_000_123_457;

/// Where levels are kept.
pub(crate) enum Levels<'a> {
    /// In the one lane.
    Local,
    /// In a Redis, under this key.
    Shared(&'a mut Connection, String),
}

/// What the world is made of.
pub(crate) struct Plan<'a> {
    pub(crate) jobs: &'a [Job],
    pub(crate) replicas: usize,
    pub(crate) tokens: u64,
    pub(crate) requests: Option<u64>,
    /// Answers' heads say how much is left.
    pub(crate) headers: bool,
    /// Words get lost.
    pub(crate) lossy: bool,
}

/// What came of it.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) sends: usize,
    pub(crate) refused_by_groq: usize,
    pub(crate) refused_by_us: usize,
    pub(crate) left: usize,
    /// When the last one went.
    pub(crate) last: Ns,
    /// In use when all is over, by the books and in truth.
    pub(crate) used: (u64, u64),
    /// Reserved beyond what the upstream holds for the same requests.
    pub(crate) beyond: u64,
}

enum Step {
    Arrive(usize),
    Leave(usize),
    End(usize, Box<Charge>),
    Look(usize),
}

/// A lane's word on its way to the store, or the store's on its way back.
enum Word {
    There(Transaction),
    Back(u64, Reply),
}

struct Replica {
    lane: Lane,
    offset: Offset,
    word: Option<(Word, Ns)>,
    news: Vec<(Reply, Ns)>,
    waiting: BTreeMap<Id, usize>,
}

pub(crate) struct World<'a> {
    plan: Plan<'a>,
    levels: Levels<'a>,
    replicas: Vec<Replica>,
    tokens: Exact,
    requests: Option<Exact>,
    agenda: BTreeMap<(Ns, u64), Step>,
    order: u64,
    now: Ns,
    told: BTreeMap<String, Ns>,
    outcome: Outcome,
}

impl<'a> World<'a> {
    pub(crate) fn new(plan: Plan<'a>, levels: Levels<'a>) -> Self {
        let replicas = (0..plan.replicas).map(|_| {
            let mut lane = warm(limits(plan.requests, plan.tokens));
            if matches!(levels, Levels::Shared(..)) {
                lane.link(true, plan.replicas as u32, START);
            }
            let mut offset = Offset::default();
            offset.learn(server(START), START, START);
            Replica { lane, offset, word: None, news: Vec::new(), waiting: BTreeMap::new() }
        });
        let mut world = Self {
            replicas: replicas.collect(),
            tokens: Exact::new(plan.tokens, 60 * SECOND),
            requests: plan.requests.map(|limit| Exact::new(limit, 60 * SECOND)),
            agenda: BTreeMap::new(),
            order: 0,
            now: START,
            told: BTreeMap::new(),
            outcome: Outcome::default(),
            plan,
            levels,
        };
        let mut at = START;
        for (n, job) in world.plan.jobs.iter().enumerate() {
            at += job.gap_ms * MS;
            world.order += 1;
            world.agenda.insert((at, world.order), Step::Arrive(n));
        }
        for replica in 0..world.replicas.len() {
            world.pump(replica);
        }
        world
    }

    /// Runs until nothing is left to happen. `choose` picks one of so many.
    pub(crate) fn run(mut self, choose: &mut dyn FnMut(usize) -> usize) -> Outcome {
        while self.step(choose) {}
        for replica in &self.replicas {
            assert_eq!((replica.lane.waiting(), replica.lane.in_flight()), (0, 0), "nobody is left behind");
        }
        let full_in = match &self.levels {
            Levels::Local => {
                let level = self.replicas[0].lane.levels().iter().find(|level| level.dimension.code == "TPM").expect("a limit");
                level.bucket().expect("a limit").tat().saturating_sub(self.now)
            }
            Levels::Shared(..) => 1000 * self.told.get("TPM").map_or(0, |tat| tat.saturating_sub(server(self.now) as u64)),
        };
        self.tokens.drain(self.now);
        self.outcome.used = (full_in * self.plan.tokens / (60 * SECOND), self.tokens.units());
        self.outcome
    }

    /// One thing happens; `false` when nothing can.
    fn step(&mut self, choose: &mut dyn FnMut(usize) -> usize) -> bool {
        let sent = |replica: &Replica| {
            let word = replica.word.as_ref().map(|&(_, at)| at);
            word.into_iter().chain(replica.news.first().map(|&(_, at)| at)).min()
        };
        let late = self.replicas.iter().filter_map(sent).min().map(|at| at + LONGEST);
        let next = self.agenda.first_key_value().map(|(&(at, _), _)| at);
        let next = next.into_iter().chain(self.replicas.iter().filter_map(|replica| replica.lane.wake())).min();
        let mut options: Vec<(usize, u8)> = Vec::new();
        for (number, replica) in self.replicas.iter().enumerate() {
            if replica.word.is_some() {
                options.push((number, 0));
                if self.plan.lossy {
                    options.push((number, 1));
                }
            }
            if !replica.news.is_empty() {
                options.push((number, 2));
            }
        }
        // Nothing waits for longer than it may.
        if next.is_some_and(|next| late.is_none_or(|late| next <= late)) {
            options.push((0, 3));
        }
        if options.is_empty() {
            return false;
        }
        let (replica, what) = options[choose(options.len())];
        match what {
            0 => self.carry(replica),
            1 => self.lose(replica),
            2 => {
                let (reply, _) = self.replicas[replica].news.remove(0);
                let Replica { lane, offset, .. } = &mut self.replicas[replica];
                lane.hear(&offset.answer(reply).expect("the script's words").state, self.now);
                self.pump(replica);
            }
            _ => self.advance(next.expect("it was an option")),
        }
        true
    }

    /// A word arrives.
    fn carry(&mut self, number: usize) {
        let (word, sent) = self.replicas[number].word.take().expect("it was an option");
        match word {
            Word::There(transaction) => {
                let Some((reply, news)) = self.execute(number, &transaction) else { return self.lost(number) };
                self.replicas[number].word = Some((Word::Back(transaction.serial, reply), sent));
                let others = (0..self.replicas.len()).filter(|&other| other != number);
                if let Some(words) = news {
                    for other in others {
                        self.replicas[other].news.extend(Reply::parse(words.clone()).map(|reply| (reply, self.now)));
                    }
                }
            }
            Word::Back(serial, reply) => {
                let Replica { lane, offset, .. } = &mut self.replicas[number];
                offset.learn(reply.now, sent, self.now);
                let answer = offset.answer(reply).expect("the script's words");
                lane.answered(serial, &answer, self.now);
                self.pump(number);
            }
        }
    }

    /// A word gets lost, there or back.
    fn lose(&mut self, number: usize) {
        self.replicas[number].word = None;
        self.lost(number);
    }

    fn lost(&mut self, number: usize) {
        let replicas = self.plan.replicas as u32;
        self.replicas[number].lane.lost(replicas, self.now);
        self.plan_at(self.now + LOOK, Step::Look(number));
        self.pump(number);
    }

    /// The script, at this world's time.
    fn execute(&mut self, number: usize, transaction: &Transaction) -> Option<(Reply, Option<Vec<String>>)> {
        let Levels::Shared(connection, key) = &mut self.levels else { unreachable!("nobody asks a store that is not there") };
        let time = server(self.now);
        let script = format!(
            "local published, real = false, redis
            local redis = setmetatable({{ call = function(name, ...)
                if name == 'TIME' then return {{ ARGV[3], ARGV[4] }} end
                if name == 'PUBLISH' then published = select(2, ...) return 0 end
                return real.call(name, ...)
            end }}, {{ __index = real }})
            local function script()
            {SCRIPT}
            end
            local reply = script()
            if reply.err then return reply end
            return {{ reply, published }}"
        );
        let request = self.replicas[number].offset.request(transaction);
        let script = redis::Script::new(&script);
        let mut call = script.key(&*key);
        call.key(format!("{key}:{number}")).arg(request).arg("news").arg(time / 1_000_000).arg(time % 1_000_000);
        let (words, news): (Vec<String>, Option<String>) = call.invoke(connection).ok()?;
        let news = news.map(|news| serde_json::from_str(news.split_once(' ').expect("a key").1).expect("the reply again"));
        self.all_or_none(transaction, &words);
        Some((Reply::parse(words).expect("the script's words"), news))
    }

    /// Who is let in is charged in every dimension, who is not in none.
    fn all_or_none(&mut self, transaction: &Transaction, words: &[String]) {
        let now = server(self.now) as u64;
        for (cell, told) in transaction.cells.iter().zip(words[8..].chunks(8)) {
            let tat: i64 = told[1].parse().expect("a number");
            let tat = tat.max(0) as u64;
            let before = self.told.insert(told[0].clone(), tat);
            let quiet = (cell.settled, cell.given_up, cell.sighting, cell.claimed) == (0, 0, None, false);
            if let Some(before) = before.filter(|_| quiet && transaction.born != 0) {
                let charged =
                    if words[6] == "1" && cell.asked > 0 { before.max(now) + cell.asked.div_ceil(1000) } else { before };
                assert_eq!(tat, charged, "{}: {words:?}", cell.code);
            }
        }
    }

    fn advance(&mut self, to: Ns) {
        // A lane may want to be woken at once.
        let to = to.max(self.now);
        self.now = to;
        let Some(entry) = self.agenda.first_entry().filter(|entry| entry.key().0 <= to) else {
            let woken: Vec<usize> =
                (0..self.replicas.len()).filter(|&n| self.replicas[n].lane.wake().is_some_and(|at| at <= to)).collect();
            return woken.into_iter().for_each(|number| self.pump(number));
        };
        let jobs = self.plan.jobs;
        match entry.remove() {
            Step::Arrive(n) => self.arrive(n, &jobs[n]),
            Step::Leave(n) => {
                for number in 0..self.replicas.len() {
                    let Replica { lane, waiting, .. } = &mut self.replicas[number];
                    if let Some((&id, _)) = waiting.iter().find(|&(_, &who)| who == n) {
                        waiting.remove(&id);
                        lane.cancel(id, to);
                        self.outcome.left += 1;
                        self.pump(number);
                    }
                }
            }
            Step::End(n, charge) => {
                let (job, number) = (&jobs[n], n % self.replicas.len());
                let completion = job.completion();
                let spent = Spent::Tokens { prompt: job.prompt, completion, prompt_total: job.prompt };
                let held = i128::from(job.prompt + job.ceiling);
                self.tokens.add(i128::from(job.prompt + completion) - held, to);
                self.replicas[number].lane.settle(*charge, spent, to);
                self.pump(number);
            }
            Step::Look(number) => {
                self.replicas[number].lane.reached();
                self.pump(number);
            }
        }
    }

    fn arrive(&mut self, n: usize, job: &Job) {
        let number = n % self.replicas.len();
        let Replica { lane, waiting, .. } = &mut self.replicas[number];
        match lane.submit(&ask(job.app, job.prompt, job.ceiling), self.now, self.now + 60 * SECOND, None, true) {
            Verdict::Go(charge) => self.send(n, *charge),
            Verdict::Wait(id) => {
                waiting.insert(id, n);
                if let Some(after) = job.leaves {
                    self.plan_at(self.now + after * MS, Step::Leave(n));
                }
            }
            Verdict::No(_) => self.outcome.refused_by_us += 1,
        }
        self.pump(number);
    }

    /// Whoever can goes, and what is to be told is on its way.
    fn pump(&mut self, number: usize) {
        let mut events = Vec::new();
        loop {
            self.replicas[number].lane.pump(self.now, &mut events);
            if events.is_empty() {
                break;
            }
            for event in std::mem::take(&mut events) {
                match event {
                    Event::Go(id, charge) => {
                        let n = self.replicas[number].waiting.remove(&id).expect("it waited");
                        self.send(n, charge);
                    }
                    Event::No(id, _) => {
                        self.replicas[number].waiting.remove(&id).expect("it waited");
                        self.outcome.refused_by_us += 1;
                    }
                }
            }
        }
        let Replica { lane, word, .. } = &mut self.replicas[number];
        if let Some(transaction) = lane.transaction(self.now) {
            assert!(word.is_none(), "one at a time");
            *word = Some((Word::There(transaction), self.now));
        }
        let replica = &self.replicas[number];
        assert!(replica.lane.waiting() == 0 || replica.lane.wake().is_some(), "somebody waits and nothing will wake the lane");
    }

    fn send(&mut self, n: usize, mut charge: Charge) {
        let (job, now, number) = (&self.plan.jobs[n], self.now, n % self.replicas.len());
        self.replicas[number].lane.sent(&mut charge, now);
        self.outcome.sends += 1;
        self.outcome.last = now;
        let Amount { input, output, .. } = charge.amount();
        self.outcome.beyond += u64::from(input) + u64::from(output) - job.prompt - job.ceiling;
        let ok =
            self.requests.as_mut().is_none_or(|exact| exact.admit(1, now)) && self.tokens.admit(job.prompt + job.ceiling, now);
        let remaining = self.plan.tokens.saturating_sub(self.tokens.units());
        let shown = Snapshot { limit: self.plan.tokens, remaining, reset: Some(self.tokens.reset()) };
        let tokens = Some(shown).filter(|_| self.plan.headers);
        let state = RateState { tokens, ..RateState::default() };
        let lane = &mut self.replicas[number].lane;
        if ok {
            lane.observe(&mut charge, &state, now);
            self.plan_at(now + job.latency_ms * MS, Step::End(n, Box::new(charge)));
        } else {
            self.outcome.refused_by_groq += 1;
            let _place = lane.refused(charge, None, &state, Some(Duration::from_secs(1)), now);
        }
    }

    fn plan_at(&mut self, at: Ns, step: Step) {
        self.order += 1;
        self.agenda.insert((at, self.order), step);
    }
}

fn server(now: Ns) -> i64 {
    (now / 1000) as i64 + AHEAD
}
