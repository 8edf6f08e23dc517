//! The script's numbers: microseconds of the server's clock there, nanoseconds of the limiters' here.

use serde_json::{Value, json};

use crate::{
    estimate::expected_output::LargestAnswer,
    store::protocol::{Answer, Cell, Learnt, RemoteView, SentObservation, State, Transaction},
    types::{Ns, StatedLimit},
};

/// Words before the dimensions in a reply: numbers, the waiting replicas, and what Groq has stated.
const HEAD: usize = 8;
/// Values of one dimension in a reply, its code included.
const EACH: usize = 4;
/// The longest span that is believed, µs: 200 years.
const LONGEST: i64 = 200 * 366 * 86_400_000_000;
/// Before the key of an answer, among what replicas learn from each other: `E:7=1029:1700000000000000`.
const ANSWER: &str = "E:";

/// What to add to our microseconds for the server's, and how exact that is.
#[derive(Debug, Default)]
pub struct Offset {
    by: i64,
    /// Half of a round trip, µs; `None`: nothing known yet.
    exact_to: Option<i64>,
    at: Ns,
}

/// The script's reply, in its own numbers.
#[derive(Debug)]
pub struct Reply {
    /// The server's clock, µs.
    pub now: i64,
    head: [i64; HEAD - 2],
    /// The replicas whose heads wait, and what each takes, in millionths of the limit.
    waiting: Vec<(String, u64)>,
    learnt: Vec<String>,
    quotas: Vec<(Box<str>, [i64; EACH - 1])>,
}

impl Reply {
    /// `None` for anything that the script does not say.
    pub fn parse(words: Vec<String>) -> Option<Self> {
        let (head, quotas) = words.split_at_checked(HEAD)?;
        let [numbers @ .., waiting, learnt] = head else { return None };
        let head: [i64; HEAD - 2] = self::numbers(numbers)?;
        let place = |word: &str| {
            let (name, share) = word.rsplit_once(':')?;
            Some((name.to_owned(), share.parse().ok()?))
        };
        let quota = |words: &[String]| {
            let (code, numbers) = words.split_first()?;
            Some((code.as_str().into(), self::numbers(numbers)?))
        };
        Some(Self {
            now: head[0],
            head,
            waiting: waiting.split_whitespace().map(place).collect::<Option<_>>()?,
            learnt: learnt.split_whitespace().map(str::to_owned).collect(),
            quotas: quotas.chunks(EACH).map(quota).collect::<Option<_>>()?,
        })
    }
}

/// `None` unless there are so many, and none beyond what can be reckoned with.
fn numbers<const N: usize>(words: &[String]) -> Option<[i64; N]> {
    let numbers = words.iter().map(|word| word.parse::<i64>().ok().filter(|n| n.unsigned_abs() <= 100 * LONGEST as u64));
    numbers.collect::<Option<Vec<_>>>()?.try_into().ok()
}

impl Offset {
    /// The server said `now` between these two of ours.
    pub fn learn(&mut self, now: i64, sent: Ns, received: Ns) {
        let (sent, received) = (micros(sent), micros(received));
        let (by, half) = (now.saturating_sub((sent + received) / 2), (received - sent) / 2);
        // Clocks drift apart by less than a thousandth: an older measure is worth less with time.
        let add_uncertainty = self.exact_to.map_or(i64::MAX, |exact| exact.saturating_add((received - micros(self.at)) / 1000));
        if half <= add_uncertainty || by.saturating_sub(self.by).saturating_abs() > half.saturating_add(add_uncertainty) {
            *self = Self { by, exact_to: Some(half), at: received as Ns * 1000 };
        }
    }

    /// A transaction as the script reads it.
    pub fn request(&self, transaction: &Transaction) -> String {
        let cells: Vec<Value> = transaction.cells.iter().map(|cell| self.cell(cell)).collect();
        let Learnt { limits, answers } = &transaction.learnt;
        let answers =
            answers.iter().map(|answer| format!("{ANSWER}{}={}:{}", answer.key, answer.tokens, self.there(answer.ended)));
        let learnt: Vec<String> = limits.iter().filter_map(stated).chain(answers).collect();
        json!({
            "epoch": transaction.epoch,
            "position": transaction.position,
            "asks": transaction.asks,
            "waiting": transaction.waiting,
            "learnt": learnt.join(" "),
            "cells": cells,
        })
        .to_string()
    }

    fn cell(&self, cell: &Cell) -> Value {
        let mut wire = json!({
            "code": cell.code,
            "whole": cell.whole / 1000,
            "known": self.there(cell.known),
            "settled": up(cell.settled),
            "outstanding": cell.outstanding / 1000,
            "units": cell.units.div_ceil(1000),
            "margin": cell.margin.div_ceil(1000),
        });
        if let Some(SentObservation { position, snapshot, uncertain, at, truth }) = cell.observation {
            wire["observed"] = json!({
                "position": position,
                "truth": self.there(truth),
                "at": self.there(at),
                "tat": self.there(snapshot.tat),
                "uncertain": uncertain / 1000,
                "corrections": snapshot.corrections / 1000,
            });
        }
        wire
    }

    /// A reply as the limiter of this replica reads it; `None` for numbers that cannot be.
    pub fn answer(&self, reply: Reply, replica: &str) -> Option<Answer> {
        let [_, epoch, version, position, granted, wait] = reply.head;
        let view = |[tat, corrections, newest]: [i64; EACH - 1]| {
            Some(RemoteView { tat: self.here(tat)?, corrections: span(corrections)?, newest: newest.try_into().ok()? })
        };
        let views = reply.quotas.into_iter().map(|(code, quota)| Some((code, view(quota)?)));
        let ahead = reply.waiting.iter().take_while(|(name, _)| name != replica);
        Some(Answer {
            granted: granted == 1,
            wait: span(wait)?.try_into().ok()?,
            state: State {
                epoch,
                version: version.try_into().ok()?,
                position: position.try_into().ok()?,
                ahead: ahead.fold(0, |sum: u64, (_, share)| sum.saturating_add(*share)),
                learnt: self.learnt(&reply.learnt)?,
                views: views.collect::<Option<_>>()?,
            },
        })
    }

    fn learnt(&self, words: &[String]) -> Option<Learnt> {
        let mut learnt = Learnt::default();
        for word in words {
            match word.strip_prefix(ANSWER) {
                Some(answer) => {
                    let (key, answer) = answer.split_once('=')?;
                    let (tokens, ended) = answer.split_once(':')?;
                    let ended = self.here(ended.parse().ok()?)?;
                    learnt.answers.push(LargestAnswer { key: key.parse().ok()?, tokens: tokens.parse().ok()?, ended });
                }
                None => learnt.limits.push(limit(word)?),
            }
        }
        Some(learnt)
    }

    fn there(&self, at: Ns) -> i64 {
        micros(at).saturating_add(self.by)
    }

    /// Before the limiters' clock began: full.
    fn here(&self, at: i64) -> Option<Ns> {
        let at = at.saturating_sub(self.by);
        (at <= LONGEST).then(|| Ns::try_from(at).unwrap_or(0) * 1000)
    }
}

fn micros(at: Ns) -> i64 {
    i64::try_from(at / 1000).unwrap_or(i64::MAX)
}

/// Rounded up: never faster than the upstream.
fn up(span: i64) -> i64 {
    -(span.saturating_neg().div_euclid(1000))
}

/// A limit as the record holds it, `TPM={…}`; `None` for a code that would not be one word.
fn stated(learnt: &StatedLimit) -> Option<String> {
    let code = &learnt.dimension.code;
    let is_word = !code.is_empty() && code.bytes().all(|byte| byte.is_ascii_alphanumeric());
    is_word.then(|| Some(format!("{code}={}", serde_json::to_string(learnt).ok()?))).flatten()
}

fn limit(word: &str) -> Option<StatedLimit> {
    serde_json::from_str(word.split_once('=')?.1).ok()
}

fn span(micros: i64) -> Option<i64> {
    (micros.unsigned_abs() <= LONGEST as u64).then(|| micros * 1000)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::{Dimension, Source, Unit};

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

        #[test]
        fn no_reply_is_too_odd(words in prop::collection::vec(prop_oneof![any::<i64>().prop_map(|n| n.to_string()), ".*"], 0..24),
                               now in any::<i64>()) {
            let mut offset = Offset::default();
            offset.learn(now / 4, 8_640_000_000_000_000, 8_640_000_000_200_000);
            if let Some(answer) = Reply::parse(words).and_then(|reply| offset.answer(reply, "replica")) {
                prop_assert!(answer.state.views.iter().all(|(_, quota)| quota.tat <= LONGEST as Ns * 1000));
            }
        }

        #[test]
        fn times_there_and_back_are_the_same(by in 0..2_000_000_000_000_000i64, at in 8_640_000_000_000..8_700_000_000_000u64) {
            let mut offset = Offset::default();
            offset.learn(8_640_000_000_000 + by, 8_640_000_000_000_000, 8_640_000_000_000_000);
            prop_assert_eq!(offset.here(offset.there(at * 1000)), Some(at * 1000));
        }
    }

    #[test]
    fn the_shortest_round_trip_tells_the_time_until_the_clock_jumps() {
        const START: Ns = 8_640_000_000_000_000;
        let mut offset = Offset::default();
        let mut learn = |now: i64, sent: Ns, received: Ns| {
            offset.learn(now, START + sent * 1000, START + received * 1000);
            offset.by
        };
        let base = 8_640_000_000_000;
        assert_eq!(learn(base + 100, 0, 200), 0);
        assert_eq!(learn(base + 1900, 1000, 2000), 0, "a longer trip knows less");
        assert_eq!(learn(base + 3010, 3000, 3010), 5, "a shorter one more");
        assert_eq!(learn(base + 9_000_000, 4000, 5000), 8_995_500, "another server's clock");
    }

    /// Found by the fuzz target `redis`.
    #[test]
    fn a_server_may_say_any_time() {
        let mut offset = Offset::default();
        for now in [1, i64::MAX, i64::MIN, 5, i64::MIN, i64::MAX] {
            offset.learn(now, 8_640_000_000_000_000, 8_640_000_000_200_000);
            assert!(offset.here(8_640_000_000_000).is_none_or(|at| at <= LONGEST as Ns * 1000));
        }
    }

    /// Found by the fuzz target `redis`: there is no positive number as large.
    #[test]
    fn the_least_number_is_none_of_the_scripts() {
        let least = i64::MIN.to_string();
        for place in 0..HEAD - 2 {
            let mut words = vec!["0".to_owned(); HEAD - 1];
            words.push(String::new());
            words[place].clone_from(&least);
            assert!(Reply::parse(words).is_none(), "number {place}");
        }
        assert_eq!((span(i64::MIN), span(LONGEST), span(-LONGEST)), (None, Some(LONGEST * 1000), Some(-LONGEST * 1000)));
    }

    #[test]
    fn limits_there_and_back_are_the_same() {
        let learnt = |dimension, source| StatedLimit { dimension, limit: 7000, source };
        let odd = Dimension { code: "R10S".into(), unit: Unit::Requests, period: std::time::Duration::from_secs(10) };
        for learnt in [
            learnt(Dimension::OTPM, Source::UpstreamRefusal),
            learnt(Dimension::TPM, Source::Headers),
            learnt(odd, Source::Headers),
        ] {
            assert_eq!(stated(&learnt).as_deref().and_then(limit), Some(learnt));
        }
        assert_eq!(limit("TPM={}"), None);
    }

    #[test]
    fn spans_are_rounded_against_us() {
        assert_eq!([up(1), up(1000), up(-1), up(-1999), up(0)], [1, 1, 0, -1, 0]);
    }
}
