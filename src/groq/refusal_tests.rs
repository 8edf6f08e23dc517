//! The captured refusal texts, and variations of them.

use proptest::prelude::*;

use super::*;

const HEAD: &str = "Rate limit reached for model `llama3-70b-8192` in organization `org_x` service tier `on_demand` on ";
const TAIL: &str = "Visit https://console.groq.com/docs/rate-limits for more information.";

fn parsed(text: &str) -> UpstreamRefusal {
    parse_refusal(text).unwrap_or_else(|| panic!("not read: {text}"))
}

fn millis(ms: f64) -> Option<Duration> {
    Some(Duration::from_nanos((ms * 1e6).round() as u64))
}

#[test]
fn captured_texts() {
    let table = [
        (
            "tokens per minute (TPM): Limit 15000, Used 11972, Requested 4351. Please try again in 5.289s.",
            Some(Dimension::TPM),
            (15_000, Some(11_972), 4_351, millis(5_289.0)),
        ),
        (
            "tokens per day (TPD): Limit 200000, Used 196969, Requested 3464. Please try again in 3m7.055999999s. Need more tokens? Upgrade to Dev Tier today at https://console.groq.com/settings/billing",
            Some(Dimension::TPD),
            (200_000, Some(196_969), 3_464, millis(187_055.999_999)),
        ),
        (
            "requests per minute (RPM): Limit 30, Used 30, Requested 1. Please try again in 399ms.",
            Some(Dimension::RPM),
            (30, Some(30), 1, millis(399.0)),
        ),
        (
            "requests per day (RPD): Limit 1000, Used 1000, Requested 1. Please try again in 1m26.4s.",
            Some(Dimension::RPD),
            (1000, Some(1000), 1, millis(86_400.0)),
        ),
        (
            "seconds of audio per hour (ASPH): Limit 7200, Used 7182, Requested 23. Please try again in 2.317999999s.",
            Some(Dimension::ASPH),
            (7200, Some(7182), 23, millis(2_317.999_999)),
        ),
        (
            "seconds of audio per day (ASPD): Limit 28800, Used 28799, Requested 10. Please try again in 27s.",
            Some(Dimension::ASPD),
            (28_800, Some(28_799), 10, millis(27_000.0)),
        ),
        (
            ": Limit 500000, Used 500370, Requested 252. Please try again in 1m47.5854s.",
            None,
            (500_000, Some(500_370), 252, millis(107_585.4)),
        ),
        (
            "tokens per minute (TPM): Limit 7000, Used 0, Requested ~12903. Please try again in 50.597142857s.",
            Some(Dimension::TPM),
            (7000, Some(0), 12_903, millis(50_597.142_857)),
        ),
    ];
    for (text, dimension, (limit, used, requested, wait)) in table {
        let text = parsed(&[HEAD, text, " ", TAIL].concat());
        assert_eq!((&text.dimension, text.limit, text.used), (&dimension, limit, used));
        assert_eq!((text.requested, text.wait), (requested, wait));
        assert_eq!(text.hopeless(), requested > limit);
    }
}

#[test]
fn too_large_texts() {
    let text = parsed(
        "Request too large for model `openai/gpt-oss-120b` in organization `org_abc` service tier `on_demand` on tokens per \
         minute (TPM): Limit 8000, Requested 11881, please reduce your message size and try again. Need more tokens? Upgrade",
    );
    assert_eq!(text.dimension, Some(Dimension::TPM));
    assert_eq!((text.limit, text.used, text.requested, text.wait), (8000, None, 11_881, None));
    assert!(text.hopeless());
    let text = parsed(
        "Request too large for model `qwen/qwen3.8-27b` in organization `org_abc` service tier `on_demand` on output tokens \
         per minute (OTPM): Limit 1000, Requested 1024",
    );
    assert_eq!((text.dimension.as_ref(), text.limit, text.requested), (Some(&Dimension::OTPM), 1000, 1024));
    assert!(text.hopeless());
}

#[test]
fn output_texts_in_any_order_and_form() {
    let form = "Request too large for model `m` in organization `o` service tier `on_demand` on output tokens per minute";
    let advice = "The request's expected output tokens exceed the enforced limit; reduce max_tokens (or the request's expected \
                  output) and try again. Need more tokens? Upgrade";
    for figures in [
        " (OTPM): Limit 1000, Requested 1080.",
        ": Limit 1000, Requested 1080.",
        " (OTPM): Requested 1080, Limit 1000.",
        " (OTPM): Used 30, Requested 1080, Limit 1000.",
        "(OTPM): Requested ~1080 Limit 1000",
    ] {
        let text = parsed(&format!("{form}{figures} {advice}"));
        assert_eq!((text.dimension.as_ref(), text.limit, text.requested), (Some(&Dimension::OTPM), 1000, 1080), "{figures}");
        assert!(text.hopeless() && text.counts_expected_output(), "{figures}");
    }
    for figures in [" (OTPM): Limit 1000.", " (OTPM): Requested 1080.", ""] {
        assert_eq!(parse_refusal(&format!("{form}{figures} {advice}")), None, "{figures}");
    }
}

#[test]
fn what_may_be_missing_or_different() {
    let minute = Some(Dimension::TPM);
    let table = [
        (
            "Rate limit reached for model m in organization org_x on tokens per minute (TPM): Limit 5, Used 4, Requested 3.",
            &minute,
        ),
        ("Rate limit reached for model`m`in organization`org_x`on tokens per minute(TPM):Limit 5,Used 4,Requested 3.", &minute),
        (
            "Rate limit reached for model m in organization o service tier on_demand on tokens per minute: Limit 5, Used 4, Requested 3",
            &minute,
        ),
        ("rate limit reached on Tokens Per Minute (TPM): limit 5, used 4, requested 3", &minute),
        ("Rate limit reached for model `Limit 9 on` on (TPM): Limit: 5, Used: 4, Requested: 3", &minute),
        ("Rate limit reached on seconds of audio per hour (ASH): Limit 5, Used 4, Requested 3", &Some(Dimension::ASPH)),
        ("Rate limit reached on input tokens per minute (ITPM): Limit 5, Used 4, Requested 3", &Some(Dimension::ITPM)),
        ("Rate limit reached on (TPQ): Limit 5, Used 4, Requested 3", &None),
        ("Rate limit reached on : Limit 5, Used 4, Requested 3", &None),
        ("Rate limit reached: Limit 5, Used 4, Requested 3", &None),
    ];
    for (text, dimension) in table {
        let read = parsed(text);
        assert_eq!(&read.dimension, dimension, "{text}");
        assert_eq!((read.limit, read.used, read.requested), (5, Some(4), 3), "{text}");
    }
    let text = parsed("Rate limit reached on (TPM): Limit 15,000, Used 14,999.2, Requested 1,234");
    assert_eq!((text.limit, text.used, text.requested), (15_000, Some(15_000), 1_234));
}

#[test]
fn unknown_words_make_a_dimension() {
    let table = [
        ("requests per 1s (R1S)", "R1S", Unit::Requests, 1),
        ("requests per second (RPS)", "RPS", Unit::Requests, 1),
        ("requests per 10s (R10S)", "R10S", Unit::Requests, 10),
        ("tokens per hour (TPH)", "TPH", Unit::Tokens, 3600),
        ("tokens per 5 minutes (T5M)", "T5M", Unit::Tokens, 300),
        ("tokens per 5m (T5M)", "T5M", Unit::Tokens, 300),
        ("tokens per 1m30s (T90S)", "T90S", Unit::Tokens, 90),
        ("output tokens per day (OTPD)", "OTPD", Unit::OutputTokens, 86_400),
        ("tokens per week (TPW)", "TPW", Unit::Tokens, 604_800),
        ("images per minute (IPM)", "IPM", Unit::Tokens, 60),
        ("requests per 10s", "R10S", Unit::Requests, 10),
        ("seconds of audio per minute", "AS60S", Unit::AudioSeconds, 60),
    ];
    for (words, code, unit, secs) in table {
        let text = parsed(&format!("{HEAD}{words}: Limit 40, Used 39, Requested 2. Please try again in 1s."));
        let dimension = Dimension { code: code.to_owned().into(), unit, period: Duration::from_secs(secs) };
        assert_eq!(text.dimension, Some(dimension), "{words}");
    }
    let text = parsed("Rate limit reached on images per minute (IPM): Limit 4, Used 4, Requested 1.");
    assert_eq!(text.dimension.map(|d| d.unit), Some(Unit::Requests));
}

#[test]
fn a_period_follows_from_the_wait() {
    let nameless = parsed("Rate limit reached on : Limit 500000, Used 500370, Requested 252. Please try again in 1m47.5854s.");
    assert_eq!(nameless.dimension_or_derived(), Some(Dimension::TPD));
    let odd =
        parsed("Rate limit reached on tokens in a sprint (TPX): Limit 1000, Used 900, Requested 200. Please try again in 2s.");
    assert_eq!(odd.dimension, None);
    let derived = odd.dimension_or_derived().expect("derived");
    assert_eq!((derived.code.as_ref(), derived.unit, derived.period), ("TPX", Unit::Tokens, Duration::from_secs(20)));
    let few = parsed("Rate limit reached on : Limit 30, Used 30, Requested 1. Please try again in 2s.");
    assert_eq!(few.dimension_or_derived(), None);
    let no_wait = parsed("Rate limit reached on : Limit 30, Used 300, Requested 1.");
    assert_eq!(no_wait.dimension_or_derived(), None);
}

#[test]
fn other_errors_are_no_refusals() {
    let table = [
        "Please reduce the length of the messages or completion.",
        "Invalid API Key",
        "`max_tokens` must be less than or equal to `8192`, the maximum value for `max_tokens` is less than the `context_window`",
        "Limit 5, Requested 6",
        "Rate limit reached",
        "Rate limit reached: Limit x, Requested y",
        "Request Entity Too Large",
        "",
    ];
    for text in table {
        assert_eq!(parse_refusal(text), None, "{text}");
    }
}

#[test]
fn numbers_too_large_saturate() {
    let text = parsed("Rate limit on (TPM): Limit 99999999999999999999999, Used 1, Requested 2. try again in 99999999999999999h");
    assert_eq!(text.limit, u64::MAX);
    assert!(text.wait.is_some());
    let derived = parsed(
        "Rate limit on x: Limit 18446744073709551615, Used 18446744073709551615, Requested 18446744073709551615. try again in 9999999h",
    );
    assert_eq!(derived.used, Some(u64::MAX));
    let _ = derived.dimension_or_derived();
}

proptest! {
    #[test]
    fn never_panics(text in "\\PC*") {
        let _ = parse_refusal(&format!("rate limit {text}"));
    }

    #[test]
    fn never_panics_on_broken_texts(parts in proptest::collection::vec(
        prop_oneof![
            Just("Rate limit "), Just("on "), Just("("), Just(")"), Just("tokens "), Just("per "), Just("TPM"), Just(": "),
            Just("Limit "), Just("Used "), Just("Requested "), Just("~"), Just("12"), Just("99999999999999999999"), Just(","),
            Just("try again in "), Just("3m"), Just("7.5s"), Just("é"), Just("`"), Just("per 5"), Just("second"),
        ], 0..40)) {
        if let Some(text) = parse_refusal(&parts.concat()) {
            let _ = text.dimension_or_derived();
        }
    }

    #[test]
    fn reads_back_what_groq_prints(limit in 1u64..10_000_000, used in 0u64..10_000_000, requested in 1u64..1_000_000, ms in 1u64..9_000_000) {
        let text = parsed(&format!(
            "{HEAD}tokens per minute (TPM): Limit {limit}, Used {used}, Requested {requested}. Please try again in {}s. {TAIL}",
            ms as f64 / 1000.0
        ));
        prop_assert_eq!((text.limit, text.used, text.requested), (limit, Some(used), requested));
        prop_assert_eq!(text.wait, Some(Duration::from_millis(ms)));
    }
}
