//! Where limits come from, whose statement is in force, and how headers and refusals correct the quotas under them.

use std::{sync::Arc, time::Duration};

use super::{QuotaSet, Reserved};
use crate::{
    plans,
    quota::{Quota, Reported, Statements},
    settings::{LimitSettings, Plan},
    types::{Dimension, Ns, Observation, RemoteQuota, Source, StatedLimit, Unit, UpstreamRefusal},
};

/// The operator's settings, the plan's table, and what Groq has stated.
impl QuotaSet {
    /// Other settings; used amounts stay.
    pub fn reconfigure(&mut self, settings: Arc<LimitSettings>, now: Ns) {
        let plan = if self.settings.plan == settings.plan { self.plan } else { Some(settings.plan) };
        self.settings = settings;
        for quota in self.quotas.iter_mut().filter(|quota| !quota.is_bound()) {
            quota.set_headroom(self.settings.headroom, now);
        }
        self.set_plan(plan, now);
    }

    /// Every known dimension by the operator's settings and this plan's table.
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

    fn slot_or_new(&mut self, dimension: &Dimension, now: Ns) -> Option<usize> {
        self.slot(&dimension.code).or_else(|| {
            let quota = Quota::new(dimension.clone(), self.settings.headroom, now);
            self.add(if self.settings.exact { quota.without_margin() } else { quota }, now)
        })
    }

    /// Changes what is stated of a dimension, and the operator's own bound beside it.
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

    /// Groq states this dimension's limit; the dimension comes to be if it was unknown. Its slot, and whether that is news.
    fn state(&mut self, dimension: &Dimension, limit: u64, source: Source, now: Ns) -> Option<(usize, bool)> {
        let is_new = self.slot(&dimension.code).is_none();
        let slot = self.slot_or_new(dimension, now)?;
        let before = self.quotas[slot].statements;
        // A refusal repeats what headers show: the dimension stays a visible one.
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
            // Answers were taken before the limit was known; a refusal as too large says nothing of them.
            let rate = limit as f64 / dimension.period.as_secs_f64();
            quota.restore(self.expected_output.left_in_use(rate, now), now);
        }
        Some((slot, is_news))
    }

    /// Takes up what Groq has stated to another limiter, or to an earlier process. What is used stays.
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

    /// Whether other replicas have something to learn.
    pub fn has_learnt(&self) -> bool {
        self.untold || (self.expected_output.is_untold() && self.quotas.iter().any(Quota::counts_expected))
    }

    /// Under `auto`: the plan whose visible limits are the headers', or none.
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

/// What answers say.
impl QuotaSet {
    /// Headers correct what they show; one way to Groq takes `delay`. A refusal's do not count its request.
    pub fn observe(&mut self, reserved: &mut Reserved, state: &Observation, counted: bool, delay: Ns, now: Ns) {
        let audio = state.audio.map(|shown| (self.audio_dimension(&shown), Some(shown)));
        let shown = [(Dimension::TPM, state.tokens), (Dimension::RPD, state.requests)].into_iter().chain(audio);
        let mut news = false;
        for (dimension, shown) in shown {
            let Some(shown) = shown.filter(|shown| shown.limit > 0) else { continue };
            let known = self.quotas.len();
            let Some((slot, is_news)) = self.state(&dimension, shown.limit, Source::Headers, now) else { continue };
            // The operator's bound that comes with a limit holds what the limit does.
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

    /// Groq says what it had used of this slot when it saw `reserved`; `counted`: that request included. One way to Groq
    /// takes `delay`. The correction, ns, unless a newer position has been heard of.
    fn correct(&mut self, reserved: &mut Reserved, slot: usize, used: u64, counted: bool, delay: Ns, now: Ns) -> Option<i64> {
        // Positions of this process alone say nothing in the order that replicas share.
        if self.shared.as_ref().is_some_and(|shared| shared.alone.is_none() && reserved.booked <= shared.forgotten) {
            return None;
        }
        let quota = &mut self.quotas[slot];
        let covered = reserved.covers(slot);
        let used = if covered && !counted { used.saturating_add(quota.units(&reserved.cost)) } else { used };
        // A dimension that is younger than the request: from now on it is charged there as well.
        let snapshot = reserved.snapshots.get(slot).copied().unwrap_or_else(|| quota.send_snapshot());
        if counted {
            reserved.cover(slot);
        }
        let at = reserved.sent_at.saturating_add(delay);
        let error = quota.observe(Reported { position: reserved.position, snapshot, used, at }, now)?;
        // A unit of a day's limit is more than others take in a minute.
        if quota.is_visible() && quota.dimension.period < Duration::from_secs(86_400) {
            let released = self.sole_use.header(quota.external(), now);
            // Replicas that share quotas see each other's use as their own.
            self.release_margin(if self.shared.is_none() { released } else { 0.0 });
        }
        Some(error)
    }

    /// Which bucket the undocumented audio headers describe: an hour's, unless they show the day's limit.
    fn audio_dimension(&self, shown: &RemoteQuota) -> Dimension {
        let has = |dimension: &Dimension| self.find(&dimension.code).is_some_and(|quota| quota.limit() == Some(shown.limit));
        if has(&Dimension::ASPD) && !has(&Dimension::ASPH) { Dimension::ASPD } else { Dimension::ASPH }
    }

    /// A text's dimension; without a name the one with that limit, else the one that its own figures give. `max`: the request's
    /// `max_completion_tokens`.
    pub fn dimension_of(&self, text: &UpstreamRefusal, max: Option<u32>) -> Option<Dimension> {
        let same = || self.quotas.iter().find(|quota| !quota.is_bound() && quota.limit() == Some(text.limit));
        // A limit on all tokens counts the whole of `max`; what counts less is a limit on output.
        let of_output = max.is_some_and(|max| text.requested < max.into()) && text.unit.is_none_or(|unit| unit == Unit::Tokens);
        let unit = if of_output { Some(Unit::OutputTokens) } else { text.unit };
        let named = text.dimension.clone();
        named
            .or_else(|| same().map(|quota| quota.dimension.clone()))
            .or_else(|| UpstreamRefusal { unit, ..text.clone() }.dimension_or_derived())
    }

    /// A refusal's text is an exact calibration of its dimension. `max`: the request's `max_completion_tokens`. `false`: the dimension is
    /// one too many.
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
            // The printed `Used` is rounded up: the wait is the exact figure.
            (Some(wait), _) => {
                let came_back = wait.as_secs_f64() * text.limit as f64 / dimension.period.as_secs_f64();
                (text.limit as f64 - text.requested as f64 + came_back).max(0.0).ceil() as u64
            }
            (None, Some(used)) => used,
            // Too large for any quota: it says nothing of this one.
            (None, None) => return true,
        };
        let gap = self.correct(reserved, slot, used, false, delay, now);
        // One that was expected to answer more than we knew says nothing of the quota.
        let explained = counts_expected && text.requested > reserved.cost.expected.into();
        if !text.hopeless() && !explained {
            self.quotas[slot].refused(reserved.position, self.position, gap.unwrap_or(0), now);
        }
        true
    }

    /// A refusal without a text: those dimensions are low whose headers say so. Whether any does.
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
