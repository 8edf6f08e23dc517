//! How late requests arrive on this machine: a load that is starved says nothing about the shield.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::Method;
use http_body_util::Full;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

use crate::client::Client;

const INTERVAL: Duration = Duration::from_millis(20);

/// Measures from its start until it is dropped.
pub(crate) struct DelayMeter {
    longest_us: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Drop for DelayMeter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl DelayMeter {
    /// Starts a task that asks for the list of models, through the shield and under no limit, and notes how long it takes: each of the
    /// three processes may be kept off the processors. `number` is its `x-number`.
    pub(crate) fn start(client: Client, number: String) -> Self {
        let longest_us = Arc::new(AtomicU64::new(0));
        let seen = longest_us.clone();
        let task = tokio::spawn(async move {
            loop {
                let before = Instant::now();
                sleep(INTERVAL).await;
                let request = client.request(Method::GET, "/openai/v1/models").header("x-number", &number);
                assert_eq!(client.send(request.body(Full::default()).expect("a valid request")).await.status, 200);
                let late = before.elapsed().saturating_sub(INTERVAL);
                seen.fetch_max(u64::try_from(late.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
            }
        });
        Self { longest_us, task }
    }

    /// The longest delay so far.
    pub(crate) fn longest(&self) -> Duration {
        Duration::from_micros(self.longest_us.load(Ordering::Relaxed))
    }
}
