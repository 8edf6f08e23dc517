//! How many tokens is a text, by the kinds of its letters?
//!
//! A tokenizer's work is imitated roughly: runs of one kind of character are what it cuts a text into. The prices of the
//! runs were fitted to `o200k` counts of eighty texts in ten languages, code and JSON, and those of words and punctuation
//! (and of Chinese) then raised by a tenth: too high an estimate comes back at settlement, too low a one is refused.

/// What a run is made of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Letter,
    Digit,
    Punctuation,
    Space,
    Newline,
    Cyrillic,
    Arabic,
    Indic,
    Thai,
    Han,
    Kana,
    Hangul,
    Other,
}

/// A text is looked at whole up to here, bytes. Of a longer one, windows spread evenly over it stand for the rest.
const WHOLE: usize = 4 << 10;
const WINDOWS: usize = 16;

/// Thousandths of tokens in `text`.
pub(super) fn millitokens(text: &str) -> u64 {
    if text.len() <= WHOLE {
        return runs(text);
    }
    let boundary = |at: usize| (at..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    let (mut price, mut seen) = (0, 0);
    for window in 0..WINDOWS {
        let from = (text.len() - WHOLE / WINDOWS) / (WINDOWS - 1) * window;
        let part = &text[boundary(from)..boundary(from + WHOLE / WINDOWS)];
        price += runs(part);
        seen += part.len();
    }
    // 2^64 thousandths are more than any body holds.
    (u128::from(price) * text.len() as u128 / seen.max(1) as u128) as u64
}

fn runs(text: &str) -> u64 {
    let mut total = 0;
    let mut run = Run { kind: Kind::Space, length: 0, accents: 0, capitals: 0 };
    let mut before_lower = false;
    for c in text.chars() {
        let kind = kind(c);
        let capital = c.is_ascii_uppercase();
        // camelCase is two words.
        if kind != run.kind || (capital && before_lower) {
            total += run.price();
            run = Run { kind, length: 0, accents: 0, capitals: 0 };
        }
        run.length += 1;
        run.accents += u64::from(!c.is_ascii());
        run.capitals += u64::from(capital);
        before_lower = c.is_ascii_lowercase();
    }
    total + run.price()
}

struct Run {
    kind: Kind,
    length: u64,
    accents: u64,
    capitals: u64,
}

impl Run {
    /// Thousandths of tokens.
    fn price(&self) -> u64 {
        let length = self.length;
        let more = length.saturating_sub(1);
        match self.kind {
            _ if length == 0 => 0,
            Kind::Letter => {
                let shouted = if self.capitals == length { 140 * more } else { 0 };
                820 + 370 * length.saturating_sub(6) + 710 * self.accents + shouted
            }
            Kind::Digit => 1150 * length.div_ceil(3),
            Kind::Punctuation => 900 + 200 * more,
            // The space before a word is part of its token.
            Kind::Space => 900 * u64::from(length > 1),
            Kind::Newline => 1000,
            Kind::Cyrillic => 270 * length,
            Kind::Arabic => 380 * length,
            Kind::Indic => 390 * length,
            Kind::Thai => 430 * length,
            Kind::Han => 790 * length,
            Kind::Kana => 750 * length,
            Kind::Hangul => 760 * length,
            Kind::Other => 2300 * length,
        }
    }
}

fn kind(c: char) -> Kind {
    // Most text is ASCII: one look-up.
    static ASCII: [Kind; 128] = {
        let mut kinds = [Kind::Other; 128];
        let mut byte = 0;
        while byte < 128 {
            kinds[byte as usize] = slow_kind(byte as u8 as char);
            byte += 1;
        }
        kinds
    };
    if c.is_ascii() { ASCII[c as usize] } else { slow_kind(c) }
}

const fn slow_kind(c: char) -> Kind {
    match c {
        'a'..='z' | 'A'..='Z' | '\u{c0}'..='\u{24f}' => Kind::Letter,
        '0'..='9' => Kind::Digit,
        ' ' | '\t' => Kind::Space,
        '\n' | '\r' => Kind::Newline,
        '\0'..='\u{7f}' => Kind::Punctuation,
        '\u{370}'..='\u{52f}' => Kind::Cyrillic,
        '\u{590}'..='\u{77f}' => Kind::Arabic,
        '\u{900}'..='\u{dff}' => Kind::Indic,
        '\u{e00}'..='\u{eff}' => Kind::Thai,
        '\u{3000}'..='\u{30ff}' => Kind::Kana,
        '\u{3400}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' => Kind::Han,
        '\u{1100}'..='\u{11ff}' | '\u{ac00}'..='\u{d7af}' => Kind::Hangul,
        _ => Kind::Other,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Texts that the prices were not fitted to, with their true `o200k` counts.
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
            let estimate = millitokens(text) / 1000;
            let error = estimate as f64 / tokens as f64 - 1.0;
            println!("{name:8} {tokens:4} tokens, estimated {estimate:4}: {:+.1} %", error * 100.0);
            assert!(error.abs() < 0.15, "{name}: {tokens} tokens, estimated {estimate}");
        }
    }

    #[test]
    fn short_and_odd_texts() {
        assert_eq!(millitokens(""), 0);
        assert!((500..2500).contains(&millitokens("Hello there")));
        assert!((1500..3500).contains(&millitokens("getUserName")));
        assert!(millitokens("🦀") >= 1000);
    }

    #[test]
    fn a_long_text_is_taken_to_be_like_its_windows() {
        let part = "All of it is like this. ";
        let (short, long) = (millitokens(&part.repeat(1000)), millitokens(&part.repeat(200_000)));
        assert!((long as f64 / short as f64 / 200.0 - 1.0).abs() < 0.01);
    }

    proptest! {
        #[test]
        fn never_panics_and_never_nothing(text in "\\PC+") {
            let _ = millitokens(&text);
            prop_assert!(millitokens(&(text + "x y")) > 0);
        }
    }
}
