//! Overload over real sockets for 75 s, then a table: how much of each limit was used, what was refused, how a light app was
//! served.
//!
//! `cargo run --example overload`. Each row is a simulated Groq and a shield in front of it, on loopback; all rows and their runs
//! go in parallel. Open-loop Poisson load at three times the limit, with the sizes of the figures' load.

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
/// The measured time starts here,
const FROM: Duration = Duration::from_secs(15);
/// and ends here.
const TO: Duration = Duration::from_secs(60);
/// The max wait of each request, milliseconds.
const MAX_WAIT_MS: u64 = 60_000;
/// Share of the tokens that is used up at the start: a full bucket would hide the refill rate.
const TAKEN: f64 = 0.93;
/// The traffic that bypasses the shield.
const EXTERNAL: &str = "external";

#[derive(Parser)]
struct Arguments {
    /// Seed of all random choices; the machine's timing remains
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// One line of the table.
#[derive(Clone, Copy)]
struct Row {
    name: &'static str,
    requests_per_minute: u64,
    tokens_per_minute: u64,
    /// The external traffic, as a share of the limit.
    external: f64,
    /// Most refusals per 1000 sends.
    refusals: f64,
    /// Runs that are summed: a large request is a tenth of what M refills meanwhile.
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

/// Results of a row, all its runs together.
#[derive(Default)]
struct Outcome {
    refilled: f64,
    own: f64,
    external: f64,
    sends: u64,
    refused: u64,
    /// Waits of the light app's served requests, and how many it sent.
    light: Vec<Duration>,
    light_asked: usize,
}

/// How one request ended.
struct Answered {
    app: &'static str,
    arrived: Duration,
    ended: Duration,
    served: bool,
    tokens: u64,
    waited: Duration,
}

fn measured(at: Duration) -> bool {
    (FROM..TO).contains(&at)
}

/// Sends a request when it is due; `None` where no complete answer came.
async fn ask(to: SocketAddr, app: &'static str, size: Size, began: Instant, at: Duration) -> Option<Answered> {
    let wish = format!("[[sim completion={}]]", size.completion);
    // The simulated Groq counts 20 tokens for the template and one for four characters.
    let length = usize::try_from(4 * size.prompt.saturating_sub(20)).ok()?;
    let content = format!("{wish:x<length$}");
    let body =
        json!({"model": "m", "max_completion_tokens": size.output_limit, "messages": [{"role": "user", "content": content}]});
    let headers = format!(
        "{KEY}content-type: application/json\r\nuser-agent: {app}\r\nx-shield-app: {app}\r\nx-shield-max-wait-ms: {MAX_WAIT_MS}\r\n"
    );
    let bytes = request("POST", "/openai/v1/chat/completions", &headers, &body.to_string());
    sleep_until(began + at).await;
    let answer = try_ask(to, bytes.as_bytes()).await.ok()?;
    let usage = serde_json::from_str::<Value>(&answer.body).ok()?["usage"]["total_tokens"].as_u64();
    Some(Answered {
        app,
        arrived: at,
        ended: began.elapsed(),
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

    /// One run.
    async fn run(self, seed: u64) -> Outcome {
        let limits = groq_sim::ModelLimits {
            requests_per_minute: Some(self.requests_per_minute),
            tokens_per_minute: Some(self.tokens_per_minute),
            ..Default::default()
        };
        let initial_usage = [("TPM".to_owned(), TAKEN)].into();
        let groq =
            Sim::new(groq_sim::Options { plan: groq_sim::Plan::uniform(limits), initial_usage, seed, ..Default::default() });
        let born = Instant::now();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let upstream = listener.local_addr().expect("it is bound");
        let serving = tokio::spawn({
            let groq = groq.clone();
            async move { groq.serve(listener).await }
        });
        let settings = self.settings(upstream);
        let listeners = Listeners::open(&settings).expect("free ports");
        let shield = server::start(Shield::new(settings).expect("nothing to fail on"), listeners).expect("it starts");

        let rate = self.tokens_per_minute as f64 / 60.0;
        let mut outcome = Outcome { refilled: rate * (TO - FROM).as_secs_f64(), ..Outcome::default() };
        let offers = [("light", 0.15, shield.app), ("heavy", 2.85, shield.app), (EXTERNAL, self.external, upstream)];
        let mut random = Rng::with_seed(seed);
        let (mean, _) = Sizes::USUAL.measure();
        let mut clients = JoinSet::new();
        let began = Instant::now();
        for (app, share, to) in offers.into_iter().filter(|(_, share, _)| *share > 0.0) {
            let mut next = || Duration::from_nanos(gap(share * rate / mean, &mut random));
            let mut at = next();
            let mut arrivals = Vec::new();
            while at < LASTS {
                arrivals.push(at);
                at += next();
            }
            for at in arrivals {
                outcome.light_asked += usize::from(app == "light" && measured(at));
                clients.spawn(ask(to, app, Sizes::USUAL.draw(&mut random), began, at));
            }
        }
        while let Ok(Some(answered)) = timeout_at(began + LASTS, clients.join_next()).await {
            outcome.count(answered.expect("no client panics"));
        }
        let before = (began - born).as_secs_f64();
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
    fn count(&mut self, answered: Option<Answered>) {
        let Some(answered) = answered.filter(|answered| answered.served) else { return };
        if measured(answered.ended) {
            *(if answered.app == EXTERNAL { &mut self.external } else { &mut self.own }) += answered.tokens as f64;
        }
        if answered.app == "light" && measured(answered.arrived) {
            self.light.push(answered.waited);
        }
    }

    fn add(&mut self, other: Self) {
        self.refilled += other.refilled;
        self.own += other.own;
        self.external += other.external;
        self.sends += other.sends;
        self.refused += other.refused;
        self.light.extend(other.light);
        self.light_asked += other.light_asked;
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
        let failed = self.light_asked - self.light.len();
        // With external usage only refusals have a target: how much of the limit remains depends on the others.
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
            self.light_asked,
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
