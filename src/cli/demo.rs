//! `groq-shield demo`: the same overload with the SDKs alone and through a shield, side by side.
//!
//! Two simulated Groqs with equal limits, in one process over real sockets. Apps behave like the official SDKs; their requests
//! arrive at `load` times the refill rate of the limits, until they have asked for as much as is refilled in `seconds`.

use std::{
    io::{self, IsTerminal},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{runtime::Builder, time::Instant};

use super::{
    output::{failed, print},
    simulate,
};
use crate::{
    config::{Plan, Settings},
    proxy::Shield,
    server::{self, Listeners, Running},
};

mod load;
mod tally;
mod view;

use load::{Arrival, MODEL};
use tally::Tally;

/// Time after `seconds` for the last responses.
const OVERTIME: Duration = Duration::from_secs(20);
/// Share of the token limit that is used up when the demo begins. The rest is about the shield's safety margin, so both sides
/// have the refill of the demo's time and not a full bucket in addition.
const TAKEN: f64 = 0.93;

/// `groq-shield demo`
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Demo {
    /// The load, as a multiple of what the limits refill
    #[arg(long, default_value_t = 3.0, value_parser = times)]
    load: f64,
    /// Duration in seconds
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(3..=600))]
    seconds: u64,
    /// Seed of all random choices
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,
    /// The result as JSON
    #[arg(long)]
    json: bool,
}

fn times(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(load) if (0.1..=100.0).contains(&load) => Ok(load),
        _ => Err("a number from 0.1 to 100".to_owned()),
    }
}

/// Runs both sides and prints the results. Exit code 1 if it could not start.
pub(super) fn run(arguments: &Demo) -> ExitCode {
    let told = Builder::new_multi_thread().worker_threads(1).enable_all().build().and_then(|runtime| {
        let stage = Stage::set(arguments)?;
        let results = runtime.block_on(stage.play());
        runtime.block_on(stage.shield.drained());
        Ok(results)
    });
    match told {
        Ok(results) if arguments.json => print(format!("{:#}\n", results.json()).as_bytes()),
        Ok(results) => print(results.table().as_bytes()),
        Err(why) => failed(&why),
    }
}

/// The participants.
struct Stage {
    arguments: Demo,
    arrivals: Vec<Arrival>,
    alone: Arc<Tally>,
    shielded: Arc<Tally>,
    shield: Running,
}

impl Stage {
    fn set(arguments: &Demo) -> io::Result<Self> {
        let groq = || {
            let initial_usage = [("TPM".to_owned(), TAKEN)].into();
            simulate::in_the_background(groq_sim::Options { seed: arguments.seed, initial_usage, ..groq_sim::Options::default() })
        };
        let ((alone, alone_sim), (behind, behind_sim)) = (groq()?, groq()?);
        let limit = groq_sim::Plan::developer().of_model(MODEL).tokens_per_minute.unwrap_or_default();
        let rate = limit as f64 / 60.0;
        let mut settings = Settings::default();
        settings.server.listen = ([127, 0, 0, 1], 0).into();
        settings.admin.listen = ([127, 0, 0, 1], 0).into();
        settings.upstream.base_url = format!("http://{behind}").parse().map_err(io::Error::other)?;
        settings.limits.plan = Plan::Developer;
        let listeners = Listeners::open(&settings)?;
        let shield = server::start(Shield::new(settings)?, listeners)?;
        let given_back = rate * arguments.seconds as f64;
        Ok(Self {
            arrivals: load::arrivals(arguments.load, rate, given_back, arguments.seed),
            alone: Arc::new(Tally::new(alone, alone_sim, given_back)),
            shielded: Arc::new(Tally::new(shield.app, behind_sim, given_back)),
            shield,
            arguments: arguments.clone(),
        })
    }

    async fn play(&self) -> Results {
        let began = Instant::now();
        let end = began + Duration::from_secs(self.arguments.seconds);
        let mut apps = tokio::task::JoinSet::new();
        for tally in [&self.alone, &self.shielded] {
            for (number, arrival) in self.arrivals.iter().enumerate() {
                let (tally, arrival, seed) = (tally.clone(), arrival.clone(), self.arguments.seed ^ number as u64);
                apps.spawn(async move { load::app(&tally, &arrival, began + arrival.at, end, seed).await });
            }
        }
        let ways = [("the SDKs alone", self.alone.clone()), ("through the shield", self.shielded.clone())];
        let view = view::View::new(ways, self.arrivals.len(), io::stderr().is_terminal());
        tokio::select! {
            () = async { while apps.join_next().await.is_some() {} } => {}
            () = view.run(began) => {}
            () = tokio::time::sleep_until(end + OVERTIME) => {}
        }
        view.finish();
        let lasted = self.arrivals.last().map_or(Duration::ZERO, |arrival| arrival.at);
        Results {
            arguments: self.arguments.clone(),
            lasted,
            alone: self.alone.result(self.arrivals.len()),
            shielded: self.shielded.result(self.arrivals.len()),
        }
    }
}

/// The results.
struct Results {
    arguments: Demo,
    /// For how long requests arrived.
    lasted: Duration,
    alone: tally::Way,
    shielded: tally::Way,
}

impl Results {
    fn json(&self) -> Value {
        json!({
            "load": self.arguments.load, "seconds": self.arguments.seconds, "seed": self.arguments.seed,
            "requests": self.alone.requests, "arrivals_s": self.lasted.as_secs_f64(),
            "alone": self.alone.json(), "shield": self.shielded.json(),
        })
    }

    fn table(&self) -> String {
        let Self { arguments, lasted, alone, shielded } = self;
        let percent = |share: f64| format!("{:.1} %", 100.0 * share);
        let seconds = |time: Duration| format!("{:.1} s", time.as_secs_f64());
        let rows = [
            ("", "the SDKs alone".to_owned(), "through the shield".to_owned()),
            ("used of the limit's refill", percent(alone.used), percent(shielded.used)),
            ("refused by Groq (429)", alone.refused.to_string(), shielded.refused.to_string()),
            ("served", alone.served.to_string(), shielded.served.to_string()),
            ("failed in the app", percent(alone.failed_share()), percent(shielded.failed_share())),
            ("wait, median", seconds(alone.wait_p50), seconds(shielded.wait_p50)),
            ("wait, 99th percentile", seconds(alone.wait_p99), seconds(shielded.wait_p99)),
        ];
        let mut text = format!(
            "{} requests in {:.0} s, {} times the limit's refill; {} s in total. Simulated Groq, nothing leaves this machine.\n\n",
            alone.requests,
            lasted.as_secs_f64(),
            arguments.load,
            arguments.seconds
        );
        for (name, alone, shielded) in rows {
            text += &format!("{name:<34}{alone:>16}{shielded:>22}\n");
        }
        text
    }
}
