//! Limits on input and output tokens per minute: observed sequences of requests and their messages.

use super::{
    tests::{MILLI, limiter, refused, take},
    *,
};

const QWEN: &str = "qwen/qwen3.8-27b";

fn limited(options: &Options) -> Limiter {
    let limits = ModelLimits {
        tokens_per_minute: Some(8000),
        input_tokens_per_minute: Some(7000),
        output_tokens_per_minute: Some(1000),
        ..ModelLimits::default()
    };
    limiter(limits, options)
}

fn cost(prompt: u64, max_completion_tokens: u64) -> Cost {
    Cost::Tokens { prompt, max_completion: Some(max_completion_tokens) }
}

fn answered(limiter: &mut Limiter, now: u64, cost: Cost, completion: u64) {
    let admission = take(limiter, now, cost);
    limiter.settle(now, &admission, 20, completion);
}

fn used(limiter: &mut Limiter, now: u64, code: &str) -> u64 {
    limiter.usage(now).into_iter().find(|(this, ..)| *this == code).expect("this dimension").2
}

#[test]
fn the_largest_recent_response_is_tested_instead_of_max_completion_tokens() {
    let options = Options::default();
    let mut limiter = limited(&options);
    answered(&mut limiter, 0, cost(20, 1800), 1089);
    // The same request again fits into the limit, but is refused because of the size of the first response.
    let (status, message, kind, wait) = refused(&mut limiter, 100 * SECOND, cost(20, 1800), QWEN, "org_x", &options);
    assert_eq!((status, kind.as_str(), wait.as_str()), (429, "tokens", ""));
    assert_eq!(
        message,
        "Request too large for model `qwen/qwen3.8-27b` in organization `org_x` service tier `on_demand` on output tokens per \
         minute (OTPM): Limit 1000, Requested 1089. The request's expected output tokens exceed the enforced limit; reduce \
         max_tokens (or the request's expected output) and try again. Visit https://console.groq.com/docs/rate-limits for more \
         information."
    );
    assert_eq!(limiter.headers(100 * SECOND, Unit::Tokens, false)["x-ratelimit-remaining-tokens"], "8000");
    // Smaller max completion tokens are tested instead, and the response counts only for 150 s.
    take(&mut limiter, 100 * SECOND, cost(20, 900));
    take(&mut limiter, 150 * SECOND, cost(20, 1800));
}

#[test]
fn a_refusal_says_when_to_try_again() {
    let options = Options::default();
    let mut limiter = limited(&options);
    answered(&mut limiter, 0, cost(20, 4548), 805);
    limiter.answers = RecentAnswers::default(); // as if the large response were older than the window
    answered(&mut limiter, 0, cost(20, 4548), 192);
    let (status, message, kind, wait) = refused(&mut limiter, 0, cost(20, 4548), QWEN, "org_x", &options);
    assert_eq!((status, kind.as_str(), wait.as_str()), (429, "tokens", "12"));
    assert!(
        message.contains(
            "on output tokens per minute (OTPM): Limit 1000, Used 997, Requested 192. Please try again in 11.34s. Visit "
        ),
        "{message}"
    );
    take(&mut limiter, 11_340 * MILLI, cost(20, 4548));
}

#[test]
fn the_output_is_charged_at_the_end_and_reserved_only_with_hold() {
    for (hold, held) in [(false, 300), (true, 600)] {
        let output_test = OutputTest::Expected { window: std::time::Duration::from_secs(60), hold };
        let options = Options { output_test, ..Options::default() };
        let mut limiter = limited(&options);
        answered(&mut limiter, 0, cost(20, 2000), 300);
        let running = take(&mut limiter, 0, cost(20, 2000));
        assert_eq!(used(&mut limiter, 0, "OTPM"), held);
        limiter.settle(0, &running, 20, 450);
        assert_eq!(used(&mut limiter, 0, "OTPM"), 750);
    }
}

#[test]
fn every_key_has_its_own_expectation() {
    let options = Options::default();
    let mut limiter = limited(&options);
    answered(&mut limiter, 0, cost(20, 2000), 900);
    refused(&mut limiter, 0, cost(20, 2000), QWEN, "org_x", &options);
    limiter.admit(0, "gsk_other", cost(20, 2000)).expect("no answer of this key is known, and the bucket has room");
}

#[test]
fn output_can_be_tested_by_max_completion_tokens() {
    let options = Options { output_test: OutputTest::MaxCompletionTokens, ..Options::default() };
    let mut limiter = limited(&options);
    let (status, message, ..) = refused(&mut limiter, 0, cost(20, 1024), QWEN, "o", &options);
    assert_eq!(status, 429);
    assert!(message.contains("(OTPM): Limit 1000, Requested 1024. The request's expected output"), "{message}");
    let (_, message, ..) = refused(&mut limiter, 0, Cost::Tokens { prompt: 10, max_completion: None }, QWEN, "o", &options);
    assert!(message.contains("Limit 1000, Requested 2048"), "{message}");
    take(&mut limiter, 0, cost(20, 900));
    assert_eq!(used(&mut limiter, 0, "OTPM"), 900);
}

#[test]
fn the_prompt_counts_as_input() {
    let options = Options::default();
    let mut limiter = limited(&options);
    take(&mut limiter, 0, cost(6650, 0));
    // 15.05 tokens drain in 129 ms, so 6634.95 are used.
    let (status, message, kind, wait) = refused(&mut limiter, 129 * MILLI, cost(538, 0), QWEN, "org_x", &options);
    assert_eq!((status, kind.as_str(), wait.as_str()), (429, "tokens", "2"));
    assert!(
        message.contains(
            "on input tokens per minute (ITPM): Limit 7000, Used 6635, Requested 538. Please try again in 1.482428571s. "
        ),
        "{message}"
    );
    let shown = limiter.headers(0, Unit::Tokens, false);
    assert_eq!(shown["x-ratelimit-limit-tokens"], "8000", "neither ITPM nor OTPM has headers");
    assert_eq!(shown.len(), 3);
}
