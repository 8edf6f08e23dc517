//! The Lua script of budgets against an exact model: reports, reservations and refusals of replicas in any order, with delayed
//! transactions, expired reservations and lost records.

use std::{cell::RefCell, collections::HashMap};

use proptest::{prelude::*, test_runner::TestRunner};
use redis::{Connection, RedisResult};
use serde_json::json;

use groq_shield::accounts::SCRIPT;

use crate::script::{config, with_redis};

const REPLICAS: usize = 3;
/// Number of periods: the day and the month.
const PERIODS: usize = 2;
/// A lease longer than the test, in ms.
const LEASE: i64 = 60_000;

/// Requests, tokens and billionths of a USD.
type Amounts = [u64; 3];

#[derive(Clone, Debug)]
struct Step {
    replica: usize,
    /// The replica's usage in each period since its last report.
    more: [Amounts; PERIODS],
    /// Reservations of the replica's requests in flight.
    reserved: [Amounts; PERIODS],
    reserve: Option<Amounts>,
    /// Limits of the budgets; -1 for none.
    limits: [[i64; 3]; PERIODS],
    /// Whether the transaction timed out and arrives after a later one of the same replica.
    late: bool,
    /// Whether the reservations of the other replicas have expired.
    expired: bool,
    /// Whether the store loses all data before it.
    lost: bool,
}

fn amounts() -> impl Strategy<Value = Amounts> {
    // Costs are large, but below 2^53, up to which doubles are exact.
    (0..5_u64, prop_oneof![Just(0), 0..2000_u64], prop_oneof![Just(0), 0..1_u64 << 45]).prop_map(|(a, b, c)| [a, b, c])
}

fn limits() -> impl Strategy<Value = [i64; 3]> {
    let of = |most: i64| prop_oneof![2 => Just(-1_i64), 1 => 0..most];
    (of(40), of(20_000), of(1_i64 << 49)).prop_map(|(a, b, c)| [a, b, c])
}

fn step() -> impl Strategy<Value = Step> {
    let periods = (amounts(), amounts(), amounts(), amounts(), limits(), limits());
    let odds = (prop::bool::weighted(0.05), prop::bool::weighted(0.05), prop::bool::weighted(0.03));
    (0..REPLICAS, periods, prop::option::weighted(0.7, amounts()), odds).prop_map(
        |(replica, (a, b, c, d, e, f), reserve, (late, expired, lost))| Step {
            replica,
            more: [a, b],
            reserved: [c, d],
            reserve,
            limits: [e, f],
            late,
            expired,
            lost,
        },
    )
}

/// The record of one period.
#[derive(Clone, Debug, Default)]
struct Record {
    version: u64,
    used: Amounts,
    reserved: HashMap<usize, Amounts>,
    reported: HashMap<usize, Amounts>,
}

fn plus(one: Amounts, other: Amounts) -> Amounts {
    std::array::from_fn(|unit| one[unit] + other[unit])
}

impl Record {
    fn total(&self) -> Amounts {
        self.reserved.values().fold(self.used, |sum, reserved| plus(sum, *reserved))
    }

    /// Applies the report of a replica. Returns whether there is room.
    fn report(&mut self, step: &Step, period: usize, used: Amounts) -> bool {
        if step.expired {
            self.reserved.retain(|replica, _| *replica == step.replica);
        }
        let reported = self.reported.insert(step.replica, used).unwrap_or_default();
        self.used = std::array::from_fn(|unit| self.used[unit] + used[unit].saturating_sub(reported[unit]));
        self.reserved.insert(step.replica, step.reserved[period]);
        self.version += 1;
        let total = self.total();
        step.limits[period].iter().zip(total).all(|(&limit, total)| limit < 0 || total < limit as u64)
    }

    fn to_text(&self) -> String {
        let reserved = self.reserved.values().fold([0; 3], |sum, reserved| plus(sum, *reserved));
        let all = [self.version].into_iter().chain(self.used).chain(reserved).map(|number| number.to_string());
        all.collect::<Vec<_>>().join(" ")
    }
}

fn run(connection: &mut Connection, case: u32, step: &Step, used: &[Amounts; PERIODS], serial: u64) -> RedisResult<Vec<String>> {
    let parts: Vec<_> = (0..PERIODS)
        .map(|at| json!({ "used": used[at], "reserved": step.reserved[at], "limits": step.limits[at], "expires_in": LEASE }))
        .collect();
    // A negative lease makes all reservations of other replicas expire.
    let lease = if step.expired { -1 } else { LEASE };
    let mut request = json!({ "replica": step.replica.to_string(), "serial": serial, "lease": lease, "parts": parts });
    if let Some(amounts) = step.reserve {
        request["reserve"] = json!(amounts);
    }
    let script = redis::Script::new(SCRIPT);
    let mut call = script.prepare_invoke();
    for at in 0..PERIODS {
        call.key(format!("{{{case}}}:{at}")).key(format!("{{{case}}}:{at}:{}", step.replica));
    }
    call.arg(request.to_string()).arg("updates").invoke(connection)
}

fn drive(connection: &mut Connection, case: u32, steps: &[Step]) -> Result<(), TestCaseError> {
    let mut records: [Record; PERIODS] = Default::default();
    let mut used = [[Amounts::default(); PERIODS]; REPLICAS];
    let mut serials = [0; REPLICAS];
    for step in steps {
        if step.lost {
            redis::cmd("FLUSHALL").exec(connection).expect("flushed");
            records = Default::default();
        }
        let mine = &mut used[step.replica];
        if step.late {
            let reply = run(connection, case, step, mine, serials[step.replica]);
            // After a loss of data the store does not know the later transaction.
            if records[0].reported.contains_key(&step.replica) {
                prop_assert!(reply.is_err_and(|error| error.code() == Some("STALE")), "a delayed transaction is not applied");
                continue;
            }
            if serials[step.replica] == 0 {
                prop_assert!(reply.is_err(), "serial numbers begin at 1");
                continue;
            }
            let fits: Vec<_> = (0..PERIODS).map(|at| records[at].report(step, at, mine[at])).collect();
            check(step, &fits, &mut records, reply)?;
            continue;
        }
        serials[step.replica] += 1;
        *mine = std::array::from_fn(|at| plus(mine[at], step.more[at]));
        let fits: Vec<_> = (0..PERIODS).map(|at| records[at].report(step, at, mine[at])).collect();
        let reply = run(connection, case, step, mine, serials[step.replica]);
        check(step, &fits, &mut records, reply)?;
    }
    Ok(())
}

/// Reserves in all periods or in none, and replies with exact totals.
fn check(step: &Step, fits: &[bool], records: &mut [Record], reply: RedisResult<Vec<String>>) -> Result<(), TestCaseError> {
    let granted = step.reserve.filter(|_| fits.iter().all(|&fits| fits));
    if let Some(amounts) = granted {
        for record in records.iter_mut() {
            let mine = record.reserved.entry(step.replica).or_default();
            *mine = plus(*mine, amounts);
        }
    }
    let mut expected = vec![u8::from(granted.is_some()).to_string()];
    expected.extend(records.iter().map(Record::to_text));
    prop_assert_eq!(reply.map_err(|error| TestCaseError::fail(error.to_string()))?, expected, "{:?}", step);
    Ok(())
}

#[test]
fn budgets_are_reserved_and_reported_exactly_in_any_order() {
    with_redis(|connection| {
        let (connection, case) = (RefCell::new(connection), std::cell::Cell::new(0));
        let mut runner = TestRunner::new(config(200));
        let outcome = runner.run(&prop::collection::vec(step(), 1..40), |steps| {
            case.set(case.get() + 1);
            drive(&mut connection.borrow_mut(), case.get(), &steps)
        });
        outcome.unwrap_or_else(|error| panic!("{error}"));
    });
}
