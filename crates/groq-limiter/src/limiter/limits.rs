//! The limits of one limiter: whose statement is in force, and how headers and refusals correct the quotas under them.

use std::sync::Arc;

use crate::{
    plans,
    quota::{Quota, Statements},
    quota_set::{QuotaSet, Reserved},
    settings::{LimitSettings, Plan},
    store::protocol::Learnt,
    types::{Dimension, Ns, Observation, RemoteQuota, Source, StatedLimit, Unit, UpstreamRefusal},
};

/// The quotas, and where their limits come from.
#[derive(Debug)]
pub(super) struct Limits {
    pub(super) quotas: QuotaSet,
    pub(super) model: Arc<str>,
    pub(super) settings: Arc<LimitSettings>,
    /// The plan whose table is in force; `None`: none fits what headers say.
    plan: Option<Plan>,
    /// Groq has stated something that other replicas have not been told.
    pub(super) untold: bool,
}

/// What a header said of tokens per minute.
#[derive(Clone, Copy, Debug)]
pub(super) struct ObservedTokens {
    pub(super) slot: usize,
    pub(super) used: u64,
    /// By how many units the quota was corrected; `None` for its first header, and for one that came late.
    pub(super) error: Option<i64>,
}

impl Limits {
    /// By the operator's settings and the plan's table.
    pub(super) fn new(model: Arc<str>, settings: Arc<LimitSettings>, now: Ns) -> Self {
        let mut limits =
            Self { quotas: QuotaSet::default(), model, plan: Some(settings.plan), settings: settings.clone(), untold: false };
        limits.reconfigure(settings, now);
        limits
    }

    /// Other settings; used amounts stay.
    pub(super) fn reconfigure(&mut self, settings: Arc<LimitSettings>, now: Ns) {
        let plan = if self.settings.plan == settings.plan { self.plan } else { Some(settings.plan) };
        self.settings = settings;
        for quota in self.quotas.all_mut().iter_mut().filter(|quota| !quota.is_bound()) {
            quota.set_headroom(self.settings.headroom, now);
        }
        self.set_plan(plan, now);
    }

    /// Every known dimension by the operator's settings and this plan's table.
    fn set_plan(&mut self, plan: Option<Plan>, now: Ns) {
        self.plan = plan;
        let chosen = matches!(self.settings.plan, Plan::Free | Plan::Developer);
        let configured = self.settings.of_model(&self.model).by_dimension();
        let row = plan.and_then(|plan| plans::limits(plan, &self.model)).unwrap_or_default().by_dimension();
        for ((dimension, configured), (_, row)) in configured.into_iter().zip(row) {
            let plan = row.map(|limit| (limit, chosen));
            match self.quotas.slot(&dimension.code) {
                Some(slot) => {
                    let statements = Statements { configured, plan, ..self.quotas.all()[slot].statements() };
                    self.set_statements(slot, statements, now);
                }
                None if configured.is_some() || plan.is_some() => {
                    let statements = Statements { configured, plan, stated: None };
                    let quota = Quota::new(dimension, statements, self.settings.headroom, now);
                    self.quotas.add(if self.settings.exact { quota.without_margin() } else { quota }, now);
                }
                None => {}
            }
        }
    }

    /// Changes what is stated of a dimension, and the operator's own bound beside it.
    fn set_statements(&mut self, slot: usize, statements: Statements, now: Ns) {
        let position = self.quotas.position();
        let quota = &mut self.quotas.all_mut()[slot];
        if quota.statements() == statements {
            return;
        }
        let used = quota.bucket().map_or(0.0, |bucket| bucket.used(now)) as u64;
        quota.set_statements(statements, position, now);
        let dimension = quota.dimension.clone();
        match (self.quotas.bound_slot(&dimension.code), statements.bound()) {
            (Some(slot), bound) => {
                let statements = Statements { configured: bound, ..Statements::default() };
                self.quotas.all_mut()[slot].set_statements(statements, position, now);
            }
            (None, Some(limit)) => {
                self.quotas.add(Quota::bound(dimension, limit, used, now), now);
            }
            (None, None) => {}
        }
    }

    /// Groq states this dimension's limit; the dimension comes to be if it was unknown. Its slot.
    pub(super) fn state(&mut self, dimension: &Dimension, limit: u64, source: Source, now: Ns) -> Option<usize> {
        let known = self.quotas.slot(&dimension.code);
        let slot = match known {
            Some(slot) => slot,
            None => {
                let quota = Quota::new(dimension.clone(), Statements::default(), self.settings.headroom, now);
                self.quotas.add(quota, now)?
            }
        };
        let before = self.quotas.all()[slot].statements();
        // A refusal repeats what headers show: the dimension stays a visible one.
        let source = match before.stated {
            Some((same, Source::Headers)) if same == limit => Source::Headers,
            _ => source,
        };
        self.untold |= before.stated.map(|(limit, _)| limit) != Some(limit);
        self.set_statements(slot, Statements { stated: Some((limit, source)), ..before }, now);
        let quota = &mut self.quotas.all_mut()[slot];
        quota.confirmed = now;
        if known.is_none() && quota.counts_expected() {
            // Answers were taken before the limit was known; a refusal as too large says nothing of them.
            let rate = limit as f64 / dimension.period.as_secs_f64();
            let used = self.quotas.expected_output().left_in_use(rate, now);
            self.quotas.all_mut()[slot].restore(used, now);
        }
        Some(slot)
    }

    /// Takes up what Groq has stated to another limiter, or to an earlier process. What is used stays.
    pub(super) fn adopt(&mut self, stated: &[StatedLimit], now: Ns) {
        let known = self.quotas.stated();
        let same = |a: &StatedLimit, b: &StatedLimit| a.dimension.code == b.dimension.code && a.limit == b.limit;
        let before = self.untold;
        for StatedLimit { dimension, limit, source } in
            stated.iter().filter(|stated| !known.iter().any(|known| same(known, stated)))
        {
            self.state(dimension, *limit, *source, now);
            self.follow_plan(now);
        }
        let is_told = |known: &StatedLimit| stated.iter().any(|stated| stated.dimension.code == known.dimension.code);
        self.untold = before || !known.iter().all(is_told);
    }

    /// Takes up what another replica has learnt.
    pub(super) fn hear(&mut self, learnt: &Learnt, now: Ns) {
        self.adopt(&learnt.limits, now);
        for &answer in &learnt.answers {
            self.quotas.expected_output().heard(answer, now);
        }
    }

    /// Whether other replicas have something to learn.
    pub(super) fn has_learnt(&mut self) -> bool {
        let tests_output = self.quotas.all().iter().any(Quota::counts_expected);
        self.untold || (tests_output && self.quotas.expected_output().is_untold())
    }

    /// Takes up a quota of an earlier process: `used` units less what `passed` seconds gave back.
    /// `bound`: the operator's own.
    pub(super) fn restore(&mut self, dimension: &Dimension, bound: bool, used: f64, passed: f64, now: Ns) {
        let code = &dimension.code;
        let slot = if bound { self.quotas.bound_slot(code) } else { self.quotas.slot(code) };
        let Some(slot) = slot else { return };
        let quota = &mut self.quotas.all_mut()[slot];
        let back = quota.bucket().map_or(0.0, |bucket| bucket.rate() * passed);
        quota.restore((used - back).max(0.0).ceil() as u64, now);
    }

    /// Under `auto`: the plan whose visible limits are the headers', or none.
    pub(super) fn follow_plan(&mut self, now: Ns) {
        if self.settings.plan != Plan::Auto {
            return;
        }
        let stated = |dimension: &Dimension| {
            let stated = self.quotas.find(&dimension.code)?.statements().stated;
            stated.filter(|&(_, source)| source == Source::Headers).map(|(limit, _)| limit)
        };
        let (tokens, requests) = (stated(&Dimension::TPM), stated(&Dimension::RPD));
        if tokens.is_some() || requests.is_some() {
            self.set_plan(plans::matching(&self.model, tokens, requests), now);
        }
    }

    /// Headers correct what they show; one way to Groq takes `delay`. A refusal's do not count its request. What they said of
    /// tokens per minute.
    pub(super) fn observe(
        &mut self,
        reserved: &mut Reserved,
        state: &Observation,
        counted: bool,
        delay: Ns,
        now: Ns,
    ) -> Option<ObservedTokens> {
        let audio = state.audio.map(|shown| (self.audio_dimension(&shown), Some(shown)));
        let shown = [(Dimension::TPM, state.tokens), (Dimension::RPD, state.requests)].into_iter().chain(audio);
        let (mut news, mut tokens) = (false, None);
        for (dimension, shown) in shown {
            let Some(shown) = shown.filter(|shown| shown.limit > 0) else { continue };
            let before = self.quotas.find(&dimension.code).and_then(|quota| quota.statements().stated);
            let bound = self.quotas.bound_slot(&dimension.code);
            let Some(slot) = self.state(&dimension, shown.limit, Source::Headers, now) else { continue };
            if let (None, Some(bound)) = (bound, self.quotas.bound_slot(&dimension.code)) {
                reserved.cover(bound);
            }
            news |= before.map(|(limit, _)| limit) != Some(shown.limit);
            let used = shown.limit.saturating_sub(shown.remaining);
            let first = !self.quotas.all()[slot].is_observed();
            let error = self.quotas.observe(reserved, slot, used, counted, delay, now).filter(|_| !first);
            if dimension == Dimension::TPM {
                let unit = self.quotas.all()[slot].bucket().map_or(1, |bucket| bucket.span(1));
                tokens = Some(ObservedTokens { slot, used, error: error.map(|error| error / unit as i64) });
            }
        }
        if news {
            self.follow_plan(now);
        }
        tokens
    }

    /// Which bucket the undocumented audio headers describe: the one with that limit, else the one whose law fits.
    fn audio_dimension(&self, shown: &RemoteQuota) -> Dimension {
        let has =
            |dimension: &Dimension| self.quotas.find(&dimension.code).is_some_and(|quota| quota.limit() == Some(shown.limit));
        let used = shown.limit.saturating_sub(shown.remaining);
        let period = shown.reset.map_or(0.0, |reset| reset.as_secs_f64() * shown.limit as f64 / used.max(1) as f64);
        match (has(&Dimension::ASPH), has(&Dimension::ASPD)) {
            (true, _) => Dimension::ASPH,
            (false, true) => Dimension::ASPD,
            (false, false) if used > 0 && period > 20_000.0 => Dimension::ASPD,
            (false, false) => Dimension::ASPH,
        }
    }

    /// A text's dimension; without a name the one with that limit, else the one that its own figures give. `max`: the request's
    /// `max_completion_tokens`.
    pub(super) fn dimension_of(&self, text: &UpstreamRefusal, max: Option<u32>) -> Option<Dimension> {
        let same = || self.quotas.all().iter().find(|quota| !quota.is_bound() && quota.limit() == Some(text.limit));
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
    pub(super) fn refused(
        &mut self,
        reserved: &mut Reserved,
        text: &UpstreamRefusal,
        dimension: &Dimension,
        max: Option<u32>,
        delay: Ns,
        now: Ns,
    ) -> bool {
        let Some(slot) = self.state(dimension, text.limit, Source::UpstreamRefusal, now) else { return false };
        let counts_expected = self.quotas.all()[slot].counts_expected();
        if counts_expected {
            let requested = u32::try_from(text.requested).unwrap_or(u32::MAX);
            self.quotas.expected_output().refused(reserved.cost.key, requested, max.unwrap_or(u32::MAX), now);
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
        let gap = self.quotas.observe(reserved, slot, used, false, delay, now);
        // One that was expected to answer more than we knew says nothing of the quota.
        let explained = counts_expected && text.requested > reserved.cost.expected.into();
        if !text.hopeless() && !explained {
            let last = self.quotas.position();
            self.quotas.all_mut()[slot].refused(reserved.position, last, gap.unwrap_or(0), now);
        }
        true
    }

    /// A refusal without a text: those dimensions are low whose headers say so. Whether any does.
    pub(super) fn refused_by_headers(&mut self, reserved: &mut Reserved, state: &Observation, delay: Ns, now: Ns) -> bool {
        let low: Vec<Unit> = [(state.tokens, Unit::Tokens), (state.requests, Unit::Requests), (state.audio, Unit::AudioSeconds)]
            .into_iter()
            .filter(|(shown, unit)| shown.is_some_and(|shown| shown.remaining < reserved.cost.of(*unit)))
            .map(|(_, unit)| unit)
            .collect();
        self.observe(reserved, state, false, delay, now);
        let last = self.quotas.position();
        for quota in self.quotas.all_mut().iter_mut().filter(|quota| quota.is_visible()) {
            if low.contains(&quota.dimension.unit) {
                quota.refused(reserved.position, last, 0, now);
            }
        }
        !low.is_empty()
    }
}
