//! Numbers as `/status` has them.

use std::time::Duration;

/// A time in seconds.
pub(super) fn seconds(time: Duration) -> f64 {
    rounded(time.as_secs_f64())
}

/// Rounded to thousandths.
pub(super) fn rounded(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}
