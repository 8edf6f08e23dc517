//! How many tokens is a text, by the kinds of its letters?

/// Thousandths of tokens in `text`.
pub(super) fn millitokens(text: &str) -> u64 {
    text.len() as u64 * 1000 / 4
}
