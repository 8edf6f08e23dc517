//! Who may pass a head that is blocked? A small one that fits, and delays the head by no more than a share of its own time.

use super::{Lane, MILLISECOND};
use crate::ablation::Mechanism;
use crate::{
    bucket::{Fit, Ns},
    line::Id,
    types::Priority,
};

/// A blocked head lets smaller ones delay it by this share of its own time, and a little.
const SLACK: (f64, Ns) = (0.25, 50 * MILLISECOND);
/// So many heads are tried for passing.
const PASSING: usize = 32;

impl Lane {
    /// A small one that may pass the blocked head: it fits, and the head can still go within its slack.
    pub(super) fn passing(&mut self, head: Id, at: Ns, now: Ns) -> Option<Id> {
        if !Mechanism::Backfill.is_on() {
            return None;
        }
        let waiter = self.line.get_mut(head)?;
        let slack = *waiter.slack.get_or_insert_with(|| ((at - now) as f64 * SLACK.0) as Ns + SLACK.1);
        let amount = waiter.amount;
        let urgent = self.line.app_of(self.line.get(head)?.app)?.class == Priority::Interactive;
        let mut found = None;
        let mut wake = Ns::MAX;
        for id in self.line.small_heads().take(PASSING).filter(|&id| id != head) {
            let Some(small) = self.line.get(id) else { continue };
            let delay = self.books.delay(&amount, &small.amount, now);
            let batch = self.line.app_of(small.app).is_some_and(|app| app.class == Priority::Batch);
            if delay > slack || (delay > 0 && urgent && batch) {
                continue;
            }
            match self.books.fit(&small.amount, now).0 {
                Fit::Now => {
                    found = Some((id, delay));
                    break;
                }
                Fit::At(at) => wake = wake.min(at),
                Fit::Never => {}
            }
        }
        self.wake = self.wake.map(|at| at.min(wake));
        let (id, delay) = found?;
        self.line.get_mut(head)?.slack = Some(slack - delay);
        Some(id)
    }
}
