//! Limits of Groq's plans, used until the first response states them: as printed on Groq's limits page in October 2026.
//! Headers and refusals are trusted over them.

use crate::settings::{ModelLimits, Plan};

/// The models that Groq's tables name.
pub fn models() -> impl Iterator<Item = &'static str> {
    FREE.iter().map(|(model, _)| *model)
}

/// A plan's limits for a model; `None` where its table has no such row.
pub fn limits(plan: Plan, model: &str) -> Option<ModelLimits> {
    match plan {
        Plan::Auto | Plan::Free => free(model),
        Plan::Developer => developer(model),
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

const fn text(rpm: u64, rpd: u64, tpm: u64, tpd: u64) -> ModelLimits {
    ModelLimits {
        requests_per_minute: Some(rpm),
        requests_per_day: Some(rpd),
        tokens_per_minute: Some(tpm),
        tokens_per_day: Some(tpd),
        ..NOTHING
    }
}

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

const AUDIO: ModelLimits = ModelLimits {
    requests_per_minute: Some(20),
    requests_per_day: Some(2000),
    audio_seconds_per_hour: Some(7200),
    audio_seconds_per_day: Some(28_800),
    ..NOTHING
};

const FREE: &[(&str, ModelLimits)] = &[
    ("openai/gpt-oss-120b", text(30, 1000, 8000, 200_000)),
    ("openai/gpt-oss-20b", text(30, 1000, 8000, 200_000)),
    ("openai/gpt-oss-safeguard-20b", text(30, 1000, 8000, 200_000)),
    // Its separate input and output limits were observed for some organizations only: a refusal teaches them.
    ("qwen/qwen3.8-27b", text(30, 1000, 8000, 200_000)),
    ("whisper-large-v3", AUDIO),
    ("whisper-large-v3-turbo", AUDIO),
    ("canopylabs/orpheus-v1-english", text(10, 100, 1200, 3600)),
    ("canopylabs/orpheus-arabic-saudi", text(10, 100, 1200, 3600)),
    ("meta-llama/llama-prompt-guard-2-22m", text(30, 14_400, 15_000, 500_000)),
    ("meta-llama/llama-prompt-guard-2-86m", text(30, 14_400, 15_000, 500_000)),
    ("llama-3.1-8b-instant", text(30, 14_400, 6000, 500_000)),
    ("llama-3.3-70b-versatile", text(30, 1000, 12_000, 100_000)),
    ("moonshotai/kimi-k2-instruct", text(60, 1000, 10_000, 300_000)),
    ("moonshotai/kimi-k2-instruct-0905", text(60, 1000, 10_000, 300_000)),
    ("qwen/qwen3-32b", text(60, 1000, 6000, 500_000)),
];

fn free(model: &str) -> Option<ModelLimits> {
    FREE.iter().find(|(known, _)| *known == model).map(|(_, limits)| *limits)
}

fn developer(model: &str) -> Option<ModelLimits> {
    let text = |rpm, tpm| ModelLimits { requests_per_minute: Some(rpm), tokens_per_minute: Some(tpm), ..NOTHING };
    let audio = |rpm, seconds| ModelLimits { requests_per_minute: Some(rpm), audio_seconds_per_hour: Some(seconds), ..NOTHING };
    Some(match model {
        "openai/gpt-oss-120b" | "openai/gpt-oss-20b" | "qwen/qwen3.8-27b" => text(1000, 250_000),
        "openai/gpt-oss-safeguard-20b" => text(1000, 150_000),
        "whisper-large-v3" => audio(300, 200_000),
        "whisper-large-v3-turbo" => audio(400, 400_000),
        "canopylabs/orpheus-v1-english" | "canopylabs/orpheus-arabic-saudi" => text(250, 50_000),
        "meta-llama/llama-prompt-guard-2-22m" | "meta-llama/llama-prompt-guard-2-86m" => text(100, 30_000),
        _ => return None,
    })
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
