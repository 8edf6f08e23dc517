//! The limits of Groq's plans, from `plans.json`, where each table has its source and date.
//!
//! They apply until the first response states the limits. Headers, refusals and configured limits take precedence over them.

use std::{collections::BTreeMap, sync::LazyLock};

use serde::Deserialize;

use crate::settings::{ModelLimits, Plan};

/// The limits of models under a plan, from one source.
#[derive(Deserialize)]
struct Table {
    plan: Plan,
    models: BTreeMap<String, ModelLimits>,
}

static TABLES: LazyLock<Vec<Table>> =
    LazyLock::new(|| serde_json::from_str(include_str!("plans.json")).expect("the tests read the same text"));

/// The models in the table of the free plan.
pub fn models() -> impl Iterator<Item = &'static str> {
    TABLES.iter().filter(|table| table.plan == Plan::Free).flat_map(|table| table.models.keys().map(String::as_str))
}

/// The limits of a model under a plan; `None` if the plan's tables do not have the model.
pub fn limits(plan: Plan, model: &str) -> Option<ModelLimits> {
    let plan = if plan == Plan::Auto { Plan::Free } else { plan };
    TABLES.iter().filter(|table| table.plan == plan).find_map(|table| table.models.get(model)).copied()
}

/// The plan whose limits agree with the headers of a response, which show tokens per minute and requests per day; `None` if no
/// plan's do.
pub fn matching(model: &str, tokens_per_minute: Option<u64>, requests_per_day: Option<u64>) -> Option<Plan> {
    [Plan::Free, Plan::Developer].into_iter().find(|&plan| {
        let Some(row) = limits(plan, model) else { return false };
        let tokens = agree(row.tokens_per_minute, tokens_per_minute);
        let requests = agree(row.requests_per_day, requests_per_day);
        // At least one limit must agree and none may differ. A row without either limit does not match.
        tokens != Some(false) && requests != Some(false) && (tokens.is_some() || requests.is_some())
    })
}

/// Whether both are the same; `None` if either is missing.
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
