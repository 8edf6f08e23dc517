//! Small requests that may pass a blocked head: they fit, and delay it within its bypass budget.

use super::{Limiter, MILLISECOND};
use crate::ablation::Mechanism;
use crate::{
    bucket::{Ns, Readiness},
    queue::Id,
    types::Priority,
};

/// A blocked head lets smaller ones delay it by this share of its own time, and a little.
const BYPASS_BUDGET: (f64, Ns) = (0.25, 50 * MILLISECOND);
/// So many heads are tried for passing.
const BACKFILL_CANDIDATES: usize = 32;

impl Limiter {
    /// A small one that may pass the blocked head: it fits, and the head can still go within its bypass budget.
    pub(super) fn backfill(&mut self, head: Id, at: Ns, now: Ns) -> Option<Id> {
        if !Mechanism::Backfill.is_on() {
            return None;
        }
        let waiter = self.queue.get_mut(head)?;
        let bypass_budget =
            *waiter.bypass_budget.get_or_insert_with(|| ((at - now) as f64 * BYPASS_BUDGET.0) as Ns + BYPASS_BUDGET.1);
        let cost = waiter.cost;
        let urgent = self.queue.app_of(self.queue.get(head)?.app)?.class == Priority::Interactive;
        let mut found = None;
        let mut wake = Ns::MAX;
        for id in self.queue.small_heads().take(BACKFILL_CANDIDATES).filter(|&id| id != head) {
            let Some(small) = self.queue.get(id) else { continue };
            let delay = self.quotas.delay(&cost, &small.cost, now);
            let batch = self.queue.app_of(small.app).is_some_and(|app| app.class == Priority::Batch);
            if delay > bypass_budget || (delay > 0 && urgent && batch) {
                continue;
            }
            match self.quotas.fit(&small.cost, now).0 {
                Readiness::Now => {
                    found = Some((id, delay));
                    break;
                }
                Readiness::At(at) => wake = wake.min(at),
                Readiness::Never => {}
            }
        }
        self.wake = self.wake.map(|at| at.min(wake));
        let (id, delay) = found?;
        self.queue.get_mut(head)?.bypass_budget = Some(bypass_budget - delay);
        Some(id)
    }
}
