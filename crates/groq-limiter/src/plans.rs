//! Limits of Groq's plans, each table with its date and source, used until the first response states them: headers and
//! refusals are trusted over them, and the operator's own limits too.

use crate::settings::{ModelLimits, Plan};

/// The models that Groq's tables name.
pub fn models() -> impl Iterator<Item = &'static str> {
    FREE.iter().chain(FREE_OLDER).map(|(model, _)| *model)
}

/// A plan's limits for a model; `None` where its table has no such row.
pub fn limits(plan: Plan, model: &str) -> Option<ModelLimits> {
    let row = |table: &Table| table.iter().find(|(known, _)| *known == model).map(|(_, limits)| *limits);
    match plan {
        Plan::Auto | Plan::Free => row(FREE).or_else(|| row(FREE_OLDER)),
        Plan::Developer => row(DEVELOPER),
        Plan::None => None,
    }
}

/// The plan whose visible limits (tokens a minute, requests a day) agree with what an answer's headers say.
/// `None`: neither does.
pub fn matching(model: &str, tokens_per_minute: Option<u64>, requests_per_day: Option<u64>) -> Option<Plan> {
    [Plan::Free, Plan::Developer].into_iter().find(|&plan| {
        let Some(row) = limits(plan, model) else { return false };
        let tokens = agree(row.tokens_per_minute, tokens_per_minute);
        let requests = agree(row.requests_per_day, requests_per_day);
        // One agreement at least, no contradiction: a row that shows nothing proves nothing.
        tokens != Some(false) && requests != Some(false) && (tokens.is_some() || requests.is_some())
    })
}

fn agree(table: Option<u64>, header: Option<u64>) -> Option<bool> {
    Some(table? == header?)
}

/// A plan's table: models and their limits.
type Table = [(&'static str, ModelLimits)];

/// Free plan. Source: <https://console.groq.com/docs/rate-limits>, October 2026; but the input and output tokens of qwen3.8-27b are
/// on no page: refusals of September 2026 state them (ITPM 7000, OTPM 1000).
const FREE: &Table = &[
    ("openai/gpt-oss-120b", tokens([30, 1000, 8000, 200_000])),
    ("openai/gpt-oss-20b", tokens([30, 1000, 8000, 200_000])),
    ("openai/gpt-oss-safeguard-20b", tokens([30, 1000, 8000, 200_000])),
    (
        "qwen/qwen3.8-27b",
        ModelLimits {
            input_tokens_per_minute: Some(7000),
            output_tokens_per_minute: Some(1000),
            ..tokens([30, 1000, 8000, 200_000])
        },
    ),
    ("whisper-large-v3", audio([20, 2000, 7200, 28_800])),
    ("whisper-large-v3-turbo", audio([20, 2000, 7200, 28_800])),
    ("canopylabs/orpheus-v1-english", tokens([10, 100, 1200, 3600])),
    ("canopylabs/orpheus-arabic-saudi", tokens([10, 100, 1200, 3600])),
    ("meta-llama/llama-prompt-guard-2-22m", tokens([30, 14_400, 15_000, 500_000])),
    ("meta-llama/llama-prompt-guard-2-86m", tokens([30, 14_400, 15_000, 500_000])),
];

/// Free plan, models that the page of October 2026 no longer lists. Source: its earlier versions.
const FREE_OLDER: &Table = &[
    ("llama-3.1-8b-instant", tokens([30, 14_400, 6000, 500_000])),
    ("llama-3.3-70b-versatile", tokens([30, 1000, 12_000, 100_000])),
    ("moonshotai/kimi-k2-instruct", tokens([60, 1000, 10_000, 300_000])),
    ("moonshotai/kimi-k2-instruct-0905", tokens([60, 1000, 10_000, 300_000])),
    ("qwen/qwen3-32b", tokens([60, 1000, 6000, 500_000])),
];

/// Developer plan. Source: <https://console.groq.com/docs/rate-limits>, October 2026; it has no limits by the day. Some organizations
/// were seen to have limits on the input and output tokens of qwen3.8-27b here too, whose figures are not known.
const DEVELOPER: &Table = &[
    ("openai/gpt-oss-120b", tokens([1000, 0, 250_000, 0])),
    ("openai/gpt-oss-20b", tokens([1000, 0, 250_000, 0])),
    ("openai/gpt-oss-safeguard-20b", tokens([1000, 0, 150_000, 0])),
    ("qwen/qwen3.8-27b", tokens([1000, 0, 250_000, 0])),
    ("whisper-large-v3", audio([300, 0, 200_000, 0])),
    ("whisper-large-v3-turbo", audio([400, 0, 400_000, 0])),
    ("canopylabs/orpheus-v1-english", tokens([250, 0, 50_000, 0])),
    ("canopylabs/orpheus-arabic-saudi", tokens([250, 0, 50_000, 0])),
    ("meta-llama/llama-prompt-guard-2-22m", tokens([100, 0, 30_000, 0])),
    ("meta-llama/llama-prompt-guard-2-86m", tokens([100, 0, 30_000, 0])),
];

const NOTHING: ModelLimits = ModelLimits {
    requests_per_minute: None,
    requests_per_day: None,
    tokens_per_minute: None,
    tokens_per_day: None,
    input_tokens_per_minute: None,
    output_tokens_per_minute: None,
    audio_seconds_per_hour: None,
    audio_seconds_per_day: None,
    assumed_completion_tokens: None,
};

/// RPM, RPD, TPM, TPD; 0: no limit.
const fn tokens([rpm, rpd, tpm, tpd]: [u64; 4]) -> ModelLimits {
    ModelLimits {
        requests_per_minute: limit(rpm),
        requests_per_day: limit(rpd),
        tokens_per_minute: limit(tpm),
        tokens_per_day: limit(tpd),
        ..NOTHING
    }
}

/// RPM, RPD, seconds of audio per hour and per day; 0: no limit.
const fn audio([rpm, rpd, per_hour, per_day]: [u64; 4]) -> ModelLimits {
    ModelLimits {
        requests_per_minute: limit(rpm),
        requests_per_day: limit(rpd),
        audio_seconds_per_hour: limit(per_hour),
        audio_seconds_per_day: limit(per_day),
        ..NOTHING
    }
}

const fn limit(figure: u64) -> Option<u64> {
    if figure == 0 { None } else { Some(figure) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_tell_the_plan() {
        let model = "openai/gpt-oss-20b";
        assert_eq!(matching(model, Some(8000), Some(1000)), Some(Plan::Free));
        assert_eq!(matching(model, Some(8000), None), Some(Plan::Free));
        assert_eq!(matching(model, Some(250_000), Some(500_000)), Some(Plan::Developer));
        assert_eq!(matching(model, Some(60_000), Some(1000)), None);
        assert_eq!(matching(model, None, None), None);
        assert_eq!(matching("never-heard-of", Some(8000), Some(1000)), None);
    }

    #[test]
    fn auto_starts_from_free_and_none_from_nothing() {
        assert_eq!(limits(Plan::Auto, "openai/gpt-oss-20b"), limits(Plan::Free, "openai/gpt-oss-20b"));
        assert_eq!(limits(Plan::None, "openai/gpt-oss-20b"), None);
    }
}
