//! The tokens of a text, by character classes.
//!
//! An approximation of a tokenizer: the text is cut into runs of one character class. The weights of the runs were fitted to
//! `o200k` counts of eighty texts in ten languages, code and JSON. Those of words, punctuation and Chinese were then raised by a
//! tenth, because an overestimate is refunded at settlement, but an underestimate is refused.

/// Texts with more bytes are sampled: one byte in 32, at least this many and at most [`MAX_SAMPLE`]. Counting whole prompts took
/// a third of all instructions that the shield spent on a request.
const WHOLE: usize = 256;
const MAX_SAMPLE: usize = 4 << 10;
/// Bytes counted at once, and the bytes before them that serve as context (at least six are needed).
const BLOCK: usize = 64;
const BEFORE: usize = 17;
/// The even bytes of a word, and the factor that adds up its four pairs in the upper one.
const PAIRS: u64 = 0x00ff_00ff_00ff_00ff;
const ADD_UP: u64 = 0x0001_0001_0001_0001;

/// Thousandths of tokens in a text's bytes.
pub(super) fn millitokens(bytes: &[u8]) -> u64 {
    if bytes.len() <= WHOLE {
        return (0..bytes.len()).step_by(BLOCK).map(|from| block(bytes, from)).sum();
    }
    let blocks = (bytes.len() / 32).clamp(WHOLE, MAX_SAMPLE) / BLOCK;
    let last = bytes.len() - BLOCK;
    let price: u64 = (0..blocks).map(|n| block(bytes, last * n / (blocks - 1))).sum();
    // 2^64 thousandths are more than any body can contain.
    (u128::from(price) * bytes.len() as u128 / (blocks * BLOCK) as u128) as u64
}

const SMALL: u8 = 1;
const CAPITAL: u8 = 2;
const DIGIT: u8 = 4;
const PUNCTUATION: u8 = 8;
const SPACE: u8 = 16;
const NEWLINE: u8 = 32;
/// Zero for characters of several bytes, and NUL.
const OTHER: u8 = 0;

/// The weight of [`BLOCK`] bytes. Loops without branches, which the compiler vectorizes.
fn block(text: &[u8], from: usize) -> u64 {
    // Each array is computed from the previous one and is shorter, because it needs preceding elements as context.
    let mut bytes = [0; BEFORE + BLOCK];
    let known = &text[from.saturating_sub(BEFORE)..text.len().min(from + BLOCK)];
    bytes[BEFORE.saturating_sub(from)..][..known.len()].copy_from_slice(known);

    let mut kinds = [OTHER; BLOCK + 16];
    for (at, to) in kinds.iter_mut().enumerate() {
        *to = kind(bytes[at], bytes[at + 1]);
    }
    // All ones if a byte continues the run of the previous byte. A small letter continues a capital one, but not vice versa.
    let mut joined = [0; BLOCK + 8];
    for (at, to) in joined.iter_mut().enumerate() {
        let same = kinds[at + 8] & (kinds[at + 7] | kinds[at + 7] >> 1 & SMALL);
        *to = if same == 0 { 0 } else { 0xff };
    }
    let mut prices = [0; BLOCK];
    for (at, price) in prices.iter_mut().enumerate() {
        let joined = |before: usize| joined[8 + at - before];
        let (second, third) = (joined(0), joined(0) & joined(1));
        let fourth = third & joined(2);
        let seventh = fourth & joined(3) & joined(4) & joined(5);
        let of = |kind: u8, price: u8| if kinds[16 + at] & kind == 0 { 0 } else { price };
        *price = (of(SMALL | CAPITAL, 82) & !second)
            | (of(DIGIT, 115) & !second)
            | (of(PUNCTUATION, 90) & !second)
            | (of(NEWLINE, 100) & !second)
            // The space before a word is part of the word's token.
            | (of(SPACE, 90) & second & !third)
            // Numbers are split into groups of three digits.
            | (of(DIGIT, 115) & fourth & !joined(3))
            | (of(DIGIT, 38) & seventh)
            | (of(PUNCTUATION, 20) & second);
        *price += (of(SMALL | CAPITAL, 37) & seventh) + (of(CAPITAL, 14) & second);
    }
    // Summed in words of four pairs, whose sums are at most 8 * 2 * 133: a plain sum of bytes is not vectorized (120 instructions
    // more for each block).
    let words = prices.as_chunks::<8>().0.iter().map(|word| u64::from_ne_bytes(*word));
    let pairs: u64 = words.map(|word| (word & PAIRS) + (word >> 8 & PAIRS)).sum();
    let mut price = (pairs.wrapping_mul(ADD_UP) >> 48) * 10;
    if !bytes.is_ascii() {
        price += bytes[BEFORE - 1..].windows(2).map(|pair| wide(pair[0], pair[1])).sum::<u64>();
    }
    price
}

#[inline(always)]
fn kind(before: u8, byte: u8) -> u8 {
    let accent = |byte: u8| byte.wrapping_sub(0xc3) < 6;
    // U+00C0 to U+023F, both bytes.
    let accented = accent(byte) | (accent(before) & (byte >= 0x80));
    let letter = (byte | 0x20).wrapping_sub(b'a') < 26;
    let small = accented | (letter & (byte & 0x20 != 0));
    let mut kind = if byte.wrapping_sub(1) < 0x7f { PUNCTUATION } else { OTHER };
    kind = if letter { CAPITAL } else { kind };
    kind = if small { SMALL } else { kind };
    kind = if byte.wrapping_sub(b'0') < 10 { DIGIT } else { kind };
    kind = if (byte == b' ') | (byte == b'\t') { SPACE } else { kind };
    if (byte == b'\n') | (byte == b'\r') { NEWLINE } else { kind }
}

/// Thousandths of a token for a character of several bytes, by its first two.
fn wide(before: u8, byte: u8) -> u64 {
    match (before, byte) {
        (_, 0xc3..=0xc8) => 710,
        (0xc3..=0xc8, _) => 0,
        (0xcd, 0xb0..=0xbf) | (0xce..=0xd4, 0x80..=0xbf) => 270,
        (0xd6, 0x90..=0xbf) | (0xd7..=0xdd, 0x80..=0xbf) => 380,
        (0xe0, 0xa4..=0xb7) => 390,
        (0xe0, 0xb8..=0xbb) => 430,
        (0xe3, 0x80..=0x83) => 750,
        (0xe3, 0x90..=0xbf) | (0xe4..=0xe9, 0x80..=0xbf) | (0xef, 0xa4..=0xab) => 790,
        (0xe1, 0x84..=0x87) | (0xea, 0xb0..=0xbf) | (0xeb..=0xec, 0x80..=0xbf) | (0xed, 0x80..=0x9e) => 760,
        (0xc2..=0xf4, 0x80..=0xbf) => 2300,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Texts that the weights were not fitted to, with their true `o200k` counts.
    const CORPUS: [(&str, &str, u64); 5] = [
        ("English", include_str!("../../tests/corpus/estimate/english.txt"), 211),
        ("code", include_str!("../../tests/corpus/estimate/code.txt"), 293),
        ("JSON", include_str!("../../tests/corpus/estimate/json.txt"), 596),
        ("Chinese", include_str!("../../tests/corpus/estimate/chinese.txt"), 245),
        ("Hindi", include_str!("../../tests/corpus/estimate/hindi.txt"), 216),
    ];

    #[test]
    fn the_error_on_a_corpus_is_small() {
        for (name, text, tokens) in CORPUS {
            let estimate = millitokens(text.as_bytes()) / 1000;
            let error = estimate as f64 / tokens as f64 - 1.0;
            println!("{name:8} {tokens:4} tokens, estimated {estimate:4}: {:+.1} %", error * 100.0);
            assert!(error.abs() < 0.15, "{name}: {tokens} tokens, estimated {estimate}");
        }
    }

    #[test]
    fn short_and_odd_texts() {
        assert_eq!(millitokens(b""), 0);
        assert!((500..2500).contains(&millitokens(b"Hello there")));
        assert!((1500..3500).contains(&millitokens(b"getUserName")));
        assert!(millitokens("🦀".as_bytes()) >= 1000);
    }

    #[test]
    fn a_long_text_is_taken_to_be_like_its_windows() {
        let part = "All of it is like this. ";
        let (short, long) = (millitokens(part.repeat(1000).as_bytes()), millitokens(part.repeat(200_000).as_bytes()));
        assert!((long as f64 / short as f64 / 200.0 - 1.0).abs() < 0.05);
    }

    proptest! {
        #[test]
        fn blocks_cost_what_the_whole_does(text in "([a-zA-Z]{1,9}[ .,]|[0-9]{1,5} |漢字|über|\\n){1,18}", at in 0..64usize) {
            // The same text at another offset.
            let whole = millitokens(text.as_bytes());
            let moved = millitokens(("\n".repeat(at + 1) + &text).as_bytes());
            prop_assume!(!text.starts_with('\n'));
            prop_assert_eq!(moved, whole + 1000);
        }

        #[test]
        fn never_panics_and_never_nothing(text in "\\PC+") {
            let _ = millitokens(text.as_bytes());
            prop_assert!(millitokens((text + "x y").as_bytes()) > 0);
        }
    }
}
