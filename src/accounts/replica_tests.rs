//! Property tests of replicas that share a budget through a model of the store: reachable, lost, or lost by one replica alone.

use std::collections::HashMap;

use proptest::prelude::*;

use super::{
    tests::{DAY, app, per_day, tokens},
    *,
};
use crate::accounts::protocol::SharedTotal;

/// A model of the store's script: usage of a replica counts forever, its reservations while it runs.
#[derive(Default)]
struct StoreModel {
    version: u64,
    reported: HashMap<usize, Total>,
}

impl StoreModel {
    fn transact(&mut self, replica: usize, transaction: &Transaction) -> Reply {
        self.version += 1;
        let part = &transaction.parts[0];
        let mine = self.reported.entry(replica).or_default();
        *mine = Total { used: mine.used.max(part.reported.used), reserved: part.reported.reserved };
        let before = self.total();
        let reserve = transaction.reserve.as_ref();
        let fits = |budget: &Budget| before.of(budget.unit) < budget.limit;
        let granted = reserve.filter(|reserve| reserve.budgets.iter().all(fits));
        if let Some(reserve) = granted {
            let mine = self.reported.entry(replica).or_default();
            mine.reserved = mine.reserved.plus(reserve.estimate);
        }
        let total = SharedTotal { version: self.version, total: self.total() };
        Reply { granted: granted.is_some(), totals: vec![total; transaction.parts.len()] }
    }

    fn total(&self) -> Total {
        self.reported.values().fold(Total::default(), |sum, reported| sum.plus(*reported))
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// A request of this replica, by an estimate.
    Reserve(usize, u64),
    /// The oldest request of this replica ends, having used this many tokens.
    Settle(usize, u64),
    /// The store becomes unreachable for all replicas, or reachable again.
    ToggleStore,
    /// The store applies a transaction of this replica, but its reply is lost.
    LoseReply(usize, u64),
    /// This replica is killed and restarted.
    Kill(usize),
}

const REPLICAS: usize = 3;

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..REPLICAS, 1..200_u64).prop_map(|(replica, estimate)| Step::Reserve(replica, estimate)),
        8 => (0..REPLICAS, 0..200_u64).prop_map(|(replica, used)| Step::Settle(replica, used)),
        1 => Just(Step::ToggleStore),
        1 => (0..REPLICAS, 1..200_u64).prop_map(|(replica, estimate)| Step::LoseReply(replica, estimate)),
        1 => (0..REPLICAS).prop_map(Step::Kill),
    ]
}

/// Replicas and their store.
struct World {
    store: StoreModel,
    is_up: bool,
    ledgers: Vec<Arc<Ledger>>,
    in_flight: Vec<Vec<(u64, Permit)>>,
    /// Numbers of the processes in the store; a restarted one gets a new number.
    processes: Vec<usize>,
    /// Numbers of the processes that have ended, by their id.
    names: HashMap<String, usize>,
    /// The replicas' state files.
    files: Vec<Saved>,
    /// The last reservation of each replica, by which it may exceed its share.
    last: [u64; REPLICAS],
    /// Used by all processes, including killed ones.
    used: u64,
}

impl World {
    const LIMIT: u64 = 2000;

    fn new() -> Self {
        let ledgers = std::iter::repeat_with(|| Arc::new(Ledger::shared())).take(REPLICAS).collect();
        let in_flight = std::iter::repeat_with(Vec::new).take(REPLICAS).collect();
        let mut world = Self {
            store: StoreModel::default(),
            is_up: true,
            ledgers,
            in_flight,
            processes: (0..REPLICAS).collect(),
            names: HashMap::new(),
            files: vec![Saved::default(); REPLICAS],
            last: [0; REPLICAS],
            used: 0,
        };
        (0..REPLICAS).for_each(|replica| world.join(replica));
        world
    }

    /// A replica learns the totals with its first transaction, whether or not it is granted.
    fn join(&mut self, replica: usize) {
        if let Ok(transaction) = self.ledgers[replica].reserve_transaction(&app(), &per_day(0), tokens(0), DAY) {
            panic!("a budget of 0 has no room: {transaction:?}");
        }
        let transaction = self.ledgers[replica].reserve_transaction(&app(), &[], tokens(0), DAY).expect("no budget");
        let reply = self.store.transact(self.processes[replica], &transaction);
        drop(self.ledgers[replica].apply_reply(&transaction, &reply));
        self.report(replica);
    }

    /// A process is killed and another one starts with its state file.
    fn restart(&mut self, replica: usize) {
        // Its reservations expire. It is saved before they are dropped, and not settled, because a killed process settles nothing.
        if let Some(saved) = self.ledgers[replica].take_changes() {
            self.files[replica] = saved;
        }
        self.in_flight[replica].clear();
        self.store.reported.entry(self.processes[replica]).or_default().reserved = Amounts::default();
        self.names.insert(self.ledgers[replica].replica.clone(), self.processes[replica]);
        self.processes[replica] += REPLICAS;
        self.ledgers[replica] = Arc::new(Ledger::shared());
        self.ledgers[replica].restore(self.files[replica].clone());
    }

    /// Reports everything to the store, and sends its update to all replicas.
    fn report(&mut self, replica: usize) {
        while let Some((process, transaction)) = self.ledgers[replica].earlier_transaction(&app(), DAY) {
            self.store.transact(self.names[&process], &transaction);
            self.ledgers[replica].acknowledge_earlier(&app(), &process);
        }
        let transaction = self.ledgers[replica].report_transaction(&app(), DAY);
        if let Some(transaction) = transaction {
            let reply = self.store.transact(self.processes[replica], &transaction);
            self.ledgers[replica].apply_reply(&transaction, &reply).expect("a report reserves nothing");
        }
        for ledger in &self.ledgers {
            for period in Period::ALL {
                ledger.apply_update("a", period, period.start(DAY), self.store.version, self.store.total());
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
            ledger.reserve_transaction(&app(), &budgets, tokens(estimate), DAY).and_then(|transaction| {
                let reply = self.store.transact(self.processes[replica], &transaction);
                ledger.apply_reply(&transaction, &reply)
            })
        } else {
            ledger.reserve(&app(), &budgets, tokens(estimate), DAY, REPLICAS as u32).map(Some)
        };
        if self.is_up {
            self.report(replica);
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

    /// With the store, a request is admitted if and only if all replicas together have used and reserved less than the budget.
    /// Without it, each replica exceeds its share by at most one reservation. Nothing is lost or counted twice.
    #[test]
    fn replicas_together_never_exceed_the_budget_and_what_was_in_flight(steps in prop::collection::vec(step(), 1..80)) {
        let mut world = World::new();
        for step in steps {
            match step {
                Step::Reserve(replica, estimate) => world.reserve(replica, estimate)?,
                Step::Settle(replica, used) if !world.in_flight[replica].is_empty() => {
                    let (estimate, mut permit) = world.in_flight[replica].remove(0);
                    // At most what was reserved: underestimates may exceed the budget and are not tested here.
                    let used = used.min(estimate);
                    permit.used(tokens(used));
                    world.used += used;
                    drop(permit);
                    if world.is_up {
                        world.report(replica);
                    }
                }
                Step::ToggleStore => {
                    world.is_up = !world.is_up;
                    if world.is_up {
                        (0..REPLICAS).for_each(|replica| world.report(replica));
                    }
                }
                Step::LoseReply(replica, estimate) if world.is_up => {
                    let ledger = world.ledgers[replica].clone();
                    if let Ok(transaction) = ledger.reserve_transaction(&app(), &per_day(World::LIMIT), tokens(estimate), DAY) {
                        world.store.transact(world.processes[replica], &transaction);
                    }
                    world.report(replica);
                }
                Step::Kill(replica) => {
                    // What is in flight counts as used after a restart.
                    world.used += world.in_flight[replica].iter().map(|(estimate, _)| estimate).sum::<u64>();
                    world.restart(replica);
                    if world.is_up {
                        (0..REPLICAS).for_each(|replica| world.join(replica));
                    }
                }
                _ => {}
            }
        }
        world.is_up = true;
        world.in_flight.iter_mut().for_each(Vec::clear);
        (0..REPLICAS).for_each(|replica| world.report(replica));
        for ledger in &world.ledgers {
            let usage = ledger.usage("a", DAY);
            prop_assert_eq!((usage.day.tokens, usage.reserved), (world.used, Amounts::default()), "nothing is lost or counted twice");
        }
    }
}

/// A replica is restarted in an outage of a store that comes back with its data, or empty.
#[test]
fn a_restart_in_an_outage_loses_nothing_and_counts_nothing_twice() {
    for (is_empty, restarts) in [(false, 1), (false, 3), (true, 1), (true, 3)] {
        let mut world = World::new();
        let spend = |world: &mut World, replica: usize| {
            world.reserve(replica, 100).expect("it has room");
            world.in_flight[replica].pop().expect("it was granted").1.used(tokens(100));
            world.used += 100;
        };
        spend(&mut world, 0);
        spend(&mut world, 1);
        (0..REPLICAS).for_each(|replica| world.report(replica));
        world.is_up = false;
        for _ in 0..restarts {
            spend(&mut world, 0);
            world.restart(0);
        }
        spend(&mut world, 1);
        if is_empty {
            world.store = StoreModel::default();
        }
        world.is_up = true;
        // Repeated, as after a reply that was lost.
        while let Some((process, transaction)) = world.ledgers[0].earlier_transaction(&app(), DAY) {
            for _ in 0..2 {
                world.store.transact(world.names[&process], &transaction);
            }
            world.ledgers[0].acknowledge_earlier(&app(), &process);
        }
        (0..REPLICAS).for_each(|replica| world.report(replica));
        // One that has nothing to report learns the totals with its next request.
        world.join(2);
        for (replica, ledger) in world.ledgers.iter().enumerate() {
            let known = ledger.usage("a", DAY).day.tokens;
            assert_eq!(known, world.used, "replica {replica} after {restarts} restarts, the store is empty: {is_empty}");
        }
    }
}

/// The other replicas cannot know what a replica grants while it alone has lost the store, and use all that was left.
#[test]
fn a_replica_that_alone_loses_the_store_adds_its_share_of_what_was_left() {
    const ONE: u64 = 10;
    let (mut world, budgets) = (World::new(), per_day(World::LIMIT));
    world.reserve(0, 500).expect("nothing is used");
    world.in_flight[0].pop().expect("it was granted").1.used(tokens(500));
    world.used = 500;
    world.report(0);
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
        world.report(replica);
    }
    assert_eq!(world.used, World::LIMIT);
    // When it is back, its usage is counted once.
    world.report(2);
    for ledger in &world.ledgers {
        assert_eq!(ledger.usage("a", DAY).day.tokens, World::LIMIT + left / REPLICAS as u64);
    }
}
