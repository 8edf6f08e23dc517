//! The limits that a limiter starts from: the operator's settings and the table of a plan.

use std::sync::Arc;

use crate::{
    plans,
    quota::Statements,
    settings::{LimitSettings, Plan},
    types::Dimension,
};

/// The settings and the plan of one limiter.
#[derive(Debug)]
pub(crate) struct InitialLimits {
    pub(crate) model: Arc<str>,
    pub(super) settings: Arc<LimitSettings>,
    /// The plan whose table is in force; `None` if no plan fits the headers.
    plan: Option<Plan>,
}

impl InitialLimits {
    pub(super) fn new(model: Arc<str>, settings: Arc<LimitSettings>) -> Self {
        Self { plan: Some(settings.plan), model, settings }
    }

    /// Applies changed settings.
    pub(super) fn reconfigure(&mut self, settings: Arc<LimitSettings>) {
        if self.settings.plan != settings.plan {
            self.plan = Some(settings.plan);
        }
        self.settings = settings;
    }

    /// With the plan `auto`: switches to the plan whose table has these limits, which headers show, or to none.
    pub(super) fn follow_headers(&mut self, tokens_per_minute: Option<u64>, requests_per_day: Option<u64>) {
        if self.settings.plan == Plan::Auto && (tokens_per_minute.is_some() || requests_per_day.is_some()) {
            self.plan = plans::matching(&self.model, tokens_per_minute, requests_per_day);
        }
    }

    /// Returns what the settings and the plan state about every known dimension.
    pub(super) fn statements(&self) -> impl Iterator<Item = (Dimension, Statements)> + use<> {
        let chosen = matches!(self.settings.plan, Plan::Free | Plan::Developer);
        let configured = self.settings.of_model(&self.model).by_dimension();
        let row = self.plan.and_then(|plan| plans::limits(plan, &self.model)).unwrap_or_default().by_dimension();
        configured.into_iter().zip(row).map(move |((dimension, configured), (_, row))| {
            let plan = row.map(|limit| (limit, chosen));
            (dimension, Statements { configured, plan, stated: None })
        })
    }
}
