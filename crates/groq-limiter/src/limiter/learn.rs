//! What responses teach: headers and refusals correct quotas and limits, usage corrects estimates.

use std::sync::Arc;

use super::{Grant, Limiter};
use crate::{
    ActualUsage, Source,
    bucket::Ns,
    plans,
    quota::{Quota, Statements},
    settings::{LimitSettings, Plan},
    types::{Dimension, Observation, RemoteQuota, Unit, UpstreamRefusal},
};

impl Limiter {
    /// New tables; quotas and used amounts stay. The caller dispatches.
    pub fn reconfigure(&mut self, tables: Arc<LimitSettings>, now: Ns) {
        let plan = if self.tables.plan == tables.plan { self.plan } else { Some(tables.plan) };
        self.tables = tables;
        for quota in self.quotas.all_mut().iter_mut().filter(|quota| !quota.is_bound()) {
            quota.leave(self.tables.headroom, now);
        }
        self.set_plan(plan, now);
    }

    /// Every known dimension by the operator's table and this plan's.
    fn set_plan(&mut self, plan: Option<Plan>, now: Ns) {
        self.plan = plan;
        let chosen = matches!(self.tables.plan, Plan::Free | Plan::Developer);
        let configured = self.tables.of_model(&self.model).by_dimension();
        let row = plan.and_then(|plan| plans::limits(plan, &self.model)).unwrap_or_default().by_dimension();
        for ((dimension, configured), (_, row)) in configured.into_iter().zip(row) {
            let plan = row.map(|limit| (limit, chosen));
            match self.quotas.slot(&dimension.code) {
                Some(slot) => {
                    let statements = Statements { configured, plan, ..self.quotas.all()[slot].statements() };
                    self.agree(slot, statements, now);
                }
                None if configured.is_some() || plan.is_some() => {
                    let statements = Statements { configured, plan, stated: None };
                    self.quotas.add(Quota::new(dimension, statements, self.tables.headroom, now), now);
                }
                None => {}
            }
        }
    }

    fn agree(&mut self, slot: usize, statements: Statements, now: Ns) {
        let position = self.quotas.position();
        let quota = &mut self.quotas.all_mut()[slot];
        if quota.statements() == statements {
            return;
        }
        let used = quota.bucket().map_or(0.0, |bucket| bucket.used(now)) as u64;
        quota.agree(statements, position, now);
        let dimension = Dimension::clone(&quota.dimension);
        let bound = statements.configured.filter(|&configured| statements.stated.is_some_and(|(stated, _)| stated > configured));
        match (self.quotas.bound_slot(&dimension.code), bound) {
            (Some(slot), bound) => {
                let statements = Statements { configured: bound, ..Statements::default() };
                self.quotas.all_mut()[slot].agree(statements, position, now);
            }
            (None, Some(limit)) => {
                self.quotas.add(Quota::bound(dimension, limit, used, now), now);
            }
            (None, None) => {}
        }
    }

    /// Groq states this dimension's limit; the dimension comes to be if it was unknown. Its slot.
    fn stated(&mut self, dimension: &Dimension, limit: u64, source: Source, now: Ns) -> Option<usize> {
        let headroom = self.tables.headroom;
        let known = self.quotas.slot(&dimension.code);
        let slot = match known {
            Some(slot) => slot,
            None => self.quotas.add(Quota::new(dimension.clone(), Statements::default(), headroom, now), now)?,
        };
        let before = self.quotas.all()[slot].statements();
        // A refusal repeats what headers show: the dimension stays a visible one.
        let source = match before.stated {
            Some((same, Source::Headers)) if same == limit => Source::Headers,
            _ => source,
        };
        self.agree(slot, Statements { stated: Some((limit, source)), ..before }, now);
        self.quotas.all_mut()[slot].confirm(now);
        if known.is_none() && self.quotas.all()[slot].counts_expected() {
            // Answers were reserved before the limit was known; a refusal as too large says nothing of them.
            let used = self.quotas.expected_output().left_in_use(limit as f64 / dimension.period.as_secs_f64(), now);
            self.quotas.all_mut()[slot].restore(used, now);
        }
        Some(slot)
    }

    /// Corrects what headers show. A refusal's do not count its request.
    pub(super) fn learn_headers(&mut self, grant: &mut Grant, state: &Observation, counted: bool, now: Ns) {
        let audio = state.audio.map(|shown| (self.audio_dimension(&shown), shown));
        let shown = [(Dimension::TPM, state.tokens), (Dimension::RPD, state.requests)];
        let shown = shown.into_iter().filter_map(|(dimension, shown)| Some((dimension, shown?))).chain(audio);
        let mut news = false;
        for (dimension, shown) in shown {
            if shown.limit == 0 {
                continue;
            }
            let before = self.quotas.slot(&dimension.code).map(|slot| self.quotas.all()[slot].statements().stated);
            let bound = self.quotas.bound_slot(&dimension.code);
            let Some(slot) = self.stated(&dimension, shown.limit, Source::Headers, now) else { continue };
            if let (None, Some(bound)) = (bound, self.quotas.bound_slot(&dimension.code)) {
                self.quotas.cover(&mut grant.reserved, bound);
            }
            news |= before.flatten().map(|(limit, _)| limit) != Some(shown.limit);
            let used = shown.limit.saturating_sub(shown.remaining);
            let first = !self.quotas.all()[slot].is_observed();
            let error = self.quotas.observe(&mut grant.reserved, slot, used, counted, self.estimates.one_way(), now);
            if counted && !grant.has_ceiling && dimension == Dimension::TPM {
                grant.shown_used = Some(used);
                let prompt = grant.estimated.into();
                self.learn_assumed(|limiter| limiter.estimates.assumed.head(used, prompt));
                self.hold_assumed(grant, slot, error.filter(|_| !first), now);
            }
        }
        if news {
            self.follow_plan(now);
        }
    }

    /// Under `auto`: the plan whose visible limits are the headers', or none.
    pub(crate) fn follow_plan(&mut self, now: Ns) {
        if self.tables.plan != Plan::Auto {
            return;
        }
        let stated = |dimension: &Dimension| {
            let quota = &self.quotas.all()[self.quotas.slot(&dimension.code)?];
            quota.statements().stated.filter(|&(_, source)| source == Source::Headers).map(|(limit, _)| limit)
        };
        let (tokens, requests) = (stated(&Dimension::TPM), stated(&Dimension::RPD));
        if tokens.is_some() || requests.is_some() {
            self.set_plan(plans::matching(&self.model, tokens, requests), now);
        }
    }

    /// Which bucket the undocumented audio headers describe: the one with that limit, else the one whose law fits.
    fn audio_dimension(&self, shown: &RemoteQuota) -> Dimension {
        let has = |dimension: &Dimension| {
            self.quotas.slot(&dimension.code).is_some_and(|slot| self.quotas.all()[slot].limit() == Some(shown.limit))
        };
        let used = shown.limit.saturating_sub(shown.remaining);
        let period = shown.reset.map_or(0.0, |reset| reset.as_secs_f64() * shown.limit as f64 / used.max(1) as f64);
        match (has(&Dimension::ASPH), has(&Dimension::ASPD)) {
            (true, _) => Dimension::ASPH,
            (false, true) => Dimension::ASPD,
            (false, false) if used > 0 && period > 20_000.0 => Dimension::ASPD,
            (false, false) => Dimension::ASPH,
        }
    }

    /// A refusal's text is an exact estimates. `false`: neither it nor the headers say which quota is low.
    pub(super) fn learn_refusal(
        &mut self,
        grant: &mut Grant,
        text: Option<&UpstreamRefusal>,
        state: &Observation,
        now: Ns,
    ) -> bool {
        let Some(text) = text.filter(|text| text.limit > 0) else { return self.refused_by_headers(grant, state, now) };
        let Some(dimension) = self.named(text) else { return false };
        let Some(slot) = self.stated(&dimension, text.limit, Source::UpstreamRefusal, now) else { return false };
        if let Some(requested) = self.requested_in_all(grant, Some(text)) {
            let prompt = grant.estimated.into();
            self.learn_assumed(|limiter| limiter.estimates.assumed.refused(requested.into(), prompt, now));
        }
        let counts_expected = self.quotas.all()[slot].counts_expected();
        if counts_expected {
            let ceiling = if grant.has_ceiling { grant.reserved.cost.output } else { u32::MAX };
            let requested = u32::try_from(text.requested).unwrap_or(u32::MAX);
            self.quotas.expected_output().refused(grant.reserved.cost.key, requested, ceiling, now);
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
        let gap = self.quotas.observe(&mut grant.reserved, slot, used, false, self.estimates.one_way(), now);
        // One that was expected to answer more than we knew says nothing of the quota.
        let explained = counts_expected && text.requested > grant.reserved.cost.expected.into();
        if !text.hopeless() && !explained {
            let last = self.quotas.position();
            self.quotas.all_mut()[slot].refused(grant.reserved.position, last, gap.unwrap_or(0), now);
        }
        true
    }

    fn refused_by_headers(&mut self, grant: &mut Grant, state: &Observation, now: Ns) -> bool {
        let position = grant.reserved.position;
        let low = |shown: Option<RemoteQuota>, unit| shown.is_some_and(|shown| shown.remaining < grant.reserved.cost.of(unit));
        let tokens = low(state.tokens, Unit::Tokens);
        let requests = low(state.requests, Unit::Requests);
        let audio = low(state.audio, Unit::AudioSeconds);
        self.learn_headers(grant, state, false, now);
        let last = self.quotas.position();
        for quota in self.quotas.all_mut().iter_mut().filter(|quota| quota.is_visible()) {
            let low = match quota.dimension.unit {
                Unit::Tokens => tokens,
                Unit::Requests => requests,
                Unit::AudioSeconds => audio,
                Unit::InputTokens | Unit::OutputTokens => false,
            };
            if low {
                quota.refused(position, last, 0, now);
            }
        }
        tokens || requests || audio
    }

    /// A text's dimension; without a name the one with that limit, else the one that its own figures give.
    pub(super) fn named(&self, text: &UpstreamRefusal) -> Option<Dimension> {
        let same = || self.quotas.all().iter().find(|quota| !quota.is_bound() && quota.limit() == Some(text.limit));
        text.dimension
            .clone()
            .or_else(|| same().map(|quota| Dimension::clone(&quota.dimension)))
            .or_else(|| text.dimension_or_derived())
    }

    /// Estimates learn from what was really used.
    pub(super) fn learn_usage(&mut self, grant: &Grant, usage: ActualUsage, now: Ns) {
        if grant.reserved.cost.seconds > 0 {
            return;
        }
        if let ActualUsage::Tokens { completion, .. } | ActualUsage::Partial { completion } = usage {
            let completion = u32::try_from(completion).unwrap_or(u32::MAX);
            self.quotas.expected_output().answered(grant.reserved.cost.key, completion, now);
        }
        let (ActualUsage::Tokens { prompt_total, .. } | ActualUsage::Prompt { prompt_total, .. }) = usage else { return };
        if let Some(requested) = grant.requested {
            self.learn_assumed(|limiter| limiter.estimates.assumed.answered_after_refusal(requested.into(), prompt_total, now));
        } else if let Some(used) = grant.shown_used {
            self.learn_assumed(|limiter| limiter.estimates.assumed.answered(used, prompt_total, now));
        }
        self.estimates.prompt.learn(grant.estimated.into(), prompt_total);
        let ActualUsage::Tokens { completion, .. } = usage else { return };
        self.estimates.completion.learn(completion as f32);
        if let Some(app) = self.queue.running(grant.app, true) {
            app.completion.learn(completion as f32);
            self.queue.running(grant.app, false);
        }
    }

    /// Takes up what Groq had stated to an earlier process.
    pub(crate) fn restore_limit(&mut self, dimension: &Dimension, limit: u64, source: Source, now: Ns) {
        self.stated(dimension, limit, source, now);
    }

    /// Takes up a quota of an earlier process: `used` units less what `passed` seconds gave back.
    /// `bound`: the operator's own.
    pub(crate) fn restore_level(&mut self, dimension: &Dimension, bound: bool, used: f64, passed: f64, now: Ns) {
        let code = &dimension.code;
        let slot = if bound { self.quotas.bound_slot(code) } else { self.quotas.slot(code) };
        let Some(slot) = slot else { return };
        let quota = &mut self.quotas.all_mut()[slot];
        let back = quota.bucket().map_or(0.0, |bucket| bucket.rate() * passed);
        quota.restore((used - back).max(0.0).ceil() as u64, now);
    }
}
