//! The script keeps Groq's accounting in every order of replicas. It runs one transaction after the other, so every interleaving
//! is a sequence: generated ones, against a second implementation, and against an exact limiter.

use std::collections::HashMap;

use proptest::prelude::*;
use redis::{Connection, RedisResult};
use serde_json::{Value, json};

use groq_limiter::store::redis::{GIVE_BACK, SCRIPT};

use crate::kit::Redis;

/// Time in which an empty bucket refills, µs; and the safety margin of a request.
const CAP: i64 = 60_000_000;
const RESERVE: i64 = 3_000_000;
const REPLICAS: usize = 3;

/// One replica's transaction, in the script's microseconds.
#[derive(Clone, Debug)]
struct Step {
    replica: usize,
    settled: i64,
    given_up: i64,
    /// On its return from a time without the store it claims this much more than it last heard.
    claimed: Option<i64>,
    /// How many positions it is behind the newest one, and how far the reported figure is off.
    observation: Option<(i64, i64)>,
    /// The reported figure may be so much too high.
    add_uncertainty: i64,
    asked: Option<(i64, i64)>,
    /// It arrives late: a later transaction of the same replica was applied before.
    late: bool,
    /// All data is lost before it.
    flushed: bool,
}

fn step() -> impl Strategy<Value = Step> {
    let observation = prop::option::weighted(0.3, (0..4i64, -20_000_000..20_000_000i64));
    let asked = prop::option::weighted(0.8, (1..20_000_000i64, prop_oneof![Just(0i64), Just(200_000_000)]));
    let settled = prop_oneof![3 => Just(0i64), 2 => -5_000_000..0i64, 1 => 0..2_000_000i64];
    let given_up = prop_oneof![9 => Just(0i64), 1 => -5_000_000..0i64];
    let claimed = prop::option::weighted(0.1, 0..20_000_000i64);
    let rest = (prop::bool::weighted(0.05), prop::bool::weighted(0.03), prop_oneof![Just(0i64), 0..9_000_000i64], claimed);
    (0..REPLICAS, settled, given_up, observation, asked, rest).prop_map(
        |(replica, settled, given_up, observation, asked, (late, flushed, add_uncertainty, claimed))| Step {
            replica,
            settled,
            given_up,
            claimed,
            observation,
            add_uncertainty,
            asked,
            late,
            flushed,
        },
    )
}

/// A second implementation of the script's rules.
#[derive(Clone, Debug, Default)]
struct Law {
    epoch: i64,
    position: i64,
    tat: i64,
    corrections: i64,
    adjusted: i64,
    newest: i64,
    /// What headers gave back lately, and when it was reset, µs.
    given: i64,
    at: i64,
    /// Room for the last reservation, less adjustments.
    reach: Option<i64>,
    /// Reservations given up, with the version that reported it.
    gone: Vec<String>,
    version: i64,
}

/// What one replica knows.
#[derive(Clone, Debug, Default)]
struct Known {
    serial: i64,
    law: Law,
}

fn run(connection: &mut Connection, key: &str, replica: usize, request: &Value) -> RedisResult<Vec<String>> {
    let script = redis::Script::new(SCRIPT);
    script.key(key).key(format!("{key}:{replica}")).arg(request.to_string()).arg("news").invoke(connection)
}

/// Runs a sequence; returns every grant as (time of dispatch, cost).
fn drive(connection: &mut Connection, key: &str, steps: &[Step]) -> Result<Vec<(i64, i64)>, TestCaseError> {
    let mut law: Option<Law> = None;
    let mut known: HashMap<usize, Known> = HashMap::new();
    let mut granted = Vec::new();
    for step in steps {
        if step.flushed {
            redis::cmd("DEL").arg(key).exec(connection).expect("deleted");
            law = None;
        }
        let replica = known.entry(step.replica).or_default();
        let serial = if step.late { replica.serial } else { replica.serial + 1 };
        let observation = step.observation.filter(|_| replica.law.epoch != 0);
        let report_observation = observation.map(|(behind, off)| {
            let position = replica.law.position - behind;
            (position, replica.law.tat + off, replica.law.tat, replica.law.corrections)
        });
        let at = replica.law.tat - CAP;
        let mut cell = json!({
            "k": "TPM", "cap": CAP, "t": replica.law.tat + step.claimed.unwrap_or(0), "j": step.claimed.is_some(), "d": step.settled, "b": step.given_up,
            "q": step.asked.map_or(0, |(asked, _)| asked), "r": RESERVE, "l": 0,
        });
        if let Some((position, truth, mark, corrections)) = report_observation {
            (cell["n"], cell["u"], cell["a"]) = (position.into(), truth.into(), at.into());
            (cell["m"], cell["x"], cell["o"]) = (mark.into(), corrections.into(), step.add_uncertainty.into());
            cell["v"] = replica.law.adjusted.into();
        }
        let mut request = json!({
            "serial": serial, "born": replica.law.epoch, "position": replica.law.position, "hello": false, "gone": replica.law.position, "cells": [cell],
        });
        if let Some((_, max_wait)) = step.asked {
            request["patience"] = max_wait.into();
        }
        let reply = run(connection, key, step.replica, &request);
        if serial <= replica.serial {
            prop_assert!(reply.is_err_and(|error| error.code() == Some("STALE")), "a late one is not applied");
            continue;
        }
        let reply = reply.map_err(|error| TestCaseError::fail(error.to_string()))?;
        let number = |at: usize| reply[at].parse::<i64>().expect("a number");
        let now = number(0);
        let mut next = law.take().unwrap_or(Law { epoch: number(1), ..Law::default() });
        if replica.law.epoch != next.epoch {
            next.position = next.position.max(replica.law.position);
            next.tat = next.tat.max(replica.law.tat + step.claimed.unwrap_or(0));
        }
        next.tat += step.given_up;
        next.reach = next.reach.map(|reach| reach + step.given_up);
        next.version += 1;
        if step.given_up < 0 {
            next.gone.push(format!("{}:{}:{}", next.version, replica.law.position, -step.given_up));
        }
        if let Some(more) = step.claimed {
            let raised = (replica.law.tat + more - next.tat).max(0);
            (next.tat, next.adjusted) = (next.tat + raised, next.adjusted + raised);
        }
        if step.settled > 0 {
            next.tat = next.tat.max(now);
        }
        let given = next.given as f64 * ((next.at - now).min(0) as f64 / 300_000.0).exp();
        let shown = given.min(step.settled.min(0).abs() as f64).floor();
        let mut given = given - shown;
        next.tat += step.settled + shown as i64;
        next.adjusted += step.settled + shown as i64;
        let report_observation =
            report_observation.filter(|&(position, ..)| replica.law.epoch == next.epoch && position > next.newest);
        if let Some((position, truth, mark, corrections)) = report_observation {
            next.tat = next.tat.max(at);
            let wrong = truth - (mark + next.corrections - corrections).max(at);
            let back = (next.corrections - corrections - next.adjusted + replica.law.adjusted).max(0);
            let wrong = if wrong < 0 { (wrong + step.add_uncertainty + back).min(0) } else { wrong };
            (next.tat, next.corrections, next.adjusted) = (next.tat + wrong, next.corrections + wrong, next.adjusted + wrong);
            next.newest = position;
            given += wrong.min(0).abs() as f64;
        }
        (next.given, next.at) = (format!("{given:.0}").parse().expect("a number"), now);
        if let Some((asked, max_wait)) = step.asked {
            // Earlier reservations are dispatched first.
            let room = next.reach.map_or(i64::MIN, |reach| reach + next.adjusted);
            let room = room.max(next.tat.max(now) + asked + RESERVE);
            let wait = (room - CAP - now).max(0);
            prop_assert_eq!(number(7), wait);
            prop_assert_eq!(number(6) == 1, wait <= max_wait, "granted");
            if wait <= max_wait {
                next.position += 1;
                next.tat = next.tat.max(now) + asked;
                next.reach = Some(room - next.adjusted);
                prop_assert_eq!(number(14), room);
                granted.push((now + wait, asked));
            }
        }
        let told = [number(1), number(3), number(9), number(10), number(11), number(12)];
        let Law { epoch, position, tat, corrections, adjusted, newest, .. } = next;
        prop_assert_eq!(told, [epoch, position, tat, corrections, adjusted, newest]);
        prop_assert_eq!(number(2), next.version);
        prop_assert_eq!(&reply[15], &next.gone[next.gone.len().saturating_sub(16)..].join(" "));
        *replica = Known { serial, law: next.clone() };
        law = Some(next);
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
            drive(&mut connection.borrow_mut(), &format!("{{law{}}}", number.get()), &steps).map(drop)
        });
        outcome.unwrap_or_else(|error| panic!("{error}"));
    });
}

/// Without settlements and corrections, the grants can be compared with an exact limiter, each at its time.
#[test]
fn grants_of_all_replicas_together_never_exceed_the_limit() {
    with_redis(|connection| {
        let (connection, number) = (std::cell::RefCell::new(connection), std::cell::Cell::new(0));
        let mut runner = proptest::test_runner::TestRunner::new(config(150));
        let only_asking = step().prop_map(|step| Step { settled: 0, given_up: 0, claimed: None, observation: None, ..step });
        let outcome = runner.run(&prop::collection::vec(only_asking, 1..40), |steps| {
            number.set(number.get() + 1);
            let mut granted = drive(&mut connection.borrow_mut(), &format!("{{sum{}}}", number.get()), &steps)?;
            // A lost record is rebuilt from what the replicas know that come next: the last one may be missing.
            if steps.iter().any(|step| step.flushed) {
                return Ok(());
            }
            granted.sort_unstable();
            let mut full_at = 0;
            for (at, asked) in granted {
                full_at = full_at.max(at) + asked;
                prop_assert!(full_at - at <= CAP - RESERVE, "{} µs over the limit", full_at - at - CAP);
            }
            Ok(())
        });
        outcome.unwrap_or_else(|error| panic!("{error}"));
    });
}

/// One transaction of a replica that knows the record, and the quota after it, µs until it is full. `of` is the cell's own.
fn tell(connection: &mut Connection, epoch: &mut i64, replica: usize, serial: i64, of: Value) -> i64 {
    let mut cell = json!({ "k": "TPM", "cap": CAP, "t": 0, "d": 0, "b": 0, "q": 0, "r": 0, "l": 0 });
    cell.as_object_mut().expect("an object").extend(of.as_object().expect("an object").clone());
    let request = json!({
        "serial": serial, "born": *epoch, "position": 0, "hello": false, "gone": 0, "patience": CAP, "cells": [cell],
    });
    let reply = run(connection, "{silent}", replica, &request).expect("a reply");
    *epoch = reply[1].parse().expect("a number");
    reply[9].parse().expect("a number")
}

#[test]
fn reservations_of_a_silent_replica_are_released_once() {
    with_redis(|connection| {
        let mut epoch = 0;
        let give_back = |connection: &mut Connection| -> u32 {
            let script = redis::Script::new(GIVE_BACK);
            script.key("{silent}").key("{silent}:0").arg("news").invoke(connection).expect("a number")
        };
        let tat = |connection: &mut Connection| -> i64 {
            redis::cmd("HGET").arg("{silent}").arg("t:TPM").query(connection).expect("a number")
        };
        let reserved = tell(connection, &mut epoch, 0, 1, json!({ "q": 20_000_000 }));
        assert_eq!([give_back(connection), give_back(connection)], [1, 0]);
        assert_eq!(tat(connection), reserved - 20_000_000);
        // It is alive: it reserves the same again, and settles as if nothing had happened.
        assert_eq!(tell(connection, &mut epoch, 0, 2, json!({ "d": -15_000_000 })), reserved - 15_000_000);
        assert_eq!(give_back(connection), 0, "all has ended");

        // Headers that another replica saw have shown that part of it is back.
        let reserved = tell(connection, &mut epoch, 0, 3, json!({ "q": 30_000_000 }));
        let seen =
            json!({ "n": 9, "a": reserved - CAP, "u": reserved - 12_000_000, "m": reserved, "x": 0, "o": 0, "v": -15_000_000 });
        assert_eq!(tell(connection, &mut epoch, 1, 1, seen), reserved - 12_000_000);
        assert_eq!(give_back(connection), 1);
        assert_eq!(tat(connection), reserved - 30_000_000);

        // What was sent and what still waits, as the replica itself reports.
        let reserved = tell(connection, &mut epoch, 0, 4, json!({ "q": 10_000_000, "l": 4_000_000 }));
        assert_eq!(give_back(connection), 1);
        assert_eq!(tat(connection), reserved - 14_000_000);
    });
}
