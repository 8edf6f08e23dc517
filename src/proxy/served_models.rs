//! The models that each organization has recently used successfully, for the error message when Groq does not have a model.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use foldhash::HashMap;
use tokio::time::Instant;

/// Maximum number of models per organization; the least recently used one is dropped.
const MAX_MODELS: usize = 8;
/// Maximum number of organizations: each unlisted key is one, so clients can create any number.
const MAX_ORGANIZATIONS: usize = 1000;
/// Maximum bytes of a model's name; longer ones are not stored.
const MAX_NAME: usize = 128;
/// How long a success counts as recent.
const RECENT: Duration = Duration::from_secs(24 * 3600);

/// A model, the endpoint it was used on (a whisper model is no alternative for chat), and its last success.
#[derive(Debug)]
struct Served {
    model: Arc<str>,
    endpoint: &'static str,
    at: Instant,
}

/// The latest successes by organization, at most about 1 MB.
#[derive(Debug, Default)]
pub struct ServedModels(Mutex<HashMap<Arc<str>, Vec<Served>>>);

/// The endpoint that represents all endpoints with the same models.
fn kind(endpoint: &'static str) -> &'static str {
    if endpoint == "responses" { "chat" } else { endpoint }
}

impl ServedModels {
    /// Records that `model` served a request of `organization` on `endpoint`.
    pub(super) fn add(&self, organization: &Arc<str>, model: &Arc<str>, endpoint: &'static str, now: Instant) {
        if model.is_empty() || model.len() > MAX_NAME {
            return;
        }
        let endpoint = kind(endpoint);
        let mut organizations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(models) = organizations.get_mut(organization) {
            match models.iter_mut().find(|served| served.model == *model && served.endpoint == endpoint) {
                Some(served) => served.at = now,
                None => {
                    if models.len() == MAX_MODELS
                        && let Some(oldest) = (0..models.len()).min_by_key(|&n| models[n].at)
                    {
                        models.swap_remove(oldest);
                    }
                    models.push(Served { model: model.clone(), endpoint, at: now });
                }
            }
            return;
        }
        if organizations.len() == MAX_ORGANIZATIONS {
            let latest = |models: &[Served]| models.iter().map(|served| served.at).max();
            let oldest = organizations.iter().min_by_key(|(_, models)| latest(models)).map(|(name, _)| name.clone());
            oldest.map(|oldest| organizations.remove(&oldest));
        }
        organizations.insert(organization.clone(), vec![Served { model: model.clone(), endpoint, at: now }]);
    }

    /// The models that recently served requests of `organization` on `endpoint`, latest first.
    pub(super) fn list(&self, organization: &str, endpoint: &'static str, now: Instant) -> Vec<Arc<str>> {
        let endpoint = kind(endpoint);
        let organizations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let models = organizations.get(organization).into_iter().flatten();
        let mut recent: Vec<_> =
            models.filter(|served| served.endpoint == endpoint && now.duration_since(served.at) < RECENT).collect();
        recent.sort_by_key(|served| std::cmp::Reverse(served.at));
        recent.into_iter().map(|served| served.model.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: impl Into<String>) -> Arc<str> {
        text.into().into()
    }

    #[test]
    fn the_latest_models_of_an_endpoint_come_first_and_old_ones_not_at_all() {
        let (served, start) = (ServedModels::default(), Instant::now());
        let hour = Duration::from_secs(3600);
        served.add(&name("acme"), &name("old"), "chat", start);
        served.add(&name("acme"), &name("a"), "chat", start + 2 * hour);
        served.add(&name("acme"), &name("b"), "chat", start + 3 * hour);
        served.add(&name("acme"), &name("a"), "chat", start + 4 * hour);
        served.add(&name("acme"), &name("whisper"), "transcriptions", start + 4 * hour);
        served.add(&name("other"), &name("c"), "chat", start + 4 * hour);
        let list = |organization, endpoint| served.list(organization, endpoint, start + 24 * hour);
        assert_eq!(list("acme", "chat"), [name("a"), name("b")]);
        assert_eq!(list("acme", "responses"), list("acme", "chat"));
        assert_eq!(list("acme", "transcriptions"), [name("whisper")]);
        assert!(list("nobody", "chat").is_empty());
    }

    #[test]
    fn names_that_clients_choose_take_bounded_memory() {
        let (served, start) = (ServedModels::default(), Instant::now());
        let at = |n: usize| start + Duration::from_millis(n as u64);
        for n in 0..MAX_ORGANIZATIONS + 50 {
            served.add(&name(format!("o{n}")), &name("m"), "chat", at(n));
        }
        for n in 0..100 {
            served.add(&name("acme"), &name(format!("m{n}")), "chat", at(5000 + n));
        }
        served.add(&name("acme"), &name("x".repeat(10_000)), "chat", at(6000));
        assert_eq!(served.0.lock().expect("unpoisoned").len(), MAX_ORGANIZATIONS);
        let models = served.list("acme", "chat", at(6000));
        assert_eq!((models.len(), &models[0]), (MAX_MODELS, &name("m99")));
        assert!(served.list("o3", "chat", at(6000)).is_empty(), "the least recently used one is dropped");
    }
}
