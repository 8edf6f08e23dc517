//! What prices have to say: a wrong bill is worse than none.

use groq_limiter::{plans, settings::Plan};

use super::{document::Document, settings::Settings, text::quoted};

/// Prices that leave out a part of what their models take: it would be free of charge, and a budget in USD would never end.
pub(super) fn complete(settings: &Settings, document: &mut Document<'_>) {
    for (model, price) in &settings.price {
        let path = format!("price.{model}");
        // What was refused is not missing.
        if document.is_refused(&path) {
            continue;
        }
        let is_audio = plans::limits(Plan::Free, model).map(|limits| limits.audio_seconds_per_hour.is_some());
        let has_tokens = price.input.is_some() || price.output.is_some() || price.cached_input.is_some();
        let (message, help) = match (price.input, price.output, price.audio_hour) {
            (_, _, None) if is_audio == Some(true) => {
                (format!("{} is paid by the hour of audio: `audio_hour` is missing", quoted(model)), "such as audio_hour = 0.04")
            }
            (None, None, Some(_)) if is_audio == Some(false) => {
                let message = format!("{} is paid by the token: `input` and `output` are missing", quoted(model));
                (message, "such as input = 0.1, output = 0.5")
            }
            (None, None, None) if !has_tokens => {
                ("a price without figures".into(), "set input and output (USD per million tokens), or audio_hour")
            }
            (None, _, _) if has_tokens => {
                ("`input` is missing: prompts would cost nothing".into(), "input = 0.0 where they are free of charge")
            }
            (Some(_), None, _) => {
                ("`output` is missing: completions would cost nothing".into(), "output = 0.0 where they are free of charge")
            }
            _ => continue,
        };
        document.refuse(&path, (message, help));
    }
}
