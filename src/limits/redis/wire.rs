//! How does the script read and write? Microseconds of the server's clock there, nanoseconds of the lanes' here.

use serde_json::{Value, json};

use crate::limits::{
    bucket::Ns,
    exchange::{Answer, Cell, Standing, State, Transaction},
};

/// Numbers before the dimensions in a reply.
const HEAD: usize = 8;
/// Values of one dimension in a reply.
const EACH: usize = 6;
/// The longest span that is believed, µs: 200 years.
const LONGEST: i64 = 200 * 366 * 86_400_000_000;

/// What to add to our microseconds for the server's, and how exact that is.
#[derive(Debug, Default)]
pub(super) struct Offset {
    by: i64,
    /// Half of a round trip, µs; `None`: nothing known yet.
    exact_to: Option<i64>,
    at: Ns,
}

/// The script's reply, in its own numbers.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) now: i64,
    head: [i64; HEAD],
    levels: Vec<(Box<str>, [i64; EACH - 1])>,
}

impl Reply {
    /// `None` for anything that the script does not say.
    pub(super) fn parse(words: Vec<String>) -> Option<Self> {
        let (head, levels) = words.split_at_checked(HEAD)?;
        let number = |word: &String| word.parse::<i64>().ok().filter(|n| n.abs() <= 100 * LONGEST);
        let head: Vec<i64> = head.iter().map(number).collect::<Option<_>>()?;
        let head: [i64; HEAD] = head.try_into().ok()?;
        let level = |words: &[String]| {
            let (code, numbers) = words.split_first()?;
            let numbers: Vec<i64> = numbers.iter().map(number).collect::<Option<_>>()?;
            Some((code.as_str().into(), numbers.try_into().ok()?))
        };
        let levels = levels.chunks(EACH).map(level).collect::<Option<_>>()?;
        Some(Self { now: head[0], head, levels })
    }
}

impl Offset {
    /// The server said `now` between these two of ours.
    pub(super) fn learn(&mut self, now: i64, sent: Ns, received: Ns) {
        let (sent, received) = (micros(sent), micros(received));
        let (by, half) = (now - (sent + received) / 2, (received - sent) / 2);
        // Clocks drift apart by less than a thousandth: an older measure is worth less with time.
        let doubt = self.exact_to.map_or(i64::MAX, |exact| exact.saturating_add((received - micros(self.at)) / 1000));
        if half <= doubt || (by - self.by).abs() > half.saturating_add(doubt) {
            *self = Self { by, exact_to: Some(half), at: received as Ns * 1000 };
        }
    }

    /// A transaction as the script reads it.
    pub(super) fn request(&self, transaction: &Transaction) -> String {
        let cells: Vec<Value> = transaction.cells.iter().map(|cell| self.cell(cell)).collect();
        let mut request = json!({
            "serial": transaction.serial,
            "born": transaction.born,
            "position": transaction.position,
            "hello": transaction.hello,
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
            "q": cell.asked.div_ceil(1000),
            "r": up(cell.reserve),
        });
        if let Some(sighting) = &cell.sighting {
            wire["n"] = sighting.position.into();
            wire["u"] = self.there(sighting.truth).into();
            wire["a"] = self.there(sighting.at).into();
            wire["m"] = self.there(sighting.mark.tat).into();
            wire["o"] = (sighting.mark.recent / 1000).into();
            wire["x"] = (sighting.mark.corrections / 1000).into();
        }
        wire
    }

    /// A reply as a lane reads it; `None` for numbers that cannot be.
    pub(super) fn answer(&self, reply: Reply) -> Option<Answer> {
        let [_, born, version, position, applied, held, granted, wait] = reply.head;
        let standing = |[tat, corrections, adjusted, newest, recent]: [i64; EACH - 1]| {
            Some(Standing {
                tat: self.here(tat)?,
                corrections: span(corrections)?,
                adjusted: span(adjusted)?,
                newest: newest.try_into().ok()?,
                recent: span(recent)?.try_into().ok()?,
            })
        };
        let standings = reply.levels.into_iter().map(|(code, level)| Some((code, standing(level)?)));
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

fn span(micros: i64) -> Option<i64> {
    (micros.abs() <= LONGEST).then(|| micros * 1000)
}
