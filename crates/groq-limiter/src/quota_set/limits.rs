//! The limits of a set of quotas: their sources, and how headers and refusals change and correct them.
//!
//! A limit comes from the operator's settings, from Groq (headers and refusals), or from the table of a plan. Headers also
//! show what is in use, and so do the texts of refusals; both correct the quotas.

use std::{sync::Arc, time::Duration};

use super::{QuotaSet, Reserved};
use crate::{
    plans,
    quota::{Quota, Reported, Statements},
    settings::{LimitSettings, Plan},
    types::{Dimension, Ns, Observation, RemoteQuota, Source, StatedLimit, Unit, UpstreamRefusal},
};

/// Statements about limits: the operator's settings, the table of the plan, and what Groq has stated.
impl QuotaSet {
    /// Applies changed settings. What is used stays used.
    pub fn reconfigure(&mut self, settings: Arc<LimitSettings>, now: Ns) {
        let plan = if self.settings.plan == settings.plan { self.plan } else { Some(settings.plan) };
        self.settings = settings;
        for quota in self.quotas.iter_mut().filter(|quota| !quota.is_bound()) {
            quota.set_headroom(self.settings.headroom, now);
        }
        self.set_plan(plan, now);
    }

    /// Sets the limits of every known dimension by the operator's settings and the table of this plan.
    pub(super) fn set_plan(&mut self, plan: Option<Plan>, now: Ns) {
        self.plan = plan;
        let chosen = matches!(self.settings.plan, Plan::Free | Plan::Developer);
        let configured = self.settings.of_model(&self.model).by_dimension();
        let row = plan.and_then(|plan| plans::limits(plan, &self.model)).unwrap_or_default().by_dimension();
        for ((dimension, configured), (_, row)) in configured.into_iter().zip(row) {
            if configured.is_none() && row.is_none() && self.slot(&dimension.code).is_none() {
                continue;
            }
            let Some(slot) = self.slot_or_new(&dimension, now) else { continue };
            let plan = row.map(|limit| (limit, chosen));
            self.set_statements(slot, Statements { configured, plan, ..self.quotas[slot].statements }, now);
        }
    }

    /// Returns the slot of the dimension, which is added if it is unknown; `None` if all slots are taken.
    fn slot_or_new(&mut self, dimension: &Dimension, now: Ns) -> Option<usize> {
        self.slot(&dimension.code).or_else(|| {
            let quota = Quota::new(dimension.clone(), self.settings.headroom, now);
            self.add(if self.settings.exact { quota.without_margin() } else { quota }, now)
        })
    }

    /// Sets the statements about a dimension, and those of the operator's bound that belongs to it.
    fn set_statements(&mut self, slot: usize, statements: Statements, now: Ns) {
        let quota = &mut self.quotas[slot];
        if quota.statements == statements {
            return;
        }
        let mut bound = Quota::bound(quota.dimension.clone(), now);
        let used = quota.bucket().used(now) as u64;
        quota.set_statements(statements, self.position, now);
        let bounds = Statements { configured: statements.bound(), ..Statements::default() };
        if let Some(slot) = self.slot(&bound.code) {
            self.quotas[slot].set_statements(bounds, self.position, now);
        } else if bounds.configured.is_some() {
            bound.set_statements(bounds, self.position, now);
            bound.restore(used, now);
            self.add(bound, now);
        }
    }

    /// Applies a limit that Groq states. The dimension is added if it is unknown. Returns its slot and whether the limit has
    /// changed; `None` if all slots are taken.
    fn state(&mut self, dimension: &Dimension, limit: u64, source: Source, now: Ns) -> Option<(usize, bool)> {
        let is_new = self.slot(&dimension.code).is_none();
        let slot = self.slot_or_new(dimension, now)?;
        let before = self.quotas[slot].statements;
        // If a refusal states the limit that headers show, the dimension stays visible.
        let source = match before.stated {
            Some((same, Source::Headers)) if same == limit => Source::Headers,
            _ => source,
        };
        let is_news = before.stated.map(|(limit, _)| limit) != Some(limit);
        self.untold |= is_news;
        self.set_statements(slot, Statements { stated: Some((limit, source)), ..before }, now);
        let quota = &mut self.quotas[slot];
        quota.confirmed = now;
        if is_new && quota.counts_expected() {
            // The upstream counted completions before the limit was known. A refusal as too large does not state what is in
            // use.
            let rate = limit as f64 / dimension.period.as_secs_f64();
            quota.restore(self.expected_output.left_in_use(rate, now), now);
        }
        Some((slot, is_news))
    }

    /// Applies the limits that Groq has stated to another replica or to an earlier process. What is used stays used.
    pub fn adopt(&mut self, stated: &[StatedLimit], now: Ns) {
        let known = self.stated();
        let same = |a: &StatedLimit, b: &StatedLimit| a.dimension.code == b.dimension.code && a.limit == b.limit;
        let before = self.untold;
        for news in stated.iter().filter(|stated| !known.iter().any(|known| same(known, stated))) {
            self.state(&news.dimension, news.limit, news.source, now);
            self.follow_plan(now);
        }
        let is_told = |known: &StatedLimit| stated.iter().any(|stated| stated.dimension.code == known.dimension.code);
        self.untold = before || !known.iter().all(is_told);
    }

    /// Whether there is something learnt from Groq to report to the other replicas.
    pub fn has_learnt(&self) -> bool {
        self.untold || (self.expected_output.is_untold() && self.quotas.iter().any(Quota::counts_expected))
    }

    /// With the plan `auto`: switches to the plan whose table matches the limits that headers show, or to none.
    fn follow_plan(&mut self, now: Ns) {
        if self.settings.plan != Plan::Auto {
            return;
        }
        let shown = |dimension: &Dimension| {
            let quota = self.find(&dimension.code).filter(|quota| quota.is_visible())?;
            quota.statements.stated.map(|(limit, _)| limit)
        };
        let (tokens, requests) = (shown(&Dimension::TPM), shown(&Dimension::RPD));
        if tokens.is_some() || requests.is_some() {
            self.set_plan(plans::matching(&self.model, tokens, requests), now);
        }
    }
}

/// Corrections by headers and refusals. `delay` is the time that a request takes to reach Groq, ns.
impl QuotaSet {
    /// Corrects the quotas that the headers show. `counted` is whether the headers include the request itself, which those
    /// of a refusal do not.
    pub fn observe(&mut self, reserved: &mut Reserved, state: &Observation, counted: bool, delay: Ns, now: Ns) {
        let audio = state.audio.map(|shown| (self.audio_dimension(&shown), Some(shown)));
        let shown = [(Dimension::TPM, state.tokens), (Dimension::RPD, state.requests)].into_iter().chain(audio);
        let mut news = false;
        for (dimension, shown) in shown {
            let Some(shown) = shown.filter(|shown| shown.limit > 0) else { continue };
            let known = self.quotas.len();
            let Some((slot, is_news)) = self.state(&dimension, shown.limit, Source::Headers, now) else { continue };
            // A bound that was added with this limit starts with the same used units, so it includes the request.
            for slot in (known..self.quotas.len()).filter(|&slot| self.quotas[slot].is_bound()) {
                reserved.cover(slot);
            }
            news |= is_news;
            let used = shown.limit.saturating_sub(shown.remaining);
            self.correct(reserved, slot, used, counted, delay, now);
        }
        if news {
            self.follow_plan(now);
        }
    }

    /// Corrects one slot: `used` units were in use when Groq received the request, its own included if `counted`. Returns
    /// the correction, ns; `None` if the report is ignored, for example because a newer one has come before.
    fn correct(&mut self, reserved: &mut Reserved, slot: usize, used: u64, counted: bool, delay: Ns, now: Ns) -> Option<i64> {
        // Positions that this process assigned alone cannot be compared with those that the store assigns.
        if self.shared.as_ref().is_some_and(|shared| shared.alone.is_none() && reserved.booked <= shared.forgotten) {
            return None;
        }
        let quota = &mut self.quotas[slot];
        let covered = reserved.covers(slot);
        let used = if covered && !counted { used.saturating_add(quota.units(&reserved.cost)) } else { used };
        // A quota that was added after the request has no snapshot of it. From now on the request is charged there as well.
        let snapshot = reserved.snapshots.get(slot).copied().unwrap_or_else(|| quota.send_snapshot());
        if counted {
            reserved.cover(slot);
        }
        let at = reserved.sent_at.saturating_add(delay);
        let error = quota.observe(Reported { position: reserved.position, snapshot, used, at }, now)?;
        // Limits per day are too coarse: one unit of them is more than the external usage of a minute.
        if quota.is_visible() && quota.dimension.period < Duration::from_secs(86_400) {
            let released = self.sole_use.header(quota.external(), now);
            // Among replicas the whole margin is kept, because each of them counts the others' use as its own.
            self.release_margin(if self.shared.is_none() { released } else { 0.0 });
        }
        Some(error)
    }

    /// Returns the dimension that the undocumented audio headers describe: audio seconds per hour, unless they show the
    /// limit per day.
    fn audio_dimension(&self, shown: &RemoteQuota) -> Dimension {
        let has = |dimension: &Dimension| self.find(&dimension.code).is_some_and(|quota| quota.limit() == Some(shown.limit));
        if has(&Dimension::ASPD) && !has(&Dimension::ASPH) { Dimension::ASPD } else { Dimension::ASPH }
    }

    /// Returns the dimension of a refusal's text: the one that it names, otherwise the one with the limit that it states,
    /// otherwise the one that follows from its figures. `max` is the request's `max_completion_tokens`.
    pub fn dimension_of(&self, text: &UpstreamRefusal, max: Option<u32>) -> Option<Dimension> {
        let same = || self.quotas.iter().find(|quota| !quota.is_bound() && quota.limit() == Some(text.limit));
        // A limit on all tokens counts the whole of `max`. If fewer tokens were requested, the limit is on output.
        let of_output = max.is_some_and(|max| text.requested < max.into()) && text.unit.is_none_or(|unit| unit == Unit::Tokens);
        let unit = if of_output { Some(Unit::OutputTokens) } else { text.unit };
        let named = text.dimension.clone();
        named
            .or_else(|| same().map(|quota| quota.dimension.clone()))
            .or_else(|| UpstreamRefusal { unit, ..text.clone() }.dimension_or_derived())
    }

    /// Corrects a dimension by the text of a refusal, whose figures are exact. `max` is the request's
    /// `max_completion_tokens`. Returns `false` if the dimension is unknown and all slots are taken.
    pub fn refused_by_text(
        &mut self,
        reserved: &mut Reserved,
        text: &UpstreamRefusal,
        dimension: &Dimension,
        max: Option<u32>,
        delay: Ns,
        now: Ns,
    ) -> bool {
        let Some((slot, _)) = self.state(dimension, text.limit, Source::UpstreamRefusal, now) else { return false };
        let counts_expected = self.quotas[slot].counts_expected();
        if counts_expected {
            let requested = u32::try_from(text.requested).unwrap_or(u32::MAX);
            self.expected_output.refused(reserved.cost.key, requested, max.unwrap_or(u32::MAX), now);
        }
        let used = match (text.wait, text.used) {
            // The wait is exact, whereas the printed `Used` is rounded up.
            (Some(wait), _) => {
                let came_back = wait.as_secs_f64() * text.limit as f64 / dimension.period.as_secs_f64();
                (text.limit as f64 - text.requested as f64 + came_back).max(0.0).ceil() as u64
            }
            (None, Some(used)) => used,
            // The request was too large for the limit, so the text does not state what is in use.
            (None, None) => return true,
        };
        let gap = self.correct(reserved, slot, used, false, delay, now);
        // If Groq expected more output than we did, that explains the refusal, and the quota is not to blame.
        let explained = counts_expected && text.requested > reserved.cost.expected.into();
        if !text.hopeless() && !explained {
            self.quotas[slot].refused(reserved.position, self.position, gap.unwrap_or(0), now);
        }
        true
    }

    /// Corrects the quotas by the headers of a refusal without a text. Returns whether they show a dimension without room
    /// for the request.
    pub fn refused_by_headers(&mut self, reserved: &mut Reserved, state: &Observation, delay: Ns, now: Ns) -> bool {
        let low: Vec<Unit> = [(state.tokens, Unit::Tokens), (state.requests, Unit::Requests), (state.audio, Unit::AudioSeconds)]
            .into_iter()
            .filter(|(shown, unit)| shown.is_some_and(|shown| shown.remaining < reserved.cost.of(*unit)))
            .map(|(_, unit)| unit)
            .collect();
        self.observe(reserved, state, false, delay, now);
        for quota in self.quotas.iter_mut().filter(|quota| quota.is_visible() && low.contains(&quota.dimension.unit)) {
            quota.refused(reserved.position, self.position, 0, now);
        }
        !low.is_empty()
    }
}
