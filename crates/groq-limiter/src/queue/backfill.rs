//! Backfill: small requests may pass the head of the queue while it is blocked.
//!
//! The head is blocked until it fits into the quotas. A request that passes it may delay it. The sum of these delays is
//! limited by the head's bypass budget, which is set when the head is first blocked.

use super::{FairQueue, Ticket};
use crate::{ablation::Mechanism, quota_set::QuotaSet, request::Cost, types::Ns};

/// The bypass budget of a head: this share of the time for which it is blocked, and this many ns.
const BYPASS_BUDGET: (f64, Ns) = (0.25, 50_000_000);
/// The largest number of requests that are considered at a time.
const CANDIDATES: usize = 32;

/// The result of a search for a request that may pass the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backfill {
    /// This request may pass now.
    Pass(Ticket),
    /// No request can pass, and the head does not fit, before this time.
    Wait(Ns),
}

/// Looks for a small request that fits now and does not delay the head beyond its budget. The head is blocked until `until`.
pub fn backfill(queue: &mut FairQueue, quotas: &QuotaSet, head: Ticket, until: Ns, now: Ns) -> Backfill {
    let Some(blocked) = queue.get(head).filter(|_| Mechanism::Backfill.is_on()) else { return Backfill::Wait(until) };
    let budget = match blocked.bypass_budget {
        Ns::MAX => ((until - now) as f64 * BYPASS_BUDGET.0) as Ns + BYPASS_BUDGET.1,
        left => left,
    };
    let (cost, class) = (blocked.cost, blocked.app.class);
    let (mut pass, mut wake, mut left) = (None, until, budget);
    for id in queue.small_heads(CANDIDATES).into_iter().filter(|&id| id != head) {
        let Some(small) = queue.get(id) else { continue };
        let delay = delay(quotas, &cost, &small.cost, now);
        let less_urgent = small.app.class > class;
        if delay > budget || (delay > 0 && less_urgent) {
            continue;
        }
        let (ready, _) = quotas.ready(&small.cost, now);
        if ready <= now {
            (pass, left) = (Some(id), budget - delay);
            break;
        }
        wake = wake.min(ready);
    }
    if let Some(blocked) = queue.get_mut(head) {
        blocked.bypass_budget = left;
    }
    pass.map_or(Backfill::Wait(wake), Backfill::Pass)
}

/// Returns the time by which `head` would be delayed if `other` were sent before it, ns.
fn delay(quotas: &QuotaSet, head: &Cost, other: &Cost, now: Ns) -> Ns {
    let (head, other) = (&quotas.expect(*head), &quotas.expect(*other));
    let (mut alone, mut after) = (0, 0);
    for quota in &quotas.quotas {
        let (units, before) = (quota.units(head), quota.units(other));
        alone = alone.max(quota.peek(units, 0, now));
        after = after.max(quota.peek(units, before, now));
    }
    after.saturating_sub(alone)
}
