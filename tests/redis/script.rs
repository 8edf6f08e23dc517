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
    /// Back from a time without the store, it knows this much more than it last heard.
    returns: Option<i64>,
    /// Behind the newest position by so many, and how far the truth is off.
    observation: Option<(i64, i64)>,
    /// So much less may be uncertain.
    uncertain: i64,
    units: Option<i64>,
    /// How many wait in its queue behind the head.
    behind: usize,
    /// Everything is lost before it.
    flushed: bool,
}

fn step() -> impl Strategy<Value = Step> {
    let observation = prop::option::weighted(0.3, (0..4i64, -20_000_000..20_000_000i64));
    let units = prop::option::weighted(0.8, 1..20_000_000i64);
    let settled = prop_oneof![3 => Just(0i64), 2 => -5_000_000..0i64, 1 => 0..2_000_000i64];
    let returns = prop::option::weighted(0.1, 0..20_000_000i64);
    let rest = (prop::bool::weighted(0.03), prop_oneof![Just(0i64), 0..9_000_000i64], returns, 0..2usize);
    (0..REPLICAS, settled, observation, units, rest).prop_map(
        |(replica, settled, observation, units, (flushed, uncertain, returns, behind))| Step {
            replica,
            settled,
            returns,
            observation,
            uncertain,
            units,
            behind,
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
    newest: i64,
    /// The replicas that wait, and what each takes, in millionths; a test is over before one of them loses its turn.
    waiting: Vec<(usize, i64)>,
    version: i64,
}

fn run(connection: &mut Connection, key: &str, replica: usize, request: &Value) -> RedisResult<Vec<String>> {
    let script = redis::Script::new(SCRIPT);
    script.key(key).key(format!("{key}:{replica}")).arg(request.to_string()).arg("updates").invoke(connection)
}

/// Runs a sequence; returns every grant as (time of dispatch, cost).
fn drive(connection: &mut Connection, key: &str, steps: &[Step]) -> Result<Vec<(i64, i64)>, TestCaseError> {
    let mut law: Option<Law> = None;
    let mut known: HashMap<usize, Law> = HashMap::new();
    let mut granted = Vec::new();
    for step in steps {
        if step.flushed {
            redis::cmd("DEL").arg(key).exec(connection).expect("deleted");
            law = None;
        }
        let replica = known.entry(step.replica).or_default();
        let epoch = if step.returns.is_some() { 0 } else { replica.epoch };
        let knows = replica.tat + step.returns.unwrap_or(0);
        let observed =
            step.observation.filter(|_| epoch != 0).map(|(behind, off)| (replica.position - behind, replica.tat + off));
        let at = replica.tat - CAP;
        let mut cell = json!({
            "code": "TPM", "whole": CAP, "known": knows, "settled": step.settled, "outstanding": 0,
            "units": step.units.unwrap_or(0), "margin": RESERVE,
        });
        if let Some((position, truth)) = observed {
            cell["observed"] = json!({
                "position": position, "truth": truth, "at": at, "tat": replica.tat, "corrections": replica.corrections,
                "uncertain": step.uncertain,
            });
        }
        let waiting = step.behind + usize::from(step.units.is_some());
        let request = json!({
            "epoch": epoch, "position": replica.position, "asks": step.units.is_some(), "waiting": waiting, "learnt": "",
            "cells": [cell],
        });
        let reply = run(connection, key, step.replica, &request).map_err(|error| TestCaseError::fail(error.to_string()))?;
        let number = |at: usize| reply[at].parse::<i64>().expect("a number");
        let now = number(0);
        let is_new = law.is_none();
        let mut next = law.take().unwrap_or(Law { epoch: number(1), ..Law::default() });
        let unknown = epoch != next.epoch;
        if unknown {
            next.position = next.position.max(replica.position);
            if !is_new {
                next.corrections += (knows - next.tat.max(now)).max(0);
            }
            next.tat = next.tat.max(knows);
        }
        next.version += 1;
        if step.settled > 0 {
            next.tat = next.tat.max(now);
        }
        next.tat += step.settled;
        if let Some((position, truth)) = observed.filter(|&(position, _)| !unknown && position > next.newest) {
            next.tat = next.tat.max(at);
            let error = truth - (replica.tat + next.corrections - replica.corrections).max(at);
            let error = if error < 0 { (error + step.uncertain).min(0) / 8 } else { error };
            (next.tat, next.corrections, next.newest) = (next.tat + error, next.corrections + error, position);
        }
        // Nobody takes the room of those before it; whoever went goes to the end.
        let place = next.waiting.iter().position(|&(waits, _)| waits == step.replica);
        let ahead: i64 = next.waiting[..place.unwrap_or(next.waiting.len())].iter().map(|&(_, share)| share).sum();
        let share = |units: i64| (units * 1_000_000 + CAP - 1) / CAP;
        let goes = step.units.is_some_and(|units| {
            let first = (ahead * CAP + 999_999) / 1_000_000;
            let wait = (next.tat.max(now) + first + units + RESERVE - CAP - now).max(0);
            assert_eq!(number(5), wait);
            wait == 0
        });
        prop_assert_eq!(number(4) == 1, goes, "granted");
        let stays = waiting > usize::from(goes);
        if let Some(place) = place.filter(|_| goes || !stays) {
            next.waiting.remove(place);
        }
        if stays && step.units.is_some() && (goes || place.is_none()) {
            next.waiting.push((step.replica, 0));
        }
        if let (Some(units), Some(waits)) = (step.units, next.waiting.iter_mut().find(|waits| waits.0 == step.replica)) {
            waits.1 = share(units);
        }
        if let Some(units) = step.units.filter(|_| goes) {
            next.position += 1;
            next.tat = next.tat.max(now) + units;
            granted.push((now, units));
        }
        let waiting: Vec<_> = next.waiting.iter().map(|(replica, share)| format!("{replica}:{share}")).collect();
        prop_assert_eq!(&reply[6], &waiting.join(" "));
        let told = [number(1), number(2), number(3), number(9), number(10), number(11)];
        let Law { epoch, version, position, tat, corrections, newest, .. } = next;
        prop_assert_eq!(told, [epoch, version, position, tat, corrections, newest]);
        *replica = next.clone();
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
        let only_asking = step().prop_map(|step| Step { settled: 0, returns: None, observation: None, ..step });
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

/// One transaction of a replica that knows the record, and when the quota is full after it, µs. `of` is the cell's own.
fn tell(connection: &mut Connection, epoch: &mut i64, replica: usize, of: Value) -> i64 {
    let mut cell = json!({ "code": "TPM", "whole": CAP, "known": 0, "settled": 0, "units": 0, "margin": 0, "outstanding": 0 });
    let asks = of.get("units").is_some();
    cell.as_object_mut().expect("an object").extend(of.as_object().expect("an object").clone());
    let request =
        json!({ "epoch": *epoch, "position": 0, "asks": asks, "waiting": usize::from(asks), "learnt": "", "cells": [cell] });
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
            script.key("{silent}").key("{silent}:0").arg("updates").invoke(connection).expect("a number")
        };
        let tat = |connection: &mut Connection| -> i64 {
            redis::cmd("HGET").arg("{silent}").arg("t:TPM").query(connection).expect("a number")
        };
        let reserved = tell(connection, &mut epoch, 0, json!({ "units": 20_000_000 }));
        assert_eq!([give_back(connection), give_back(connection)], [1, 0]);
        assert_eq!(tat(connection), reserved - 20_000_000);

        // Headers that another one saw have shown a part of it to be back: an eighth counts at once.
        let reserved = tell(connection, &mut epoch, 0, json!({ "units": 30_000_000 }));
        let seen = json!({ "observed": {
            "position": 9, "at": reserved - CAP, "truth": reserved - 12_000_000, "tat": reserved, "corrections": 0, "uncertain": 0,
        } });
        assert_eq!(tell(connection, &mut epoch, 1, seen), reserved - 1_500_000);
        assert_eq!(give_back(connection), 1);
        assert_eq!(tat(connection), reserved - 30_000_000);

        // What was sent and what was not, as the replica itself says.
        let reserved = tell(connection, &mut epoch, 0, json!({ "units": 10_000_000, "outstanding": 4_000_000 }));
        assert_eq!(give_back(connection), 1);
        assert_eq!(tat(connection), reserved - 14_000_000);
    });
}

/// It would hold up all others.
#[test]
fn a_silent_replica_waits_no_longer() {
    with_redis(|connection| {
        let mut epoch = 0;
        let (large, small) = (json!({ "units": 2 * CAP }), json!({ "units": 1 }));
        tell(connection, &mut epoch, 0, large);
        let before = tell(connection, &mut epoch, 1, small.clone());
        assert_eq!(tell(connection, &mut epoch, 1, small.clone()), before, "it waits behind the first");
        let script = redis::Script::new(GIVE_BACK);
        let _: u32 = script.key("{silent}").key("{silent}:0").arg("updates").invoke(connection).expect("a number");
        assert!(tell(connection, &mut epoch, 1, small) > before);
    });
}

/// One that is alive and does not ask makes way after a second.
#[test]
fn a_turn_that_is_not_taken_is_the_next_ones() {
    with_redis(|connection| {
        let mut epoch = 0;
        tell(connection, &mut epoch, 0, json!({ "units": 2 * CAP }));
        let ask = json!({ "units": 1 });
        let before = tell(connection, &mut epoch, 1, ask.clone());
        // Nothing comes: a wait by the server's clock.
        redis::cmd("BLPOP").arg("{silent}:none").arg(1.1).exec(connection).expect("waited");
        assert!(tell(connection, &mut epoch, 1, ask) > before);
    });
}
