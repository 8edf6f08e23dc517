//! Messages between a replica and its store: they are delivered, run by the real script, or lost.

use groq_limiter::{
    store::protocol::{Answer, State, Transaction},
    store::redis::SCRIPT,
    types::Ns,
};

use super::{Message, Quotas, Step, World};
use crate::start::MS;

/// Interval of a replica's attempts to reach a lost store.
const RECONNECT: Ns = 500 * MS;
/// Difference between the server's and the limiters' clocks in µs.
const CLOCK_OFFSET: i64 = 1_700_000_000_123_457;

impl World<'_> {
    /// Delivers the message in flight of replica `number`.
    pub(super) fn deliver(&mut self, number: usize) {
        let (message, sent) = self.replicas[number].message.take().expect("an option");
        match message {
            Message::Transaction(transaction) => {
                let (answer, update) = self.execute(number, &transaction);
                self.replicas[number].message = Some((Message::Reply(transaction.serial, answer), sent));
                for other in (0..self.replicas.len()).filter(|&other| other != number) {
                    let state = update.clone().map(|state| state.seen_by(&other.to_string()));
                    self.replicas[other].updates.extend(state.map(|state| (state, self.now)));
                }
            }
            Message::Reply(serial, answer) => {
                self.replicas[number].limiter.sharing(self.now).expect("it is shared").answered(serial, &answer);
                self.dispatch(number);
            }
        }
    }

    /// Loses the message in flight of replica `number`.
    pub(super) fn lose(&mut self, number: usize) {
        self.replicas[number].message = None;
        self.lost(number);
    }

    fn lost(&mut self, number: usize) {
        let replicas = self.plan.replicas as u32;
        self.replicas[number].limiter.share(Some(replicas), self.now);
        self.plan_at(self.now + RECONNECT, Step::Reconnect(number));
        self.dispatch(number);
    }

    /// Runs the script at the simulated time. Returns the reply and the published update.
    fn execute(&mut self, number: usize, transaction: &Transaction) -> (Answer, Option<State>) {
        let Quotas::Redis(connection, key) = &mut self.quotas else { unreachable!("local quotas have no store") };
        let time = (self.now / 1000) as i64 + CLOCK_OFFSET;
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
        let (granted, wait, state, update): (bool, i64, State, Option<String>) =
            call.invoke(connection).expect("a reply of the script");
        let update = update.map(|update| serde_json::from_str(update.split_once(' ').expect("a key").1).expect("the record"));
        let answer = Answer { granted, wait, state: state.seen_by(&number.to_string()) };
        self.check_all_or_none(transaction, &answer);
        (answer, update)
    }

    /// Checks that a granted request is charged in every dimension, and a refused one in none.
    fn check_all_or_none(&mut self, transaction: &Transaction, Answer { granted, state, .. }: &Answer) {
        // The script counts whole microseconds.
        let now = self.now / 1000 * 1000;
        for (code, view) in state.views(now) {
            let cell = transaction.cells.iter().find(|cell| cell.code == code).expect("a cell for every quota");
            let before = self.last_tat.insert(code.to_owned(), view.tat);
            let quiet = (cell.settled, cell.observed) == (0, None);
            if let Some(before) = before.filter(|_| quiet && !transaction.epoch.is_empty()) {
                let charged = if *granted && cell.units > 0 { before.max(now) + cell.units as u64 * 1000 } else { before };
                assert_eq!(view.tat, charged, "{code}: {state:?}");
            }
        }
    }
}
