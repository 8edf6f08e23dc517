//! 75 seconds of overload over real sockets, then a table: the share of each limit that was used, the refusals, and the waits and
//! failures of an app with little load.
//!
//! `cargo run --example overload`. Each run has a simulated Groq and a shield in front of it, on loopback. All runs of all rows are
//! concurrent. The load is an open-loop Poisson process at three times the limit, with the request sizes of the limiter's figures.

use std::{net::SocketAddr, time::Duration};

use clap::Parser;
use fastrand::Rng;
use groq_shield::{
    config::{self, Settings},
    proxy::Shield,
    server::{self, Listeners},
};
use groq_sim::Sim;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    task::JoinSet,
    time::{Instant, sleep_until, timeout_at},
};

#[path = "../tests/contract/client.rs"]
#[expect(dead_code, reason = "the tests use all of it")]
mod client;
#[path = "../crates/groq-limiter/benches/figures/load.rs"]
#[expect(dead_code, reason = "the figures use all of it")]
mod load;

use client::{KEY, request, try_ask};
use load::{Size, Sizes, gap};

type Ns = u64;
const MS: Ns = 1_000_000;
const SECOND: Ns = 1000 * MS;

/// Duration of the load.
const LASTS: Duration = Duration::from_secs(75);
/// Start of the measured time.
const FROM: Duration = Duration::from_secs(15);
/// End of the measured time.
const TO: Duration = Duration::from_secs(60);
/// The max wait of each request in milliseconds.
const MAX_WAIT_MS: u64 = 60_000;
/// Share of the token limit that is used at the start. The burst of an unused limit would hide the refill rate.
const INITIAL_USAGE: f64 = 0.93;
/// Name of the traffic that bypasses the shield.
const EXTERNAL: &str = "external";

#[derive(Parser)]
struct Arguments {
    /// Seed of all random choices; timing still varies
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// A row of the table.
#[derive(Clone, Copy)]
struct Row {
    name: &'static str,
    requests_per_minute: u64,
    tokens_per_minute: u64,
    /// External traffic as a share of the limit.
    external: f64,
    /// Target: at most this many refusals per 1000 sends.
    refusals: f64,
    /// Number of runs that are summed. With one run of M, a single large request would be a tenth of the refill in the measured time.
    runs: u64,
}

const M: Row = Row { name: "M", requests_per_minute: 120, tokens_per_minute: 60_000, external: 0.0, refusals: 1.0, runs: 16 };
const X: Row = Row { name: "X", requests_per_minute: 1000, tokens_per_minute: 300_000, runs: 1, ..M };
const ROWS: [Row; 4] = [
    M,
    X,
    Row { name: "M, external", external: 0.2, refusals: 4.0, ..M },
    Row { name: "X, external", external: 0.2, refusals: 4.0, ..X },
];

/// Sums over all runs of a row. Amounts are in tokens.
#[derive(Default)]
struct Outcome {
    refilled: f64,
    own: f64,
    external: f64,
    sends: u64,
    refused: u64,
    /// Waits of the light app's requests that succeeded.
    light: Vec<Duration>,
    /// Number of requests that the light app sent.
    light_sent: usize,
}

/// How one request ended. Times are relative to the start of the load.
struct Response {
    app: &'static str,
    arrived: Duration,
    ended: Duration,
    served: bool,
    tokens: u64,
    waited: Duration,
}

/// Whether a time is within the measured time.
fn measured(at: Duration) -> bool {
    (FROM..TO).contains(&at)
}

/// Sends a request at its scheduled time; `None` if there was no complete response.
async fn send(to: SocketAddr, app: &'static str, size: Size, start: Instant, at: Duration) -> Option<Response> {
    let directive = format!("[[sim completion={}]]", size.completion);
    // The simulated Groq counts 20 tokens for the template and one token per 4 characters.
    let length = usize::try_from(4 * size.prompt.saturating_sub(20)).ok()?;
    let content = format!("{directive:x<length$}");
    let body =
        json!({"model": "m", "max_completion_tokens": size.output_limit, "messages": [{"role": "user", "content": content}]});
    let headers = format!(
        "{KEY}content-type: application/json\r\nuser-agent: {app}\r\nx-shield-app: {app}\r\nx-shield-max-wait-ms: {MAX_WAIT_MS}\r\n"
    );
    let bytes = request("POST", "/openai/v1/chat/completions", &headers, &body.to_string());
    sleep_until(start + at).await;
    let answer = try_ask(to, bytes.as_bytes()).await.ok()?;
    let usage = serde_json::from_str::<Value>(&answer.body).ok()?["usage"]["total_tokens"].as_u64();
    Some(Response {
        app,
        arrived: at,
        ended: start.elapsed(),
        served: answer.status == 200,
        tokens: usage.unwrap_or(0),
        waited: Duration::from_millis(answer.header("x-shield-wait-ms").parse().unwrap_or(0)),
    })
}

impl Row {
    fn settings(&self, upstream: SocketAddr) -> Settings {
        let mut settings = Settings::default();
        settings.server.listen = SocketAddr::from(([127, 0, 0, 1], 0));
        settings.admin.listen = settings.server.listen;
        settings.server.threads = Some(1);
        settings.upstream.base_url = format!("http://{upstream}").parse().expect("an address");
        settings.limits.plan = config::Plan::None;
        let limits = config::ModelLimits {
            requests_per_minute: Some(self.requests_per_minute),
            tokens_per_minute: Some(self.tokens_per_minute),
            ..Default::default()
        };
        settings.limits.model.insert("m".into(), limits);
        settings
    }

    /// Runs the load once.
    async fn run(self, seed: u64) -> Outcome {
        let limits = groq_sim::ModelLimits {
            requests_per_minute: Some(self.requests_per_minute),
            tokens_per_minute: Some(self.tokens_per_minute),
            ..Default::default()
        };
        let initial_usage = [("TPM".to_owned(), INITIAL_USAGE)].into();
        let groq =
            Sim::new(groq_sim::Options { plan: groq_sim::Plan::uniform(limits), initial_usage, seed, ..Default::default() });
        let created = Instant::now();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let upstream = listener.local_addr().expect("it is bound");
        let serving = tokio::spawn({
            let groq = groq.clone();
            async move { groq.serve(listener).await }
        });
        let settings = self.settings(upstream);
        let listeners = Listeners::open(&settings).expect("free ports");
        let shield = server::start(Shield::new(settings).expect("valid settings"), listeners).expect("it starts");

        let rate = self.tokens_per_minute as f64 / 60.0;
        let mut outcome = Outcome { refilled: rate * (TO - FROM).as_secs_f64(), ..Outcome::default() };
        let offers = [("light", 0.15, shield.app), ("heavy", 2.85, shield.app), (EXTERNAL, self.external, upstream)];
        let mut random = Rng::with_seed(seed);
        let (mean, _) = Sizes::USUAL.measure();
        let mut clients = JoinSet::new();
        let start = Instant::now();
        for (app, share, to) in offers.into_iter().filter(|(_, share, _)| *share > 0.0) {
            let mut next = || Duration::from_nanos(gap(share * rate / mean, &mut random));
            let mut at = next();
            let mut arrivals = Vec::new();
            while at < LASTS {
                arrivals.push(at);
                at += next();
            }
            for at in arrivals {
                outcome.light_sent += usize::from(app == "light" && measured(at));
                clients.spawn(send(to, app, Sizes::USUAL.draw(&mut random), start, at));
            }
        }
        while let Ok(Some(response)) = timeout_at(start + LASTS, clients.join_next()).await {
            outcome.count(response.expect("no client panics"));
        }
        let before = (start - created).as_secs_f64();
        for sent in groq.log().iter().filter(|sent| sent.header("user-agent") != Some(EXTERNAL)) {
            if measured(Duration::from_secs_f64((sent.at_ms / 1000.0 - before).max(0.0))) {
                outcome.sends += 1;
                outcome.refused += u64::from(sent.refused.is_some());
            }
        }
        clients.shutdown().await;
        shield.end();
        shield.drained().await;
        serving.abort();
        outcome
    }
}

impl Outcome {
    fn count(&mut self, response: Option<Response>) {
        let Some(response) = response.filter(|response| response.served) else { return };
        if measured(response.ended) {
            *(if response.app == EXTERNAL { &mut self.external } else { &mut self.own }) += response.tokens as f64;
        }
        if response.app == "light" && measured(response.arrived) {
            self.light.push(response.waited);
        }
    }

    fn add(&mut self, other: Self) {
        self.refilled += other.refilled;
        self.own += other.own;
        self.external += other.external;
        self.sends += other.sends;
        self.refused += other.refused;
        self.light.extend(other.light);
        self.light_sent += other.light_sent;
    }

    fn line(mut self, row: &Row) -> String {
        self.light.sort_unstable();
        let wait = |share: f64| {
            let index = (share * self.light.len() as f64).ceil() as usize;
            self.light.get(index.saturating_sub(1)).map_or(0.0, Duration::as_secs_f64)
        };
        let percent = |tokens: f64| 100.0 * tokens / self.refilled;
        let used = percent(self.own + self.external);
        let refused = 1000.0 * self.refused as f64 / self.sends.max(1) as f64;
        let failed = self.light_sent - self.light.len();
        // With external traffic only the refusals have a target, because what is left of the limit depends on that traffic.
        let alone = row.external == 0.0;
        let judged = [
            (!alone || used >= 98.5, "used"),
            (refused <= row.refusals, "refusals"),
            (!alone || wait(0.99) <= 8.0, "light p99"),
            (failed == 0, "light failed"),
        ];
        let misses: Vec<_> = judged.into_iter().filter(|(reached, _)| !reached).map(|(_, what)| what).collect();
        let verdict = if misses.is_empty() { "PASS".to_owned() } else { format!("miss: {}", misses.join(", ")) };
        let (used, target) = match alone {
            true => (format!("{used:.1}"), "used ≥ 98.5, light p99 ≤ 8, "),
            false => (format!("{:.1} + {:.1}", percent(self.own), percent(self.external)), ""),
        };
        format!(
            "| {} | {used} | {refused:.1} ({} of {}) | {:.2} / {:.2} | {failed} of {} | {target}failed ≤ 0, ≤ {:.0} ‰ | {verdict} |",
            row.name,
            self.refused,
            self.sends,
            wait(0.5),
            wait(0.99),
            self.light_sent,
            row.refusals,
        )
    }
}

#[tokio::main]
async fn main() {
    let arguments = Arguments::parse();
    let mut runs = JoinSet::new();
    for (index, row) in ROWS.iter().enumerate() {
        for run in 0..row.runs {
            runs.spawn(async move { (index, row.run(arguments.seed + run).await) });
        }
    }
    let mut outcomes = ROWS.map(|_| Outcome::default());
    for (index, outcome) in runs.join_all().await {
        outcomes[index].add(outcome);
    }
    println!("| scenario | used % | 429 ‰ (of sends) | light wait p50 / p99 | light failed | target | |");
    println!("|---|---|---|---|---|---|---|");
    for (row, outcome) in ROWS.iter().zip(outcomes) {
        println!("{}", outcome.line(row));
    }
}
