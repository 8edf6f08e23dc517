//! Messages between a replica and its store: they arrive, are executed by the real script, or get lost.

use groq_limiter::{
    store::protocol::Transaction,
    store::redis::{SCRIPT, wire::Reply},
    types::Ns,
};

use super::{Command, Quotas, Replica, Step, World};
use crate::start::MS;

/// The interval in which a limiter without its store looks for it.
const LOOK: Ns = 500 * MS;
/// How far the server's clock is ahead of the limiters', µs.
const AHEAD: i64 = 1_700_000_000_123_457;

impl World<'_> {
    /// A message arrives.
    pub(super) fn carry(&mut self, number: usize) {
        let (word, sent) = self.replicas[number].word.take().expect("it was an option");
        match word {
            Command::There(transaction) => {
                let Some((reply, update)) = self.execute(number, &transaction) else { return self.lost(number) };
                self.replicas[number].word = Some((Command::Back(transaction.serial, reply), sent));
                let others = (0..self.replicas.len()).filter(|&other| other != number);
                if let Some(words) = update {
                    for other in others {
                        self.replicas[other].updates.extend(Reply::parse(words.clone()).map(|reply| (reply, self.now)));
                    }
                }
            }
            Command::Back(serial, reply) => {
                let Replica { limiter, offset, .. } = &mut self.replicas[number];
                offset.learn(reply.now, sent, self.now);
                let answer = offset.answer(reply, &number.to_string()).expect("the script's words");
                limiter.answered(serial, &answer, self.now);
                self.dispatch(number);
            }
        }
    }

    /// A message is lost, in either direction.
    pub(super) fn lose(&mut self, number: usize) {
        self.replicas[number].word = None;
        self.lost(number);
    }

    fn lost(&mut self, number: usize) {
        let replicas = self.plan.replicas as u32;
        self.replicas[number].limiter.lost(replicas, self.now);
        self.plan_at(self.now + LOOK, Step::Look(number));
        self.dispatch(number);
    }

    /// Runs the script at this world's time.
    fn execute(&mut self, number: usize, transaction: &Transaction) -> Option<(Reply, Option<Vec<String>>)> {
        let Quotas::Registry(connection, key) = &mut self.quotas else { unreachable!("nobody asks a store that is not there") };
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
        call.key(format!("{key}:{number}")).arg(request).arg("updates").arg(time / 1_000_000).arg(time % 1_000_000);
        let (words, update): (Vec<String>, Option<String>) = call.invoke(connection).ok()?;
        let update =
            update.map(|update| serde_json::from_str(update.split_once(' ').expect("a key").1).expect("the reply again"));
        self.all_or_none(transaction, &words);
        Some((Reply::parse(words).expect("the script's words"), update))
    }

    /// A granted request is charged in every dimension, a refused one in none.
    fn all_or_none(&mut self, transaction: &Transaction, words: &[String]) {
        let now = server(self.now) as u64;
        for (cell, told) in transaction.cells.iter().zip(words[8..].chunks(4)) {
            let tat: i64 = told[1].parse().expect("a number");
            let tat = tat.max(0) as u64;
            let before = self.told.insert(told[0].clone(), tat);
            let quiet = (cell.settled, cell.observation) == (0, None);
            if let Some(before) = before.filter(|_| quiet && transaction.epoch != 0) {
                let charged =
                    if words[4] == "1" && cell.units > 0 { before.max(now) + cell.units.div_ceil(1000) } else { before };
                assert_eq!(tat, charged, "{}: {words:?}", cell.code);
            }
        }
    }
}

pub(super) fn server(now: Ns) -> i64 {
    (now / 1000) as i64 + AHEAD
}
