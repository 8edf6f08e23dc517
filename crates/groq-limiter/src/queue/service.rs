//! What a request counts for in fair queueing: its size class, and the service that its app receives with it.

use crate::{
    ablation::Mechanism,
    quota_set::QuotaSet,
    request::Cost,
    types::{Ns, Unit},
};

/// Returns the size class, 0 to 3, by the largest share of any limit that the cost takes. Limits on requests do not count.
pub fn size_class(quotas: &QuotaSet, cost: &Cost) -> u8 {
    if !Mechanism::SizeClasses.is_on() {
        return 0;
    }
    let cost = &quotas.expect(*cost);
    let counting = quotas.quotas.iter().filter(|quota| quota.dimension.unit != Unit::Requests);
    let share = counting.map(|quota| quota.units(cost) as f64 / quota.bucket().capacity() as f64).fold(0.0, f64::max);
    [1.0 / 32.0, 1.0 / 8.0, 0.5].iter().filter(|&&bound| share > bound).count() as u8
}

/// Returns the service that `cost` is for its app: its largest share, over all dimensions, of what is left plus what refills
/// within a minute.
pub fn service(quotas: &QuotaSet, cost: &Cost, now: Ns) -> f64 {
    let shares = quotas.quotas.iter().map(|quota| {
        let bucket = quota.bucket();
        quota.units(cost) as f64 / (bucket.remaining(now).max(0.0) + 60.0 * bucket.rate())
    });
    shares.fold(0.0, f64::max)
}
