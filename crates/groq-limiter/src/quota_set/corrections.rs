//! Corrections of the quotas by a response: by its headers, which show what is in use, and by the text of a refusal.

use std::time::Duration;

use super::{QuotaSet, Reserved};
use crate::{
    quota::Reported,
    types::{Dimension, Ns, Observation, RemoteQuota, Source, Unit, UpstreamRefusal},
};

/// The corrections by the response to one request.
#[derive(Debug)]
pub struct Corrections<'a> {
    quotas: &'a mut QuotaSet,
    reserved: &'a mut Reserved,
    /// The estimated time at which Groq received the request.
    received: Ns,
    now: Ns,
}

impl<'a> Corrections<'a> {
    /// The corrections by the response to a request that has taken `delay` ns to reach Groq.
    pub fn new(quotas: &'a mut QuotaSet, reserved: &'a mut Reserved, delay: Ns, now: Ns) -> Self {
        let received = reserved.sent_at.saturating_add(delay);
        Self { quotas, reserved, received, now }
    }

    /// Corrects the quotas that the headers show. `counted` is whether the headers include the request itself, which those
    /// of a refusal do not.
    pub fn headers(&mut self, state: &Observation, counted: bool) {
        let audio = state.audio.map(|shown| (self.audio_dimension(&shown), Some(shown)));
        let shown = [(Dimension::TPM, state.tokens), (Dimension::RPD, state.requests)].into_iter().chain(audio);
        let mut news = false;
        for (dimension, shown) in shown {
            let Some(shown) = shown.filter(|shown| shown.limit > 0) else { continue };
            let known = self.quotas.quotas.len();
            let Some((slot, is_news)) = self.quotas.state(&dimension, shown.limit, Source::Headers, self.now) else { continue };
            // A bound that was added with this limit starts with the same used units, so it includes the request.
            for slot in (known..self.quotas.quotas.len()).filter(|&slot| self.quotas.quotas[slot].is_bound) {
                self.reserved.cover(slot);
            }
            news |= is_news;
            self.correct(slot, shown.limit.saturating_sub(shown.remaining), counted);
        }
        if news {
            self.quotas.follow_plan(self.now);
        }
    }

    /// Corrects one slot: `used` units were in use when Groq received the request, its own included if `counted`. Returns
    /// the correction, ns; `None` if the report is ignored, for example because a newer one has come before.
    fn correct(&mut self, slot: usize, used: u64, counted: bool) -> Option<i64> {
        let Self { quotas, reserved, received: at, now } = self;
        // Positions that this process assigned alone cannot be compared with those that the store assigns.
        if quotas.shared.as_ref().is_some_and(|shared| shared.alone.is_none() && reserved.booked <= shared.forgotten) {
            return None;
        }
        let quota = &mut quotas.quotas[slot];
        let covered = reserved.covers(slot);
        let used = if covered && !counted { used.saturating_add(quota.units(&reserved.cost)) } else { used };
        // A quota that was added after the request has no snapshot of it. From now on the request is charged there as well.
        let snapshot = reserved.snapshots.get(slot).copied().unwrap_or_else(|| quota.send_snapshot());
        if counted {
            reserved.cover(slot);
        }
        let error = quota.observe(Reported { position: reserved.position, snapshot, used, at: *at }, *now)?;
        // Limits per day are too coarse: one unit of them is more than the external usage of a minute.
        if quota.statements.is_visible() && quota.dimension.period < Duration::from_secs(86_400) {
            let external = quota.external();
            quotas.headers_show(external, *now);
        }
        Some(error)
    }

    /// Returns the dimension that the undocumented audio headers describe: audio seconds per hour, unless they show the
    /// limit per day.
    fn audio_dimension(&self, shown: &RemoteQuota) -> Dimension {
        let has = |dimension: Dimension| self.quotas.find(&dimension.code).and_then(|quota| quota.limit()) == Some(shown.limit);
        if has(Dimension::ASPD) && !has(Dimension::ASPH) { Dimension::ASPD } else { Dimension::ASPH }
    }

    /// Returns the dimension of a refusal's text: the one that it names, otherwise the one with the limit that it states,
    /// otherwise the one that follows from its figures. `max` is the request's `max_completion_tokens`.
    fn dimension_of(&self, text: &UpstreamRefusal, max: Option<u32>) -> Option<Dimension> {
        let mut quotas = self.quotas.quotas.iter();
        // A limit on all tokens counts the whole of `max`. If fewer tokens were requested, the limit is on output.
        let of_output = max.is_some_and(|max| text.requested < max.into()) && text.unit.is_none_or(|unit| unit == Unit::Tokens);
        let unit = if of_output { Some(Unit::OutputTokens) } else { text.unit };
        text.dimension.clone().or_else(|| {
            let same = quotas.find(|quota| !quota.is_bound && quota.limit() == Some(text.limit));
            same.map(|quota| quota.dimension.clone()).or_else(|| UpstreamRefusal { unit, ..text.clone() }.dimension_or_derived())
        })
    }

    /// Corrects a dimension by the text of a refusal, whose figures are exact. `max` is the request's
    /// `max_completion_tokens`. Returns the dimension; `None` if the text does not tell which it is, or if it is a new one
    /// and all slots are taken.
    pub fn refusal_text(&mut self, text: &UpstreamRefusal, max: Option<u32>) -> Option<Dimension> {
        let dimension = self.dimension_of(text, max)?;
        let (slot, _) = self.quotas.state(&dimension, text.limit, Source::UpstreamRefusal, self.now)?;
        let counts_expected = self.quotas.quotas[slot].counts_expected();
        if counts_expected {
            let requested = u32::try_from(text.requested).unwrap_or(u32::MAX);
            let key = self.reserved.cost.key;
            self.quotas.expected_output.refused(key, requested, max.unwrap_or(u32::MAX), self.now);
        }
        let used = match (text.wait, text.used) {
            // The wait is exact, whereas the printed `Used` is rounded up.
            (Some(wait), _) => {
                let came_back = wait.as_secs_f64() * text.limit as f64 / dimension.period.as_secs_f64();
                (text.limit as f64 - text.requested as f64 + came_back).max(0.0).ceil() as u64
            }
            (None, Some(used)) => used,
            // The request was too large for the limit, so the text does not state what is in use.
            (None, None) => return Some(dimension),
        };
        let gap = self.correct(slot, used, false);
        // If Groq expected more output than we did, that explains the refusal, and the quota is not to blame.
        let explained = counts_expected && text.requested > self.reserved.cost.expected.into();
        if !text.hopeless() && !explained {
            self.refused(slot, gap.unwrap_or(0));
        }
        Some(dimension)
    }

    /// Corrects the quotas by the headers of a refusal without a text. Returns whether they show a dimension without room
    /// for the request.
    pub fn refusal_headers(&mut self, state: &Observation) -> bool {
        let low: Vec<Unit> = [(state.tokens, Unit::Tokens), (state.requests, Unit::Requests), (state.audio, Unit::AudioSeconds)]
            .into_iter()
            .filter(|(shown, unit)| shown.is_some_and(|shown| shown.remaining < self.reserved.cost.of(*unit)))
            .map(|(_, unit)| unit)
            .collect();
        self.headers(state, false);
        for slot in 0..self.quotas.quotas.len() {
            let quota = &self.quotas.quotas[slot];
            if quota.statements.is_visible() && low.contains(&quota.dimension.unit) {
                self.refused(slot, 0);
            }
        }
        !low.is_empty()
    }

    /// The quota in this slot learns from a refusal, which has corrected it by `gap` ns.
    fn refused(&mut self, slot: usize, gap: i64) {
        if !self.reserved.is_forced {
            self.quotas.quotas[slot].refused(self.reserved.position, self.quotas.position, gap, self.now);
        }
    }
}
