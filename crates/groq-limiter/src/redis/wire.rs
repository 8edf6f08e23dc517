//! How does the script read and write? Microseconds of the server's clock there, nanoseconds of the lanes' here.

use serde_json::{Value, json};

use crate::{
    bucket::Ns,
    exchange::{Answer, Cell, Gone, Standing, State, Transaction, Turn},
};

/// Numbers before the dimensions in a reply.
const HEAD: usize = 8;
/// Values of one dimension in a reply.
const EACH: usize = 9;
/// The longest span that is believed, µs: 200 years.
const LONGEST: i64 = 200 * 366 * 86_400_000_000;

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
    head: [i64; HEAD],
    levels: Vec<Level>,
}

/// A dimension's code, its numbers, what was given up and whose turns are to come.
type Level = (Box<str>, [i64; EACH - 3], Vec<Gone>, Vec<[i64; 3]>);

impl Reply {
    /// `None` for anything that the script does not say.
    pub fn parse(words: Vec<String>) -> Option<Self> {
        let (head, levels) = words.split_at_checked(HEAD)?;
        let number = |word: &String| word.parse::<i64>().ok().filter(|n| n.abs() <= 100 * LONGEST);
        let head: Vec<i64> = head.iter().map(number).collect::<Option<_>>()?;
        let head: [i64; HEAD] = head.try_into().ok()?;
        let level = |words: &[String]| {
            let [code, numbers @ .., gone, turns] = words else { return None };
            let numbers: Vec<i64> = numbers.iter().map(number).collect::<Option<_>>()?;
            let gone = gone.split_whitespace().map(self::gone).collect::<Option<_>>()?;
            let turns = turns.split_whitespace().map(three).collect::<Option<_>>()?;
            Some((code.as_str().into(), numbers.try_into().ok()?, gone, turns))
        };
        let levels = levels.chunks(EACH).map(level).collect::<Option<_>>()?;
        Some(Self { now: head[0], head, levels })
    }
}

impl Offset {
    /// The server said `now` between these two of ours.
    pub fn learn(&mut self, now: i64, sent: Ns, received: Ns) {
        let (sent, received) = (micros(sent), micros(received));
        let (by, half) = (now - (sent + received) / 2, (received - sent) / 2);
        // Clocks drift apart by less than a thousandth: an older measure is worth less with time.
        let doubt = self.exact_to.map_or(i64::MAX, |exact| exact.saturating_add((received - micros(self.at)) / 1000));
        if half <= doubt || (by - self.by).abs() > half.saturating_add(doubt) {
            *self = Self { by, exact_to: Some(half), at: received as Ns * 1000 };
        }
    }

    /// A transaction as the script reads it.
    pub fn request(&self, transaction: &Transaction) -> String {
        let cells: Vec<Value> = transaction.cells.iter().map(|cell| self.cell(cell)).collect();
        let mut request = json!({
            "serial": transaction.serial,
            "born": transaction.born,
            "position": transaction.position,
            "hello": transaction.hello,
            "gone": transaction.gone,
            "cells": cells,
        });
        if let Some(patience) = transaction.patience {
            request["patience"] = (patience / 1000).into();
        }
        request.to_string()
    }

    fn cell(&self, cell: &Cell) -> Value {
        let mut wire = json!({
            "k": cell.code,
            "cap": cell.whole / 1000,
            "t": self.there(cell.known),
            "d": up(cell.settled),
            "b": up(cell.given_up),
            "l": cell.lent / 1000,
            "q": cell.asked.div_ceil(1000),
            "r": cell.reserve.div_ceil(1000),
        });
        if cell.claimed {
            wire["j"] = true.into();
        }
        if let Some(sighting) = &cell.sighting {
            wire["n"] = sighting.position.into();
            wire["u"] = self.there(sighting.truth).into();
            wire["a"] = self.there(sighting.at).into();
            wire["m"] = self.there(sighting.mark.tat).into();
            wire["o"] = (sighting.mark.recent / 1000).into();
            wire["v"] = (sighting.mark.adjusted / 1000).into();
            wire["x"] = (sighting.mark.corrections / 1000).into();
        }
        wire
    }

    /// A reply as a lane reads it; `None` for numbers that cannot be.
    pub fn answer(&self, reply: Reply) -> Option<Answer> {
        let [_, born, version, position, applied, held, granted, wait] = reply.head;
        let standing = |[tat, corrections, adjusted, newest, recent, room]: [i64; EACH - 3], gone, turns: Vec<_>| {
            Some(Standing {
                tat: self.here(tat)?,
                corrections: span(corrections)?,
                adjusted: span(adjusted)?,
                newest: newest.try_into().ok()?,
                recent: span(recent)?.try_into().ok()?,
                room: self.here(room)?,
                gone,
                turns: turns.into_iter().map(|turn| self.turn(turn)).collect::<Option<_>>()?,
            })
        };
        let standings = reply.levels.into_iter().map(|(code, level, gone, turns)| Some((code, standing(level, gone, turns)?)));
        Some(Answer {
            before: (applied.try_into().ok()?, held == 1),
            granted: granted == 1,
            wait: span(wait)?.try_into().ok()?,
            state: State {
                born,
                version: version.try_into().ok()?,
                position: position.try_into().ok()?,
                standings: standings.collect::<Option<_>>()?,
            },
        })
    }

    /// A reservation's turn, as position, due and span.
    fn turn(&self, [position, due, micros]: [i64; 3]) -> Option<Turn> {
        Some(Turn { position: position.try_into().ok()?, due: self.here(due)?, span: span(micros)?.try_into().ok()? })
    }

    fn there(&self, at: Ns) -> i64 {
        micros(at).saturating_add(self.by)
    }

    /// Before the lanes' clock began: full.
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

/// A reservation given up, as version:position:span.
fn gone(word: &str) -> Option<Gone> {
    let [version, position, micros] = three(word)?;
    Some(Gone { version: version.try_into().ok()?, position: position.try_into().ok()?, span: span(micros)?.try_into().ok()? })
}

fn three(word: &str) -> Option<[i64; 3]> {
    let numbers: Vec<i64> = word.splitn(3, ':').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    numbers.try_into().ok()
}

fn span(micros: i64) -> Option<i64> {
    (micros.abs() <= LONGEST).then(|| micros * 1000)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

        #[test]
        fn no_reply_is_too_odd(words in prop::collection::vec(prop_oneof![any::<i64>().prop_map(|n| n.to_string()), ".*"], 0..24),
                               now in any::<i64>()) {
            let mut offset = Offset::default();
            offset.learn(now / 4, 8_640_000_000_000_000, 8_640_000_000_200_000);
            if let Some(answer) = Reply::parse(words).and_then(|reply| offset.answer(reply)) {
                prop_assert!(answer.state.standings.iter().all(|(_, level)| level.tat <= LONGEST as Ns * 1000));
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

    #[test]
    fn spans_are_rounded_against_us() {
        assert_eq!([up(1), up(1000), up(-1), up(-1999), up(0)], [1, 1, 0, -1, 0]);
    }
}
