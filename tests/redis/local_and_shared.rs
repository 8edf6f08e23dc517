//! Local and shared quotas keep the same promises: the same properties on both, the shared ones with the real script and with
//! messages of replicas in every order.

use std::cell::{Cell, RefCell};

use proptest::{prelude::*, test_runner::TestRunner};
use redis::Connection;

use crate::{
    history::{Job, job},
    script::{config, with_redis},
    world::{Outcome, Plan, Quotas, World},
};

/// A generated history.
#[derive(Clone, Debug)]
struct History {
    jobs: Vec<Job>,
    replicas: usize,
    tokens: u64,
    requests: Option<u64>,
    headers: bool,
    seed: u64,
}

fn history() -> impl Strategy<Value = History> {
    let limits = (2500..40_000u64, prop::option::of(5..200u64));
    (prop::collection::vec(job(), 1..60), 1..4usize, limits, any::<bool>(), any::<u64>()).prop_map(
        |(jobs, replicas, (tokens, requests), headers, seed)| History { jobs, replicas, tokens, requests, headers, seed },
    )
}

/// Where the quotas of a suite's limiters are kept.
enum Store<'a> {
    Local,
    Redis { connection: &'a mut Connection, keys: u64 },
}

impl Store<'_> {
    fn run(&mut self, history: &History, lossy: bool, choose: &mut dyn FnMut(usize) -> usize) -> Outcome {
        let History { jobs, tokens, requests, headers, .. } = history;
        let (replicas, quotas) = match self {
            Store::Local => (1, Quotas::Local),
            Store::Redis { connection, keys } => {
                *keys += 1;
                (history.replicas, Quotas::Registry(connection, format!("{{world{keys}}}")))
            }
        };
        let plan = Plan { jobs, replicas, tokens: *tokens, requests: *requests, headers: *headers, lossy };
        World::new(plan, quotas).run(choose)
    }

    fn random(&mut self, history: &History, lossy: bool) -> Outcome {
        let mut random = fastrand::Rng::with_seed(history.seed);
        // Messages are lost now and then, not half of the time.
        self.run(history, lossy, &mut |options| if lossy && random.u8(..) > 40 { 0 } else { random.usize(..options) })
    }
}

/// The common properties: the sum of what is granted fits an exact upstream at every instant, in all dimensions or in none (the
/// world checks each step of the store's), every request is served, refused or gone, and what was settled has come back.
fn keeps(store: &mut Store<'_>, history: &History, lossy: bool) -> Result<Outcome, TestCaseError> {
    let outcome = store.random(history, lossy);
    prop_assert_eq!(outcome.sends + outcome.refused_by_us + outcome.left, history.jobs.len());
    if lossy {
        return Ok(outcome);
    }
    let (quotas, truth) = outcome.used;
    let rounding = 2 * history.jobs.len() as u64;
    // What Groq has not confirmed yet counts as used until the next header. What was reserved beyond the truth may be lost
    // upstream, where the quota is full by then.
    let (less, more) = if history.headers { (5, 50) } else { (2, 2) };
    prop_assert!(
        quotas + rounding + outcome.beyond + history.tokens * less / 100 >= truth,
        "{} in use by the quotas, {} in truth",
        quotas,
        truth
    );
    prop_assert!(quotas <= truth + rounding + history.tokens * more / 100, "{} in use by the quotas, {} in truth", quotas, truth);
    Ok(outcome)
}

/// Runs the suite; returns sends and refusals of all histories.
fn suite(store: Store<'_>, cases: u32, lossy: bool) -> (usize, usize) {
    let (store, sum) = (RefCell::new(store), Cell::new((0, 0)));
    let outcome = TestRunner::new(config(cases)).run(&history(), |history| {
        let outcome = keeps(&mut store.borrow_mut(), &history, lossy)?;
        // Without corrections by headers, quotas are counted, not estimated: no refusal at all.
        if !history.headers && !lossy {
            prop_assert_eq!(outcome.refused_by_groq, 0, "of {} sends", outcome.sends);
        }
        let (sends, refused) = sum.get();
        sum.set((sends + outcome.sends, refused + outcome.refused_by_groq));
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    sum.get()
}

#[test]
fn local_quotas_keep_the_promises() {
    let (_, refused) = suite(Store::Local, 200, false);
    assert_eq!(refused, 0);
}

#[test]
fn shared_quotas_keep_the_promises() {
    with_redis(|connection| {
        let (sends, refused) = suite(Store::Redis { connection, keys: 0 }, 200, false);
        assert!(refused <= sends / 2000, "{refused} of {sends}");
    });
}

/// When messages are lost in either direction, every request ends and nothing comes back twice; the margin covers what is
/// unknown.
#[test]
fn every_request_ends_when_messages_are_lost() {
    with_redis(|connection| {
        let (sends, refused) = suite(Store::Redis { connection, keys: 0 }, 150, true);
        assert!(refused <= sends / 1000, "{refused} of {sends}");
    });
}

/// A small world in every order of its first choices, losses included.
fn every_order(lossy: bool, depth: usize) -> usize {
    // Two replicas, half a limit each time; requests that end early give most of it back.
    let job = |output_limit, completion_share, latency_ms| Job {
        app: 0,
        gap_ms: 0,
        prompt: 1,
        output_limit,
        completion_share,
        latency_ms,
        leaves: None,
    };
    let jobs = vec![job(450, 1.0, 60_000), job(400, 0.1, 20), job(430, 0.1, 30), job(420, 1.0, 60_000)];
    let history = History { jobs, replicas: 2, tokens: 1000, requests: Some(10), headers: false, seed: 0 };
    let mut worlds = 0;
    with_redis(|connection| {
        let mut store = Store::Redis { connection, keys: 0 };
        // The choices made at the first steps, counted up like digits of a number.
        let mut path: Vec<(usize, usize)> = Vec::new();
        loop {
            let mut step = 0;
            let outcome = store.run(&history, lossy, &mut |options| {
                if step == path.len() && step < depth {
                    path.push((0, options));
                }
                let chosen = path.get(step).map_or(0, |&(chosen, _)| chosen);
                step += 1;
                chosen
            });
            worlds += 1;
            assert_eq!(outcome.sends + outcome.refused_by_us, 4, "{path:?}");
            // A replica that is cut off alone keeps to its share, beside what the other one takes of the whole.
            assert!(outcome.refused_by_groq <= usize::from(lossy), "{path:?}");
            while path.last().is_some_and(|&(chosen, options)| chosen + 1 == options) {
                path.pop();
            }
            let Some(last) = path.last_mut() else { break };
            last.0 += 1;
        }
    });
    worlds
}

#[test]
fn no_order_of_messages_exceeds_the_limit() {
    let worlds = every_order(false, 6);
    assert!(worlds > 100, "{worlds}");
}

#[test]
fn every_request_ends_whichever_message_is_lost() {
    let worlds = every_order(true, 4);
    assert!(worlds > 100, "{worlds}");
}
