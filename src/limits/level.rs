//! How full does one dimension stand, as Groq sees it? A bucket, and what keeps it true: the standing reserve,
//! corrections from headers and refusals by send position, the strangers' drift.

use std::{collections::VecDeque, time::Duration};

use super::{
    Source,
    books::Amount,
    bucket::{Bucket, Fit, Ns},
    exchange::Sighting,
    window::Window,
};
use crate::groq::{Dimension, Snapshot, Unit};

mod shared;

const SECOND: f64 = 1e9;
/// The boost after an own refusal halves in this time.
const BOOST_HALF: f64 = 1800.0 * SECOND;
/// The strangers' share that refusals taught halves in this time.
const DRIFT_HALF: f64 = 900.0 * SECOND;
/// What headers show of strangers, and our own spending, are averaged over this time.
const MEMORY: f64 = 60.0 * SECOND;
/// A limit that Groq stated counts as certain for so long, ns.
const TRUSTED_FOR: Ns = 600_000_000_000;
/// Weight of the newest request in the typical amount.
const TYPICAL_GAIN: f64 = 0.02;

/// Ways to Groq and back differ by less: within it requests overtake each other, and headers the answers before them.
const JITTER: Ns = 100_000_000;
/// Doubts remembered for headers to come.
const DOUBTS: usize = 128;

/// So many answers in a row whose `reset` contradicts the bucket law: the upstream counts windows.
const CONTRADICTIONS: u8 = 3;
/// So many in a row that agree: it counts a bucket after all.
const AGREEMENTS: u8 = 50;

/// One dimension of a lane. Its slot in the lane never moves; a limit that is dropped leaves it without a bucket.
#[derive(Debug)]
pub struct Level {
    /// Which.
    pub dimension: Dimension,
    terms: Terms,
    bucket: Option<Bucket>,
    /// What others are always left: our own use alone, against the rest of the limit.
    share: Option<Bucket>,
    headroom: f64,
    /// The store's side, where replicas share the level.
    far: Option<Box<shared::Far>>,
    /// The upstream counts windows: this log decides instead of the bucket, which is kept up all the same.
    window: Option<Box<Window>>,
    contradictions: u8,
    agreements: u8,
    confirmed: Ns,
    /// Sum of all corrections, ns; wraps, only differences count.
    corrections: i64,
    /// Charged and not on its way yet, ns: not part of what Groq can have seen.
    unsent: Ns,
    /// What went out of late: position, time, ns.
    recent: VecDeque<(u64, Ns, Ns)>,
    /// Sum of it, ns.
    on_its_way: Ns,
    /// What headers from the first position to the second may not show yet, or no longer, ns; the newest first.
    doubts: VecDeque<(u64, u64, Ns)>,
    /// Marks from before the last change of the limit are in its units.
    before: Scale,
    /// The newest send position that has corrected it.
    newest: u64,
    /// Positions up to here are older than the last refusal that was learnt from.
    refused_until: u64,
    last_refusal: Option<Ns>,
    typical: f64,
    boost: f64,
    drift: f64,
    foreign: f64,
    /// Units taken, fading: ours per minute.
    spending: f64,
    then: Ns,
}

/// Who says what about one limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// The operator: at most so much, whatever Groq says.
    pub configured: Option<u64>,
    /// Groq, in headers or a refusal.
    pub stated: Option<(u64, Source)>,
    /// The plan's table, and whether the operator chose that plan.
    pub plan: Option<(u64, bool)>,
}

impl Terms {
    /// The limit in force and where it comes from.
    fn limit(&self) -> (Option<u64>, Source) {
        match (self.configured, self.stated, self.plan) {
            (Some(configured), Some((stated, source)), _) if stated < configured => (Some(stated), source),
            (Some(configured), _, _) => (Some(configured), Source::Configured),
            (None, Some((stated, source)), _) => (Some(stated), source),
            (None, None, plan) => (plan.map(|(limit, _)| limit), Source::Plan),
        }
    }
}

/// A dimension as it stood when a request was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// When it would have been full again.
    pub tat: Ns,
    /// Sum of all corrections, ns.
    pub corrections: i64,
    /// Sum of the store's corrections and settlements, ns.
    pub adjusted: i64,
    /// What all replicas had taken and given back shortly before, ns: Groq may have seen it later.
    pub recent: Ns,
}

/// The end of an older limit: positions up to `position` were marked under it.
#[derive(Clone, Copy, Debug, Default)]
struct Scale {
    position: u64,
    unit: Ns,
    corrections: i64,
}

impl Level {
    /// A full one. Without a limit it holds nobody back.
    pub fn new(dimension: Dimension, terms: Terms, headroom: f64, now: Ns) -> Self {
        let mut level = Self {
            dimension,
            terms: Terms::default(),
            bucket: None,
            share: None,
            headroom,
            far: None,
            window: None,
            contradictions: 0,
            agreements: 0,
            confirmed: now,
            corrections: 0,
            unsent: 0,
            recent: VecDeque::new(),
            on_its_way: 0,
            doubts: VecDeque::new(),
            before: Scale::default(),
            newest: 0,
            refused_until: 0,
            last_refusal: None,
            typical: 0.0,
            boost: 0.0,
            drift: 0.0,
            foreign: 0.0,
            spending: 0.0,
            then: now,
        };
        level.agree(terms, 0, now);
        level
    }

    /// The limit in force.
    pub fn limit(&self) -> Option<u64> {
        self.bucket.as_ref().map(Bucket::limit)
    }

    /// Where the limit's number comes from.
    pub fn source(&self) -> Source {
        self.terms.limit().1
    }

    /// Who says what.
    pub fn terms(&self) -> Terms {
        self.terms
    }

    /// The bucket, where there is a limit.
    pub fn bucket(&self) -> Option<&Bucket> {
        self.bucket.as_ref()
    }

    /// Whether more than the limit can be refused for good on our own word. A table that nobody chose, or a number
    /// that Groq has not repeated for long, may be wrong: such a request goes, charged with the whole limit.
    pub fn is_certain(&self, now: Ns) -> bool {
        match self.source() {
            Source::Configured => true,
            Source::Plan => self.terms.plan.is_some_and(|(_, chosen)| chosen),
            Source::Headers | Source::Refusal => now.saturating_sub(self.confirmed) < TRUSTED_FOR,
        }
    }

    /// What the limit counts of an amount: never more than it can hold.
    pub fn asked(&self, amount: &Amount) -> u64 {
        let asked = amount.of(self.dimension.unit);
        self.limit().map_or(asked, |limit| asked.min(limit))
    }

    /// Time passes: the strangers' share is charged, boosts fade.
    pub fn tick(&mut self, now: Ns) {
        let Some(passed) = now.checked_sub(self.then).filter(|&ns| ns >= 1_000_000) else { return };
        if self.drift > 0.0
            && let Some(bucket) = &mut self.bucket
        {
            let taken = (self.drift * passed as f64) as Ns;
            let tat = bucket.tat().max(self.then).saturating_add(taken);
            bucket.set_tat(tat, now);
            self.drift = vanish(self.drift * fade(passed, DRIFT_HALF));
            self.owe(taken as i64);
        }
        if self.boost > 0.0 {
            self.boost = vanish(self.boost * fade(passed, BOOST_HALF));
        }
        if self.foreign > 0.0 || self.spending > 0.0 {
            let faded = (-(passed as f64) / MEMORY).exp();
            self.foreign = vanish(self.foreign * faded);
            self.spending = vanish(self.spending * faded);
        }
        self.then = now;
    }

    /// What a request of `asked` must leave untouched. A legal request always fits a full bucket.
    pub fn reserve(&self, asked: u64) -> u64 {
        let Some(limit) = self.limit() else { return 0 };
        let whole = limit as f64;
        let standing = match (self.dimension.unit, self.dimension.period >= Duration::from_secs(86_400)) {
            (Unit::Requests, _) => (0.05 * whole).max(2.0),
            (_, true) => asked as f64,
            (_, false) => (6.0 * self.typical).clamp(0.05 * whole, 0.30 * whole),
        };
        ((standing + self.boost).min(0.40 * whole) as u64).min(limit.saturating_sub(asked))
    }

    /// Whether `asked` fits beside the reserve.
    pub fn peek(&self, asked: u64, now: Ns) -> Fit {
        let Some(bucket) = self.bucket.as_ref().filter(|_| asked > 0) else { return Fit::Now };
        let fit = match &self.window {
            Some(window) => window.fit(asked, self.boost as u64, now),
            None => bucket.peek(asked, self.reserve(asked), now),
        };
        match &self.share {
            Some(share) => fit.max(share.peek(asked.min(share.limit()), 0, now)),
            None => fit,
        }
    }

    /// The instant at which `asked` fits once `before` units more were taken: in the past, too, to tell how far.
    pub fn fits_from(&self, asked: u64, before: u64) -> Ns {
        let Some(bucket) = self.bucket.as_ref().filter(|_| asked > 0) else { return 0 };
        if let Some(window) = &self.window {
            return match window.fit((asked + before).min(bucket.limit()), self.boost as u64, self.then) {
                Fit::At(at) => at,
                Fit::Now | Fit::Never => 0,
            };
        }
        let from = |bucket: &Bucket, units| {
            (bucket.tat().saturating_add(bucket.span(units))).saturating_sub(bucket.span(bucket.limit()))
        };
        let whole = from(bucket, asked + self.reserve(asked) + before);
        self.share.as_ref().map_or(whole, |share| whole.max(from(share, asked.min(share.limit()) + before)))
    }

    /// Takes `asked` under this serial; it counts as not sent yet.
    pub fn charge(&mut self, serial: u64, asked: u64, now: Ns) {
        self.spend(serial, asked, now);
        if let Some(bucket) = &mut self.bucket {
            bucket.charge(asked, now);
            self.unsent = self.unsent.saturating_add(bucket.span(asked));
        }
    }

    /// Everything about a charge but the bucket itself.
    fn spend(&mut self, serial: u64, asked: u64, now: Ns) {
        if asked == 0 {
            return;
        }
        if let Some(window) = &mut self.window {
            window.charge(serial, asked, now);
        }
        self.typical += if self.typical == 0.0 { 1.0 } else { TYPICAL_GAIN } * (asked as f64 - self.typical);
        self.spending += asked as f64;
        if let Some(share) = &mut self.share {
            share.charge(asked, now);
        }
    }

    /// It goes out at this position; how the level stands then.
    pub fn sent(&mut self, serial: u64, position: u64, asked: u64, now: Ns) -> Mark {
        self.forget_sent(now);
        // They went out so shortly before that they may arrive later.
        self.doubt(position, position, self.on_its_way);
        if let Some(bucket) = &self.bucket {
            let span = bucket.span(asked);
            self.recent.push_back((position, now, span));
            self.on_its_way = self.on_its_way.saturating_add(span);
        }
        if let Some(window) = &mut self.window {
            window.sent(serial, position, now);
        }
        self.mark()
    }

    fn doubt(&mut self, first: u64, last: u64, span: Ns) {
        if span > 0 {
            self.doubts.truncate(DOUBTS - 1);
            self.doubts.push_front((first, last, span));
        }
    }

    fn forget_sent(&mut self, now: Ns) {
        while let Some(&(_, at, span)) = self.recent.front()
            && at + JITTER <= now
        {
            self.recent.pop_front();
            self.on_its_way = self.on_its_way.saturating_sub(span);
        }
    }

    /// `asked` is on its way, or never will be: others' positions may count it.
    pub fn no_longer_unsent(&mut self, asked: u64) {
        if let Some(bucket) = &self.bucket {
            self.unsent = self.unsent.saturating_sub(bucket.span(asked));
        }
    }

    /// How it stands for a request that is sent now and counted in it.
    pub fn mark(&self) -> Mark {
        let tat = self.bucket.as_ref().map_or(0, Bucket::tat);
        Mark { tat: tat.saturating_sub(self.unsent), corrections: self.corrections, adjusted: 0, recent: 0 }
    }

    /// The truth replaces what was asked for.
    pub fn settle(&mut self, serial: u64, asked: u64, used: u64, now: Ns) {
        if let Some(window) = &mut self.window {
            window.settle(serial, used);
        }
        self.spending = (self.spending + used as f64 - asked as f64).max(0.0);
        if let Some(bucket) = &self.bucket {
            self.owe(bucket.span(used) as i64 - bucket.span(asked) as i64);
        }
        self.forget_sent(now);
        if let (Some(bucket), Some(&(first, ..)), Some(&(last, ..))) = (&self.bucket, self.recent.front(), self.recent.back()) {
            // Groq gave it back before the answer came, perhaps before these arrived.
            self.doubt(first, last, bucket.span(asked.saturating_sub(used)));
        }
        for bucket in self.bucket.iter_mut().chain(&mut self.share) {
            match used.checked_sub(asked) {
                Some(0) => {}
                Some(more) => bucket.charge(more, now),
                None => bucket.refund(asked - used),
            }
        }
    }

    /// Groq says that `used` units were taken at `at`, the request at this position included. Only a newer position
    /// than all before counts, so late answers, in any order, do no harm. The correction in ns.
    pub fn observe(&mut self, position: u64, mark: Mark, used: u64, at: Ns, now: Ns) -> Option<i64> {
        self.confirmed = now;
        if position <= self.newest {
            return None;
        }
        let first = std::mem::replace(&mut self.newest, position) == 0;
        let mark = self.rescaled(position, mark, at);
        let bucket = self.bucket.as_mut()?;
        let expected = mark.tat.saturating_add_signed(self.corrections.wrapping_sub(mark.corrections)).max(at);
        let truth = at.saturating_add(bucket.span(used));
        // A bucket that was full at that time counts from then.
        bucket.set_tat(bucket.tat().max(at), now);
        let error = (i128::from(truth) - i128::from(expected)).clamp(i64::MIN.into(), i64::MAX.into()) as i64;
        // Less in use than expected may be what was overtaken on its way, or a refund that both have seen.
        let doubts = self.doubts.iter().filter(|&&(first, last, _)| (first..=last).contains(&position));
        let doubtful = doubts.fold(mark.recent, |sum: Ns, &(.., span)| sum.saturating_add(span));
        let error = if error < 0 { error.saturating_add_unsigned(doubtful).min(0) } else { error };
        self.doubts.retain(|&(_, last, _)| last > position);
        bucket.correct(error, now);
        self.corrections = self.corrections.wrapping_add(error);
        self.sight(Sighting { position, mark, at, truth });
        // What was taken before our first request does not say how fast others take.
        if !first {
            self.foreign = (self.foreign + error as f64 / MEMORY).clamp(0.0, 0.9);
        }
        Some(error)
    }

    /// Holds an answer's `reset` against the bucket law. `true`: from now on windows are counted.
    pub fn judge(&mut self, position: u64, shown: &Snapshot, now: Ns) -> bool {
        let used = shown.limit.saturating_sub(shown.remaining);
        let Some(reset) = shown.reset.filter(|_| used > 0) else { return false };
        let law = used as f64 * self.dimension.period.as_secs_f64() / shown.limit as f64;
        // A full window's `reset` is near the law, too, for a while: only exact agreement speaks for a bucket.
        let off = (reset.as_secs_f64() - law).abs();
        if off > (0.1 * law).max(0.3) {
            (self.contradictions, self.agreements) = (self.contradictions.saturating_add(1), 0);
        } else if off <= (0.005 * law).max(0.05) {
            (self.contradictions, self.agreements) = (0, self.agreements.saturating_add(1));
            if self.agreements >= AGREEMENTS {
                self.window = None;
            }
        }
        let turns = self.contradictions >= CONTRADICTIONS && self.window.is_none();
        if turns {
            self.count_windows(now);
        }
        if let Some(window) = &mut self.window {
            window.observe(position, used, Ns::try_from(reset.as_nanos()).unwrap_or(Ns::MAX).min(now), now);
        }
        turns
    }

    /// Counts windows from now on. What the bucket shows as used is taken for this window's.
    pub fn count_windows(&mut self, now: Ns) {
        if let Some(bucket) = self.bucket.as_ref().filter(|_| self.window.is_none()) {
            let used = (bucket.limit() as f64 - bucket.level(now)).max(0.0) as u64;
            self.window = Some(Box::new(Window::new(bucket.limit(), bucket.period(), used, now)));
        }
    }

    /// Whether windows are counted.
    pub fn counts_windows(&self) -> bool {
        self.window.is_some()
    }

    /// A mark in today's units.
    fn rescaled(&self, position: u64, mark: Mark, at: Ns) -> Mark {
        let Some(bucket) = self.bucket.as_ref().filter(|_| position <= self.before.position) else { return mark };
        let Scale { unit, corrections, .. } = self.before;
        let tat = mark.tat.saturating_add_signed(corrections.wrapping_sub(mark.corrections));
        let used = tat.saturating_sub(at).checked_div(unit).unwrap_or(0);
        Mark { tat: at.saturating_add(bucket.span(used)), corrections, ..mark }
    }

    /// A refusal of our own: more is kept back, and where no header shows this dimension, the strangers' share is learnt
    /// from what grew beyond our books since the last one. `gap` is the refusal's correction, ns.
    pub fn refused(&mut self, position: u64, last_position: u64, gap: i64, wait: Option<Duration>, now: Ns) {
        if let Some((window, wait)) = self.window.as_mut().zip(wait) {
            window.refused(now.saturating_add(Ns::try_from(wait.as_nanos()).unwrap_or(Ns::MAX).min(now)));
        }
        // Those that were on their way already teach nothing more.
        if position <= self.refused_until {
            return;
        }
        self.refused_until = last_position;
        if let Some(last) = self.last_refusal {
            self.boost += if self.dimension.unit == Unit::Requests { 1.0 } else { self.typical };
            if !self.is_visible() {
                let since = (now.saturating_sub(last) as f64).max(20.0 * SECOND);
                self.drift = (self.drift + 0.5 * gap.max(0) as f64 / since).min(0.9);
            }
        }
        self.last_refusal = Some(now);
    }

    /// Another word on the limit; what was used stays used. Positions up to `position` were counted under the old one.
    pub fn agree(&mut self, terms: Terms, position: u64, now: Ns) {
        self.terms = terms;
        let (limit, _) = terms.limit();
        if self.limit() == limit.filter(|&limit| limit <= u32::MAX.into() && limit > 0) {
            return;
        }
        let unit = self.bucket.as_ref().map_or(0, |bucket| bucket.span(1));
        self.before = Scale { position, unit, corrections: self.corrections };
        self.recent.clear();
        self.on_its_way = 0;
        self.doubts.clear();
        let kept = self.bucket.take().zip(limit).and_then(|(bucket, limit)| bucket.requota(limit, now));
        self.unsent = match &kept {
            Some(bucket) => (u128::from(self.unsent) * u128::from(bucket.span(1)) / u128::from(unit)) as Ns,
            None => 0,
        };
        match (&mut self.window, limit.and_then(|limit| u32::try_from(limit).ok())) {
            (Some(window), Some(limit)) => window.requota(limit.into()),
            (window, _) => *window = None,
        }
        self.bucket = kept.or_else(|| limit.and_then(|limit| Bucket::new(limit, self.dimension.period)));
        self.last_refusal = None;
        (self.drift, self.boost) = (0.0, 0.0);
        self.leave(self.headroom, now);
    }

    /// Leaves this share of the limit to others.
    pub fn leave(&mut self, headroom: f64, now: Ns) {
        self.headroom = headroom;
        let part = self.own_part();
        let ours = self.limit().filter(|_| part < 1.0 || self.is_parted()).map(|limit| ((limit as f64 * part) as u64).max(1));
        let kept = self.share.take().zip(ours).and_then(|(share, ours)| share.requota(ours, now));
        self.share = kept.or_else(|| ours.and_then(|ours| Bucket::new(ours, self.dimension.period)));
    }

    /// Puts the level where it was, as saved by an earlier process.
    pub fn restore(&mut self, used: u64, now: Ns) {
        if let Some(bucket) = &mut self.bucket {
            let tat = now.saturating_add(bucket.span(used)).max(bucket.tat());
            bucket.set_tat(tat, now);
        }
    }

    /// Whether headers show this dimension.
    pub fn is_visible(&self) -> bool {
        matches!(self.terms.stated, Some((_, Source::Headers)))
    }

    /// The share of the limit's rate that others take.
    pub fn foreign(&self) -> f64 {
        self.drift.max(self.foreign)
    }

    /// Units that we take each second, averaged over a minute.
    pub fn spending(&self) -> f64 {
        self.spending * SECOND / MEMORY
    }

    /// What a request usually asks for.
    pub fn typical(&self) -> u64 {
        self.typical as u64
    }

    /// Nothing is used of it.
    pub fn is_full(&self, now: Ns) -> bool {
        self.bucket.as_ref().is_none_or(|bucket| bucket.tat() <= now)
    }
}

fn vanish(x: f64) -> f64 {
    if x < 1e-4 { 0.0 } else { x }
}

fn fade(passed: Ns, half: f64) -> f64 {
    (-(passed as f64) / half).exp2()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_before_our_first_request_is_nobodys_rate() {
        let terms = Terms { configured: Some(60_000), ..Terms::default() };
        let mut level = Level::new(Dimension::TPM, terms, 0.0, 0);
        level.observe(1, level.mark(), 57_000, 0, 0);
        assert_eq!((level.foreign(), level.is_full(0)), (0.0, false), "only the level is corrected");
        level.observe(2, level.mark(), 60_000, 0, 0);
        assert!((0.04..0.06).contains(&level.foreign()), "a twentieth of a minute's limit came since");
    }
}
