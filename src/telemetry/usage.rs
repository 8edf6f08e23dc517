//! Usage since the start by app and model.

use std::{collections::BTreeMap, sync::Arc};

use super::Telemetry;

/// An app's usage of a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AppUsage {
    /// Requests that have ended.
    pub requests: u64,
    /// Prompt tokens, cached ones included.
    pub prompt: u64,
    /// Prompt tokens that came from the cache.
    pub cached: u64,
    /// Completion tokens.
    pub completion: u64,
    /// Cost, billionths of a USD.
    pub nano_usd: u64,
}

impl Telemetry {
    /// The usage of each app (or `other`, beyond the bound of names) by model since the start. Requests without a model are under
    /// the empty name.
    pub fn usage(&self) -> BTreeMap<(Arc<str>, Arc<str>), AppUsage> {
        let sums = self.counts.sums();
        let mut usage: BTreeMap<_, AppUsage> = BTreeMap::new();
        for (row, n) in sums.requests {
            usage.entry((row.app, row.model)).or_default().requests += n;
        }
        for (key, used) in sums.apps {
            let entry = usage.entry(key).or_default();
            (entry.prompt, entry.cached, entry.completion) = (used.prompt, used.cached, used.completion);
            entry.nano_usd = used.nano_usd;
        }
        usage
    }
}
