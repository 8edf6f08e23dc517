//! What a limiter learns from cold starts, headers and refusals.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{in_a_minute, per_minute, refusal, request, settings, shield, warm};
use crate::{
    ActualUsage, AdmissionError, AdmissionRequest, CostEstimate, Limiters, Source,
    settings::{ModelLimits, Settings},
    types::{Dimension, Observation, RemoteQuota, Unit},
};

#[tokio::test(start_paused = true)]
async fn a_cold_start_sends_one_probe_and_learns_from_it() {
    let limits = shield(ModelLimits::default());
    let mut probe = limits.reserve(&request("app", 10, 100), in_a_minute(), None).await.expect("the probe");
    probe.sent(Instant::now());
    let second = tokio::spawn({
        let limits = limits.clone();
        async move { limits.reserve(&request("app", 10, 100), in_a_minute(), None).await.map(|r| r.waited()) }
    });
    sleep(Duration::from_millis(300)).await;
    assert!(!second.is_finished());
    let shown = RemoteQuota { limit: 8000, remaining: 100 };
    probe.observe(&Observation { tokens: Some(shown), ..Observation::default() }, Instant::now());
    probe.settle(ActualUsage::Tokens { prompt: 10, completion: Some(10), prompt_total: 10 }, Instant::now());
    let waited = second.await.expect("it ran").expect("in time");
    assert!(waited > Duration::from_secs(2), "it waits for tokens now: {waited:?}");
    let limiter = &limits.snapshot()[0];
    assert_eq!(limiter.dimensions[0].limit, 8000);
    assert_eq!(limiter.dimensions[0].source, Source::Headers);
}

/// A burst during a cold start. Limits are assumed until the probe's headers have come, so nothing is refused before; then
/// the requests that cannot be in time are refused at once.
#[tokio::test(start_paused = true)]
async fn requests_are_refused_by_known_limits_and_not_by_assumed_ones() {
    let limits = shield(ModelLimits { requests_per_minute: Some(30), ..ModelLimits::default() });
    let mut probe = limits.reserve(&request("app", 10, 100), in_a_minute(), None).await.expect("the probe");
    probe.sent(Instant::now());
    let mut burst = tokio::task::JoinSet::new();
    for _ in 0..89 {
        let limits = limits.clone();
        burst.spawn(async move { (limits.reserve(&request("app", 10, 100), in_a_minute(), None).await.is_ok(), Instant::now()) });
    }
    sleep(Duration::from_millis(300)).await;
    assert!(burst.try_join_next().is_none(), "all wait for the probe");
    let start = Instant::now();
    probe.observe(&Observation::default(), Instant::now());
    probe.settle(ActualUsage::Tokens { prompt: 10, completion: Some(10), prompt_total: 10 }, Instant::now());
    let ended = burst.join_all().await;
    let refused: Vec<_> = ended.iter().filter(|(served, _)| !served).map(|(_, at)| at.duration_since(start)).collect();
    assert!((30..45).contains(&refused.len()), "{} refused", refused.len());
    assert!(refused.iter().all(|after| *after < Duration::from_secs(1)), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn a_lost_probe_makes_way() {
    let limits = shield(ModelLimits::default());
    let _lost = limits.reserve(&request("app", 10, 100), in_a_minute(), None).await.expect("the probe");
    let second = limits.reserve(&request("app", 10, 100), in_a_minute(), None).await.expect("after two seconds");
    assert_eq!(second.waited(), Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_teaches_a_hidden_limit() {
    let limits = shield(ModelLimits::default());
    warm(&limits).await;
    let mut sent = limits.reserve(&request("app", 10, 100), in_a_minute(), None).await.expect("nothing is known");
    sent.sent(Instant::now());
    let text = refusal(Dimension::RPM, 30, Some(30), 1, Some(Duration::from_secs(2)));
    let place = sent.refused(Some(&text), &Observation::default(), None, Instant::now());
    let again = limits.reserve(&request("app", 10, 100), in_a_minute(), place).await.expect("in time");
    // The wait that the refusal states, and the safety margin of two requests, two seconds each.
    let waited = again.waited().as_secs_f64();
    assert!((5.9..=6.1).contains(&waited), "{waited}");
}

/// The safety margin of a day's limit was the size of another such request once: here half an hour, where Groq stated three
/// minutes.
#[tokio::test(start_paused = true)]
async fn a_used_up_day_is_waited_for_by_minutes_longer_than_groq_says() {
    let limits = shield(ModelLimits::default());
    warm(&limits).await;
    let mut sent = limits.reserve(&request("app", 10, 3454), in_a_minute(), None).await.expect("nothing is known");
    sent.sent(Instant::now());
    let stated = Duration::from_millis(187_056);
    let text = refusal(Dimension::TPD, 200_000, Some(196_969), 3464, Some(stated));
    let place = sent.refused(Some(&text), &Observation::default(), None, Instant::now());
    let late = limits.reserve(&request("app", 10, 3454), in_a_minute(), place).await;
    let Err(AdmissionError::NotInTime { wait, .. }) = late else { panic!("it cannot go within a minute") };
    let margin = Duration::from_secs(86_400).mul_f64(0.005);
    // The prompt may also be some tokens larger than its estimate.
    let estimate = Duration::from_secs(10);
    assert!(wait > stated && wait < stated + margin + estimate, "{wait:?}");
}

/// What a refusal states holds until a header of a later request shows something else.
#[tokio::test(start_paused = true)]
async fn a_header_overrules_a_refusal_at_once() {
    let limits = shield(per_minute(1000, 100_000));
    warm(&limits).await;
    let [mut refused, mut answered] = [(); 2].map(|()| limits.take(&request("app", 10, 100)));
    refused.sent(Instant::now());
    answered.sent(Instant::now());
    let text = refusal(Dimension::TPM, 100_000, Some(100_000), 110, Some(Duration::from_millis(66)));
    let remaining = || {
        let snapshot = limits.snapshot().remove(0);
        snapshot.dimensions.iter().find(|shown| shown.dimension == Dimension::TPM).expect("it has a limit").remaining
    };
    refused.refused(Some(&text), &Observation::default(), None, Instant::now());
    assert!(remaining() < 500.0, "{}", remaining());
    let shown = RemoteQuota { limit: 100_000, remaining: 99_000 };
    answered.observe(&Observation { tokens: Some(shown), ..Observation::default() }, Instant::now());
    assert!((98_000.0..=99_000.0).contains(&remaining()), "{}", remaining());
}

/// Groq counts more than the estimate. With the estimate the request would be sent at once, and refused again and again.
#[tokio::test(start_paused = true)]
async fn a_refused_request_asks_for_what_groq_says_that_it_asks() {
    let limits = shield(per_minute(1000, 15_000));
    warm(&limits).await;
    let mut sent = limits.reserve(&request("app", 10, 100), in_a_minute(), None).await.expect("fits");
    sent.sent(Instant::now());
    let text = refusal(Dimension::TPM, 15_000, Some(11_972), 4351, Some(Duration::from_millis(5289)));
    let place = sent.refused(Some(&text), &Observation::default(), None, Instant::now());
    let again = limits.reserve(&request("app", 10, 100), in_a_minute(), place).await.expect("in time");
    assert!(again.waited() >= Duration::from_millis(5288), "{:?}", again.waited());
    // The next request is charged by its own estimate.
    drop(again);
    let other = limits.reserve(&request("app", 10, 100), in_a_minute(), None).await.expect("fits");
    assert_eq!(other.waited(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_states_no_wait_pauses_the_limiter_all_the_same() {
    let limits = shield(per_minute(1000, 100_000));
    warm(&limits).await;
    let mut place = None;
    for rest in [1, 2, 4] {
        let mut sent = limits.reserve(&request("app", 10, 100), in_a_minute(), place).await.expect("in time");
        assert_eq!(sent.waited().as_secs(), rest / 2);
        sent.sent(Instant::now());
        place = sent.refused(None, &Observation::default(), Some(Duration::ZERO), Instant::now());
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_without_words_pauses_the_limiter() {
    let limits = shield(per_minute(1000, 100_000));
    warm(&limits).await;
    let mut sent = limits.reserve(&request("app", 10, 100), in_a_minute(), None).await.expect("fits");
    sent.sent(Instant::now());
    let place = sent.refused(None, &Observation::default(), Some(Duration::from_secs(7)), Instant::now());
    let (mine, theirs) = (request("app", 10, 100), request("other", 10, 100));
    let again = limits.reserve(&mine, in_a_minute(), place);
    let (again, other) = tokio::join!(again, limits.reserve(&theirs, in_a_minute(), None));
    assert_eq!(again.expect("in time").waited(), Duration::from_secs(7));
    assert_eq!(other.expect("in time").waited(), Duration::from_secs(7));
}

#[tokio::test(start_paused = true)]
async fn the_plan_follows_the_headers() {
    let limits = Limiters::new(Settings::default());
    let request = AdmissionRequest { model: "openai/gpt-oss-20b".into(), ..request("app", 10, 10) };
    let answered = async |tokens: u64| {
        let mut permit = limits.reserve(&request, in_a_minute(), None).await.expect("fits");
        permit.sent(Instant::now());
        let shown = RemoteQuota { limit: tokens, remaining: tokens - 20 };
        permit.observe(&Observation { tokens: Some(shown), ..Observation::default() }, Instant::now());
        permit.settle(ActualUsage::Unknown, Instant::now());
        limits.snapshot()[0].dimensions.iter().map(|d| (d.dimension.code.to_string(), d.limit)).collect::<Vec<_>>()
    };
    let row = |rows: &[(&str, u64)]| rows.iter().map(|&(code, limit)| (code.to_owned(), limit)).collect::<Vec<_>>();
    assert_eq!(answered(8000).await, row(&[("RPM", 30), ("RPD", 1000), ("TPM", 8000), ("TPD", 200_000)]));
    assert_eq!(answered(250_000).await, row(&[("RPM", 1000), ("TPM", 250_000)]));
    assert_eq!(answered(60_000).await, row(&[("TPM", 60_000)]), "hidden limits of no plan are forgotten");
}

#[tokio::test(start_paused = true)]
async fn a_limit_stated_by_mistake_silences_nobody_for_hours() {
    let limits = Limiters::new(Settings::default());
    let stated = |limit: u64| {
        let shown = RemoteQuota { limit, remaining: limit };
        Observation { tokens: Some(shown), ..Observation::default() }
    };
    for limit in [60_000, 1] {
        let mut permit = limits.reserve(&request("app", 50, 100), in_a_minute(), None).await.expect("fits");
        permit.sent(Instant::now());
        permit.observe(&stated(limit), Instant::now());
        permit.settle(ActualUsage::Tokens { prompt: 50, completion: Some(90), prompt_total: 50 }, Instant::now());
    }
    let start = Instant::now();
    while limits.reserve(&request("app", 50, 100), in_a_minute(), None).await.is_err() {
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(start.elapsed() < Duration::from_secs(15 * 60), "no request is sent whose headers could correct the limit");
    }
}

/// A request without an output limit.
fn unbounded(prompt: u64) -> AdmissionRequest {
    AdmissionRequest { cost: CostEstimate::Tokens { prompt, max_completion_tokens: None }, ..request("app", 10, 100) }
}

/// Sends a request whose headers show `used` of 8000 tokens a minute in use. `usage` is its prompt and completion tokens.
async fn answered(limits: &Limiters, request: &AdmissionRequest, used: u64, usage: (u64, u64)) {
    let mut permit = limits.reserve(request, in_a_minute(), None).await.expect("in time");
    permit.sent(Instant::now());
    let shown = RemoteQuota { limit: 8000, remaining: 8000 - used };
    permit.observe(&Observation { tokens: Some(shown), ..Observation::default() }, Instant::now());
    permit.settle(ActualUsage::Tokens { prompt: usage.0, completion: Some(usage.1), prompt_total: usage.0 }, Instant::now());
}

/// A prompt of 48,000 spaces is 12,000 tokens for Groq, and a few hundred by our estimate.
#[tokio::test(start_paused = true)]
async fn what_a_413_says_of_one_request_is_no_price_of_others() {
    let limits = shield(ModelLimits::default());
    answered(&limits, &unbounded(30), 38, (38, 10)).await;
    let mut spaces = limits.reserve(&unbounded(400), in_a_minute(), None).await.expect("it is sent");
    spaces.sent(Instant::now());
    let text = refusal(Dimension::TPM, 8000, None, 12_000, None);
    let _place = spaces.refused(Some(&text), &Observation::default(), None, Instant::now());
    let mut held = Vec::new();
    for _ in 0..2 {
        held.push(limits.reserve(&unbounded(30), Instant::now(), None).await.expect("priced as before"));
    }
}

/// A refused request is charged what the refusal stated. What is assumed for requests without an output limit is not added.
#[tokio::test(start_paused = true)]
async fn a_refused_request_without_an_output_limit_costs_what_groq_states() {
    let limits = shield(ModelLimits { tokens_per_minute: Some(8000), ..ModelLimits::default() });
    warm(&limits).await;
    let mut permit = limits.reserve(&unbounded(40), in_a_minute(), None).await.expect("it fits");
    permit.sent(Instant::now());
    let text = refusal(Dimension::TPM, 8000, Some(7999), 4140, Some(Duration::from_millis(31_050)));
    let place = permit.refused(Some(&text), &Observation::default(), None, Instant::now());
    let again = limits.reserve(&unbounded(40), in_a_minute(), place).await.expect("in time");
    // The wait that the refusal states, and the safety margin, which is between a twentieth and three tenths of the limit.
    let waited = again.waited().as_secs_f64();
    assert!((31.0..50.0).contains(&waited), "{waited}");
}

/// The operator has configured 2000 tokens a minute. The upstream's headers say 100,000.
#[tokio::test(start_paused = true)]
async fn a_configured_limit_holds_below_groqs() {
    let limits = shield(ModelLimits { tokens_per_minute: Some(2000), ..ModelLimits::default() });
    let (start, mut used) = (Instant::now(), 0);
    while start.elapsed() < Duration::from_secs(60) {
        let Ok(mut permit) = limits.reserve(&request("app", 100, 900), in_a_minute(), None).await else { break };
        if start.elapsed() >= Duration::from_secs(60) {
            break;
        }
        permit.sent(Instant::now());
        let shown = RemoteQuota { limit: 100_000, remaining: 99_000 };
        permit.observe(&Observation { tokens: Some(shown), ..Observation::default() }, Instant::now());
        permit.settle(ActualUsage::Tokens { prompt: 100, completion: Some(400), prompt_total: 100 }, Instant::now());
        used += 500;
    }
    // What a full bucket holds, and what is regained in a minute.
    assert!((3000..=4000).contains(&used), "{used}");
    let shown = &limits.snapshot()[0].dimensions[0];
    assert_eq!((shown.limit, shown.source), (2000, Source::Configured));
    assert_eq!((shown.configured, shown.stated), (Some(2000), Some(100_000)));
    assert_eq!(limits.snapshot()[0].dimensions.len(), 1);
    let too_large = limits.reserve(&request("app", 100, 2000), in_a_minute(), None).await.expect_err("over the bound");
    assert!(matches!(too_large, AdmissionError::TooLarge { limit: 2000, .. }), "{too_large:?}");
    // Without the configured limit, Groq's limit is in force. When it is configured again, it is in force again.
    limits.reconfigure(settings(ModelLimits::default()));
    assert_eq!(limits.snapshot()[0].dimensions[0].limit, 100_000);
    limits.reconfigure(settings(per_minute(30, 3000)));
    let dimensions = &limits.snapshot()[0].dimensions;
    assert_eq!(dimensions.iter().map(|d| (d.limit, d.stated)).collect::<Vec<_>>(), [(3000, Some(100_000)), (30, None)]);
}

/// A configured limit bounds what is used. For requests without an output limit, the usual answer is assumed.
#[tokio::test(start_paused = true)]
async fn a_configured_limit_holds_without_output_limits() {
    let limits = shield(ModelLimits { tokens_per_minute: Some(2000), ..ModelLimits::default() });
    let (start, mut used, mut held) = (Instant::now(), 0, Vec::new());
    // In each round, as many requests as fit are sent, and then answered. Headers show nothing reserved for them.
    while start.elapsed() < Duration::from_secs(60) {
        while let Ok(mut permit) = limits.reserve(&unbounded(100), Instant::now(), None).await {
            permit.sent(Instant::now());
            held.push(permit);
        }
        sleep(Duration::from_secs(2)).await;
        for mut permit in held.drain(..) {
            let shown = RemoteQuota { limit: 100_000, remaining: 99_900 };
            permit.observe(&Observation { tokens: Some(shown), ..Observation::default() }, Instant::now());
            permit.settle(ActualUsage::Tokens { prompt: 100, completion: Some(400), prompt_total: 100 }, Instant::now());
            used += 500;
        }
    }
    assert!((2500..=4000).contains(&used), "{used}");
}

/// A refusal states the sum of the prompt and `max_completion_tokens`, and the next attempt may have another maximum. What it
/// has stated holds after a refusal by another limit.
#[tokio::test(start_paused = true)]
async fn what_refusals_have_stated_of_the_prompt_holds_for_another_maximum() {
    let limits = shield(ModelLimits { requests_per_minute: Some(600), tokens_per_minute: Some(8000), ..ModelLimits::default() });
    warm(&limits).await;
    let mut place = None;
    for (dimension, limit, requested) in [(Dimension::TPM, 8000, 4500), (Dimension::RPM, 600, 1)] {
        let mut sent = limits.reserve(&request("app", 300, 4000), in_a_minute(), place).await.expect("in time");
        sent.sent(Instant::now());
        let text = refusal(dimension, limit, Some(limit), requested, Some(Duration::from_secs(1)));
        place = sent.refused(Some(&text), &Observation::default(), None, Instant::now());
        assert_eq!(place.and_then(|place| place.requested), Some((Unit::InputTokens, 500)));
    }
    sleep(Duration::from_secs(120)).await;
    let _permit = limits.reserve(&request("app", 300, 500), in_a_minute(), place).await.expect("the limits are unused");
    let tokens = limits.dimensions(&request("app", 300, 500)).into_iter().find(|quota| quota.dimension == Dimension::TPM);
    assert_eq!(tokens.expect("it is known").remaining.round(), 7000.0, "a prompt of 500 and 500 more are reserved");
}
