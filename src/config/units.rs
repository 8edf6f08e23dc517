//! Times and sizes as text: `"250ms" "30s" "2m" "1h"`, `"64KiB" "100MiB"`, and back.

use std::time::Duration;

const TIMES: [(&str, f64); 4] = [("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];

const SIZES: [(&str, u64); 8] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("kB", 1000),
    ("KB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
];

/// Reads a time such as `30s`, `1.5s` or `1m30s`.
///
/// # Errors
/// What is wrong with it, as the end of a sentence that starts with the text itself.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    let seconds = sum(text, &TIMES, "ms, s, m or h")?;
    Duration::try_from_secs_f64(seconds).map_err(|_| "is too long".into())
}

/// Reads a size such as `64KiB` or `100MiB`, in bytes.
///
/// # Errors
/// What is wrong with it, as the end of a sentence that starts with the text itself.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let bytes = sum(text, &SIZES.map(|(unit, bytes)| (unit, bytes as f64)), "B, KiB, MiB or GiB")?;
    if bytes >= u64::MAX as f64 { Err("is too large".into()) } else { Ok(bytes as u64) }
}

/// Adds up numbers with their units.
fn sum(text: &str, units: &[(&str, f64)], names: &str) -> Result<f64, String> {
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err("is empty".into());
    }
    let mut sum = 0.0;
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len()));
        let number: f64 = number.parse().map_err(|_| "does not start with a number")?;
        let after = after.trim_start();
        let (unit, after) = after.split_at(after.find(|c: char| !c.is_alphabetic()).unwrap_or(after.len()));
        sum += match units.iter().find(|(name, _)| *name == unit) {
            Some((_, size)) => number * size,
            None if unit.is_empty() => return Err(format!("has no unit: {names}")),
            None => return Err(format!("has an unknown unit `{unit}`: {names}")),
        };
        rest = after.trim_start();
    }
    Ok(sum)
}

/// A time as it is written in the file.
pub(super) fn show_time(time: Duration) -> String {
    let ms = time.as_millis();
    match ms {
        0 => "0s".into(),
        _ if ms.is_multiple_of(3_600_000) => format!("{}h", ms / 3_600_000),
        _ if ms.is_multiple_of(1000) => format!("{}s", ms / 1000),
        _ => format!("{ms}ms"),
    }
}

/// A size as it is written in the file.
pub(super) fn show_size(bytes: u64) -> String {
    match SIZES[..4].iter().rev().find(|(_, size)| bytes >= *size && bytes.is_multiple_of(*size)) {
        Some((unit, size)) => format!("{}{unit}", bytes / size),
        None => format!("{bytes}B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, ms) in [("250ms", 250), ("30s", 30_000), ("2m", 120_000), ("1h", 3_600_000), ("1.5s", 1500), ("1m30s", 90_000)]
        {
            assert_eq!(time(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        assert_eq!(time(" 30 s "), Ok(Duration::from_secs(30)));
        for (text, why) in [
            ("", "is empty"),
            ("50", "has no unit: ms, s, m or h"),
            ("5 sec", "has an unknown unit `sec`: ms, s, m or h"),
            ("soon", "does not start with a number"),
            ("-1s", "does not start with a number"),
            ("1.2.3s", "does not start with a number"),
            ("99999999999999999999h", "is too long"),
            ("1sé", "has an unknown unit `sé`: ms, s, m or h"),
        ] {
            assert_eq!(time(text), Err(why.to_owned()), "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("64KiB", 65_536), ("100MiB", 100 << 20), ("1GiB", 1 << 30), ("512B", 512), ("1.5KiB", 1536), ("2MB", 2_000_000)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for (text, why) in [
            ("", "is empty"),
            ("100", "has no unit: B, KiB, MiB or GiB"),
            ("100Mi", "has an unknown unit `Mi`: B, KiB, MiB or GiB"),
            ("1MiB2", "has no unit: B, KiB, MiB or GiB"),
            ("MiB", "does not start with a number"),
            ("99999999999999GiB", "is too large"),
        ] {
            assert_eq!(size(text), Err(why.to_owned()), "{text}");
        }
    }

    #[test]
    fn what_is_shown_reads_back() {
        for ms in [0, 1, 250, 999, 1000, 1500, 50_000, 120_000, 3_600_000, 86_400_000] {
            let length = Duration::from_millis(ms);
            assert_eq!(time(&show_time(length)), Ok(length));
        }
        for bytes in [0, 1, 1000, 1024, 65_536, 100 << 20, (100 << 20) + 1, 3 << 30] {
            assert_eq!(size(&show_size(bytes)), Ok(bytes));
        }
        assert_eq!((show_time(Duration::from_secs(120)).as_str(), show_size(256 << 20).as_str()), ("120s", "256MiB"));
    }
}
