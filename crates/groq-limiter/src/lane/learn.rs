//! What do answers teach a lane? Headers and refusals correct its levels and limits, usage its estimates.

use std::sync::Arc;

use super::{Charge, Lane};
use crate::{
    Source, Spent,
    bucket::Ns,
    level::{Level, Terms},
    plans,
    settings::{LimitSettings, Plan},
    types::{Dimension, Observation, RemoteQuota, Unit, UpstreamRefusal},
};

impl Lane {
    /// New tables; levels and used amounts stay. The caller pumps.
    pub fn reconfigure(&mut self, tables: Arc<LimitSettings>, now: Ns) {
        let plan = if self.tables.plan == tables.plan { self.plan } else { Some(tables.plan) };
        self.tables = tables;
        for level in self.books.levels_mut().iter_mut().filter(|level| !level.is_bound()) {
            level.leave(self.tables.headroom, now);
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
            match self.books.slot(&dimension.code) {
                Some(slot) => {
                    let terms = Terms { configured, plan, ..self.books.levels()[slot].terms() };
                    self.agree(slot, terms, now);
                }
                None if configured.is_some() || plan.is_some() => {
                    let terms = Terms { configured, plan, stated: None };
                    self.books.add(Level::new(dimension, terms, self.tables.headroom, now), now);
                }
                None => {}
            }
        }
    }

    fn agree(&mut self, slot: usize, terms: Terms, now: Ns) {
        let position = self.books.position();
        let level = &mut self.books.levels_mut()[slot];
        if level.terms() == terms {
            return;
        }
        let used = level.bucket().map_or(0.0, |bucket| bucket.used(now)) as u64;
        level.agree(terms, position, now);
        let dimension = Dimension::clone(&level.dimension);
        let bound = terms.configured.filter(|&configured| terms.stated.is_some_and(|(stated, _)| stated > configured));
        match (self.books.bound_slot(&dimension.code), bound) {
            (Some(slot), bound) => {
                let terms = Terms { configured: bound, ..Terms::default() };
                self.books.levels_mut()[slot].agree(terms, position, now);
            }
            (None, Some(limit)) => {
                self.books.add(Level::bound(dimension, limit, used, now), now);
            }
            (None, None) => {}
        }
    }

    /// Groq states this dimension's limit; the dimension comes to be if it was unknown. Its slot.
    fn stated(&mut self, dimension: &Dimension, limit: u64, source: Source, now: Ns) -> Option<usize> {
        let headroom = self.tables.headroom;
        let known = self.books.slot(&dimension.code);
        let slot = match known {
            Some(slot) => slot,
            None => self.books.add(Level::new(dimension.clone(), Terms::default(), headroom, now), now)?,
        };
        let before = self.books.levels()[slot].terms();
        // A refusal repeats what headers show: the dimension stays a visible one.
        let source = match before.stated {
            Some((same, Source::Headers)) if same == limit => Source::Headers,
            _ => source,
        };
        self.agree(slot, Terms { stated: Some((limit, source)), ..before }, now);
        self.books.levels_mut()[slot].confirm(now);
        if known.is_none() && self.books.levels()[slot].counts_expected() {
            // Answers were taken before the limit was known; a refusal as too large says nothing of them.
            let used = self.books.expected_output().left_in_use(limit as f64 / dimension.period.as_secs_f64(), now);
            self.books.levels_mut()[slot].restore(used, now);
        }
        Some(slot)
    }

    /// Corrects what headers show. A refusal's do not count its request.
    pub(super) fn learn_headers(&mut self, charge: &mut Charge, state: &Observation, counted: bool, now: Ns) {
        let audio = state.audio.map(|shown| (self.audio_dimension(&shown), shown));
        let shown = [(Dimension::TPM, state.tokens), (Dimension::RPD, state.requests)];
        let shown = shown.into_iter().filter_map(|(dimension, shown)| Some((dimension, shown?))).chain(audio);
        let mut news = false;
        for (dimension, shown) in shown {
            if shown.limit == 0 {
                continue;
            }
            let before = self.books.slot(&dimension.code).map(|slot| self.books.levels()[slot].terms().stated);
            let bound = self.books.bound_slot(&dimension.code);
            let Some(slot) = self.stated(&dimension, shown.limit, Source::Headers, now) else { continue };
            if let (None, Some(bound)) = (bound, self.books.bound_slot(&dimension.code)) {
                self.books.cover(&mut charge.taken, bound);
            }
            news |= before.flatten().map(|(limit, _)| limit) != Some(shown.limit);
            let used = shown.limit.saturating_sub(shown.remaining);
            let first = !self.books.levels()[slot].is_observed();
            let error = self.books.observe(&mut charge.taken, slot, used, counted, self.calibration.one_way(), now);
            if counted && !charge.ceiling_given && dimension == Dimension::TPM {
                charge.shown_used = Some(used);
                let prompt = charge.estimated.into();
                self.learn_assumed(|lane| lane.calibration.assumed.head(used, prompt));
                self.hold_assumed(charge, slot, error.filter(|_| !first), now);
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
            let level = &self.books.levels()[self.books.slot(&dimension.code)?];
            level.terms().stated.filter(|&(_, source)| source == Source::Headers).map(|(limit, _)| limit)
        };
        let (tokens, requests) = (stated(&Dimension::TPM), stated(&Dimension::RPD));
        if tokens.is_some() || requests.is_some() {
            self.set_plan(plans::matching(&self.model, tokens, requests), now);
        }
    }

    /// Which bucket the undocumented audio headers describe: the one with that limit, else the one whose law fits.
    fn audio_dimension(&self, shown: &RemoteQuota) -> Dimension {
        let has = |dimension: &Dimension| {
            self.books.slot(&dimension.code).is_some_and(|slot| self.books.levels()[slot].limit() == Some(shown.limit))
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

    /// A refusal's text is an exact calibration. `false`: neither it nor the headers say which level is low.
    pub(super) fn learn_refusal(
        &mut self,
        charge: &mut Charge,
        text: Option<&UpstreamRefusal>,
        state: &Observation,
        now: Ns,
    ) -> bool {
        let Some(text) = text.filter(|text| text.limit > 0) else { return self.refused_by_headers(charge, state, now) };
        let Some(dimension) = self.named(text) else { return false };
        let Some(slot) = self.stated(&dimension, text.limit, Source::Refusal, now) else { return false };
        if let Some(requested) = self.requested_in_all(charge, Some(text)) {
            let prompt = charge.estimated.into();
            self.learn_assumed(|lane| lane.calibration.assumed.refused(requested.into(), prompt, now));
        }
        let counts_expected = self.books.levels()[slot].counts_expected();
        if counts_expected {
            let ceiling = if charge.ceiling_given { charge.taken.amount.output } else { u32::MAX };
            let requested = u32::try_from(text.requested).unwrap_or(u32::MAX);
            self.books.expected_output().refused(requested, ceiling, now);
        }
        let used = match (text.wait, text.used) {
            // The printed `Used` is rounded up: the wait is the exact figure.
            (Some(wait), _) => {
                let came_back = wait.as_secs_f64() * text.limit as f64 / dimension.period.as_secs_f64();
                (text.limit as f64 - text.requested as f64 + came_back).max(0.0).ceil() as u64
            }
            (None, Some(used)) => used,
            // Too large for any level: it says nothing of this one.
            (None, None) => return true,
        };
        let gap = self.books.observe(&mut charge.taken, slot, used, false, self.calibration.one_way(), now);
        // One that was expected to answer more than we knew says nothing of the level.
        let explained = counts_expected && text.requested > charge.taken.amount.expected.into();
        if !text.hopeless() && !explained {
            let last = self.books.position();
            self.books.levels_mut()[slot].refused(charge.taken.position, last, gap.unwrap_or(0), now);
        }
        true
    }

    fn refused_by_headers(&mut self, charge: &mut Charge, state: &Observation, now: Ns) -> bool {
        let position = charge.taken.position;
        let low = |shown: Option<RemoteQuota>, unit| shown.is_some_and(|shown| shown.remaining < charge.taken.amount.of(unit));
        let tokens = low(state.tokens, Unit::Tokens);
        let requests = low(state.requests, Unit::Requests);
        let audio = low(state.audio, Unit::AudioSeconds);
        self.learn_headers(charge, state, false, now);
        let last = self.books.position();
        for level in self.books.levels_mut().iter_mut().filter(|level| level.is_visible()) {
            let low = match level.dimension.unit {
                Unit::Tokens => tokens,
                Unit::Requests => requests,
                Unit::AudioSeconds => audio,
                Unit::InputTokens | Unit::OutputTokens => false,
            };
            if low {
                level.refused(position, last, 0, now);
            }
        }
        tokens || requests || audio
    }

    /// A text's dimension; without a name the one with that limit, else the one that its own figures give.
    pub(super) fn named(&self, text: &UpstreamRefusal) -> Option<Dimension> {
        let same = || self.books.levels().iter().find(|level| !level.is_bound() && level.limit() == Some(text.limit));
        text.dimension
            .clone()
            .or_else(|| same().map(|level| Dimension::clone(&level.dimension)))
            .or_else(|| text.dimension_or_derived())
    }

    /// Estimates learn from what was really used.
    pub(super) fn learn_usage(&mut self, charge: &Charge, spent: Spent, now: Ns) {
        if charge.taken.amount.seconds > 0 {
            return;
        }
        if let Spent::Tokens { completion, .. } | Spent::Partial { completion } = spent {
            self.books.expected_output().answered(u32::try_from(completion).unwrap_or(u32::MAX), now);
        }
        let Spent::Tokens { completion, prompt_total, .. } = spent else { return };
        if let Some(requested) = charge.requested {
            self.learn_assumed(|lane| lane.calibration.assumed.answered_after_refusal(requested.into(), prompt_total, now));
        } else if let Some(used) = charge.shown_used {
            self.learn_assumed(|lane| lane.calibration.assumed.answered(used, prompt_total, now));
        }
        self.calibration.prompt.learn(charge.estimated.into(), prompt_total);
        self.calibration.completion.learn(completion as f32);
        if let Some(app) = self.line.running(charge.app, true) {
            app.completion.learn(completion as f32);
            self.line.running(charge.app, false);
        }
    }

    /// Takes up what Groq had stated to an earlier process.
    pub(crate) fn restore_limit(&mut self, dimension: &Dimension, limit: u64, source: Source, now: Ns) {
        self.stated(dimension, limit, source, now);
    }

    /// Takes up a level of an earlier process: `used` units less what `passed` seconds gave back.
    /// `bound`: the operator's own.
    pub(crate) fn restore_level(&mut self, dimension: &Dimension, bound: bool, used: f64, passed: f64, now: Ns) {
        let code = &dimension.code;
        let slot = if bound { self.books.bound_slot(code) } else { self.books.slot(code) };
        let Some(slot) = slot else { return };
        let level = &mut self.books.levels_mut()[slot];
        let back = level.bucket().map_or(0.0, |bucket| bucket.rate() * passed);
        level.restore((used - back).max(0.0).ceil() as u64, now);
    }
}
