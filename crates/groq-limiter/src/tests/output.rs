//! Limits on output tokens, tested against a model of Groq's rule: a request is admitted if there is room for the smaller of
//! its output limit and the largest answer of the last 150 s. Its answer is charged when it ends.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{in_a_minute, request, shield};
use crate::{
    ActualUsage, AdmissionError, AdmissionRequest, CostEstimate, Limiters,
    settings::ModelLimits,
    types::{Dimension, Observation, Unit, UpstreamRefusal},
};

const LIMIT: f64 = 1000.0;
const WINDOW: Duration = Duration::from_secs(150);

/// The upstream: 1000 output tokens a minute.
#[derive(Default)]
struct Upstream {
    used: f64,
    at: Option<Instant>,
    /// The end, the API key and the tokens of each answer.
    answers: Vec<(Instant, u32, u64)>,
    refused: Vec<u64>,
    tests_output_limits: bool,
}

impl Upstream {
    fn drain(&mut self) {
        let now = Instant::now();
        let passed = now - self.at.replace(now).unwrap_or(now);
        self.used = (self.used - passed.as_secs_f64() * LIMIT / 60.0).max(0.0);
    }

    fn expected(&self, key: u32, output_limit: u64) -> u64 {
        let recent = self.answers.iter().filter(|&&(ended, of, _)| of == key && ended.elapsed() < WINDOW);
        recent.map(|&(.., tokens)| tokens).max().unwrap_or(0).min(output_limit)
    }

    fn admit(&mut self, key: u32, output_limit: u64) -> Result<(), Box<UpstreamRefusal>> {
        self.drain();
        let requested = if self.tests_output_limits { output_limit } else { self.expected(key, output_limit) };
        let over = self.used + requested as f64 - LIMIT;
        if over <= 1e-6 {
            return Ok(());
        }
        self.refused.push(requested);
        let hopeless = requested as f64 > LIMIT;
        Err(Box::new(UpstreamRefusal {
            dimension: Some(Dimension::OTPM),
            code: Some("OTPM".into()),
            unit: Some(Unit::OutputTokens),
            limit: LIMIT as u64,
            used: (!hopeless).then_some(self.used.ceil() as u64),
            requested,
            wait: (!hopeless).then(|| Duration::from_secs_f64(over * 60.0 / LIMIT)),
        }))
    }

    /// How many seconds a request must wait now by Groq's rule.
    fn wait(&mut self, output_limit: u64) -> f64 {
        self.drain();
        ((self.used + self.expected(0, output_limit) as f64 - LIMIT) * 60.0 / LIMIT).max(0.0)
    }

    fn answer(&mut self, key: u32, tokens: u64) {
        self.drain();
        self.used += tokens as f64;
        self.answers.push((Instant::now(), key, tokens));
    }
}

/// Limiters with `otpm` as the configured limit. Without it, they have to learn the limit.
fn limiter(otpm: Option<u64>) -> Limiters {
    shield(ModelLimits { output_tokens_per_minute: otpm, ..ModelLimits::default() })
}

/// Sends a request, again after each refusal, until it is answered with `tokens`. Returns how long it waited in all.
async fn send(
    limits: &Limiters,
    upstream: &Mutex<Upstream>,
    request: &AdmissionRequest,
    tokens: u64,
    deadline: Instant,
) -> Result<Duration, AdmissionError> {
    let (start, mut place) = (Instant::now(), None);
    let CostEstimate::Tokens { max_completion_tokens: output_limit, .. } = request.cost else { panic!("tokens") };
    loop {
        let mut permit = limits.reserve(request, deadline, place.take()).await?;
        permit.sent(Instant::now());
        let waited = start.elapsed();
        sleep(Duration::from_millis(20)).await;
        let admitted = upstream.lock().expect("a lock").admit(request.key, output_limit.unwrap_or(u64::MAX));
        sleep(Duration::from_millis(20)).await;
        if let Err(refusal) = admitted {
            place = permit.refused(Some(&refusal), &Observation::default(), None, Instant::now());
            continue;
        }
        sleep(Duration::from_millis(1000)).await;
        let tokens = tokens.min(output_limit.unwrap_or(u64::MAX));
        upstream.lock().expect("a lock").answer(request.key, tokens);
        sleep(Duration::from_millis(20)).await;
        permit.observe(&Observation::default(), Instant::now());
        permit.settle(ActualUsage::Tokens { prompt: 10, completion: Some(tokens), prompt_total: 10 }, Instant::now());
        return Ok(waited);
    }
}

/// Issue 20: a request whose output limit is above the limit must not be refused, because its answer is much smaller.
#[tokio::test(start_paused = true)]
async fn output_limits_above_the_limit_are_served() {
    for (otpm, output_limit, most) in [(Some(1000), 1800, 0), (None, 1800, 2), (Some(1000), 900, 0), (None, 900, 2)] {
        let (limits, upstream) = (limiter(otpm), Arc::new(Mutex::new(Upstream::default())));
        let (start, mut running) = (Instant::now(), JoinSet::new());
        for n in 0..24u64 {
            let (limits, upstream) = (limits.clone(), upstream.clone());
            running.spawn(async move {
                sleep(Duration::from_millis(1500) * u32::try_from(n).expect("small")).await;
                send(&limits, &upstream, &request("app", 10, output_limit), 60 + n * 67 % 201, Instant::now() + 4 * WINDOW).await
            });
        }
        let outcomes = running.join_all().await;
        assert!(outcomes.iter().all(Result::is_ok), "{otpm:?} {output_limit}: {outcomes:?}");
        let upstream = upstream.lock().expect("a lock");
        assert!(upstream.refused.len() <= most, "{otpm:?} {output_limit}: {:?}", upstream.refused);
        // All answers beyond the first 1000 tokens need time at 1000 tokens a minute. In addition, there must be room for the
        // largest answer whenever a request is sent.
        let sum: u64 = upstream.answers.iter().map(|&(.., tokens)| tokens).sum();
        let least = (sum as f64 - LIMIT) * 60.0 / LIMIT;
        let took = start.elapsed().as_secs_f64();
        assert!(took <= 1.1 * least.max(36.0) + 16.0, "{otpm:?} {output_limit}: {took} of {least}");
    }
}

/// Requests one after the other: each waits as long as Groq's rule requires, and at most a tenth longer. This includes the
/// request whose refusal states the limit: the usage stated by the refusal replaces what our own answers have used, and is
/// not added to it.
#[tokio::test(start_paused = true)]
async fn requests_wait_no_longer_than_groqs_rule_requires() {
    for (otpm, refused) in [(Some(1000), 0), (None, 1)] {
        let (limits, upstream) = (limiter(otpm), Mutex::new(Upstream::default()));
        let (mut needed, mut held) = (0.0, 0.0);
        for n in 0..60u64 {
            let output_limit = 900 + n * 997 % 3101;
            let needs = upstream.lock().expect("a lock").wait(output_limit);
            let (request, tokens) = (request("app", 10, output_limit), 60 + n * 131 % 341);
            let waited = send(&limits, &upstream, &request, tokens, Instant::now() + WINDOW).await.expect("in time");
            assert!(waited.as_secs_f64() <= 1.1 * needs + 0.2, "{otpm:?} {n}: {waited:?} for {needs} s");
            (needed, held) = (needed + needs, held + waited.as_secs_f64());
        }
        assert!(needed > 300.0 && held < 1.02 * needed, "{held} of {needed}");
        assert_eq!(upstream.lock().expect("a lock").refused.len(), refused, "{otpm:?}");
    }
}

/// After an answer of 1308 tokens, no request with such an output limit fits into a limit of 1000 for 150 s, and none is
/// sent.
#[tokio::test(start_paused = true)]
async fn a_large_answer_is_waited_for_until_it_is_forgotten() {
    let (limits, upstream) = (limiter(Some(1000)), Mutex::new(Upstream::default()));
    let later = |seconds| Instant::now() + Duration::from_secs(seconds);
    send(&limits, &upstream, &request("app", 10, 4000), 1308, in_a_minute()).await.expect("nothing is known yet");
    let Err(AdmissionError::NotInTime { dimension, wait, fitting_max_completion_tokens: fits, .. }) =
        send(&limits, &upstream, &request("app", 10, 4000), 100, in_a_minute()).await
    else {
        panic!("the answer is remembered for longer than a minute")
    };
    assert_eq!((dimension, fits), (Dimension::OTPM, Some(1000)));
    assert!(wait > Duration::from_secs(140), "{wait:?}");
    assert_eq!(limits.forecast(&request("app", 10, 4000)).fitting_max_completion_tokens, Some(500));
    let unbounded =
        AdmissionRequest { cost: CostEstimate::Tokens { prompt: 10, max_completion_tokens: None }, ..request("app", 10, 1) };
    assert_eq!(limits.forecast(&unbounded).fitting_max_completion_tokens, Some(500));
    // A request with a lower output limit waits only for room. One with the same output limit is sent as soon as the large
    // answer no longer counts.
    let lower = send(&limits, &upstream, &request("app", 10, 400), 100, in_a_minute()).await.expect("it fits");
    assert!(lower < Duration::from_secs(45), "{lower:?}");
    let waited = send(&limits, &upstream, &request("app", 10, 4000), 100, later(300)).await.expect("it is forgotten");
    assert!(waited < Duration::from_secs(150), "{waited:?}");
    assert!(upstream.lock().expect("a lock").refused.is_empty());
}

/// Another client of the same API key has received an answer of 1308 tokens. The limiter learns of it by one refusal.
#[tokio::test(start_paused = true)]
async fn a_large_answer_of_another_client_costs_one_refusal() {
    let (limits, upstream) = (limiter(None), Mutex::new(Upstream::default()));
    upstream.lock().expect("a lock").answer(0, 1308);
    sleep(Duration::from_secs(80)).await;
    let late = send(&limits, &upstream, &request("app", 10, 4000), 100, in_a_minute()).await;
    assert!(matches!(late, Err(AdmissionError::NotInTime { fitting_max_completion_tokens: Some(1000), .. })), "{late:?}");
    send(&limits, &upstream, &request("app", 10, 4000), 100, Instant::now() + 2 * WINDOW).await.expect("later it goes");
    assert_eq!(upstream.lock().expect("a lock").refused, [1308]);
}

/// Each API key of an organization has a largest answer of its own, so a large answer does not delay requests of other keys.
#[tokio::test(start_paused = true)]
async fn a_large_answer_blocks_its_own_key_only() {
    let (limits, upstream) = (limiter(Some(1000)), Mutex::new(Upstream::default()));
    let of_key = |key| AdmissionRequest { key, ..request("app", 10, 4000) };
    send(&limits, &upstream, &of_key(1), 1308, in_a_minute()).await.expect("nothing is known yet");
    let held = limits.reserve(&of_key(1), in_a_minute(), None).await;
    assert!(matches!(held, Err(AdmissionError::NotInTime { fitting_max_completion_tokens: Some(1000), .. })), "{held:?}");
    let waited = send(&limits, &upstream, &of_key(2), 100, in_a_minute()).await.expect("another key");
    assert!((18.0..20.0).contains(&waited.as_secs_f64()), "until the debt is paid: {waited:?}");
    assert!(upstream.lock().expect("a lock").refused.is_empty());
}

/// The limit is learnt from a refusal as too large, which does not say how much is in use. What our own answers have used is
/// rounded up. If it were rounded down, a request with a lower output limit would be sent too early, by up to the time of a
/// unit.
#[tokio::test(start_paused = true)]
async fn a_lower_output_limit_is_sent_exactly_when_there_is_room() {
    for n in 0..20 {
        let (limits, upstream) = (limiter(None), Mutex::new(Upstream::default()));
        send(&limits, &upstream, &request("app", 10, 4000), 1308, in_a_minute()).await.expect("nothing is known yet");
        // A unit is regained in 60 ms: each run is at another fraction of that.
        sleep(Duration::from_millis(3000 + 3 * n)).await;
        let mut large = limits.reserve(&request("app", 10, 4000), in_a_minute(), None).await.expect("no limit is known");
        large.sent(Instant::now());
        let refusal = upstream.lock().expect("a lock").admit(0, 4000).expect_err("too large");
        let _place = large.refused(Some(&refusal), &Observation::default(), None, Instant::now());
        let fits = limits.forecast(&request("app", 10, 4000)).fitting_max_completion_tokens.expect("a lower output limit fits");
        let mut lower = limits.reserve(&request("app", 10, fits), in_a_minute(), None).await.expect("it waits for room");
        lower.sent(Instant::now());
        let admitted = upstream.lock().expect("a lock").admit(0, fits);
        assert_eq!(admitted, Ok(()), "{n}");
    }
}

/// If `usage` has no completion tokens, the expected tokens of the answer are charged.
#[tokio::test(start_paused = true)]
async fn an_answer_of_unknown_size_takes_what_was_expected_of_it() {
    for unknown in [ActualUsage::Tokens { prompt: 10, completion: None, prompt_total: 10 }, ActualUsage::Unknown] {
        let limits = limiter(Some(1000));
        for (spent, left) in [
            // No answer has been seen yet, so nothing is expected.
            (unknown, 1000),
            (ActualUsage::Tokens { prompt: 10, completion: Some(300), prompt_total: 10 }, 700),
            (unknown, 400),
            (unknown, 100),
        ] {
            let mut permit = limits.reserve(&request("app", 10, 900), in_a_minute(), None).await.expect("there is room");
            permit.sent(Instant::now());
            permit.observe(&Observation::default(), Instant::now());
            permit.settle(spent, Instant::now());
            let remaining = limits.snapshot()[0].dimensions[0].remaining;
            assert!((remaining - f64::from(left)).abs() < 1.0, "{remaining} left, not {left}, after {spent:?}");
        }
        // Answers older than 150 s no longer count as the largest, but they still count for the mean.
        sleep(Duration::from_secs(200)).await;
        let mut permit = limits.reserve(&request("app", 10, 900), in_a_minute(), None).await.expect("there is room");
        permit.sent(Instant::now());
        permit.settle(unknown, Instant::now());
        assert_eq!(limits.snapshot()[0].dimensions[0].remaining.round(), 700.0);
    }
}

/// For an upstream that tests the output limit itself, the limiter charges output limits once it has learnt that.
#[tokio::test(start_paused = true)]
async fn an_upstream_that_tests_output_limits_is_not_stormed() {
    let upstream = Arc::new(Mutex::new(Upstream { tests_output_limits: true, ..Upstream::default() }));
    let (limits, mut running) = (limiter(Some(1000)), JoinSet::new());
    for n in 0..100u64 {
        let (limits, upstream) = (limits.clone(), upstream.clone());
        running.spawn(async move {
            sleep(Duration::from_secs(5) * u32::try_from(n).expect("small")).await;
            let output_limit = 400 + n * 37 % 500;
            send(&limits, &upstream, &request("app", 10, output_limit), 50 + n * 13 % 30, Instant::now() + 4 * WINDOW).await
        });
    }
    let outcomes = running.join_all().await;
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    let upstream = upstream.lock().expect("a lock");
    assert!(upstream.refused.len() <= 5, "{:?}", upstream.refused);
}

/// A refusal that does not name its dimension, as Groq has sent it. If it were taken for a limit on all tokens, the request
/// would be refused for good, because its output limit is above the limit.
#[tokio::test(start_paused = true)]
async fn a_limit_without_a_name_that_counts_less_than_the_output_limit_is_one_on_output() {
    let limits = limiter(None);
    let mut permit = limits.reserve(&request("app", 10, 1800), in_a_minute(), None).await.expect("it goes");
    permit.sent(Instant::now());
    let (used, wait) = (Some(997), Some(Duration::from_millis(11_340)));
    let text = UpstreamRefusal { dimension: None, code: None, unit: None, limit: 1000, used, requested: 192, wait };
    let place = permit.refused(Some(&text), &Observation::default(), None, Instant::now());
    let again = limits.reserve(&request("app", 10, 1800), in_a_minute(), place).await.expect("it waits for room");
    assert!((11.3..11.5).contains(&again.waited().as_secs_f64()), "{:?}", again.waited());
    assert_eq!(limits.snapshot()[0].dimensions[0].dimension, Dimension::OTPM);
}

/// Extreme figures, which Groq has never sent.
#[tokio::test(start_paused = true)]
async fn absurd_figures_do_not_block_requests_for_long() {
    let limits = limiter(Some(1000));
    for (limit, requested, used) in
        [(1000, u64::MAX, None), (1000, 0, Some(0)), (0, 5, None), (u64::MAX, u64::MAX, Some(u64::MAX))]
    {
        let mut permit = limits.reserve(&request("app", 10, 500), in_a_minute(), None).await.expect("it goes");
        permit.sent(Instant::now());
        let dimension = Some(Dimension::OTPM);
        let text = UpstreamRefusal { dimension, code: None, unit: None, limit, used, requested, wait: None };
        let _place = permit.refused(Some(&text), &Observation::default(), None, Instant::now());
        sleep(Duration::from_secs(60)).await;
    }
    let mut huge = limits.reserve(&request("app", 10, 500), in_a_minute(), None).await.expect("it goes");
    huge.sent(Instant::now());
    huge.settle(ActualUsage::Tokens { prompt: 10, completion: Some(100_000), prompt_total: 10 }, Instant::now());
    let Err(AdmissionError::NotInTime { .. }) = limits.reserve(&request("app", 10, 500), in_a_minute(), None).await else {
        panic!("the debt is 99 minutes' tokens, cut to ten minutes' tokens")
    };
    sleep(Duration::from_secs(600)).await;
    limits.reserve(&request("app", 10, 500), in_a_minute(), None).await.expect("it goes");
}
