//! What a request costs.

/// The price of a model: of its tokens, of its audio, or of both.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Price {
    /// Price of tokens, if known.
    pub tokens: Option<TokenPrice>,
    /// USD for an hour of audio, if known.
    pub audio_hour: Option<f64>,
}

/// The price of tokens in USD per million.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TokenPrice {
    /// Prompt tokens.
    pub input: f64,
    /// Cached prompt tokens.
    pub cached_input: f64,
    /// Completion tokens.
    pub output: f64,
}

/// Billionths of a USD per token that equal one USD per million tokens.
const NANO_PER_TOKEN: f64 = 1000.0;

impl Price {
    /// The cost of tokens in billionths of a USD; 0 without a price. `prompt` includes the `cached` ones.
    pub fn of_tokens(&self, prompt: u64, cached: u64, completion: u64) -> u64 {
        let fresh = prompt.saturating_sub(cached) as f64;
        self.tokens.map_or(0, |price| {
            let cost = fresh * price.input + cached as f64 * price.cached_input + completion as f64 * price.output;
            nano(cost * NANO_PER_TOKEN)
        })
    }

    /// The cost of audio in billionths of a USD; 0 without a price.
    pub fn of_audio(&self, seconds: u64) -> u64 {
        self.audio_hour.map_or(0, |hour| nano(seconds as f64 / 3600.0 * hour * 1e9))
    }
}

/// Rounded; the cast saturates.
fn nano(amount: f64) -> u64 {
    amount.round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_and_audio_have_their_prices() {
        let tokens = TokenPrice { input: 0.15, cached_input: 0.075, output: 0.75 };
        let price = Price { tokens: Some(tokens), audio_hour: Some(0.111) };
        assert_eq!(price.of_tokens(1_000_000, 0, 0), 150_000_000);
        assert_eq!(price.of_tokens(1_000_000, 400_000, 2_000_000), 90_000_000 + 30_000_000 + 1_500_000_000);
        assert_eq!(price.of_tokens(1, 5, 0), 375, "more cached tokens than prompt tokens");
        assert_eq!(price.of_audio(3600), 111_000_000);
        assert_eq!(price.of_audio(10), 308_333);
        let dear = Price { tokens: Some(TokenPrice { output: f64::MAX, ..tokens }), ..price };
        assert_eq!(dear.of_tokens(0, 0, u64::MAX), u64::MAX);
        assert_eq!((Price::default().of_tokens(1, 0, 1), Price::default().of_audio(1)), (0, 0), "without a price");
    }
}
