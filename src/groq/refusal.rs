//! Parses refusal texts: dimension, limit, usage and exact wait, in every wording captured so far.

use std::time::Duration;

use groq_limiter::types::{Dimension, Unit, UpstreamRefusal};

use super::duration::leading_duration;

/// Parses the message of a 429, 413 or 400; `None` if it is not a refusal by a limit.
pub fn parse_refusal(message: &str) -> Option<UpstreamRefusal> {
    // ASCII only: byte positions stay those of `message`.
    let lower = message.to_ascii_lowercase();
    if !lower.contains("rate limit") && !lower.contains("too large") {
        return None;
    }
    let requested_at = lower.rfind("requested").filter(|at| number(&lower[at + "requested".len()..]).is_some())?;
    let requested = number(&lower[requested_at + "requested".len()..])?;
    // In this order in every captured text; other orders are parsed too.
    let (limit_at, limit) = last_number(&lower[..requested_at], "limit").or_else(|| last_number(&lower, "limit"))?;
    let used = last_number(&lower, "used");
    let wait = stated_wait(message);
    let figures = limit_at.min(requested_at).min(used.map_or(usize::MAX, |(at, _)| at));
    let (words, code) = named(message[..figures].trim_end_matches([' ', ':', ',']));
    let words = words.to_ascii_lowercase();
    let unit = unit_of(&words);
    let dimension = Dimension::named(code, unit, period_of(&words), requested);
    Some(UpstreamRefusal {
        dimension,
        code: code.map(str::to_owned),
        unit,
        limit,
        used: used.map(|(_, used)| used),
        requested,
        wait,
    })
}

/// The Go duration after the last "try again in" of any error's message.
pub fn stated_wait(message: &str) -> Option<Duration> {
    const WORDS: &str = "try again in";
    let at = message.to_ascii_lowercase().rfind(WORDS)?;
    leading_duration(message[at + WORDS.len()..].trim_start()).map(|(wait, _)| wait)
}

/// The words and the abbreviation before `Limit`: `… on tokens per minute (TPM)`.
fn named(text: &str) -> (&str, Option<&str>) {
    let (text, code) = match text.strip_suffix(')').and_then(|text| text.rsplit_once('(')) {
        Some((words, code)) => (words, Some(code.trim()).filter(|code| is_code(code))),
        None => (text, None),
    };
    // The last "on" that is a word of its own, unlike in "organization" and "on_demand".
    let on = text.rmatch_indices("on").map(|(at, _)| at).find(|at| {
        let word = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
        !text[..*at].ends_with(word) && !text[at + 2..].starts_with(word)
    });
    (on.map_or("", |at| text[at + 2..].trim()), code)
}

/// An abbreviation that may become a label: short, letters and digits.
fn is_code(code: &str) -> bool {
    (1..=12).contains(&code.len()) && code.bytes().all(|b| b.is_ascii_alphanumeric())
}

fn unit_of(words: &str) -> Option<Unit> {
    let counted = words.split_once(" per ").map_or(words, |(counted, _)| counted);
    let table = [
        ("output token", Unit::OutputTokens),
        ("completion token", Unit::OutputTokens),
        ("input token", Unit::InputTokens),
        ("prompt token", Unit::InputTokens),
        ("token", Unit::Tokens),
        ("audio", Unit::AudioSeconds),
        ("second", Unit::AudioSeconds),
        ("request", Unit::Requests),
    ];
    table.into_iter().find_map(|(word, unit)| counted.contains(word).then_some(unit))
}

fn period_of(words: &str) -> Option<Duration> {
    let (_, period) = words.rsplit_once("per ")?;
    let period = period.trim();
    let count_end = period.bytes().take_while(u8::is_ascii_digit).count();
    let count = if count_end == 0 { 1 } else { period[..count_end].parse::<u64>().ok()? };
    let name = period[count_end..].trim_start();
    let seconds = match name.trim_end_matches('s') {
        "" | "second" | "sec" => 1,
        "m" | "minute" | "min" => 60,
        "h" | "hour" => 3_600,
        "d" | "day" => 86_400,
        "w" | "week" => 604_800,
        "month" => 30 * 86_400,
        _ => return leading_duration(period).filter(|(period, rest)| rest.is_empty() && !period.is_zero()).map(|(p, _)| p),
    };
    // "per" without a word after it is not a period.
    let seconds = if name.is_empty() { return None } else { count.checked_mul(seconds)? };
    (1..=366 * 86_400).contains(&seconds).then(|| Duration::from_secs(seconds))
}

/// The last `name` that a number follows, with its position.
fn last_number(text: &str, name: &str) -> Option<(usize, u64)> {
    text.rmatch_indices(name).find_map(|(at, _)| Some((at, number(&text[at + name.len()..])?)))
}

/// The number that `text` begins with after spaces, a colon or `~`: `~12903`, `15,000`, `7182.5` (rounded up).
fn number(text: &str) -> Option<u64> {
    let text = text.trim_start_matches([' ', ':', '~', '=']);
    let mut value: Option<u64> = None;
    let mut bytes = text.as_bytes();
    while let [first, rest @ ..] = bytes {
        match first {
            b'0'..=b'9' => value = Some(value.unwrap_or(0).saturating_mul(10).saturating_add(u64::from(first - b'0'))),
            b',' if value.is_some() && rest.len() >= 3 && rest[..3].iter().all(u8::is_ascii_digit) => {}
            b'.' if rest.first().is_some_and(u8::is_ascii_digit) => {
                let fraction = rest.iter().take_while(|b| b.is_ascii_digit()).any(|b| *b != b'0');
                return Some(value?.saturating_add(u64::from(fraction)));
            }
            _ => break,
        }
        bytes = rest;
    }
    value
}

#[cfg(test)]
#[path = "refusal_tests.rs"]
mod tests;
