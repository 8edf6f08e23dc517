//! What the attempts of one call have used, for the app's budgets and the access log.

use std::sync::Arc;

use groq_limiter::{ActualUsage, CostEstimate, types::Observation};
use tokio::time::Instant;

use super::observer::Observed;
use crate::{
    accounts::{Amounts, Budget, Exceeded, Permit, Price, SharedLedger},
    groq::Usage,
};

/// What a call has used so far.
#[derive(Debug)]
pub struct Bill {
    /// The reservation under the app's budgets; `None` if it has none.
    permit: Option<Permit>,
    price: Option<Price>,
    /// What one attempt is expected to use.
    cost: CostEstimate,
    /// Expected completion tokens, at most `max_completion_tokens`.
    completion: u64,
    total: Amounts,
    /// The tokens that `total` is computed from.
    usage: Usage,
    /// The running attempt's reservation under the app's caps.
    cap: Option<groq_limiter::Permit>,
    /// The running attempt in the limiters of observe mode.
    observed: Option<Observed>,
    /// Whether an attempt may have reached Groq and has not been charged yet.
    in_flight: bool,
}

impl Drop for Bill {
    fn drop(&mut self) {
        self.end();
    }
}

impl Bill {
    /// An empty bill without a reservation.
    pub(super) fn new(cost: CostEstimate, price: Option<Price>) -> Self {
        Self {
            permit: None,
            price,
            cost,
            completion: 0,
            total: Amounts::default(),
            usage: Usage::default(),
            cap: None,
            observed: None,
            in_flight: false,
        }
    }

    /// Reserves the expected usage of the call under its app's `budgets`. `now` is Unix time in seconds.
    ///
    /// # Errors
    /// The budget that is spent.
    pub(super) async fn reserve(
        &mut self,
        accounts: &SharedLedger,
        app: &Arc<str>,
        budgets: &[Budget],
        now: u64,
    ) -> Result<(), Exceeded> {
        if let CostEstimate::Tokens { max_completion_tokens, .. } = self.cost {
            self.completion = accounts.ledger().expected_completion(app).min(max_completion_tokens.unwrap_or(u64::MAX));
        }
        let estimate = Amounts { requests: 1, ..self.amounts(ActualUsage::Unknown) };
        self.permit = Some(accounts.reserve(app, budgets, estimate, now).await?);
        Ok(())
    }

    /// Changes the cost estimate and price when the call goes to another model.
    pub(super) fn switch_model(&mut self, cost: CostEstimate, price: Option<Price>) {
        (self.cost, self.price) = (cost, price);
    }

    /// Whether there is a price for the kind of usage of its model.
    pub(super) fn has_price(&self) -> bool {
        let price = self.price.unwrap_or_default();
        match self.cost {
            CostEstimate::Tokens { .. } => price.tokens.is_some(),
            CostEstimate::Audio { .. } => price.audio_hour.is_some(),
            CostEstimate::Free => true,
        }
    }

    /// Begins an attempt with its reservation under the app's caps and, in observe mode, its state in the observer.
    pub(super) fn begin_attempt(&mut self, cap: Option<groq_limiter::Permit>, observed: Option<Observed>) {
        (self.cap, self.observed) = (cap, observed);
        self.in_flight = true;
    }

    /// Passes the rate-limit state of the running attempt's response head to the observer.
    pub(super) fn head(&mut self, state: impl FnOnce() -> Observation) {
        if let Some(observed) = &mut self.observed {
            observed.head(&state());
        }
    }

    /// Ends the running attempt as refused by Groq.
    pub(super) fn refused(&mut self) {
        if let Some(observed) = self.observed.take() {
            observed.refused();
        }
        self.charge(ActualUsage::Nothing);
    }

    /// Ends the call. If its client has disconnected, the attempt in flight is charged in full.
    pub(super) fn end(&mut self) {
        self.charge(if self.in_flight { ActualUsage::Unknown } else { ActualUsage::Nothing });
    }

    /// Ends the running attempt and charges what it used.
    pub(super) fn charge(&mut self, spent: ActualUsage) {
        self.in_flight = false;
        if let Some(cap) = self.cap.take() {
            cap.settle(spent, Instant::now());
        }
        if let Some(observed) = self.observed.take() {
            observed.settle(spent);
        }
        self.usage = self.usage.plus(self.usage_of(spent));
        let mut amounts = self.amounts(spent);
        if self.total.requests == 0 && spent != ActualUsage::Nothing {
            amounts.requests = 1;
        }
        self.total = self.total.plus(amounts);
        if let Some(permit) = &mut self.permit {
            permit.used(amounts);
            if let ActualUsage::Tokens { completion: Some(completion), .. } = spent {
                permit.learn_completion(completion);
            }
        }
    }

    /// Tokens of the call so far, as its app's budget is charged: estimated where Groq stated none.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// Cost of the call so far in billionths of a USD; 0 without a price for its model.
    pub fn nano_usd(&self) -> u64 {
        self.total.nano_usd
    }

    /// Tokens and cost of an attempt.
    fn amounts(&self, spent: ActualUsage) -> Amounts {
        let price = self.price.unwrap_or_default();
        match (self.cost, spent) {
            (_, ActualUsage::Nothing | ActualUsage::Request) | (CostEstimate::Free, _) => Amounts::default(),
            (CostEstimate::Audio { seconds }, _) => Amounts { nano_usd: price.of_audio(seconds), ..Amounts::default() },
            (CostEstimate::Tokens { .. }, _) => {
                let Usage { prompt, completion, cached } = self.usage_of(spent);
                let completion = completion.unwrap_or(0);
                Amounts {
                    requests: 0,
                    tokens: prompt.saturating_sub(cached).saturating_add(completion),
                    nano_usd: price.of_tokens(prompt, cached, completion),
                }
            }
        }
    }

    /// Tokens of an attempt: what Groq stated, and estimates for the rest.
    fn usage_of(&self, spent: ActualUsage) -> Usage {
        let usage = |prompt, cached, completion| Usage { prompt, completion: Some(completion), cached };
        match (spent, self.cost) {
            (ActualUsage::Tokens { prompt, completion, prompt_total }, _) => {
                usage(prompt_total, prompt_total.saturating_sub(prompt), completion.unwrap_or(self.completion))
            }
            (ActualUsage::Partial { completion }, CostEstimate::Tokens { prompt, .. }) => usage(prompt, 0, completion),
            (ActualUsage::Unknown, CostEstimate::Tokens { prompt, .. }) => usage(prompt, 0, self.completion),
            _ => Usage::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accounts::{Period, TokenPrice, Unit};

    const NOW: u64 = 1_790_000_000;
    const PRICE: Price = Price { tokens: Some(TokenPrice { input: 1.0, cached_input: 0.5, output: 2.0 }), audio_hour: Some(3.6) };

    fn chat(prompt: u64) -> CostEstimate {
        CostEstimate::Tokens { prompt, max_completion_tokens: Some(1000) }
    }

    #[test]
    fn every_attempt_is_billed_by_what_became_of_it() {
        for (spent, tokens, nano_usd) in [
            (ActualUsage::Nothing, 0, 0),
            (ActualUsage::Request, 0, 0),
            (ActualUsage::Tokens { prompt: 60, completion: Some(10), prompt_total: 100 }, 70, 60_000 + 20_000 + 20_000),
            (ActualUsage::Tokens { prompt: 60, completion: None, prompt_total: 100 }, 60, 60_000 + 20_000),
            (ActualUsage::Partial { completion: 5 }, 85, 80_000 + 10_000),
            (ActualUsage::Unknown, 80, 80_000),
        ] {
            let mut bill = Bill::new(chat(80), Some(PRICE));
            bill.charge(spent);
            assert_eq!((bill.total.tokens, bill.nano_usd()), (tokens, nano_usd), "{spent:?}");
            assert_eq!(bill.total.requests, u64::from(spent != ActualUsage::Nothing));
        }
    }

    #[test]
    fn audio_is_billed_by_the_second_and_retries_add_up() {
        let mut bill = Bill::new(CostEstimate::Audio { seconds: 10 }, Some(PRICE));
        bill.charge(ActualUsage::Request);
        bill.charge(ActualUsage::Unknown);
        assert_eq!(bill.total, Amounts { requests: 1, tokens: 0, nano_usd: 10_000_000 });
        let mut unpriced = Bill::new(chat(80), None);
        unpriced.charge(ActualUsage::Unknown);
        unpriced.switch_model(chat(90), Some(PRICE));
        unpriced.charge(ActualUsage::Unknown);
        assert_eq!(unpriced.total, Amounts { requests: 1, tokens: 170, nano_usd: 90_000 });
    }

    /// A price for audio alone used to make chat count as free, without a warning.
    #[test]
    fn a_price_is_of_tokens_or_of_audio() {
        let (tokens, audio) = (Price { audio_hour: None, ..PRICE }, Price { tokens: None, ..PRICE });
        for (cost, price, has_price) in [
            (chat(80), Some(tokens), true),
            (chat(80), Some(audio), false),
            (chat(80), None, false),
            (CostEstimate::Audio { seconds: 10 }, Some(audio), true),
            (CostEstimate::Audio { seconds: 10 }, Some(tokens), false),
            (CostEstimate::Free, None, true),
        ] {
            assert_eq!(Bill::new(cost, price).has_price(), has_price, "{cost:?} {price:?}");
        }
    }

    #[tokio::test]
    async fn reservations_follow_the_apps_previous_answers() {
        let (accounts, app) = (SharedLedger::new(None, ""), Arc::from("a"));
        let budgets = [Budget { unit: Unit::Tokens, period: Period::Day, limit: 500 }];
        let call = async || {
            let mut bill = Bill::new(chat(80), None);
            bill.reserve(&accounts, &app, &budgets, NOW).await.map(|()| bill)
        };
        let mut first = call().await.expect("nothing is used");
        first.charge(ActualUsage::Tokens { prompt: 80, completion: Some(100), prompt_total: 80 });
        drop(first);
        let second = call().await.expect("180 of 500 are used");
        assert_eq!(second.permit.as_ref().map(|permit| permit.reserved().tokens), Some(180));
        let third = call().await.expect("360 are used or reserved");
        assert_eq!(call().await.expect_err("540 are used or reserved").used, 180);
        drop((second, third));
    }
}
