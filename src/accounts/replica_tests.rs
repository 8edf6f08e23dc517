//! Replicas and the store that they share a budget through, as a model: with the store, without it, and with one of them cut off.

use std::collections::HashMap;

use proptest::prelude::*;

use super::{
    tests::{DAY, app, per_day, tokens},
    *,
};
use crate::accounts::protocol::Heard;

/// The store's law, written again: what each replica has used counts for ever, what it has reserved as long as it lives.
#[derive(Default)]
struct Law {
    version: u64,
    told: HashMap<usize, Total>,
}

impl Law {
    fn transact(&mut self, replica: usize, transaction: &Transaction) -> Answer {
        self.version += 1;
        let part = &transaction.parts[0];
        let mine = self.told.entry(replica).or_default();
        *mine = Total { used: mine.used.max(part.told.used), reserved: part.told.reserved };
        let before = self.total();
        let ask = transaction.ask.as_ref();
        let fits = |budget: &Budget| before.of(budget.unit) < budget.limit;
        let granted = ask.filter(|ask| ask.budgets.iter().all(fits));
        if let Some(ask) = granted {
            let mine = self.told.entry(replica).or_default();
            mine.reserved = mine.reserved.plus(ask.estimate);
        }
        let heard = Heard { version: self.version, total: self.total() };
        Answer { granted: granted.is_some(), parts: vec![heard; transaction.parts.len()] }
    }

    fn total(&self) -> Total {
        self.told.values().fold(Total::default(), |sum, told| sum.plus(*told))
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// A request of this replica, by an estimate.
    Reserve(usize, u64),
    /// The oldest request of this replica ends, and has used this.
    Settle(usize, u64),
    /// The store is lost for everybody, or found again.
    Turn,
    /// The answer to what this replica tells is lost: the store has applied it.
    Lose(usize, u64),
    /// This replica is killed, and starts again.
    Kill(usize),
}

const REPLICAS: usize = 3;

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..REPLICAS, 1..200_u64).prop_map(|(replica, estimate)| Step::Reserve(replica, estimate)),
        8 => (0..REPLICAS, 0..200_u64).prop_map(|(replica, used)| Step::Settle(replica, used)),
        1 => Just(Step::Turn),
        1 => (0..REPLICAS, 1..200_u64).prop_map(|(replica, estimate)| Step::Lose(replica, estimate)),
        1 => (0..REPLICAS).prop_map(Step::Kill),
    ]
}

/// Replicas and their store.
struct World {
    law: Law,
    is_up: bool,
    ledgers: Vec<Arc<Ledger>>,
    in_flight: Vec<Vec<(u64, Permit)>>,
    /// Names of processes in the store: one that is started again has another.
    names: Vec<usize>,
    /// What each replica has reserved last: it had room for less.
    last: [u64; REPLICAS],
    /// Used by all processes, those that were killed included.
    used: u64,
}

impl World {
    const LIMIT: u64 = 2000;

    fn new() -> Self {
        let ledgers = std::iter::repeat_with(|| Arc::new(Ledger::shared())).take(REPLICAS).collect();
        let in_flight = std::iter::repeat_with(Vec::new).take(REPLICAS).collect();
        let mut world = Self {
            law: Law::default(),
            is_up: true,
            ledgers,
            in_flight,
            names: (0..REPLICAS).collect(),
            last: [0; REPLICAS],
            used: 0,
        };
        (0..REPLICAS).for_each(|replica| world.meet(replica));
        world
    }

    /// A replica hears of the others as soon as it asks, whatever the answer.
    fn meet(&mut self, replica: usize) {
        if let Ok(transaction) = self.ledgers[replica].ask(&app(), &per_day(0), tokens(0), DAY) {
            panic!("nothing fits into a budget of nothing: {transaction:?}");
        }
        let transaction = self.ledgers[replica].ask(&app(), &[], tokens(0), DAY).expect("no budget");
        let answer = self.law.transact(self.names[replica], &transaction);
        drop(self.ledgers[replica].answered(&transaction, &answer));
        self.tell(replica);
    }

    /// Tells the store everything, and everybody hears of it.
    fn tell(&mut self, replica: usize) {
        let transaction = self.ledgers[replica].tell(&app(), DAY);
        if let Some(transaction) = transaction {
            let answer = self.law.transact(self.names[replica], &transaction);
            self.ledgers[replica].answered(&transaction, &answer).expect("nothing is asked for");
        }
        for ledger in &self.ledgers {
            for period in Period::ALL {
                ledger.hear("a", period, period.start(DAY), self.law.version, self.law.total());
            }
        }
    }

    fn reserved(&self) -> u64 {
        self.in_flight.iter().flatten().map(|(estimate, _)| estimate).sum()
    }

    fn reserve(&mut self, replica: usize, estimate: u64) -> Result<(), TestCaseError> {
        let (before, budgets) = (self.used + self.reserved(), per_day(Self::LIMIT));
        let ledger = self.ledgers[replica].clone();
        let reserved = if self.is_up {
            ledger.ask(&app(), &budgets, tokens(estimate), DAY).and_then(|transaction| {
                let answer = self.law.transact(self.names[replica], &transaction);
                ledger.answered(&transaction, &answer)
            })
        } else {
            ledger.reserve(&app(), &budgets, tokens(estimate), DAY, REPLICAS as u32).map(Some)
        };
        if self.is_up {
            self.tell(replica);
            prop_assert_eq!(reserved.is_ok(), before < Self::LIMIT, "{} are used or reserved", before);
        }
        if let Ok(Some(permit)) = reserved {
            self.in_flight[replica].push((estimate, permit));
            self.last[replica] = estimate;
        }
        let (after, last) = (self.used + self.reserved(), self.last.iter().sum::<u64>());
        prop_assert!(after < Self::LIMIT + last.max(1), "{} are used or reserved, the last ones {}", after, last);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    /// With the store a request is admitted while all replicas together have used and reserved less than the budget, and only then;
    /// without it each replica exceeds its share by one reservation at most. Nothing is lost or counted twice.
    #[test]
    fn replicas_together_never_exceed_the_budget_and_what_was_in_flight(steps in prop::collection::vec(step(), 1..80)) {
        let mut world = World::new();
        for step in steps {
            match step {
                Step::Reserve(replica, estimate) => world.reserve(replica, estimate)?,
                Step::Settle(replica, used) if !world.in_flight[replica].is_empty() => {
                    let (estimate, mut permit) = world.in_flight[replica].remove(0);
                    // No more than was reserved: an underestimate is what a budget is overrun by.
                    let used = used.min(estimate);
                    permit.used(tokens(used));
                    world.used += used;
                    drop(permit);
                    if world.is_up {
                        world.tell(replica);
                    }
                }
                Step::Turn => {
                    world.is_up = !world.is_up;
                    if world.is_up {
                        (0..REPLICAS).for_each(|replica| world.tell(replica));
                    }
                }
                Step::Lose(replica, estimate) if world.is_up => {
                    let ledger = world.ledgers[replica].clone();
                    if let Ok(transaction) = ledger.ask(&app(), &per_day(World::LIMIT), tokens(estimate), DAY) {
                        world.law.transact(world.names[replica], &transaction);
                    }
                    world.tell(replica);
                }
                // Without the store nobody would know what it has used: that is the state file's to tell.
                Step::Kill(replica) if world.is_up => {
                    world.in_flight[replica].clear();
                    let name = world.names[replica];
                    world.law.told.entry(name).or_default().reserved = Amounts::default();
                    world.names[replica] += REPLICAS;
                    world.ledgers[replica] = Arc::new(Ledger::shared());
                    (0..REPLICAS).for_each(|replica| world.meet(replica));
                }
                _ => {}
            }
        }
        world.is_up = true;
        world.in_flight.iter_mut().for_each(Vec::clear);
        (0..REPLICAS).for_each(|replica| world.tell(replica));
        for ledger in &world.ledgers {
            let usage = ledger.usage("a", DAY);
            prop_assert_eq!((usage.day.tokens, usage.reserved), (world.used, Amounts::default()), "nothing is lost or counted twice");
        }
    }
}

/// The others cannot know what a replica grants that alone has lost the store, and use what was left among themselves.
#[test]
fn a_replica_that_alone_loses_the_store_adds_its_share_of_what_was_left() {
    const ONE: u64 = 10;
    let (mut world, budgets) = (World::new(), per_day(World::LIMIT));
    world.reserve(0, 500).expect("nothing is used");
    world.in_flight[0].pop().expect("it was granted").1.used(tokens(500));
    world.used = 500;
    world.tell(0);
    let alone = || world.ledgers[2].reserve(&app(), &budgets, tokens(ONE), DAY, REPLICAS as u32);
    let mut granted = 0;
    while let Ok(mut permit) = alone() {
        permit.used(tokens(ONE));
        granted += ONE;
    }
    let left = World::LIMIT - 500;
    assert_eq!(granted, left / REPLICAS as u64);
    for replica in [0, 1].into_iter().cycle() {
        if world.reserve(replica, ONE).is_err()
            || world.in_flight[replica].pop().map(|(_, mut permit)| permit.used(tokens(ONE))).is_none()
        {
            break;
        }
        world.used += ONE;
        world.tell(replica);
    }
    assert_eq!(world.used, World::LIMIT);
    // It counts once when it is back.
    world.tell(2);
    for ledger in &world.ledgers {
        assert_eq!(ledger.usage("a", DAY).day.tokens, World::LIMIT + left / REPLICAS as u64);
    }
}
