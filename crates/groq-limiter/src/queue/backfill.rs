//! Backfill: small requests may pass a blocked head while they delay it within its bypass budget.

use super::{FairQueue, Ticket};
use crate::{ablation::Mechanism, bucket::Readiness, quota_set::QuotaSet, types::Ns};

/// A blocked head lets smaller ones delay it by this share of its own time, and a little.
const BYPASS_BUDGET: (f64, Ns) = (0.25, 50_000_000);
/// So many heads are tried for passing.
const CANDIDATES: usize = 32;

/// What may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backfill {
    /// This one, now.
    Pass(Ticket),
    /// Nobody before this instant.
    Wait(Ns),
}

/// A small request that may pass the head, which is blocked until `until`: it fits, and the head can still go within its budget.
pub fn backfill(queue: &mut FairQueue, quotas: &QuotaSet, head: Ticket, until: Ns, now: Ns) -> Backfill {
    let Some(blocked) = queue.get(head).filter(|_| Mechanism::Backfill.is_on()) else { return Backfill::Wait(until) };
    let budget = match blocked.bypass_budget {
        Ns::MAX => ((until - now) as f64 * BYPASS_BUDGET.0) as Ns + BYPASS_BUDGET.1,
        left => left,
    };
    let (cost, class) = (blocked.cost, blocked.app.class);
    let mut outcome = Backfill::Wait(until);
    let mut left = budget;
    for id in queue.small_heads(CANDIDATES).into_iter().filter(|&id| id != head) {
        let Some(small) = queue.get(id) else { continue };
        let delay = quotas.delay(&cost, &small.cost, now);
        let less_urgent = small.app.class > class;
        if delay > budget || (delay > 0 && less_urgent) {
            continue;
        }
        match (quotas.readiness(&small.cost, now).0, outcome) {
            (Readiness::Now, _) => {
                (outcome, left) = (Backfill::Pass(id), budget - delay);
                break;
            }
            (Readiness::At(at), Backfill::Wait(wake)) => outcome = Backfill::Wait(wake.min(at)),
            _ => {}
        }
    }
    if let Some(blocked) = queue.get_mut(head) {
        blocked.bypass_budget = left;
    }
    outcome
}
