//! Injected faults and the conditions on which they apply.

use serde::Deserialize;

use crate::action::Action;

/// A fault and its conditions. The first fault of a list whose conditions all hold is injected. As JSON, a list of objects, each
/// with conditions and an `action` with its members:
///
/// ```json
/// [{"nth": 1, "action": "status", "status": 503},
///  {"nth": [2, 4], "path": "/chat", "action": "cut", "after": 3, "half": true},
///  {"model": "openai/gpt-oss-20b", "probability": 0.1, "times": 5, "action": "refused",
///   "message": "Rate limit reached …", "retry_after": "2"}]
/// ```
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Fault {
    /// A substring of the request's path.
    #[serde(default)]
    pub path: Option<String>,
    /// The request's model.
    #[serde(default)]
    pub model: Option<String>,
    /// Numbers of the requests with this path and model, counted from 1; empty for all.
    #[serde(default, deserialize_with = "one_or_many")]
    pub nth: Vec<u64>,
    /// Probability, 0 to 1. The outcomes depend on the simulator's seed.
    #[serde(default)]
    pub probability: Option<f64>,
    /// Maximum number of times that the fault is injected.
    #[serde(default)]
    pub times: Option<u64>,
    /// The effect.
    #[serde(flatten)]
    pub action: Action,
}

impl Fault {
    /// A fault for every request.
    pub fn always(action: Action) -> Self {
        Self { action, ..Self::default() }
    }

    /// A fault for the `nth` request, counted from 1.
    pub fn nth(nth: u64, action: Action) -> Self {
        Self { nth: vec![nth], action, ..Self::default() }
    }
}

/// The faults, and how often the conditions of each held and it was injected.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    list: Vec<(Fault, u64, u64)>,
    random: fastrand::Rng,
}

impl Faults {
    pub(crate) fn new(list: Vec<Fault>, seed: u64) -> Self {
        Self { list: list.into_iter().map(|fault| (fault, 0, 0)).collect(), random: fastrand::Rng::with_seed(seed) }
    }

    /// The fault of the next request with this path and model.
    pub(crate) fn next(&mut self, path: &str, model: &str) -> Option<Action> {
        let mut injected = None;
        for (fault, seen, times) in &mut self.list {
            let here = fault.path.as_ref().is_none_or(|part| path.contains(part.as_str()))
                && fault.model.as_ref().is_none_or(|name| name == model);
            if !here {
                continue;
            }
            *seen += 1;
            let chance = fault.probability.is_none_or(|chance| self.random.f64() < chance);
            let turn = fault.nth.is_empty() || fault.nth.contains(seen);
            if injected.is_none() && chance && turn && fault.times.is_none_or(|most| *times < most) {
                *times += 1;
                injected = Some(fault.action.clone());
            }
        }
        injected
    }
}

fn one_or_many<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<u64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany {
        One(u64),
        Many(Vec<u64>),
    }
    Ok(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(nth) => vec![nth],
        OneOrMany::Many(nth) => nth,
    })
}
