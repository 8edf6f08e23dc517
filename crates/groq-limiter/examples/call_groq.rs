//! Calls Groq's chat API as fast as its limits allow. Processes with the same `REDIS_URL` share the limits.
//! For https, enable one of reqwest's TLS features.

use std::{env, error::Error, time::Duration};

use groq_limiter::{
    ActualUsage, AdmissionRequest, CostEstimate, Limiters,
    settings::{RedisSettings, Settings},
    types::{Observation, RemoteQuota},
};
use reqwest::{Client, StatusCode, header::HeaderMap};
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::Instant};

const MODEL: &str = "openai/gpt-oss-20b";
const MAX_COMPLETION_TOKENS: u64 = 500;

async fn chat(limiters: Limiters, client: Client, prompt: String) -> Result<String, Box<dyn Error + Send + Sync>> {
    // About four characters per token, and 70 tokens for the template. The limiter learns how much the estimate is off.
    let (tokens, max_completion_tokens) = (prompt.len() as u64 / 4 + 70, Some(MAX_COMPLETION_TOKENS));
    let request = AdmissionRequest::new("my-organization", MODEL, CostEstimate::Tokens { prompt: tokens, max_completion_tokens });
    let url = env::var("GROQ_BASE_URL").unwrap_or("https://api.groq.com".into()) + "/openai/v1/chat/completions";
    let body = json!({
        "model": MODEL,
        "max_completion_tokens": MAX_COMPLETION_TOKENS,
        "messages": [{ "role": "user", "content": prompt }],
    });
    let (deadline, mut requeue) = (Instant::now() + Duration::from_secs(60), None);
    loop {
        // Waits until the request may be sent. An error means that this cannot happen before the deadline.
        let mut permit = limiters.reserve(&request, deadline, requeue).await?;
        permit.sent(Instant::now());
        let response = client.post(&url).bearer_auth(env::var("GROQ_API_KEY")?).json(&body).send().await?;
        let state = observation(response.headers());
        if response.status() == StatusCode::TOO_MANY_REQUESTS {
            let retry_after = number(response.headers(), "retry-after").map(Duration::from_secs);
            requeue = permit.refused(None, &state, retry_after, Instant::now());
            continue;
        }
        // The headers correct the limits, and `usage` releases the part of the reservation that was not used.
        permit.observe(&state, Instant::now());
        let answer: Value = response.error_for_status()?.json().await?;
        let [prompt, completion] = ["prompt_tokens", "completion_tokens"].map(|part| answer["usage"][part].as_u64().unwrap_or(0));
        permit.settle(ActualUsage::Tokens { prompt, completion: Some(completion), prompt_total: prompt }, Instant::now());
        return Ok(answer["choices"][0]["message"]["content"].as_str().unwrap_or_default().into());
    }
}

fn observation(headers: &HeaderMap) -> Observation {
    let quota = |unit: &str| {
        let [limit, remaining] = ["limit", "remaining"].map(|part| number(headers, &format!("x-ratelimit-{part}-{unit}")));
        Some(RemoteQuota { limit: limit?, remaining: remaining? })
    };
    Observation { requests: quota("requests"), tokens: quota("tokens"), audio: None }
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

#[tokio::main]
pub(crate) async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    // Shared by two processes. While Redis is unreachable, each of them uses half of every limit.
    let redis = env::var("REDIS_URL").ok().map(|url| RedisSettings { replicas: 2, ..RedisSettings::new(url) });
    let (limiters, client) = (Limiters::new(Settings { redis, ..Settings::default() }), Client::new());
    let calls: JoinSet<_> =
        (1..=12).map(|n| chat(limiters.clone(), client.clone(), format!("Write a haiku about the number {n}."))).collect();
    for answer in calls.join_all().await {
        println!("{}", answer?.replace('\n', " "));
    }
    // Releases the reservations, and removes this process from the replicas that share the limits.
    limiters.close()?;
    Ok(())
}
