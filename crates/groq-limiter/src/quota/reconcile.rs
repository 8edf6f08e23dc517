//! Headers and refusals correct a quota by send position, and teach its safety margin and external usage.

use super::{MEMORY, Quota, SECOND, send_snapshot::SendSnapshot};
use crate::ablation::Mechanism;
use crate::{bucket::Ns, store::protocol::SentObservation, types::Unit};

/// The end of an older limit: positions up to `position` were marked under it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FormerLimit {
    pub(super) position: u64,
    pub(super) unit: Ns,
    pub(super) corrections: i64,
}

impl Quota {
    /// Groq says that `used` units were taken at `at`, the request at this position included. Only a newer position
    /// than all before counts, so late answers, in any order, do no harm. The correction in ns.
    pub fn observe(&mut self, position: u64, snapshot: SendSnapshot, used: u64, at: Ns, now: Ns) -> Option<i64> {
        let (snapshot, at) = if Mechanism::SendPosition.is_on() { (snapshot, at) } else { (self.snapshot(), now) };
        if position <= self.newest && Mechanism::SendPosition.is_on() {
            return None;
        }
        let first = std::mem::replace(&mut self.newest, position) == 0;
        let snapshot = self.rescaled(position, snapshot, at);
        let bucket = self.bucket.as_mut()?;
        let expected = snapshot.tat.saturating_add_signed(self.corrections.wrapping_sub(snapshot.corrections)).max(at);
        let truth = bucket.tat_of(used, at);
        let error = (i128::from(truth) - i128::from(expected)).clamp(i64::MIN.into(), i64::MAX.into()) as i64;
        // Less in use than expected may be what was overtaken on its way, or a refund that both have seen.
        let uncertainties = self.uncertainties.iter().filter(|&&(first, last, _)| (first..=last).contains(&position));
        let uncertain = uncertainties.fold(snapshot.recent, |sum: Ns, &(.., span)| sum.saturating_add(span));
        let uncertain = if Mechanism::Uncertainty.is_on() { uncertain } else { 0 };
        let error = if error < 0 { error.saturating_add_unsigned(uncertain).min(0) } else { error };
        self.uncertainties.retain(|&(_, last, _)| last > position);
        bucket.correct(error, at, now);
        self.corrections = self.corrections.wrapping_add(error);
        self.report_observation(SentObservation { position, snapshot, at, truth });
        // What was taken before our first request does not say how fast others take.
        if !first && Mechanism::ExternalUsage.is_on() {
            self.external = (self.external + error as f64 / MEMORY).clamp(0.0, 0.9);
        }
        Some(error)
    }

    /// A refusal of our own: more is kept back, and where no header shows this dimension, the others' share is learnt
    /// from what grew beyond our quotas since the last one. `gap` is the refusal's correction, ns.
    pub fn refused(&mut self, position: u64, last_position: u64, gap: i64, now: Ns) {
        // Those that were on their way already teach nothing more.
        if position <= self.refused_until {
            return;
        }
        self.refused_until = last_position;
        if let Some(last) = self.last_refusal {
            if Mechanism::MarginGrowth.is_on() {
                self.margin_growth += if self.dimension.unit == Unit::Requests { 1.0 } else { self.typical };
            }
            if !self.is_visible() && Mechanism::ExternalUsage.is_on() {
                let since = (now.saturating_sub(last) as f64).max(20.0 * SECOND);
                self.learnt_external = (self.learnt_external + 0.5 * gap.max(0) as f64 / since).min(0.9);
            }
        }
        self.last_refusal = Some(now);
    }

    /// A snapshot in today's units.
    fn rescaled(&self, position: u64, snapshot: SendSnapshot, at: Ns) -> SendSnapshot {
        let Some(bucket) = self.bucket.as_ref().filter(|_| position <= self.before.position) else { return snapshot };
        let FormerLimit { unit, corrections, .. } = self.before;
        let tat = snapshot.tat.saturating_add_signed(corrections.wrapping_sub(snapshot.corrections));
        let used = tat.saturating_sub(at).checked_div(unit).unwrap_or(0);
        SendSnapshot { tat: bucket.tat_of(used, at), corrections, ..snapshot }
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        quota::{Quota, Statements},
        types::Dimension,
    };

    #[test]
    fn what_was_taken_before_our_first_request_is_nobodys_rate() {
        let statements = Statements { configured: Some(60_000), ..Statements::default() };
        let mut quota = Quota::new(Dimension::TPM, statements, 0.0, 0);
        quota.observe(1, quota.snapshot(), 57_000, 0, 0);
        assert_eq!((quota.external(), quota.is_full(0)), (0.0, false), "only the quota is corrected");
        quota.observe(2, quota.snapshot(), 60_000, 0, 0);
        assert!((0.04..0.06).contains(&quota.external()), "a twentieth of a minute's limit came since");
    }
}
