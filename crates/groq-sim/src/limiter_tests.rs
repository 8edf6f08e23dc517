//! The limiter reproduces captured refusals of Groq.

use super::*;
use crate::{Algorithm, Plan, Wording};

pub(super) const MILLI: u64 = 1_000_000;
pub(super) const KEY: &str = "gsk_test";

pub(super) fn limiter(limits: ModelLimits, options: &Options) -> Limiter {
    Limiter::new(&limits, options, 0, 1)
}

fn tokens(prompt: u64) -> Cost {
    Cost::Tokens { prompt, max_completion: Some(0) }
}

/// The message and type of a refusal of `cost` at `now`, its status and its `retry-after`.
pub(super) fn refused(
    limiter: &mut Limiter,
    now: u64,
    cost: Cost,
    model: &str,
    organization: &str,
    options: &Options,
) -> (u16, String, String, String) {
    let refusal = limiter.admit(now, KEY, cost).expect_err("refused");
    let (status, headers, body) = refusal.answer(options, &(organization.into(), model.into(), "on_demand".into()));
    let text = |name: &str| body["error"][name].as_str().unwrap_or_default().to_owned();
    let wait = headers.get("retry-after").map(|v| v.to_str().expect("ascii").to_owned()).unwrap_or_default();
    (status.as_u16(), text("message"), text("type"), wait)
}

pub(super) fn take(limiter: &mut Limiter, now: u64, cost: Cost) -> Admission {
    limiter.admit(now, KEY, cost).expect("admitted")
}

#[test]
fn tokens_per_minute() {
    let options = Options::default();
    let mut limiter = limiter(ModelLimits { tokens_per_minute: Some(15_000), ..ModelLimits::default() }, &options);
    take(&mut limiter, 0, tokens(12_000));
    // 28.75 tokens drain in 115 ms, so 11971.25 are used.
    assert_eq!(
        refused(&mut limiter, 115 * MILLI, tokens(4351), "llama3-70b-8192", "org_x", &options),
        (
            429,
            "Rate limit reached for model `llama3-70b-8192` in organization `org_x` service tier `on_demand` on tokens per minute \
             (TPM): Limit 15000, Used 11972, Requested 4351. Please try again in 5.289s. Visit \
             https://console.groq.com/docs/rate-limits for more information."
                .to_owned(),
            "tokens".to_owned(),
            "6".to_owned()
        )
    );
}

#[test]
fn tokens_per_day_to_the_nanosecond() {
    let options = Options {
        tail: "Need more tokens? Upgrade to Dev Tier today at https://console.groq.com/settings/billing".to_owned(),
        ..Options::default()
    };
    let mut limiter = limiter(ModelLimits { tokens_per_day: Some(200_000), ..ModelLimits::default() }, &options);
    take(&mut limiter, 0, tokens(196_969));
    let (status, message, kind, wait) = refused(&mut limiter, 1, tokens(3464), "m", "org_x", &options);
    assert_eq!((status, kind.as_str(), wait.as_str()), (429, "tokens", "188"));
    assert!(
        message.ends_with(
            "on tokens per day (TPD): Limit 200000, Used 196969, Requested 3464. Please try again in 3m7.055999999s. \
             Need more tokens? Upgrade to Dev Tier today at https://console.groq.com/settings/billing"
        ),
        "{message}"
    );
}

#[test]
fn requests_per_minute() {
    let options = Options::default();
    let mut limiter = limiter(ModelLimits { requests_per_minute: Some(30), ..ModelLimits::default() }, &options);
    for _ in 0..30 {
        take(&mut limiter, 0, tokens(0));
    }
    let (status, message, kind, wait) = refused(&mut limiter, 1601 * MILLI, tokens(0), "m", "org_x", &options);
    assert_eq!((status, kind.as_str(), wait.as_str()), (429, "requests", "1"));
    assert!(
        message.contains("on requests per minute (RPM): Limit 30, Used 30, Requested 1. Please try again in 399ms. "),
        "{message}"
    );
    assert_eq!(limiter.refused, BTreeMap::from([("RPM", 1)]));
}

#[test]
fn seconds_of_audio_per_hour() {
    let options = Options::default();
    let mut limiter = limiter(ModelLimits { audio_seconds_per_hour: Some(7200), ..ModelLimits::default() }, &options);
    take(&mut limiter, 0, Cost::Audio { seconds: 7182 });
    // 2 s drain per second: 0.364 s in 182 ms, rounded up by a nanosecond.
    let (status, message, kind, _) = refused(&mut limiter, 182 * MILLI + 1, Cost::Audio { seconds: 23 }, "m", "o", &options);
    assert_eq!((status, kind.as_str()), (429, "seconds"));
    assert!(
        message.contains(
            "on seconds of audio per hour (ASPH): Limit 7200, Used 7182, Requested 23. Please try again in 2.317999999s. "
        ),
        "{message}"
    );
}

#[test]
fn a_refusal_may_omit_the_dimensions_name() {
    let options = Options { wording: Wording::NoDimension, ..Options::default() };
    let mut limiter = limiter(ModelLimits { tokens_per_day: Some(500_000), ..ModelLimits::default() }, &options);
    let debt = take(&mut limiter, 0, tokens(500_000));
    limiter.settle(0, &debt, 500_371, 0);
    let now = (500_371 + 252 - 500_000) * 172_800_000 - 107_585_400_000;
    let (status, message, ..) = refused(&mut limiter, now, tokens(252), "m", "o", &options);
    assert_eq!(status, 429);
    assert!(message.contains("on : Limit 500000, Used 500370, Requested 252. Please try again in 1m47.5854s. "), "{message}");
}

#[test]
fn the_2024_wording_has_a_wait_for_oversized_requests() {
    let options = Options { wording: Wording::From2024, ..Options::default() };
    let mut limiter = limiter(ModelLimits { tokens_per_minute: Some(7000), ..ModelLimits::default() }, &options);
    let (status, message, ..) = refused(&mut limiter, 0, tokens(12_903), "m", "o", &options);
    assert_eq!(status, 429);
    assert!(
        message.contains("on tokens per minute (TPM): Limit 7000, Used 0, Requested ~12903. Please try again in 50.597142857s. "),
        "{message}"
    );
}

#[test]
fn too_large_is_413_without_a_wait() {
    let options = Options::default();
    let mut limiter = limiter(ModelLimits { tokens_per_minute: Some(8000), ..ModelLimits::default() }, &options);
    let (status, message, kind, wait) = refused(&mut limiter, 0, tokens(11_881), "openai/gpt-oss-120b", "org_abc", &options);
    assert_eq!((status, kind.as_str(), wait.as_str()), (413, "tokens", ""));
    assert!(
        message.starts_with(
            "Request too large for model `openai/gpt-oss-120b` in organization `org_abc` service tier `on_demand` on tokens per minute \
             (TPM): Limit 8000, Requested 11881, please reduce your message size and try again. "
        ),
        "{message}"
    );
}

#[test]
fn a_refused_request_uses_nothing_in_any_dimension() {
    let options = Options::default();
    let limits = ModelLimits { requests_per_minute: Some(30), tokens_per_minute: Some(1000), ..ModelLimits::default() };
    let mut limiter = limiter(limits, &options);
    take(&mut limiter, 0, tokens(900));
    for _ in 0..50 {
        refused(&mut limiter, 0, tokens(101), "m", "o", &options);
    }
    let used: Vec<_> = limiter.usage(0).into_iter().map(|(code, _, used, _)| (code, used)).collect();
    assert_eq!(used, [("RPM", 1), ("TPM", 900)]);
    take(&mut limiter, 0, tokens(100));
}

#[test]
fn audio_is_charged_as_at_least_ten_seconds() {
    let options = Options::default();
    let mut limiter = limiter(ModelLimits { audio_seconds_per_day: Some(25), ..ModelLimits::default() }, &options);
    take(&mut limiter, 0, Cost::Audio { seconds: 1 });
    take(&mut limiter, 0, Cost::Audio { seconds: 10 });
    assert!(
        refused(&mut limiter, 0, Cost::Audio { seconds: 2 }, "m", "o", &options)
            .1
            .contains("(ASPD): Limit 25, Used 20, Requested 10.")
    );
}

fn shown(headers: &HeaderMap) -> Vec<(&str, &str)> {
    headers.iter().map(|(name, value)| (name.as_str(), value.to_str().expect("ascii"))).collect()
}

#[test]
fn headers_have_requests_per_day_and_tokens_per_minute() {
    let options = Options::default();
    let limits = ModelLimits {
        requests_per_minute: Some(30),
        requests_per_day: Some(14_400),
        tokens_per_minute: Some(8000),
        tokens_per_day: Some(500_000),
        audio_seconds_per_hour: Some(7200),
        ..ModelLimits::default()
    };
    let mut limiter = limiter(limits, &options);
    take(&mut limiter, 0, tokens(78));
    assert_eq!(
        shown(&limiter.headers(0, Unit::Tokens, false)),
        [
            ("x-ratelimit-limit-requests", "14400"),
            ("x-ratelimit-remaining-requests", "14399"),
            ("x-ratelimit-reset-requests", "6s"),
            ("x-ratelimit-limit-tokens", "8000"),
            ("x-ratelimit-remaining-tokens", "7922"),
            ("x-ratelimit-reset-tokens", "585ms"),
        ]
    );
    // `reset` is computed from the whole units of `remaining`, unless `exact_reset` is set.
    let reset =
        |limiter: &mut Limiter, exact| limiter.headers(4 * MILLI, Unit::Tokens, exact)["x-ratelimit-reset-tokens"].clone();
    assert_eq!(
        (reset(&mut limiter, false), reset(&mut limiter, true)),
        ("585ms".parse().expect("ascii"), "581ms".parse().expect("ascii"))
    );
    assert_eq!(limiter.headers(0, Unit::Requests, false).len(), 3);
    let audio = limiter.headers(0, Unit::Seconds, false);
    assert_eq!((audio.len(), audio["x-ratelimit-remaining-audio-seconds"].as_bytes()), (6, b"7200".as_slice()));
}

#[test]
fn each_charging_tests_and_reserves_as_documented() {
    let cost = Cost::Tokens { prompt: 100, max_completion: Some(400) };
    for (charging, tested, held, settled) in [
        (Charging::ReserveMaximum, 500, 500, 150),
        (Charging::TestMaximum, 500, 100, 150),
        (Charging::PromptOnly, 100, 100, 150),
        (Charging::NoRefund, 500, 500, 500),
    ] {
        let options = Options { charging, ..Options::default() };
        let limits = |limit| ModelLimits { tokens_per_minute: Some(limit), ..ModelLimits::default() };
        limiter(limits(tested - 1), &options).admit(0, KEY, cost).expect_err("one too few");
        let mut limiter = limiter(limits(tested), &options);
        let admission = limiter.admit(0, KEY, cost).expect("just enough");
        assert_eq!(limiter.usage(0)[0].2, held, "{charging:?}");
        limiter.settle(0, &admission, 100, 50);
        assert_eq!(limiter.usage(0)[0].2, settled, "{charging:?}");
    }
}

#[test]
fn external_traffic_uses_its_share_and_follows_the_seed() {
    let external = Some(ExternalTraffic { share: 0.2, tokens: 500 });
    let options = Options { external, plan: Plan::default(), ..Options::default() };
    let charged = || {
        let mut limiter = limiter(ModelLimits { tokens_per_minute: Some(60_000), ..ModelLimits::default() }, &options);
        limiter.admit(600 * SECOND, KEY, tokens(1)).expect("room");
        limiter.usage(600 * SECOND)[0].3
    };
    let first = charged();
    assert!((90_000..150_000).contains(&first), "about a fifth of 600 000: {first}");
    assert_eq!(first, charged());
}

#[test]
fn initial_usage_can_be_debt() {
    let options = Options { initial_usage: BTreeMap::from([("TPD".to_owned(), 1.5)]), ..Options::default() };
    let mut limiter = limiter(ModelLimits { tokens_per_day: Some(86_400), ..ModelLimits::default() }, &options);
    assert!(
        refused(&mut limiter, 0, tokens(1), "m", "o", &options)
            .1
            .contains("Used 129600, Requested 1. Please try again in 12h0m1s.")
    );
    take(&mut limiter, 43_201 * SECOND, tokens(1));
}

#[test]
fn fixed_windows_refuse_until_their_end() {
    let options = Options { algorithm: Algorithm::Fixed, ..Options::default() };
    let mut limiter = limiter(ModelLimits { requests_per_minute: Some(1), ..ModelLimits::default() }, &options);
    take(&mut limiter, 10 * SECOND, tokens(1));
    assert!(refused(&mut limiter, 20 * SECOND, tokens(1), "m", "o", &options).1.contains("Please try again in 40s."));
    take(&mut limiter, 60 * SECOND, tokens(1));
}
