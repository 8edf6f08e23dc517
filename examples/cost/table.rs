//! The table of costs: medians for each proxy, ratios to bare hyper and nginx, and whether the targets are reached.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    external, instructions,
    load::{self, KEY, MODEL, always},
    memory::{self, QueueingShield},
    process::{LOAD_CORE, PROXY_CORE, Running, free_address, pin, shield, this_program},
    rig, start,
};

/// Options of the table.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Number of rounds, in each of which every proxy has one turn
    #[arg(long, default_value_t = 5)]
    pub(crate) reps: usize,
    /// Duration of a turn in seconds
    #[arg(long, default_value_t = 2)]
    pub(crate) seconds: u64,
    /// Take CPU, rates and latencies from an external rig: a directory with a script `cost.sh`
    #[arg(long, value_name = "DIR")]
    pub(crate) rig: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self { reps: 5, seconds: 2, rig: None }
    }
}

/// The measured proxies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Proxy {
    /// The shield with limits and metrics, without the access log.
    Shield,
    /// The shield with the access log.
    Logging,
    Bare,
    /// Bare hyper in the run of [`Proxy::Logging`], if that is a run of its own.
    BareWithLogging,
    Nginx,
}

/// The measurement of one turn of one proxy.
#[derive(Clone, Copy)]
pub(crate) struct Cell {
    /// Requests per second.
    pub(crate) rate: f64,
    /// CPU per request in µs.
    pub(crate) cpu: f64,
    /// Median latency in ms.
    pub p50: f64,
    /// Latency in ms.
    pub p99: f64,
    /// Responses with a status other than 200.
    pub(crate) failed: usize,
}

/// All turns, by profile and proxy.
#[derive(Default)]
pub(crate) struct Cells(BTreeMap<(String, Proxy), Vec<Cell>>);

impl Cells {
    /// Adds a turn.
    pub(crate) fn add(&mut self, profile: &str, proxy: Proxy, cell: Cell) {
        self.0.entry((profile.to_owned(), proxy)).or_default().push(cell);
    }

    fn of(&self, profile: &str, proxy: Proxy) -> &[Cell] {
        self.0.get(&(profile.to_owned(), proxy)).map_or(&[], Vec::as_slice)
    }

    fn median(&self, profile: &str, proxy: Proxy, of: fn(&Cell) -> f64) -> Option<f64> {
        median(self.of(profile, proxy).iter().map(of).collect())
    }

    /// The median of the ratios of each round.
    fn ratio(&self, profile: &str, proxy: Proxy, to: Proxy, of: fn(&Cell) -> f64) -> Option<f64> {
        let pairs = self.of(profile, proxy).iter().zip(self.of(profile, to));
        median(pairs.map(|(cell, reference)| of(cell) / of(reference)).collect())
    }

    fn failed(&self) -> usize {
        self.0.values().flatten().map(|cell| cell.failed).sum()
    }
}

/// The median; `None` if there are no values.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// The profile of the open loop.
const OPEN: &str = "1k@1000/s";
/// The closed loops: name, size of the body in bytes, whether the response streams, number of connections.
pub(crate) const PROFILES: [(&str, usize, bool, usize); 4] =
    [("1k@64", 1027, false, 64), ("1k@256", 1027, false, 256), ("16k@64", 16_389, false, 64), ("1k_stream@64", 1024, true, 64)];

/// Measures everything and prints the table.
pub(crate) async fn run(program: &Path, options: &Options) -> io::Result<()> {
    // Measured before this process is pinned to one core, which its children inherit.
    let ready = start::ready(program)?;
    let (size, image) = start::sizes(program)?;
    let _priority = pin()?;
    let cells = match &options.rig {
        Some(rig) => rig::cells(rig, program, options)?,
        None => cells(program, options).await?,
    };
    let mut rows = Rows::default();
    for (profile, least, aim) in [("1k@64", 1.2, 1.1), ("16k@64", 1.2, 1.1), ("1k@256", 1.2, 1.1)] {
        rows.compare(&cells, &format!("CPU a request {profile}, µs"), profile, |cell| cell.cpu, Target::at_most(least, aim));
    }
    for profile in ["1k@64", "1k@256", "16k@64"] {
        rows.compare(&cells, &format!("requests a second {profile}"), profile, |cell| cell.rate, Target::at_least(0.82, 0.9));
    }
    rows.compare(&cells, "streams a second @64", "1k_stream@64", |cell| cell.rate, Target::at_least(1.0, 1.1));
    rows.compare(&cells, "CPU a stream, µs", "1k_stream@64", |cell| cell.cpu, Target::at_most(1.1, 1.0));
    rows.against_nginx(&cells, "p50 at 1000 a second, ms", |cell| cell.p50, Target::at_most(1.15, 1.0));
    rows.against_nginx(&cells, "p99 at 1000 a second, ms", |cell| cell.p99, Target::at_most(2.0, 1.2));
    add_memory(program, &mut rows).await?;
    rows.figure("start to ready, ms", ready, None, Target::at_most(50.0, 15.0));
    rows.figure("binary of the image, MB", image.map_or(f64::NAN, |size| size as f64 / 1e6), None, Target::at_most(12.0, 8.0));
    rows.figure("binary of the release profile, MB", size as f64 / 1e6, None, Target::None);
    add_instructions(program, &mut rows).await?;
    rows.access_log(&cells);
    rows.print();
    println!("\n{} responses had a status other than 200.", cells.failed());
    Ok(())
}

/// Measures the closed loops and the open loop, with all proxies in alternation.
async fn cells(program: &Path, options: &Options) -> io::Result<Cells> {
    let stub = Running::start_role(LOAD_CORE, |listen| this_program(&["stub", &listen.to_string()]))?;
    let upstream = stub.address;
    let started = |level| {
        let (listen, admin) = (free_address()?, free_address()?);
        Running::start(PROXY_CORE, &shield(program, listen, admin, upstream, &[("GROQ_SHIELD_LOG_LEVEL", level)]), listen)
    };
    let (quiet, logging) = (started("warn")?, started("info")?);
    let bare = Running::start_role(PROXY_CORE, |listen| this_program(&["bare", &listen.to_string(), &upstream.to_string()]))?;
    let nginx = external::nginx(upstream)?;
    let mut proxies = vec![(Proxy::Bare, &bare), (Proxy::Shield, &quiet), (Proxy::Logging, &logging)];
    match &nginx {
        Some((nginx, _)) => proxies.push((Proxy::Nginx, nginx)),
        None => eprintln!("nginx is not installed: its rows are omitted (apt-get install nginx-light)"),
    }
    let mut cells = Cells::default();
    let time = Duration::from_secs(options.seconds);
    for round in 0..=options.reps {
        for (profile, size, stream, connections) in PROFILES {
            eprintln!("round {round} of {}: {profile}", options.reps);
            let make_request = always(load::request(KEY, &load::call(MODEL, size, stream)));
            for &(proxy, running) in &proxies {
                if proxy == Proxy::Logging && profile != "1k@64" {
                    continue;
                }
                let connections = load::connect(running.address, connections).await?;
                // Round 0 is warm-up.
                let time = if round == 0 { Duration::from_millis(500) } else { time };
                let before = running.cpu()?;
                let (tally, _) = load::closed_loop(connections, time, &make_request).await?;
                let cpu = (running.cpu()? - before).as_secs_f64() * 1e6 / tally.requests as f64;
                if round > 0 {
                    let (p50, p99) = (tally.quantile(0.5), tally.quantile(0.99));
                    cells.add(profile, proxy, Cell { rate: tally.rate(), cpu, p50, p99, failed: tally.failed });
                }
            }
        }
        for &(proxy, running) in proxies.iter().filter(|(proxy, _)| round > 0 && *proxy != Proxy::Logging) {
            match external::open_loop(running.address, &load::call(MODEL, 1027, false), options.seconds.max(2))? {
                Some(cell) => cells.add(OPEN, proxy, cell),
                None if round == 1 && proxy == Proxy::Bare => {
                    eprintln!("oha is not on PATH: the open loop is omitted (cargo install --locked oha)")
                }
                None => {}
            }
        }
    }
    Ok(cells)
}

/// Measures and prints the memory rows.
pub(crate) async fn memory(program: &Path) -> io::Result<()> {
    let _priority = pin()?;
    let mut rows = Rows::default();
    add_memory(program, &mut rows).await?;
    rows.print();
    Ok(())
}

/// Adds the memory rows.
async fn add_memory(program: &Path, rows: &mut Rows) -> io::Result<()> {
    eprintln!("memory");
    rows.figure("memory idle, MB", start::idle(program)? / 1e6, None, Target::at_most(10.0, 8.0));
    let stub = Running::start_role(LOAD_CORE, |listen| this_program(&["stub", &listen.to_string()]))?;
    let upstream = stub.address;
    let bare = Running::start_role(PROXY_CORE, |listen| this_program(&["bare", &listen.to_string(), &upstream.to_string()]))?;
    let bare = memory::of_connection(&bare).await?;
    let each = memory::of_connection(&QueueingShield::start(program, upstream)?.running).await?;
    rows.figure("memory of an idle connection, KB", each / 1e3, Some(bare / 1e3), Target::at_most(16.0, 10.0));
    let waiting = memory::of_waiting(&QueueingShield::start(program, upstream)?).await?;
    rows.figure("memory of a connection with a waiting 1 KB request, KB", waiting / 1e3, None, Target::None);
    // An idle connection was measured before hyper released its buffers, and a waiting request needs them too.
    rows.figure("of it for the waiting request, KB", (waiting - each) / 1e3, None, Target::at_most(8.0, 4.0));
    Ok(())
}

/// Adds the rows of instructions per request, if valgrind is installed.
async fn add_instructions(program: &Path, rows: &mut Rows) -> io::Result<()> {
    if !instructions::is_installed() {
        eprintln!("valgrind is not installed: its rows are omitted (apt-get install valgrind)");
        return Ok(());
    }
    eprintln!("instructions");
    let (shield, bare) = instructions::both(program, &memory::standard_request()).await?;
    rows.figure("instructions a request, thousands", shield.per_request / 1e3, Some(bare.per_request / 1e3), Target::None);
    let ours = 100.0 * (shield.per_request - bare.per_request) / shield.per_request;
    rows.figure("of them more than bare hyper's, %", ours, None, Target::at_most(f64::INFINITY, 15.0));
    Ok(())
}

/// A bound that a value must satisfy, and a stricter one to aim at. An infinite bound means that the value is only reported.
#[derive(Clone, Copy)]
enum Target {
    AtMost { required: f64, aim: f64 },
    AtLeast { required: f64, aim: f64 },
    None,
}

impl Target {
    fn at_most(required: f64, aim: f64) -> Self {
        Self::AtMost { required, aim }
    }

    fn at_least(required: f64, aim: f64) -> Self {
        Self::AtLeast { required, aim }
    }

    fn text(self) -> (String, String) {
        let text = |bound: f64, sign| if bound.is_finite() { format!("{sign} {bound}") } else { "reported".to_owned() };
        match self {
            Self::AtMost { required, aim } => (text(required, "≤"), text(aim, "≤")),
            Self::AtLeast { required, aim } => (text(required, "≥"), text(aim, "≥")),
            Self::None => ("–".into(), "–".into()),
        }
    }

    /// Whether `value`, rounded as in the table, satisfies the bounds.
    fn verdict(self, value: f64) -> &'static str {
        let shown = (value * 100.0).round() / 100.0;
        match self {
            _ if shown.is_nan() => "not measured",
            Self::AtMost { aim, .. } if shown <= aim => "aim",
            Self::AtMost { required: f64::INFINITY, .. } => "reported",
            Self::AtMost { required, .. } if shown <= required => "reached",
            Self::AtLeast { aim, .. } if shown >= aim => "aim",
            Self::AtLeast { required, .. } if shown >= required => "reached",
            Self::None => "",
            Self::AtMost { .. } | Self::AtLeast { .. } => "missed",
        }
    }
}

/// The rows of the table, in Markdown.
#[derive(Default)]
struct Rows(Vec<String>);

impl Rows {
    fn line(&mut self, what: &str, values: [Option<f64>; 3], ratio: Option<f64>, target: Target, verdict: &str) {
        let cell = |value: Option<f64>| value.filter(|value| !value.is_nan()).map_or_else(|| "–".into(), digits);
        let [shield, bare, nginx] = values.map(cell);
        let ratio = ratio.map_or_else(|| "–".into(), |ratio| format!("{ratio:.2}"));
        let (required, aim) = target.text();
        self.0.push(format!("| {what} | {shield} | {bare} | {nginx} | {ratio} | {required} | {aim} | {verdict} |"));
    }

    fn compare(&mut self, cells: &Cells, what: &str, profile: &str, of: fn(&Cell) -> f64, target: Target) {
        let values = [Proxy::Shield, Proxy::Bare, Proxy::Nginx].map(|proxy| cells.median(profile, proxy, of));
        let ratio = cells.ratio(profile, Proxy::Shield, Proxy::Bare, of);
        self.line(what, values, ratio, target, target.verdict(ratio.unwrap_or(f64::NAN)));
    }

    fn against_nginx(&mut self, cells: &Cells, what: &str, of: fn(&Cell) -> f64, target: Target) {
        let values = [Proxy::Shield, Proxy::Bare, Proxy::Nginx].map(|proxy| cells.median(OPEN, proxy, of));
        let ratio = cells.ratio(OPEN, Proxy::Shield, Proxy::Nginx, of);
        self.line(&format!("{what} (ratio to nginx)"), values, ratio, target, target.verdict(ratio.unwrap_or(f64::NAN)));
    }

    fn figure(&mut self, what: &str, value: f64, bare: Option<f64>, target: Target) {
        self.line(what, [Some(value), bare, None], None, target, target.verdict(value));
    }

    /// Adds the row of the access log.
    fn access_log(&mut self, cells: &Cells) {
        let cpu = |cell: &Cell| cell.cpu;
        let value = cells.median("1k@64", Proxy::Logging, cpu);
        let reference = if cells.of("1k@64", Proxy::BareWithLogging).is_empty() { Proxy::Bare } else { Proxy::BareWithLogging };
        let ratio = cells.ratio("1k@64", Proxy::Logging, reference, cpu);
        self.line(
            "CPU a request 1k@64 with the access log, µs",
            [value, cells.median("1k@64", reference, cpu), None],
            ratio,
            Target::None,
            "",
        );
    }

    fn print(&self) {
        println!(
            "| what | shield | bare hyper | nginx | ratio to bare hyper | at least | aim | |\n|---|---|---|---|---|---|---|---|"
        );
        for line in &self.0 {
            println!("{line}");
        }
    }
}

/// `value` with about three significant digits.
fn digits(value: f64) -> String {
    match value {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
