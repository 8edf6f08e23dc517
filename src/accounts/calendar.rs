//! Calendar days and months in UTC.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::{Date, Month, OffsetDateTime};

/// A calendar period in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Period {
    /// A day, from midnight UTC.
    Day,
    /// A month, from midnight UTC of its first day.
    Month,
}

impl Period {
    /// All periods.
    pub(super) const ALL: [Self; 2] = [Self::Day, Self::Month];

    /// When the period that contains `now` began, and when the next one begins. Unix time, seconds.
    fn bounds(self, now: u64) -> (u64, u64) {
        let now = i64::try_from(now).ok().and_then(|now| OffsetDateTime::from_unix_timestamp(now).ok());
        // Times after the year 9999 cannot be represented. Such a clock is wrong anyway, so any period will do.
        let today = now.unwrap_or(OffsetDateTime::UNIX_EPOCH).date();
        let first = match self {
            Self::Day => today,
            Self::Month => first_of(today.year(), today.month()),
        };
        let next = match self {
            Self::Day => today.next_day().unwrap_or(Date::MAX),
            Self::Month if today.month() == Month::December => first_of(today.year() + 1, Month::January),
            Self::Month => first_of(today.year(), today.month().next()),
        };
        (midnight(first), midnight(next))
    }

    /// When the period that contains `now` began. Unix time, seconds.
    pub(super) fn start(self, now: u64) -> u64 {
        self.bounds(now).0
    }

    /// The time from `now` (Unix time, seconds) until the next period.
    pub fn time_left(self, now: u64) -> Duration {
        Duration::from_secs(self.bounds(now).1.saturating_sub(now))
    }

    /// `day` or `month`
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Month => "month",
        }
    }
}

fn first_of(year: i32, month: Month) -> Date {
    Date::from_calendar_date(year, month, 1).unwrap_or(Date::MAX)
}

fn midnight(date: Date) -> u64 {
    u64::try_from(date.midnight().assume_utc().unix_timestamp()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn days_and_months_begin_at_midnight_utc() {
        // 2024-02-29 23:59:59, a leap day.
        let now = 1_709_251_199;
        assert_eq!(Period::Day.bounds(now), (1_709_164_800, 1_709_251_200));
        assert_eq!(Period::Month.bounds(now), (1_706_745_600, 1_709_251_200));
        assert_eq!(Period::Day.bounds(now + 1).0, now + 1);
        assert_eq!(Period::Month.time_left(now), Duration::from_secs(1));
        // 2026-12-31 12:00:00
        assert_eq!(Period::Month.bounds(1_798_718_400).1, 1_798_761_600);
    }

    proptest! {
        #[test]
        fn every_time_is_in_its_period(now in any::<u64>().prop_map(|now| now % 250_000_000_000)) {
            for (period, least, most) in [(Period::Day, 86_400, 86_400), (Period::Month, 28 * 86_400, 31 * 86_400)] {
                let (start, end) = period.bounds(now);
                prop_assert!((start..end).contains(&now) && (least..=most).contains(&(end - start)));
                prop_assert_eq!(period.bounds(end).0, end);
            }
        }

        #[test]
        fn a_wrong_clock_is_no_panic(now in any::<u64>()) {
            Period::Month.time_left(now);
            Period::Day.time_left(now);
        }
    }
}
