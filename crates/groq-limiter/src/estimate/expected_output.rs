//! Expected output: what Groq tests against a limit on output tokens per minute (OTPM).
//!
//! Not a request's output limit: the smaller of it and of the largest answer that its API key has had in the last minutes
//! (observed in September 2026). Nothing shows that figure but refusals, so the largest recent answer is followed here, per
//! key: what one key of an organization was answered holds up no other. How long an answer counts is learnt from refusals,
//! too: Groq went on refusing for 65 to 150 s.
//!
//! Answers of other processes that use the same key are seen when a refusal states a larger figure than any answer of ours. So are
//! upstreams that test output limits after all: several refusals in a row state the output limit of the request itself.

use std::collections::VecDeque;

use crate::types::Ns;

const SECOND: Ns = 1_000_000_000;
/// How long an answer counts before refusals have taught better, and within which bounds they can.
const WINDOW: Ns = 150 * SECOND;
const SHORTEST: Ns = 60 * SECOND;
const LONGEST: Ns = 600 * SECOND;
/// What a refusal that came later than the window would have it is taken for so much longer, ns.
const CAUTION: Ns = 10 * SECOND;
/// Answers that are remembered, of all keys.
const REMEMBERED: usize = 128;
/// So many refusals in a row that state their requests' own output limits: the upstream tests output limits.
const OUTPUT_LIMITS_AFTER: u8 = 3;
/// For so long, ns; then it is tried again.
const OUTPUT_LIMITS_FOR: Ns = 1800 * SECOND;

/// The largest recent answers of the API keys that use a limiter. Times are nanoseconds on the limiter's clock.
#[derive(Clone, Debug)]
pub struct ExpectedOutputs {
    /// In the order of their ends. Of one key, later ones are smaller.
    answers: VecDeque<LargestAnswer>,
    window: Ns,
    /// Refusals in a row that stated an output limit which no answer explains.
    output_limits: u8,
    output_limits_until: Ns,
    /// More is expected than other replicas have been told.
    untold: bool,
}

/// An answer, larger than any later one of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LargestAnswer {
    /// The key.
    pub key: u32,
    /// Its completion tokens.
    pub tokens: u32,
    /// When it ended.
    pub ended: Ns,
}

impl Default for ExpectedOutputs {
    fn default() -> Self {
        Self { answers: VecDeque::new(), window: WINDOW, output_limits: 0, output_limits_until: 0, untold: false }
    }
}

impl ExpectedOutputs {
    /// Output tokens that a request with this key and output limit is expected to have; `u32::MAX` for one without an output limit.
    pub fn of(&self, key: u32, output_limit: u32, now: Ns) -> u32 {
        // Where output limits are tested, whatever was answered.
        let largest = if now < self.output_limits_until { u32::MAX } else { self.largest(key, now).map_or(0, |it| it.tokens) };
        output_limit.min(largest)
    }

    /// From when on no more than `tokens` are expected, if nothing larger is answered until then; `now` if that is so already.
    pub fn falls_to(&self, key: u32, tokens: u32, now: Ns) -> Ns {
        let last_larger = self.of_key(key).rfind(|answer| answer.tokens > tokens);
        last_larger.map_or(now, |answer| answer.ended.saturating_add(self.window)).max(now).max(self.output_limits_until)
    }

    /// When the figure falls next. `None`: nothing is expected.
    pub fn next_fall(&self, key: u32, now: Ns) -> Option<Ns> {
        if now < self.output_limits_until {
            return Some(self.output_limits_until);
        }
        Some(self.largest(key, now)?.ended.saturating_add(self.window))
    }

    /// An answer has ended with so many completion tokens.
    pub fn answered(&mut self, key: u32, tokens: u32, now: Ns) {
        self.untold |= self.of(key, u32::MAX, now) < tokens;
        self.insert(LargestAnswer { key, tokens, ended: now });
    }

    /// A refusal stated `requested` for a request with this output limit (`u32::MAX` without one).
    pub fn refused(&mut self, key: u32, requested: u32, output_limit: u32, now: Ns) {
        if requested > output_limit || requested == 0 {
            return; // no figure of this law
        }
        let expected = self.of(key, u32::MAX, now);
        if requested < output_limit {
            // It is the largest answer itself.
            (self.output_limits, self.output_limits_until) = (0, 0);
            self.learn_window(key, requested, now);
        }
        if requested <= expected {
            return;
        }
        // Somebody else's answer, or no answer at all.
        if requested == output_limit && !self.of_key(key).any(|answer| answer.tokens >= requested) {
            self.output_limits = self.output_limits.saturating_add(1);
            if self.output_limits >= OUTPUT_LIMITS_AFTER {
                (self.output_limits, self.output_limits_until) = (0, now.saturating_add(OUTPUT_LIMITS_FOR));
            }
        }
        self.answered(key, requested, now);
    }

    /// Upstream, this key's largest answer that counts has `largest` tokens.
    fn learn_window(&mut self, key: u32, largest: u32, now: Ns) {
        let age = |answer: &LargestAnswer| now.saturating_sub(answer.ended);
        // One of ours that does not count here any more counts there.
        let older = self.of_key(key).find(|answer| answer.tokens == largest && !self.counts(answer, now));
        // A larger one counts no longer there. A young one may have been another key's.
        let larger = self.of_key(key).rfind(|answer| answer.tokens > largest && self.counts(answer, now));
        let larger = larger.map(age).filter(|&age| age >= SHORTEST);
        let older = older.map(|older| age(older).saturating_add(CAUTION).min(LONGEST));
        self.window = larger.or(older).unwrap_or(self.window);
    }

    /// The largest answers, where other replicas have not been told of one.
    pub fn take_untold(&mut self, now: Ns) -> Vec<LargestAnswer> {
        let mut largest: Vec<LargestAnswer> = Vec::new();
        if std::mem::take(&mut self.untold) {
            for answer in self.answers.iter().filter(|answer| self.counts(answer, now)) {
                if largest.iter().all(|other| other.key != answer.key) {
                    largest.push(*answer);
                }
            }
        }
        largest
    }

    /// Whether [`Self::take_untold`] has something to tell.
    pub fn is_untold(&self) -> bool {
        self.untold
    }

    /// Another replica has told of this answer.
    pub fn heard(&mut self, answer: LargestAnswer, now: Ns) {
        if answer.ended.saturating_add(LONGEST) > now {
            self.insert(LargestAnswer { ended: answer.ended.min(now), ..answer });
        }
    }

    /// Units that the answers of all keys have left in use of a limit that fills at `rate` units a second, rounded up: rounded
    /// down, the next request would go by a unit's time too early. Smaller answers that ended before larger ones are not
    /// remembered.
    pub fn left_in_use(&self, rate: f64, now: Ns) -> u64 {
        let answers = self.answers.iter().map(|answer| (answer.ended, answer.tokens));
        let mut used = (0.0f64, 0);
        for (at, tokens) in answers.chain([(now, 0)]) {
            let drained = rate * (at - used.1) as f64 / SECOND as f64;
            used = ((used.0 - drained).max(0.0) + f64::from(tokens), at);
        }
        used.0.ceil() as u64
    }

    fn insert(&mut self, mut new: LargestAnswer) {
        let is_later_and_larger =
            |a: &LargestAnswer, b: &LargestAnswer| a.key == b.key && a.ended >= b.ended && a.tokens >= b.tokens;
        if self.answers.iter().any(|old| is_later_and_larger(old, &new)) {
            return;
        }
        // Smaller ones that ended earlier can never be the largest again.
        self.answers.retain(|old| !is_later_and_larger(&new, old) && new.ended < old.ended.saturating_add(LONGEST));
        if self.answers.len() >= REMEMBERED {
            // It makes the one before it count for longer. Where its key has none, the oldest is forgotten, for a refusal at most.
            let place = self.answers.iter().rposition(|old| old.key == new.key).unwrap_or(0);
            if let Some(old) = self.answers.remove(place).filter(|old| old.key == new.key) {
                (new.tokens, new.ended) = (new.tokens.max(old.tokens), new.ended.max(old.ended));
            }
        }
        let place = self.answers.partition_point(|old| old.ended <= new.ended);
        self.answers.insert(place, new);
    }

    fn of_key(&self, key: u32) -> impl DoubleEndedIterator<Item = &LargestAnswer> {
        self.answers.iter().filter(move |answer| answer.key == key)
    }

    /// This key's largest answer that still counts.
    fn largest(&self, key: u32, now: Ns) -> Option<&LargestAnswer> {
        self.of_key(key).find(|answer| self.counts(answer, now))
    }

    fn counts(&self, answer: &LargestAnswer, now: Ns) -> bool {
        now < answer.ended.saturating_add(self.window)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(answers: &[(u64, u32)]) -> ExpectedOutputs {
        of_keys(&answers.iter().map(|&(at, tokens)| (0, at, tokens)).collect::<Vec<_>>())
    }

    #[test]
    fn the_largest_answer_counts_until_it_is_old() {
        let expected = of(&[(0, 500), (10, 1089), (20, 40), (30, 300)]);
        assert_eq!(of(&[]).of(0, 4000, 0), 0);
        assert_eq!((expected.of(0, 1800, 40 * SECOND), expected.of(0, 900, 40 * SECOND)), (1089, 900));
        assert_eq!(expected.of(0, u32::MAX, 160 * SECOND - 1), 1089);
        assert_eq!((expected.of(0, 1800, 160 * SECOND), expected.of(0, 1800, 180 * SECOND)), (300, 0));
        assert_eq!(expected.next_fall(0, 40 * SECOND), Some(160 * SECOND));
        assert_eq!(expected.falls_to(0, 1000, 40 * SECOND), 160 * SECOND);
        assert_eq!(expected.falls_to(0, 1089, 40 * SECOND), 40 * SECOND);
        assert_eq!(expected.falls_to(0, 100, 40 * SECOND), 180 * SECOND);
    }

    fn of_keys(answers: &[(u32, u64, u32)]) -> ExpectedOutputs {
        let mut expected = ExpectedOutputs::default();
        for &(key, at, tokens) in answers {
            expected.answered(key, tokens, at * SECOND);
        }
        expected
    }

    #[test]
    fn each_key_has_its_own_and_the_least_recent_is_forgotten() {
        let mut expected = of_keys(&[(1, 0, 500), (2, 1, 40)]);
        assert_eq!([1, 2, 3].map(|key| expected.of(key, 900, 2 * SECOND)), [500, 40, 0]);
        assert_eq!([1, 2].map(|key| expected.falls_to(key, 100, 2 * SECOND)), [150 * SECOND, 2 * SECOND]);
        for key in 0..1000 {
            expected.answered(key, 7, (10 + u64::from(key)) * SECOND);
        }
        assert_eq!(expected.answers.len(), REMEMBERED);
        assert_eq!([1, 999].map(|key| expected.of(key, 900, 1010 * SECOND)), [0, 7]);
    }

    #[test]
    fn what_answers_have_left_in_use_drains() {
        let expected = of_keys(&[(0, 0, 500), (0, 10, 1089), (0, 20, 40)]);
        assert_eq!(expected.left_in_use(10.0, 20 * SECOND), 1029);
        assert_eq!(expected.left_in_use(10.0, 30 * SECOND), 929);
        assert_eq!(expected.left_in_use(10.0, 30 * SECOND + 1), 929, "rounded up");
        assert_eq!((expected.left_in_use(10.0, 300 * SECOND), of_keys(&[]).left_in_use(10.0, SECOND)), (0, 0));
        // Of several keys: one limit drains, once.
        assert_eq!(of_keys(&[(1, 0, 500), (2, 10, 300)]).left_in_use(10.0, 20 * SECOND), 600);
    }

    #[test]
    fn somebody_elses_answer_is_known_by_a_refusal_and_ages() {
        let mut expected = of(&[(0, 200)]);
        expected.refused(0, 1308, 4000, 10 * SECOND);
        assert_eq!(expected.of(0, 4000, 11 * SECOND), 1308);
        assert_eq!(expected.of(0, 4000, 161 * SECOND), 0);
    }

    #[test]
    fn the_window_follows_refusals() {
        // It still counts after 200 s.
        let mut expected = of(&[(0, 1089)]);
        expected.refused(0, 1089, 1800, 200 * SECOND);
        assert_eq!(expected.window, 210 * SECOND);
        // The larger one is forgotten after 70 s.
        let mut expected = of(&[(0, 1089), (60, 300)]);
        expected.refused(0, 300, 1800, 70 * SECOND);
        assert_eq!((expected.window, expected.of(0, 1800, 71 * SECOND)), (70 * SECOND, 300));
        // A younger one may be another key's.
        let mut expected = of(&[(0, 1089), (20, 300)]);
        expected.refused(0, 300, 1800, 30 * SECOND);
        assert_eq!((expected.window, expected.of(0, 1800, 31 * SECOND)), (WINDOW, 1089));
    }

    #[test]
    fn an_upstream_that_tests_output_limits_is_found_out() {
        let mut expected = of(&[(0, 200)]);
        for (output_limit, before) in [(900, 200), (1800, 900), (2400, 1800)] {
            assert_eq!(expected.of(0, 4000, SECOND), before);
            expected.refused(0, output_limit, output_limit, SECOND);
        }
        assert_eq!(expected.of(0, 4000, SECOND), 4000);
        assert_eq!(expected.of(0, 4000, 2 * SECOND + OUTPUT_LIMITS_FOR), 0);
        // A refusal that states less than the output limit says otherwise.
        expected.refused(0, 500, 4000, 4 * SECOND);
        assert_eq!(expected.of(0, 8000, 4 * SECOND), 2400);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

        /// Beside a plain list of all answers: never less, whatever is remembered, and the same while all are.
        #[test]
        fn nothing_that_counts_is_forgotten(answers in prop::collection::vec((0u64..30, 0u32..5000), 1..80), later in 0u64..200) {
            let (mut expected, mut all, mut now) = (ExpectedOutputs::default(), Vec::new(), 0);
            for (wait, tokens) in answers {
                now += wait * SECOND;
                expected.answered(0, tokens, now);
                all.push((now, tokens));
            }
            now += later * SECOND;
            let largest = all.iter().filter(|(at, _)| now < at + WINDOW).map(|&(_, tokens)| tokens).max().unwrap_or(0);
            prop_assert!(expected.of(0, u32::MAX, now) >= largest);
            if expected.answers.len() < REMEMBERED {
                prop_assert_eq!(expected.of(0, u32::MAX, now), largest);
            }
            let falls = expected.falls_to(0, 100, now);
            prop_assert!(expected.of(0, u32::MAX, falls) <= 100);
            prop_assert!(falls == now || expected.of(0, u32::MAX, falls - 1) > 100);
        }
    }
}
