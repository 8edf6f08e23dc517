//! Prices are complete: a part without a price would be counted as free.

use groq_limiter::{plans, settings::Plan};

use super::{document::Document, settings::Settings, text::quoted};

/// Adds a fault for each price without a part that its model needs, which would not count towards budgets.
pub(super) fn complete(settings: &Settings, document: &mut Document<'_>) {
    for (model, price) in &settings.price {
        let path = format!("price.{model}");
        // What was refused is not missing.
        if document.is_refused(&path) {
            continue;
        }
        let is_audio = plans::limits(Plan::Free, model).map(|limits| limits.audio_seconds_per_hour.is_some());
        let has_tokens = price.input.is_some() || price.output.is_some() || price.cached_input.is_some();
        let needs_audio = is_audio == Some(true);
        let needs_tokens = has_tokens || is_audio == Some(false) || price.audio_hour.is_none() && !needs_audio;
        let keys = [
            ("`input`", needs_tokens && price.input.is_none()),
            ("`output`", needs_tokens && price.output.is_none()),
            ("`audio_hour`", needs_audio && price.audio_hour.is_none()),
        ];
        let missing: Vec<_> = keys.into_iter().filter(|(_, is_missing)| *is_missing).map(|(key, _)| key).collect();
        if !missing.is_empty() {
            let message = format!("without {}, part of what {} takes would cost nothing", missing.join(" and "), quoted(model));
            let help = "USD for a million tokens or an hour of audio; 0.0 where it is free of charge";
            document.refuse(&path, message, help);
        }
    }
}
