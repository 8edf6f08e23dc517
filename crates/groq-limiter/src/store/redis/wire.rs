//! The script's numbers: microseconds of the server's clock there, nanoseconds of the limiters' here.

use serde_json::{Value, json};

use crate::{
    store::protocol::{Answer, Cell, PendingBooking, Released, RemoteView, State, Transaction},
    types::Ns,
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
    quotas: Vec<QuotaReply>,
}

/// A dimension's code, its numbers, what was given up and whose pending bookings are to come.
type QuotaReply = (Box<str>, [i64; EACH - 3], Vec<Released>, Vec<[i64; 3]>);

impl Reply {
    /// `None` for anything that the script does not say.
    pub fn parse(words: Vec<String>) -> Option<Self> {
        let (head, quotas) = words.split_at_checked(HEAD)?;
        let number = |word: &String| word.parse::<i64>().ok().filter(|n| n.unsigned_abs() <= 100 * LONGEST as u64);
        let head: Vec<i64> = head.iter().map(number).collect::<Option<_>>()?;
        let head: [i64; HEAD] = head.try_into().ok()?;
        let quota = |words: &[String]| {
            let [code, numbers @ .., gone, pending_bookings] = words else { return None };
            let numbers: Vec<i64> = numbers.iter().map(number).collect::<Option<_>>()?;
            let gone = gone.split_whitespace().map(self::gone).collect::<Option<_>>()?;
            let pending_bookings = pending_bookings.split_whitespace().map(three).collect::<Option<_>>()?;
            Some((code.as_str().into(), numbers.try_into().ok()?, gone, pending_bookings))
        };
        let quotas = quotas.chunks(EACH).map(quota).collect::<Option<_>>()?;
        Some(Self { now: head[0], head, quotas })
    }
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
        let mut request = json!({
            "serial": transaction.serial,
            "born": transaction.epoch,
            "position": transaction.position,
            "hello": transaction.hello,
            "gone": transaction.gone,
            "cells": cells,
        });
        if let Some(max_wait) = transaction.max_wait {
            request["patience"] = (max_wait / 1000).into();
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
            "l": cell.outstanding / 1000,
            "q": cell.asked.div_ceil(1000),
            "r": cell.margin.div_ceil(1000),
        });
        if cell.claimed {
            wire["j"] = true.into();
        }
        if let Some(observation) = &cell.observation {
            wire["n"] = observation.position.into();
            wire["u"] = self.there(observation.truth).into();
            wire["a"] = self.there(observation.at).into();
            wire["m"] = self.there(observation.snapshot.tat).into();
            wire["o"] = (observation.snapshot.recent / 1000).into();
            wire["v"] = (observation.snapshot.adjusted / 1000).into();
            wire["x"] = (observation.snapshot.corrections / 1000).into();
        }
        wire
    }

    /// A reply as a limiter reads it; `None` for numbers that cannot be.
    pub fn answer(&self, reply: Reply) -> Option<Answer> {
        let [_, epoch, version, position, applied, held, granted, wait] = reply.head;
        let view = |[tat, corrections, adjusted, newest, recent, room]: [i64; EACH - 3], gone, pending_bookings: Vec<_>| {
            Some(RemoteView {
                tat: self.here(tat)?,
                corrections: span(corrections)?,
                adjusted: span(adjusted)?,
                newest: newest.try_into().ok()?,
                recent: span(recent)?.try_into().ok()?,
                room: self.here(room)?,
                gone,
                pending_bookings: pending_bookings.into_iter().map(|turn| self.turn(turn)).collect::<Option<_>>()?,
            })
        };
        let views = reply
            .quotas
            .into_iter()
            .map(|(code, quota, gone, pending_bookings)| Some((code, view(quota, gone, pending_bookings)?)));
        Some(Answer {
            before: (applied.try_into().ok()?, held == 1),
            granted: granted == 1,
            wait: span(wait)?.try_into().ok()?,
            state: State {
                epoch,
                version: version.try_into().ok()?,
                position: position.try_into().ok()?,
                views: views.collect::<Option<_>>()?,
            },
        })
    }

    /// A reservation's turn, as position, due and span.
    fn turn(&self, [position, due, micros]: [i64; 3]) -> Option<PendingBooking> {
        Some(PendingBooking { position: position.try_into().ok()?, due: self.here(due)?, span: span(micros)?.try_into().ok()? })
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

/// A reservation given up, as version:position:span.
fn gone(word: &str) -> Option<Released> {
    let [version, position, micros] = three(word)?;
    Some(Released {
        version: version.try_into().ok()?,
        position: position.try_into().ok()?,
        span: span(micros)?.try_into().ok()?,
    })
}

fn three(word: &str) -> Option<[i64; 3]> {
    let numbers: Vec<i64> = word.splitn(3, ':').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    numbers.try_into().ok()
}

fn span(micros: i64) -> Option<i64> {
    (micros.unsigned_abs() <= LONGEST as u64).then(|| micros * 1000)
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
        for place in 0..HEAD {
            let mut words = vec!["0".to_owned(); HEAD];
            words[place].clone_from(&least);
            assert!(Reply::parse(words).is_none(), "number {place}");
        }
        assert_eq!((span(i64::MIN), span(LONGEST), span(-LONGEST)), (None, Some(LONGEST * 1000), Some(-LONGEST * 1000)));
    }

    #[test]
    fn spans_are_rounded_against_us() {
        assert_eq!([up(1), up(1000), up(-1), up(-1999), up(0)], [1, 1, 0, -1, 0]);
    }
}
