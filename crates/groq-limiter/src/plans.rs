//! Limits of Groq's plans (`plans.json`, each table with its source and date), used until the first response states them: headers
//! and refusals are trusted over them, and the operator's own limits too.

use std::{collections::BTreeMap, sync::LazyLock};

use serde::Deserialize;

use crate::settings::{ModelLimits, Plan};

/// Models and their limits under a plan, by one source.
#[derive(Deserialize)]
struct Table {
    plan: Plan,
    models: BTreeMap<String, ModelLimits>,
}

static TABLES: LazyLock<Vec<Table>> =
    LazyLock::new(|| serde_json::from_str(include_str!("plans.json")).expect("the tests read the same text"));

/// The models that Groq's tables name.
pub fn models() -> impl Iterator<Item = &'static str> {
    TABLES.iter().filter(|table| table.plan == Plan::Free).flat_map(|table| table.models.keys().map(String::as_str))
}

/// A plan's limits for a model; `None` where no table of it has such a row.
pub fn limits(plan: Plan, model: &str) -> Option<ModelLimits> {
    let plan = if plan == Plan::Auto { Plan::Free } else { plan };
    TABLES.iter().filter(|table| table.plan == plan).find_map(|table| table.models.get(model)).copied()
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
