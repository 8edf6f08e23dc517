//! The limiter's Lua script for any order of replicas' transactions. Redis runs scripts one at a time, so every interleaving is a
//! sequence. Generated sequences are compared with a second implementation and with an exact limiter.

use std::collections::BTreeMap;

use proptest::prelude::*;
use redis::{Connection, RedisResult};
use serde_json::{Value, json};

use groq_limiter::store::redis::SCRIPT;

use crate::kit::Redis;

/// Time in which the quota refills, in µs.
const CAP: i64 = 60_000_000;
/// The safety margin of a request in µs.
const MARGIN: i64 = 3_000_000;
const REPLICAS: usize = 3;
/// The server's clock at the start in µs.
const START: i64 = 1_700_000_000_123_457;
const SECOND: i64 = 1_000_000;

/// A transaction of a replica. Times and units are in the script's microseconds.
#[derive(Clone, Debug)]
struct Step {
    replica: usize,
    /// Time since the previous transaction.
    gap: i64,
    settled: i64,
    /// If set, the replica was without the store and used this much in that time.
    returns: Option<i64>,
    /// Difference of an observed quota from the replica's knowledge.
    observation: Option<i64>,
    outstanding: i64,
    units: Option<i64>,
    /// Number of requests in the replica's queue behind the head.
    behind: usize,
    /// Whether the store loses all data before the transaction.
    flushed: bool,
}

fn step() -> impl Strategy<Value = Step> {
    let observation = prop::option::weighted(0.3, -20_000_000..20_000_000i64);
    let units = prop::option::weighted(0.8, 1..20_000_000i64);
    let settled = prop_oneof![3 => Just(0i64), 2 => -5_000_000..0i64, 1 => 0..2_000_000i64];
    let returns = prop::option::weighted(0.1, 0..20_000_000i64);
    let gap = prop_oneof![8 => 0..SECOND / 4, 1 => 0..9 * SECOND];
    let flushed = prop::bool::weighted(0.03);
    let rest = (flushed, returns, 0..2usize, gap, 0..3_000_000i64);
    (0..REPLICAS, settled, observation, units, rest).prop_map(
        |(replica, settled, observation, units, (flushed, returns, behind, gap, outstanding))| Step {
            replica,
            gap,
            settled,
            returns,
            observation,
            outstanding,
            units,
            behind,
            flushed,
        },
    )
}

/// The record according to a second implementation of the script. Times are those of the server's clock.
#[derive(Clone, Debug, Default)]
struct Model {
    began: i64,
    version: i64,
    position: i64,
    tat: i64,
    corrections: i64,
    replicas: BTreeMap<usize, Member>,
}

#[derive(Clone, Debug, Default)]
struct Member {
    heard: i64,
    /// The version at which the replica's head began to wait.
    since: Option<i64>,
    /// Cost of that request in millionths of the quota.
    share: i64,
    /// The replica's reservations, and the record's corrections at that time.
    held: (i64, i64),
}

/// Runs the script at the time `now`. Returns whether the head is granted, the time until it has room, and the record.
fn run(connection: &mut Connection, key: &str, replica: usize, request: &Value, now: i64) -> RedisResult<(bool, i64, Value)> {
    let script = redis::Script::new(&SCRIPT.replace("redis.call('TIME')", "{ ARGV[4], ARGV[5] }"));
    let mut call = script.key(key);
    call.arg(request.to_string()).arg(replica).arg("updates").arg(now / SECOND).arg(now % SECOND);
    let (granted, wait, record): (bool, i64, String) = call.invoke(connection)?;
    Ok((granted, wait, serde_json::from_str(&record).expect("JSON")))
}

/// Runs a sequence on the script and the model and compares them. Returns every grant as (time, cost).
fn run_sequence(connection: &mut Connection, key: &str, steps: &[Step]) -> Result<Vec<(i64, i64)>, TestCaseError> {
    let mut model: Option<Model> = None;
    let mut known: BTreeMap<usize, Model> = BTreeMap::new();
    let mut granted = Vec::new();
    let mut now = START;
    for step in steps {
        now += step.gap;
        if step.flushed {
            redis::cmd("DEL").arg(key).exec(connection).expect("deleted");
            model = None;
            // Records are distinguished by their time of creation.
            now += 1;
        }
        let replica = known.entry(step.replica).or_insert_with(|| Model { tat: START - 1, ..Model::default() });
        let began = if step.returns.is_some() { 0 } else { replica.began };
        let knows = replica.tat + step.returns.unwrap_or(0);
        let observed = step.observation.filter(|_| began != 0).map(|off| replica.tat + off);
        let at = replica.tat - CAP;
        let mut cell = json!({
            "code": "TPM", "whole": CAP, "known": knows - now, "settled": step.settled, "outstanding": step.outstanding,
            "units": step.units.unwrap_or(0), "margin": MARGIN,
        });
        if let Some(truth) = observed {
            cell["observed"] = json!({
                "truth": truth - now, "at": at - now, "tat": replica.tat - now, "corrections": replica.corrections,
            });
        }
        let waiting = step.behind + usize::from(step.units.is_some());
        let request = json!({
            "epoch": began.to_string(), "position": replica.position, "asks": step.units.is_some(), "waiting": waiting,
            "cells": [cell],
        });
        let reply = run(connection, key, step.replica, &request, now).map_err(|error| TestCaseError::fail(error.to_string()))?;
        let mut next = model.take().unwrap_or_else(|| Model { began: now, tat: knows, ..Model::default() });
        let unknown = began != next.began;
        next.version += 1;
        let mut own = next.replicas.remove(&step.replica).unwrap_or_default();
        // A silent replica keeps its place in the queue for 1 second, and its reservations for 8 seconds.
        for other in next.replicas.values_mut() {
            other.since = other.since.filter(|_| now - other.heard <= SECOND);
            if now - other.heard > 8 * SECOND {
                let (span, corrections) = std::mem::take(&mut other.held);
                next.tat -= (span - (corrections - next.corrections).max(0)).max(0);
            }
        }
        next.replicas.retain(|_, other| now - other.heard <= 8 * SECOND);
        if unknown {
            next.position = next.position.max(replica.position);
            next.tat = next.tat.max(knows);
        }
        if step.settled > 0 {
            next.tat = next.tat.max(now);
        }
        next.tat += step.settled;
        if let Some(truth) = observed.filter(|_| !unknown) {
            next.tat = next.tat.max(at);
            let error = truth - (replica.tat + next.corrections - replica.corrections).max(at);
            let error = if error < 0 { error / 8 } else { error };
            (next.tat, next.corrections) = (next.tat + error, next.corrections + error);
        }
        // A replica waits for those that began to wait earlier. After a grant it goes to the end.
        let before =
            next.replicas.values().filter(|other| other.since.is_some_and(|since| own.since.is_none_or(|own| since < own)));
        let ahead: i64 = before.map(|other| other.share).sum();
        let goes = step.units.is_some_and(|units| {
            let first = (ahead * CAP + 999_999) / 1_000_000;
            let wait = (next.tat.max(now) + first + units + MARGIN - CAP - now).max(0);
            assert_eq!(reply.1, wait);
            wait == 0
        });
        prop_assert_eq!(reply.0, goes, "granted");
        let stays = waiting > usize::from(goes);
        if goes || !stays {
            own.since = None;
        }
        if let Some(units) = step.units {
            own.share = (units * 1_000_000 + CAP - 1) / CAP;
            if stays {
                own.since = own.since.or(Some(next.version));
            }
        }
        if let Some(units) = step.units.filter(|_| goes) {
            next.position += 1;
            next.tat = next.tat.max(now) + units;
            granted.push((now, units));
        }
        own.held = (step.outstanding + step.units.filter(|_| goes).unwrap_or(0), next.corrections);
        next.replicas.insert(step.replica, Member { heard: now, ..own });
        let record = &reply.2;
        let quota = &record["quotas"]["TPM"];
        let told = [&record["version"], &record["position"], &quota["tat"], &quota["corrections"]];
        let told = told.map(|number| number.as_i64().expect("a number"));
        prop_assert_eq!(told, [next.version, next.position, next.tat - next.began, next.corrections]);
        for (name, member) in &next.replicas {
            let told = &record["replicas"][name.to_string()];
            prop_assert_eq!(told["since"].as_i64(), member.since);
            prop_assert_eq!(told["held"]["TPM"]["span"].as_i64().unwrap_or(0), member.held.0);
        }
        *replica = next.clone();
        model = Some(next);
    }
    Ok(granted)
}

pub(crate) fn with_redis(test: impl FnOnce(&mut Connection)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let redis = runtime.block_on(Redis::start(&[]));
    let client = redis::Client::open(redis.url()).expect("a URL");
    test(&mut client.get_connection().expect("a connection"));
}

pub(crate) fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { failure_persistence: None, max_shrink_iters: 800, ..ProptestConfig::with_cases(cases) }
}

#[test]
fn the_script_agrees_with_a_second_implementation() {
    with_redis(|connection| {
        let (connection, number) = (std::cell::RefCell::new(connection), std::cell::Cell::new(0));
        let mut runner = proptest::test_runner::TestRunner::new(config(150));
        let outcome = runner.run(&prop::collection::vec(step(), 1..40), |steps| {
            number.set(number.get() + 1);
            run_sequence(&mut connection.borrow_mut(), &format!("{{law{}}}", number.get()), &steps).map(drop)
        });
        outcome.unwrap_or_else(|error| panic!("{error}"));
    });
}

/// Without settlements and corrections, the grants must fit into an exact limiter at their times.
#[test]
fn grants_of_all_replicas_together_never_exceed_the_limit() {
    with_redis(|connection| {
        let (connection, number) = (std::cell::RefCell::new(connection), std::cell::Cell::new(0));
        let mut runner = proptest::test_runner::TestRunner::new(config(150));
        // Gaps are short enough that no replica counts as silent and no reservation is released.
        let only_requests =
            step().prop_map(|step| Step { gap: step.gap % 100_000, settled: 0, returns: None, observation: None, ..step });
        let outcome = runner.run(&prop::collection::vec(only_requests, 1..40), |steps| {
            number.set(number.get() + 1);
            let mut granted = run_sequence(&mut connection.borrow_mut(), &format!("{{sum{}}}", number.get()), &steps)?;
            // A lost record is rebuilt from the next replicas' knowledge, which may not include the last grants.
            if steps.iter().any(|step| step.flushed) {
                return Ok(());
            }
            granted.sort_unstable();
            let mut full_at = 0;
            for (at, units) in granted {
                full_at = full_at.max(at) + units;
                prop_assert!(full_at - at <= CAP - MARGIN, "{} µs over the limit", full_at - at - CAP);
            }
            Ok(())
        });
        outcome.unwrap_or_else(|error| panic!("{error}"));
    });
}

/// Transactions at times that the test sets.
struct Scenario<'a> {
    connection: &'a mut Connection,
    epoch: String,
    now: i64,
}

impl Scenario<'_> {
    /// Runs a transaction of a replica that knows the record, with `changes` to the cell. Returns when the quota will be full, in µs
    /// since the record's creation.
    fn run(&mut self, replica: usize, changes: &Value) -> i64 {
        let mut cell =
            json!({ "code": "TPM", "whole": CAP, "known": 0, "settled": 0, "units": 0, "margin": 0, "outstanding": 0 });
        let asks = changes.get("units").is_some();
        cell.as_object_mut().expect("an object").extend(changes.as_object().expect("an object").clone());
        let request = json!({
            "epoch": self.epoch, "position": 0, "asks": asks, "waiting": usize::from(asks),
            "cells": [cell],
        });
        let (_, _, record) = run(self.connection, "{silent}", replica, &request, self.now).expect("a reply");
        self.epoch = record["epoch"].as_str().expect("text").to_owned();
        record["quotas"]["TPM"]["tat"].as_i64().expect("a number")
    }
}

#[test]
fn reservations_of_a_silent_replica_are_released_once() {
    with_redis(|connection| {
        let mut scenario = Scenario { connection, epoch: String::new(), now: START };
        let nothing = json!({});
        let reserved = scenario.run(0, &json!({ "units": 20_000_000 }));
        // The reservation is kept as long as the replica reports it.
        for _ in 0..5 {
            scenario.now += 2 * SECOND;
            assert_eq!(scenario.run(0, &json!({ "outstanding": 20_000_000 })), reserved);
            assert_eq!(scenario.run(1, &nothing), reserved);
        }
        scenario.now += 8 * SECOND + 1;
        assert_eq!([(); 2].map(|()| scenario.run(1, &nothing)), [reserved - 20_000_000; 2]);

        // Headers of another replica show that a part has been refunded upstream: an eighth of it counts at once.
        let reserved = scenario.run(0, &json!({ "units": 30_000_000 }));
        let now = scenario.now - START;
        let seen = json!({ "observed": {
            "at": reserved - CAP - now, "truth": reserved - 12_000_000 - now, "tat": reserved - now,
            "corrections": 0,
        } });
        assert_eq!(scenario.run(1, &seen), reserved - 1_500_000);
        scenario.now += 8 * SECOND + 1;
        assert_eq!(scenario.run(1, &nothing), reserved - 30_000_000);

        // Both the granted request and the reported reservations are released.
        let reserved = scenario.run(0, &json!({ "units": 10_000_000, "outstanding": 4_000_000 }));
        scenario.now += 8 * SECOND + 1;
        assert_eq!(scenario.run(1, &nothing), reserved - 14_000_000);
    });
}

/// A replica that does not repeat its request loses its place after a second, so that it does not block the others.
#[test]
fn a_silent_replica_loses_its_place_in_the_queue() {
    with_redis(|connection| {
        let mut scenario = Scenario { connection, epoch: String::new(), now: START };
        scenario.run(0, &json!({ "units": 2 * CAP }));
        let ask = json!({ "units": 1 });
        let before = scenario.run(1, &ask);
        assert_eq!(scenario.run(1, &ask), before, "not granted before the first replica");
        scenario.now += SECOND + 1;
        assert!(scenario.run(1, &ask) > before);
    });
}
