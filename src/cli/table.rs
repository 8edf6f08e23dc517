//! Formatting in the tables of `groq-shield status`: bars, times, names.

/// A bar of fourteen characters.
pub(super) fn bar(used: f64) -> String {
    const WIDTH: usize = 14;
    let full = (used.clamp(0.0, 1.0) * WIDTH as f64).round() as usize;
    format!("{}{}", "#".repeat(full), ".".repeat(WIDTH - full))
}

/// A duration in the shortest form.
pub(super) fn time(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    match whole {
        0..10 => format!("{:.1}s", seconds.max(0.0)),
        10..60 => format!("{whole}s"),
        60..3600 => format!("{}m{:02}s", whole / 60, whole % 60),
        3600..86_400 => format!("{}h{:02}m", whole / 3600, whole / 60 % 60),
        _ => format!("{}d{:02}h", whole / 86_400, whole / 3600 % 24),
    }
}

/// A name that is safe in a terminal: control characters are replaced, long names are cut.
pub(super) fn cut(name: &str, width: usize) -> String {
    let mut shown: Vec<char> = name.chars().take(width + 1).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if shown.len() > width {
        shown.truncate(width - 1);
        shown.push('…');
    }
    shown.into_iter().collect()
}
