//! Apps with a budget in USD that use models without a price, whose usage does not count towards that budget.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use super::{Telemetry, access};

/// Maximum number of pairs of app and model; clients choose both names.
const KEPT: usize = 200;

/// The pairs of app and model that were seen.
#[derive(Debug, Default)]
pub(super) struct Unpriced(Mutex<BTreeSet<(Arc<str>, Arc<str>)>>);

impl Telemetry {
    /// Records that `app`, which has a budget in USD, uses `model`, which has no price. Logged once for each pair.
    pub fn unpriced(&self, app: &Arc<str>, model: &Arc<str>) {
        let mut seen = self.unpriced.0.lock().unwrap_or_else(PoisonError::into_inner);
        let pair = (app.clone(), model.clone());
        if seen.len() < KEPT && seen.insert(pair) {
            drop(seen);
            let (app, model) = (access::clean(app, access::NAME), access::clean(model, access::NAME));
            tracing::warn!(%app, %model, "the app has a budget in USD and uses a model without a price, which does not count towards the budget; add it to [price]");
        }
    }

    /// Forgets all pairs after a change of prices: models that still have none are recorded again on use.
    pub fn forget_unpriced(&self) {
        self.unpriced.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The models without a price that `app` has used although it has a budget in USD.
    pub fn unpriced_of(&self, app: &str) -> Vec<Arc<str>> {
        let seen = self.unpriced.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter().filter(|(user, _)| &**user == app).map(|(_, model)| model.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pair_is_kept_once_and_as_many_as_clients_like_are_bounded() {
        let telemetry = Telemetry::default();
        for n in 0..2 * KEPT {
            for _ in 0..2 {
                telemetry.unpriced(&"a".into(), &format!("m{n}").into());
            }
        }
        let models = telemetry.unpriced_of("a");
        assert_eq!((models.len(), models.iter().collect::<BTreeSet<_>>().len()), (KEPT, KEPT));
        assert!(telemetry.unpriced_of("b").is_empty());
        telemetry.forget_unpriced();
        assert!(telemetry.unpriced_of("a").is_empty());
    }
}
