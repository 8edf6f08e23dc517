//! Masks organization ids and API keys in texts from Groq.

use std::borrow::Cow;

/// Replaces organization ids (`org_…`) by `org_***` and keys (`gsk_…`) by `gsk_***`.
pub fn mask(text: &str) -> Cow<'_, str> {
    match mask_after(text, "org_") {
        Cow::Borrowed(text) => mask_after(text, "gsk_"),
        Cow::Owned(text) => Cow::Owned(mask_after(&text, "gsk_").into_owned()),
    }
}

fn mask_after<'a>(text: &'a str, prefix: &str) -> Cow<'a, str> {
    let is_id = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let mut masked = String::new();
    let mut copied = 0;
    for (start, _) in text.match_indices(prefix) {
        let id = start + prefix.len();
        let end = id + text[id..].find(|c| !is_id(c)).unwrap_or(text.len() - id);
        let before = &text[..start];
        // The `org_` of `my_org_chart` is part of a word, not the start of an id. The `n` of an escaped `\\n` is not part of one.
        let within_word = before.ends_with(is_id) && !before.ends_with("\\n") && !before.ends_with("\\t");
        if start >= copied && end > id && !within_word {
            masked.push_str(&text[copied..id]);
            masked.push_str("***");
            copied = end;
        }
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    masked.push_str(&text[copied..]);
    Cow::Owned(masked)
}
