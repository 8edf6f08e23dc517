//! What a request costs.

/// The price of a model. Tokens: USD per million.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Price {
    /// A million prompt tokens.
    pub input: f64,
    /// A million prompt tokens that came from the cache.
    pub cached_input: f64,
    /// A million completion tokens.
    pub output: f64,
    /// An hour of audio.
    pub audio_hour: f64,
}

/// A USD per million tokens is so many billionths of a USD per token.
const NANO_PER_TOKEN: f64 = 1000.0;

impl Price {
    /// The cost of tokens, billionths of a USD. `prompt` includes the `cached` ones.
    pub fn of_tokens(&self, prompt: u64, cached: u64, completion: u64) -> u64 {
        let fresh = prompt.saturating_sub(cached) as f64;
        nano((fresh * self.input + cached as f64 * self.cached_input + completion as f64 * self.output) * NANO_PER_TOKEN)
    }

    /// The cost of audio, billionths of a USD.
    pub fn of_audio(&self, seconds: u64) -> u64 {
        nano(seconds as f64 / 3600.0 * self.audio_hour * 1e9)
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
        let price = Price { input: 0.15, cached_input: 0.075, output: 0.75, audio_hour: 0.111 };
        assert_eq!(price.of_tokens(1_000_000, 0, 0), 150_000_000);
        assert_eq!(price.of_tokens(1_000_000, 400_000, 2_000_000), 90_000_000 + 30_000_000 + 1_500_000_000);
        assert_eq!(price.of_tokens(1, 5, 0), 375, "more cached tokens than prompt tokens");
        assert_eq!(price.of_audio(3600), 111_000_000);
        assert_eq!(price.of_audio(10), 308_333);
        assert_eq!(Price { output: f64::MAX, ..price }.of_tokens(0, 0, u64::MAX), u64::MAX);
    }
}
