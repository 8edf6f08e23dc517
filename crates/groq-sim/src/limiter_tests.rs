//! The captured texts of Groq, reached by driving the limiter.

use super::*;
use crate::{Algorithm, Plan};

pub(super) const MILLI: u64 = 1_000_000;
pub(super) const KEY: &str = "gsk_test";

pub(super) fn lane(limits: ModelLimits, options: &Options) -> Lane {
    Lane::new(&limits, options, 0, 1)
}

fn tokens(prompt: u64) -> Ask {
    Ask::Tokens { prompt, ceiling: Some(0) }
}

/// The message and type of a refusal of `ask` at `now`, its status and its `retry-after`.
pub(super) fn refused(
    lane: &mut Lane,
    now: u64,
    ask: Ask,
    model: &str,
    organisation: &str,
    options: &Options,
) -> (u16, String, String, String) {
    let refusal = lane.admit(now, KEY, ask, options.charging).expect_err("refused");
    let (status, headers, body) = refusal.answer(options, &(organisation.into(), model.into(), "on_demand".into()));
    let text = |name: &str| body["error"][name].as_str().unwrap_or_default().to_owned();
    let wait = headers.get("retry-after").map(|v| v.to_str().expect("ascii").to_owned()).unwrap_or_default();
    (status.as_u16(), text("message"), text("type"), wait)
}

pub(super) fn take(lane: &mut Lane, now: u64, ask: Ask) -> Admission {
    lane.admit(now, KEY, ask, Charging::R).expect("admitted")
}

#[test]
fn tokens_per_minute() {
    let options = Options::default();
    let mut lane = lane(ModelLimits { tokens_per_minute: Some(15_000), ..ModelLimits::default() }, &options);
    take(&mut lane, 0, tokens(12_000));
    // 115 ms give back 28.75 tokens: 11971.25 are used.
    assert_eq!(
        refused(&mut lane, 115 * MILLI, tokens(4351), "llama3-70b-8192", "org_x", &options),
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
    let mut lane = lane(ModelLimits { tokens_per_day: Some(200_000), ..ModelLimits::default() }, &options);
    take(&mut lane, 0, tokens(196_969));
    let (status, message, kind, wait) = refused(&mut lane, 1, tokens(3464), "m", "org_x", &options);
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
    let mut lane = lane(ModelLimits { requests_per_minute: Some(30), ..ModelLimits::default() }, &options);
    for _ in 0..30 {
        take(&mut lane, 0, tokens(0));
    }
    let (status, message, kind, wait) = refused(&mut lane, 1601 * MILLI, tokens(0), "m", "org_x", &options);
    assert_eq!((status, kind.as_str(), wait.as_str()), (429, "requests", "1"));
    assert!(
        message.contains("on requests per minute (RPM): Limit 30, Used 30, Requested 1. Please try again in 399ms. "),
        "{message}"
    );
    assert_eq!(lane.refused, BTreeMap::from([("RPM", 1)]));
}

#[test]
fn seconds_of_audio_per_hour() {
    let options = Options::default();
    let mut lane = lane(ModelLimits { audio_seconds_per_hour: Some(7200), ..ModelLimits::default() }, &options);
    take(&mut lane, 0, Ask::Audio { seconds: 7182 });
    // 2 s a second: 0.364 s come back in 182 ms, and one nanosecond more.
    let (status, message, kind, _) = refused(&mut lane, 182 * MILLI + 1, Ask::Audio { seconds: 23 }, "m", "o", &options);
    assert_eq!((status, kind.as_str()), (429, "seconds"));
    assert!(
        message.contains(
            "on seconds of audio per hour (ASPH): Limit 7200, Used 7182, Requested 23. Please try again in 2.317999999s. "
        ),
        "{message}"
    );
}

#[test]
fn the_name_may_be_missing() {
    let options = Options { wording: Wording::Nameless, ..Options::default() };
    let mut lane = lane(ModelLimits { tokens_per_day: Some(500_000), ..ModelLimits::default() }, &options);
    let debt = take(&mut lane, 0, tokens(500_000));
    lane.settle(0, &debt, 500_371, 0, Charging::R);
    let now = (500_371 + 252 - 500_000) * 172_800_000 - 107_585_400_000;
    let (status, message, ..) = refused(&mut lane, now, tokens(252), "m", "o", &options);
    assert_eq!(status, 429);
    assert!(message.contains("on : Limit 500000, Used 500370, Requested 252. Please try again in 1m47.5854s. "), "{message}");
}

#[test]
fn in_2024_the_hopeless_were_told_to_wait() {
    let options = Options { wording: Wording::Of2024, ..Options::default() };
    let mut lane = lane(ModelLimits { tokens_per_minute: Some(7000), ..ModelLimits::default() }, &options);
    let (status, message, ..) = refused(&mut lane, 0, tokens(12_903), "m", "o", &options);
    assert_eq!(status, 429);
    assert!(
        message.contains("on tokens per minute (TPM): Limit 7000, Used 0, Requested ~12903. Please try again in 50.597142857s. "),
        "{message}"
    );
}

#[test]
fn too_large_is_413_without_a_wait() {
    let options = Options::default();
    let mut lane = lane(ModelLimits { tokens_per_minute: Some(8000), ..ModelLimits::default() }, &options);
    let (status, message, kind, wait) = refused(&mut lane, 0, tokens(11_881), "openai/gpt-oss-120b", "org_abc", &options);
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
fn a_refused_request_takes_nothing_in_any_dimension() {
    let options = Options::default();
    let limits = ModelLimits { requests_per_minute: Some(30), tokens_per_minute: Some(1000), ..ModelLimits::default() };
    let mut lane = lane(limits, &options);
    take(&mut lane, 0, tokens(900));
    for _ in 0..50 {
        refused(&mut lane, 0, tokens(101), "m", "o", &options);
    }
    let used: Vec<_> = lane.levels(0).into_iter().map(|(code, _, used, _)| (code, used)).collect();
    assert_eq!(used, [("RPM", 1), ("TPM", 900)]);
    take(&mut lane, 0, tokens(100));
}

#[test]
fn audio_costs_ten_seconds_at_least() {
    let options = Options::default();
    let mut lane = lane(ModelLimits { audio_seconds_per_day: Some(25), ..ModelLimits::default() }, &options);
    take(&mut lane, 0, Ask::Audio { seconds: 1 });
    take(&mut lane, 0, Ask::Audio { seconds: 10 });
    assert!(
        refused(&mut lane, 0, Ask::Audio { seconds: 2 }, "m", "o", &options)
            .1
            .contains("(ASPD): Limit 25, Used 20, Requested 10.")
    );
}

fn shown(headers: &HeaderMap) -> Vec<(&str, &str)> {
    headers.iter().map(|(name, value)| (name.as_str(), value.to_str().expect("ascii"))).collect()
}

#[test]
fn headers_show_the_day_of_requests_and_the_minute_of_tokens() {
    let options = Options::default();
    let limits = ModelLimits {
        requests_per_minute: Some(30),
        requests_per_day: Some(14_400),
        tokens_per_minute: Some(8000),
        tokens_per_day: Some(500_000),
        audio_seconds_per_hour: Some(7200),
        ..ModelLimits::default()
    };
    let mut lane = lane(limits, &options);
    take(&mut lane, 0, tokens(78));
    assert_eq!(
        shown(&lane.headers(0, Unit::Tokens, false)),
        [
            ("x-ratelimit-limit-requests", "14400"),
            ("x-ratelimit-remaining-requests", "14399"),
            ("x-ratelimit-reset-requests", "6s"),
            ("x-ratelimit-limit-tokens", "8000"),
            ("x-ratelimit-remaining-tokens", "7922"),
            ("x-ratelimit-reset-tokens", "585ms"),
        ]
    );
    // `reset` goes by the whole units of `remaining`; exactly, if that is wanted.
    let reset = |lane: &mut Lane, exact| lane.headers(4 * MILLI, Unit::Tokens, exact)["x-ratelimit-reset-tokens"].clone();
    assert_eq!(
        (reset(&mut lane, false), reset(&mut lane, true)),
        ("585ms".parse().expect("ascii"), "581ms".parse().expect("ascii"))
    );
    assert_eq!(lane.headers(0, Unit::Requests, false).len(), 3);
    let audio = lane.headers(0, Unit::Seconds, false);
    assert_eq!((audio.len(), audio["x-ratelimit-remaining-audio-seconds"].as_bytes()), (6, b"7200".as_slice()));
}

#[test]
fn each_charging_tests_and_holds_its_own() {
    let options = Options::default();
    let ask = Ask::Tokens { prompt: 100, ceiling: Some(400) };
    for (charging, tested, held, settled) in
        [(Charging::R, 500, 500, 150), (Charging::T, 500, 100, 150), (Charging::P, 100, 100, 150), (Charging::N, 500, 500, 500)]
    {
        let limits = |limit| ModelLimits { tokens_per_minute: Some(limit), ..ModelLimits::default() };
        lane(limits(tested - 1), &options).admit(0, KEY, ask, charging).expect_err("one too few");
        let mut lane = lane(limits(tested), &options);
        let admission = lane.admit(0, KEY, ask, charging).expect("just enough");
        assert_eq!(lane.levels(0)[0].2, held, "{charging:?}");
        lane.settle(0, &admission, 100, 50, charging);
        assert_eq!(lane.levels(0)[0].2, settled, "{charging:?}");
    }
}

#[test]
fn strangers_take_their_share_and_the_same_one_again() {
    let stranger = Some(Stranger { share: 0.2, tokens: 500 });
    let options = Options { stranger, plan: Plan::default(), ..Options::default() };
    let spent = || {
        let mut lane = lane(ModelLimits { tokens_per_minute: Some(60_000), ..ModelLimits::default() }, &options);
        lane.admit(600 * SECOND, KEY, tokens(1), Charging::R).expect("room");
        lane.levels(600 * SECOND)[0].3
    };
    let first = spent();
    assert!((90_000..150_000).contains(&first), "a fifth of 600 000, near enough: {first}");
    assert_eq!(first, spent());
}

#[test]
fn what_was_used_before_can_be_debt() {
    let options = Options { initial_use: BTreeMap::from([("TPD".to_owned(), 1.5)]), ..Options::default() };
    let mut lane = lane(ModelLimits { tokens_per_day: Some(86_400), ..ModelLimits::default() }, &options);
    assert!(
        refused(&mut lane, 0, tokens(1), "m", "o", &options).1.contains("Used 129600, Requested 1. Please try again in 12h0m1s.")
    );
    take(&mut lane, 43_201 * SECOND, tokens(1));
}

#[test]
fn windows_refuse_until_they_end() {
    let options = Options { algorithm: Algorithm::Fixed, ..Options::default() };
    let mut lane = lane(ModelLimits { requests_per_minute: Some(1), ..ModelLimits::default() }, &options);
    take(&mut lane, 10 * SECOND, tokens(1));
    assert!(refused(&mut lane, 20 * SECOND, tokens(1), "m", "o", &options).1.contains("Please try again in 40s."));
    take(&mut lane, 60 * SECOND, tokens(1));
}
