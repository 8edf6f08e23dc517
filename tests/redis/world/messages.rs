//! Messages between a replica and its store: they arrive, are executed by the real script, or get lost.

use groq_limiter::{
    store::protocol::{Answer, State, Transaction},
    store::redis::SCRIPT,
    types::Ns,
};

use super::{Command, Quotas, Step, World};
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
                let (answer, update) = self.execute(number, &transaction);
                self.replicas[number].word = Some((Command::Back(transaction.serial, answer), sent));
                for other in (0..self.replicas.len()).filter(|&other| other != number) {
                    let state = update.clone().map(|state| state.seen_by(&other.to_string()));
                    self.replicas[other].updates.extend(state.map(|state| (state, self.now)));
                }
            }
            Command::Back(serial, answer) => {
                self.replicas[number].limiter.answered(serial, &answer, self.now);
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
        self.replicas[number].limiter.share(Some(replicas), self.now);
        self.plan_at(self.now + LOOK, Step::Look(number));
        self.dispatch(number);
    }

    /// Runs the script at this world's time.
    fn execute(&mut self, number: usize, transaction: &Transaction) -> (Answer, Option<State>) {
        let Quotas::Registry(connection, key) = &mut self.quotas else { unreachable!("nobody asks a store that is not there") };
        let time = (self.now / 1000) as i64 + AHEAD;
        let script = format!(
            "local published, real = false, redis
            local redis = setmetatable({{ call = function(name, ...)
                if name == 'TIME' then return {{ ARGV[4], ARGV[5] }} end
                if name == 'PUBLISH' then published = select(2, ...) return 0 end
                return real.call(name, ...)
            end }}, {{ __index = real }})
            local function script()
            {SCRIPT}
            end
            local granted, wait, record = unpack(script())
            return {{ granted, wait, record, published }}"
        );
        let request = serde_json::to_string(transaction).expect("JSON");
        let script = redis::Script::new(&script);
        let mut call = script.key(&*key);
        call.arg(request).arg(number).arg("updates").arg(time / 1_000_000).arg(time % 1_000_000);
        let (granted, wait, state, update): (bool, i64, State, Option<String>) = call.invoke(connection).expect("it runs");
        let update = update.map(|update| serde_json::from_str(update.split_once(' ').expect("a key").1).expect("the record"));
        let answer = Answer { granted, wait, state: state.seen_by(&number.to_string()) };
        self.all_or_none(transaction, &answer);
        (answer, update)
    }

    /// A granted request is charged in every dimension, a refused one in none.
    fn all_or_none(&mut self, transaction: &Transaction, Answer { granted, state, .. }: &Answer) {
        // The script counts whole microseconds.
        let now = self.now / 1000 * 1000;
        for (code, view) in state.views(now) {
            let cell = transaction.cells.iter().find(|cell| cell.code == code).expect("both know all");
            let before = self.told.insert(code.to_owned(), view.tat);
            let quiet = (cell.settled, cell.observed) == (0, None);
            if let Some(before) = before.filter(|_| quiet && !transaction.epoch.is_empty()) {
                let charged = if *granted && cell.units > 0 { before.max(now) + cell.units as u64 * 1000 } else { before };
                assert_eq!(view.tat, charged, "{code}: {state:?}");
            }
        }
    }
}
