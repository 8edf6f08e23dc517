//! The demo's load: apps with the official SDKs' behaviour: two retries, `retry-after` up to a minute, back-off with jitter.

use std::{io, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, sleep_until},
};

use super::tally::Tally;

/// The model of all requests.
pub(super) const MODEL: &str = "openai/gpt-oss-20b";
/// Retries of the SDKs.
const RETRIES: u32 = 2;
/// Longest `retry-after` that they follow.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);
/// Their timeout.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(60);
/// Tokens of an empty request, as the simulated Groq counts.
const TEMPLATE: u64 = 71;

/// A request, and when it arrives.
#[derive(Clone, Debug)]
pub(super) struct Arrival {
    pub(super) at: Duration,
    prompt: u64,
    completion: u64,
    max_completion_tokens: u64,
}

/// A Poisson stream of requests of lognormal sizes (570 tokens used on average, 1330 requested), until their tokens add up to
/// what the limits refill.
pub(super) fn arrivals(load: f64, tokens_per_second: f64, given_back: f64, seed: u64) -> Vec<Arrival> {
    const MEAN: f64 = 570.0;
    let mut random = fastrand::Rng::with_seed(seed);
    let mut lognormal = |median: f64, sigma: f64| {
        let (a, b) = (1.0 - random.f64(), random.f64());
        median * (sigma * (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()).exp()
    };
    let mut apart = fastrand::Rng::with_seed(seed ^ 1);
    let (mut at, mut wanted, mut arrivals) = (0.0, 0.0, Vec::new());
    while wanted < given_back {
        let prompt = lognormal(85.0, 0.6).clamp(20.0, 2000.0) as u64;
        let completion = lognormal(330.0, 0.6).clamp(10.0, 4000.0) as u64;
        wanted += (TEMPLATE + prompt + completion) as f64;
        arrivals.push(Arrival {
            at: Duration::from_secs_f64(at),
            prompt,
            completion,
            max_completion_tokens: completion * 29 / 10,
        });
        at += -(1.0 - apart.f64()).ln() * MEAN / (load * tokens_per_second);
    }
    arrivals
}

/// One call of an app, including retries; only tokens of responses before `end` count.
pub(super) async fn app(tally: &Tally, arrival: &Arrival, due: Instant, end: Instant, seed: u64) {
    sleep_until(due).await;
    tally.arrived();
    let mut random = fastrand::Rng::with_seed(seed);
    for retry in 0..=RETRIES {
        let sent = Instant::now();
        let answer = tokio::time::timeout(CLIENT_TIMEOUT, send(tally, arrival, retry)).await;
        let answer = answer.unwrap_or_else(|late| Err(late.into()));
        let told = match &answer {
            Ok(answer) if answer.status() == StatusCode::OK => {
                let shield = header(answer, "x-shield-wait-ms").map(Duration::from_millis).unwrap_or_default();
                let tokens = answer.body()["usage"]["total_tokens"].as_u64().unwrap_or(0);
                tally.served(sent - due + shield, if Instant::now() <= end { tokens } else { 0 });
                return;
            }
            Ok(answer) if !retried(answer) => break,
            Ok(answer) => {
                header(answer, "retry-after").map(Duration::from_secs).filter(|wait| !wait.is_zero() && *wait <= MAX_RETRY_AFTER)
            }
            Err(_) => None,
        };
        let back_off = (0.5 * 2f64.powi(retry.cast_signed())).min(8.0) * (1.0 - 0.25 * random.f64());
        if retry < RETRIES {
            sleep(told.unwrap_or(Duration::from_secs_f64(back_off))).await;
        }
    }
    tally.failed();
}

fn retried(answer: &Response<Value>) -> bool {
    match answer.headers().get("x-should-retry").map(|value| value.as_bytes()) {
        Some(b"true") => true,
        Some(b"false") => false,
        _ => matches!(answer.status().as_u16(), 408 | 409 | 429 | 500..),
    }
}

fn header(answer: &Response<Value>, name: &str) -> Option<u64> {
    answer.headers().get(name)?.to_str().ok()?.parse().ok()
}

async fn send(tally: &Tally, arrival: &Arrival, retry: u32) -> io::Result<Response<Value>> {
    let wish = format!("[[sim completion={}]]", arrival.completion);
    let rest = usize::try_from(arrival.prompt * 4).unwrap_or(0).saturating_sub(wish.len());
    let content = wish + &"word ".repeat(rest / 5);
    let body = json!({"model": MODEL, "max_completion_tokens": arrival.max_completion_tokens, "messages": [{"role": "user", "content": content}]});
    let request = Request::post("/openai/v1/chat/completions")
        .header("host", tally.address.to_string())
        .header("authorization", "Bearer gsk_demo")
        .header("content-type", "application/json")
        .header("x-stainless-read-timeout", CLIENT_TIMEOUT.as_secs())
        .header("x-stainless-retry-count", retry)
        .body(Full::new(Bytes::from(body.to_string())))
        .map_err(io::Error::other)?;
    let socket = TcpStream::connect(tally.address).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await.map_err(io::Error::other)?;
    let answering = async {
        let (head, body) = sender.send_request(request).await.map_err(io::Error::other)?.into_parts();
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        Ok(Response::from_parts(head, serde_json::from_slice(&body).map_err(io::Error::other)?))
    };
    let mut connection = std::pin::pin!(connection);
    let mut answering = std::pin::pin!(answering);
    tokio::select! {
        answer = &mut answering => answer,
        // The connection may close with the last byte of the response.
        _ = &mut connection => answering.await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_brings_the_same_load_and_no_more_than_wanted() {
        let first = arrivals(3.0, 4000.0, 120_000.0, 7);
        let again = arrivals(3.0, 4000.0, 120_000.0, 7);
        assert_eq!(format!("{first:?}"), format!("{again:?}"));
        let wanted: u64 = first.iter().map(|arrival| TEMPLATE + arrival.prompt + arrival.completion).sum();
        assert!((120_000..125_000).contains(&wanted), "{wanted}");
        let lasted = first.last().expect("some").at.as_secs_f64();
        assert!((7.0..14.0).contains(&lasted), "three times as fast as 30 s: {lasted}");
    }
}
