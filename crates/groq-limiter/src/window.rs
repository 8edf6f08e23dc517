//! What if the upstream counts windows and no bucket? Our own log of what was sent, each entry gone after a window's
//! length; headers shorten that and show what strangers used.
//!
//! It is the fallback for a limiter whose `reset` contradicts the bucket law: exact for fixed windows, cautious for
//! sliding ones.

use std::collections::VecDeque;

use super::bucket::{Fit, Ns};

/// An entry outlives its window by so much: clocks and ways differ.
const LINGER: Ns = 150_000_000;
/// Left over in any case, and at most where strangers take much: shares of the limit.
const LEFT_OVER: (f64, f64) = (0.01, 0.20);
/// Weight of the newest header in the strangers' share.
const SHARE_GAIN: f64 = 0.1;
/// What a header's `reset` is trusted to.
const RESET_LINGER: Ns = 50_000_000;

/// The log of one dimension.
#[derive(Debug)]
pub struct Window {
    limit: u64,
    period: Ns,
    /// In order of expiry.
    log: VecDeque<Entry>,
    foreign: u64,
    foreign_until: Ns,
    /// Share of the limit that headers show as the strangers', averaged.
    share: f64,
    /// The newest send position.
    newest: u64,
}

#[derive(Debug)]
struct Entry {
    serial: u64,
    position: u64,
    units: u64,
    /// What it held until it was settled, and the newest position at that time: headers up to there show all of it.
    held: u64,
    settled: u64,
    expires: Ns,
}

impl Window {
    /// A window in which `used` units are gone already, for a whole period in the worst case.
    pub fn new(limit: u64, period: Ns, used: u64, now: Ns) -> Self {
        let foreign_until = now.saturating_add(period);
        Self { limit, period, log: VecDeque::new(), foreign: used, foreign_until, share: 0.0, newest: 0 }
    }

    /// Another limit.
    pub fn requota(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// When `asked` fits, with a hundredth of the limit left over, and more the more strangers take unannounced.
    /// `boost`: units more, as refusals have taught.
    pub fn fit(&self, asked: u64, boost: u64, now: Ns) -> Fit {
        if asked > self.limit {
            return Fit::Never;
        }
        let least = self.limit as f64 * (LEFT_OVER.0 + 0.5 * self.share) + boost as f64;
        let left_over = least.min(self.limit as f64 * LEFT_OVER.1) as u64;
        let room = self.limit - asked - left_over.min(self.limit - asked);
        let mut used = self.used(now);
        if used <= room {
            return Fit::Now;
        }
        let mut strangers = (self.foreign > 0 && self.foreign_until > now).then_some((self.foreign_until, self.foreign));
        for entry in self.log.iter().filter(|entry| entry.expires > now) {
            if let Some((at, units)) = strangers
                && at <= entry.expires
            {
                strangers = None;
                used = used.saturating_sub(units);
                if used <= room {
                    return Fit::At(at);
                }
            }
            used = used.saturating_sub(entry.units);
            if used <= room {
                return Fit::At(entry.expires);
            }
        }
        Fit::At(strangers.map_or(now + 1, |(at, _)| at))
    }

    /// Units that count now.
    pub fn used(&self, now: Ns) -> u64 {
        let strangers = if self.foreign_until > now { self.foreign } else { 0 };
        let own = self.log.iter().filter(|entry| entry.expires > now).map(|entry| entry.units);
        own.fold(strangers, u64::saturating_add)
    }

    /// Takes units under this serial.
    pub fn charge(&mut self, serial: u64, units: u64, now: Ns) {
        while self.log.front().is_some_and(|entry| entry.expires <= now) {
            self.log.pop_front();
        }
        let expires = now.saturating_add(self.period + LINGER);
        self.log.push_back(Entry { serial, position: u64::MAX, units, held: units, settled: u64::MAX, expires });
    }

    /// It is sent now, at this position.
    pub fn sent(&mut self, serial: u64, position: u64, now: Ns) {
        self.newest = position;
        let expires = now.saturating_add(self.period + LINGER);
        if let Some(at) = self.log.iter().rposition(|entry| entry.serial == serial)
            && let Some(mut entry) = self.log.remove(at)
        {
            (entry.position, entry.expires) = (position, expires);
            self.log.push_back(entry);
        }
    }

    /// It used so much in truth.
    pub fn settle(&mut self, serial: u64, units: u64) {
        if let Some(entry) = self.log.iter_mut().rev().find(|entry| entry.serial == serial) {
            (entry.units, entry.settled) = (units, self.newest);
        }
    }

    /// Groq had counted `used` units at `position`, and all of it is gone after `reset`.
    pub fn observe(&mut self, position: u64, used: u64, reset: Ns, now: Ns) {
        let until = now.saturating_add(reset).saturating_add(RESET_LINGER);
        let mut own = 0u64;
        for entry in self.log.iter_mut().filter(|entry| entry.position <= position && entry.expires > now) {
            entry.expires = entry.expires.min(until);
            own = own.saturating_add(if entry.settled < position { entry.units } else { entry.held });
        }
        self.foreign = used.saturating_sub(own);
        self.share += SHARE_GAIN * (self.foreign as f64 / self.limit.max(1) as f64 - self.share);
        self.foreign_until = until;
    }

    /// Groq refused: nothing before `until`.
    pub fn refused(&mut self, until: Ns) {
        self.foreign = self.limit;
        self.foreign_until = until.saturating_add(RESET_LINGER);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Ns = 1_000_000_000;

    #[test]
    fn what_was_sent_counts_for_a_window() {
        let mut window = Window::new(1000, 60 * SECOND, 0, 0);
        for n in 0..9 {
            assert_eq!(window.fit(100, 0, n * SECOND), Fit::Now);
            window.charge(n, 100, n * SECOND);
            window.sent(n, n + 1, n * SECOND);
        }
        assert_eq!(window.fit(100, 0, 10 * SECOND), Fit::At(60 * SECOND + LINGER), "a hundredth stays over");
        window.settle(4, 20);
        assert_eq!(window.fit(100, 0, 10 * SECOND), Fit::Now);
        assert_eq!(window.fit(1001, 0, 10 * SECOND), Fit::Never);
    }

    #[test]
    fn a_reset_ends_the_window_for_what_it_had_seen() {
        let mut window = Window::new(1000, 60 * SECOND, 0, 0);
        window.charge(1, 500, SECOND);
        window.sent(1, 1, SECOND);
        window.charge(2, 400, 2 * SECOND);
        window.sent(2, 2, 2 * SECOND);
        // Seen at position 1: 700 used, so 200 by strangers; all gone ten seconds later.
        window.observe(1, 700, 10 * SECOND, 3 * SECOND);
        assert_eq!(window.used(3 * SECOND), 1100);
        assert_eq!(window.fit(300, 0, 3 * SECOND), Fit::At(13 * SECOND + RESET_LINGER));
        assert_eq!(window.used(14 * SECOND), 400);
    }
}
