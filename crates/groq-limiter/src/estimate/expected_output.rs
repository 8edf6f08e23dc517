//! Expected output: the figure that Groq tests against a limit on output tokens per minute (OTPM).
//!
//! Groq does not test a request's output limit, but the smaller of that and the largest answer that its API key had in the
//! last minutes (observed in September 2026). No header shows the figure, so this module tracks the largest recent answers.
//! They are kept per key, because the answers to one key of an organization do not affect its other keys. How long an answer
//! counts is learnt from refusals: Groq went on refusing for 65 to 150 s.
//!
//! A refusal that states a larger figure than any known answer shows an answer to another process that uses the same key. If
//! several refusals in a row state the output limits of the requests themselves, the upstream tests output limits after all.

use crate::types::Ns;

const SECOND: Ns = 1_000_000_000;
/// The time for which an answer counts, unless refusals have shown another one, ns.
const WINDOW: Ns = 150 * SECOND;
/// The shortest window that is learnt, ns.
const SHORTEST: Ns = 60 * SECOND;
/// The longest window that is learnt, ns.
const LONGEST: Ns = 600 * SECOND;
/// What is added to the age of an answer that still counts upstream, when the window is extended to it, ns.
const CAUTION: Ns = 10 * SECOND;
/// The largest number of answers that are kept, of all keys together.
const REMEMBERED: usize = 128;
/// The number of refusals in a row that state their requests' own output limits after which the upstream is assumed to test
/// them.
const OUTPUT_LIMITS_AFTER: u8 = 3;
/// The time for which that is assumed, ns.
const OUTPUT_LIMITS_FOR: Ns = 1800 * SECOND;

/// The largest recent answers of the API keys that use a limiter. Times are nanoseconds on the limiter's clock.
#[derive(Clone, Debug, Default)]
pub struct ExpectedOutputs {
    /// Ordered by the time at which they ended. Among those of one key, later ones are smaller.
    answers: Vec<LargestAnswer>,
    /// The time for which an answer counts, as refusals have shown it, ns; `None` if they have not.
    learnt_window: Option<Ns>,
    /// The number of refusals in a row that stated an output limit which no answer explains.
    output_limits: u8,
    /// Until this time the upstream is assumed to test output limits.
    output_limits_until: Ns,
}

/// An answer that is larger than any later one of its key.
#[derive(Clone, Copy, Debug)]
struct LargestAnswer {
    /// Identifies the API key.
    key: u32,
    /// The number of its completion tokens.
    tokens: u32,
    /// The time at which it ended.
    ended: Ns,
}

impl ExpectedOutputs {
    /// Returns the expected output tokens of a request with this key and this output limit, which is `u32::MAX` for a
    /// request without one.
    pub fn of(&self, key: u32, output_limit: u32, now: Ns) -> u32 {
        let tests_output_limits = now < self.output_limits_until;
        let largest = if tests_output_limits { u32::MAX } else { self.largest(key, now).map_or(0, |answer| answer.tokens) };
        output_limit.min(largest)
    }

    /// Returns the time from which no more than `tokens` are expected, if no larger answer comes; `now` if that is already
    /// so.
    pub fn falls_to(&self, key: u32, tokens: u32, now: Ns) -> Ns {
        let last_larger = self.of_key(key).rfind(|answer| answer.tokens > tokens);
        last_larger.map_or(now, |answer| self.counts_until(answer)).max(now).max(self.output_limits_until)
    }

    /// Adds an answer that ends now with this number of completion tokens.
    pub fn answered(&mut self, key: u32, tokens: u32, now: Ns) {
        // Smaller answers that ended earlier can never be the largest again.
        let is_obsolete = |old: &LargestAnswer| old.key == key && old.tokens <= tokens;
        self.answers.retain(|old| !is_obsolete(old) && now < old.ended.saturating_add(LONGEST));
        self.answers.push(LargestAnswer { key, tokens, ended: now });
        // Without the smallest answer of all, too little may be expected for its key later. A refusal teaches it again.
        if self.answers.len() > REMEMBERED
            && let Some((smallest, _)) = self.answers.iter().enumerate().min_by_key(|(_, answer)| answer.tokens)
        {
            self.answers.remove(smallest);
        }
    }

    /// Learns from a refusal that stated `requested` tokens for a request with this output limit (`u32::MAX` without one).
    pub fn refused(&mut self, key: u32, requested: u32, output_limit: u32, now: Ns) {
        if requested > output_limit || requested == 0 {
            return; // The figure is not an expected output.
        }
        let expected = self.of(key, u32::MAX, now);
        if requested < output_limit {
            // The figure is the largest answer, so the upstream does not test output limits.
            (self.output_limits, self.output_limits_until) = (0, 0);
            self.learn_window(key, requested, now);
        } else if !self.of_key(key).any(|answer| answer.tokens >= requested) {
            // The figure is an answer to another process, or the request's own output limit.
            self.output_limits += 1;
            if self.output_limits == OUTPUT_LIMITS_AFTER {
                (self.output_limits, self.output_limits_until) = (0, now.saturating_add(OUTPUT_LIMITS_FOR));
            }
        }
        if requested > expected {
            self.answered(key, requested, now);
        }
    }

    /// Learns the window from a refusal: the largest answer of this key that counts upstream has `largest` tokens.
    fn learn_window(&mut self, key: u32, largest: u32, now: Ns) {
        let age = |answer: &LargestAnswer| now.saturating_sub(answer.ended);
        // An answer that does not count here any more still counts upstream: the window is longer.
        let older = self.of_key(key).find(|answer| answer.tokens == largest && !self.counts(answer, now));
        // A larger answer does not count upstream any more: the window is shorter. A recent one may be of another key.
        let larger = self.of_key(key).rfind(|answer| answer.tokens > largest && self.counts(answer, now));
        let larger = larger.map(age).filter(|&age| age >= SHORTEST);
        let older = older.map(|older| age(older).saturating_add(CAUTION).min(LONGEST));
        self.learnt_window = larger.or(older).or(self.learnt_window);
    }

    /// Returns the units that the answers of all keys have left in use of a limit that fills at `rate` units per second. The
    /// result is rounded up; rounded down, the next request would be sent too early by the time of one unit. Smaller answers
    /// that ended before larger ones are not kept, so they do not count.
    pub fn left_in_use(&self, rate: f64, now: Ns) -> u64 {
        let answers = self.answers.iter().map(|answer| (answer.ended, answer.tokens));
        let mut used = (0.0f64, 0);
        for (at, tokens) in answers.chain([(now, 0)]) {
            let drained = rate * (at - used.1) as f64 / SECOND as f64;
            used = ((used.0 - drained).max(0.0) + f64::from(tokens), at);
        }
        used.0.ceil() as u64
    }

    /// Returns the answers of this key, the oldest and largest first.
    fn of_key(&self, key: u32) -> impl DoubleEndedIterator<Item = &LargestAnswer> {
        self.answers.iter().filter(move |answer| answer.key == key)
    }

    /// Returns the largest answer of this key that still counts.
    fn largest(&self, key: u32, now: Ns) -> Option<&LargestAnswer> {
        self.of_key(key).find(|answer| self.counts(answer, now))
    }

    fn counts(&self, answer: &LargestAnswer, now: Ns) -> bool {
        now < self.counts_until(answer)
    }

    fn counts_until(&self, answer: &LargestAnswer) -> Ns {
        answer.ended.saturating_add(self.learnt_window.unwrap_or(WINDOW))
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
        assert_eq!(expected.falls_to(0, 1088, 40 * SECOND), 160 * SECOND);
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
    fn each_key_has_its_own_and_the_smallest_is_forgotten() {
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
        // Answers of several keys count in the same limit, which drains only once.
        assert_eq!(of_keys(&[(1, 0, 500), (2, 10, 300)]).left_in_use(10.0, 20 * SECOND), 600);
    }

    #[test]
    fn an_answer_of_another_process_is_learnt_from_a_refusal_and_expires() {
        let mut expected = of(&[(0, 200)]);
        expected.refused(0, 1308, 4000, 10 * SECOND);
        assert_eq!(expected.of(0, 4000, 11 * SECOND), 1308);
        assert_eq!(expected.of(0, 4000, 161 * SECOND), 0);
    }

    #[test]
    fn the_window_follows_refusals() {
        // The answer still counts upstream after 200 s.
        let mut expected = of(&[(0, 1089)]);
        expected.refused(0, 1089, 1800, 200 * SECOND);
        assert_eq!(expected.learnt_window, Some(210 * SECOND));
        // The larger answer no longer counts upstream after 70 s.
        let mut expected = of(&[(0, 1089), (60, 300)]);
        expected.refused(0, 300, 1800, 70 * SECOND);
        assert_eq!((expected.learnt_window, expected.of(0, 1800, 71 * SECOND)), (Some(70 * SECOND), 300));
        // A larger answer that ended 30 s ago may be of another key, so the window stays.
        let mut expected = of(&[(0, 1089), (20, 300)]);
        expected.refused(0, 300, 1800, 30 * SECOND);
        assert_eq!((expected.learnt_window, expected.of(0, 1800, 31 * SECOND)), (None, 1089));
    }

    #[test]
    fn an_upstream_that_tests_output_limits_is_recognized() {
        let mut expected = of(&[(0, 200)]);
        for (output_limit, before) in [(900, 200), (1800, 900), (2400, 1800)] {
            assert_eq!(expected.of(0, 4000, SECOND), before);
            expected.refused(0, output_limit, output_limit, SECOND);
        }
        assert_eq!(expected.of(0, 4000, SECOND), 4000);
        assert_eq!(expected.of(0, 4000, 2 * SECOND + OUTPUT_LIMITS_FOR), 0);
        // A refusal that states less than the output limit shows that they are not tested.
        expected.refused(0, 500, 4000, 4 * SECOND);
        assert_eq!(expected.of(0, 8000, 4 * SECOND), 2400);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

        /// Compared with a plain list of all answers: never less, and the same while no answer was dropped.
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
