//! The shield's costs compared with others and with targets: all cells in turns, medians and ratios.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    beside, instructions,
    load::{self, KEY, MODEL, always},
    memory::{self, QueueingShield},
    process::{OURS, Running, THEIRS, free, ourselves, settle, shield},
    rig, start,
};

/// Options of the table.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Rounds in which each proxy has a turn
    #[arg(long, default_value_t = 5)]
    pub(crate) reps: usize,
    /// Seconds of one turn
    #[arg(long, default_value_t = 2)]
    pub(crate) seconds: u64,
    /// Take the load from another rig: a directory with its `cost.sh`
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
    /// Limits, metrics and reservation on, access log off.
    Shield,
    /// The same with its access log.
    Logging,
    Bare,
    /// Of another run than [`Proxy::Bare`].
    BareBesideLogging,
    Nginx,
}

/// One turn of one proxy.
#[derive(Clone, Copy)]
pub(crate) struct Cell {
    /// Requests a second.
    pub(crate) rate: f64,
    /// CPU per request, µs.
    pub(crate) cpu: f64,
    /// ms
    pub p50: f64,
    /// ms
    pub p99: f64,
    /// Answers other than 200.
    pub(crate) failed: usize,
}

/// All turns, by profile.
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

    /// The median of the ratios, round by round.
    fn ratio(&self, profile: &str, proxy: Proxy, to: Proxy, of: fn(&Cell) -> f64) -> Option<f64> {
        let pairs = self.of(profile, proxy).iter().zip(self.of(profile, to));
        median(pairs.map(|(cell, reference)| of(cell) / of(reference)).collect())
    }

    fn failed(&self) -> usize {
        self.0.values().flatten().map(|cell| cell.failed).sum()
    }
}

/// The median; `None` of an empty list.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

const OPEN: &str = "1k@1000/s";
/// Name, bytes of the call, whether it streams, connections.
pub(crate) const PROFILES: [(&str, usize, bool, usize); 4] =
    [("1k@64", 1027, false, 64), ("1k@256", 1027, false, 256), ("16k@64", 16_389, false, 64), ("1k_stream@64", 1024, true, 64)];

/// Measures everything and prints the table.
pub(crate) async fn run(program: &Path, options: &Options) -> io::Result<()> {
    // Before this process is pinned to one core.
    let ready = start::ready(program)?;
    let (size, image) = start::sizes(program)?;
    let _settled = settle()?;
    let cells = match &options.rig {
        Some(rig) => rig::cells(rig, program, options)?,
        None => cells(program, options).await?,
    };
    let mut rows = Rows::default();
    for (profile, least, aim) in [("1k@64", 1.2, 1.1), ("16k@64", 1.2, 1.1), ("1k@256", 1.2, 1.1)] {
        rows.compare(&cells, &format!("CPU a request {profile}, µs"), profile, |cell| cell.cpu, Target::most(least, aim));
    }
    for profile in ["1k@64", "1k@256", "16k@64"] {
        rows.compare(&cells, &format!("requests a second {profile}"), profile, |cell| cell.rate, Target::least(0.82, 0.9));
    }
    rows.compare(&cells, "streams a second @64", "1k_stream@64", |cell| cell.rate, Target::least(1.0, 1.1));
    rows.compare(&cells, "CPU a stream, µs", "1k_stream@64", |cell| cell.cpu, Target::most(1.1, 1.0));
    rows.against_nginx(&cells, "p50 at 1000 a second, ms", |cell| cell.p50, Target::most(1.15, 1.0));
    rows.against_nginx(&cells, "p99 at 1000 a second, ms", |cell| cell.p99, Target::most(2.0, 1.2));
    memories(program, &mut rows).await?;
    rows.figure("start to ready, ms", ready, None, Target::most(50.0, 15.0));
    rows.figure("binary of the image, MB", image.map_or(f64::NAN, |size| size as f64 / 1e6), None, Target::most(12.0, 8.0));
    rows.figure("binary of the release profile, MB", size as f64 / 1e6, None, Target::None);
    counted(program, &mut rows).await?;
    rows.log(&cells);
    rows.print();
    println!("\n{} answers were other than 200.", cells.failed());
    Ok(())
}

/// The closed loops and the open one, all proxies in turn.
async fn cells(program: &Path, options: &Options) -> io::Result<Cells> {
    let stub = Running::start_role(OURS, |listen| ourselves(&["stub", &listen.to_string()]))?;
    let upstream = stub.address;
    let started = |level| {
        let (listen, admin) = (free()?, free()?);
        Running::start(THEIRS, &shield(program, listen, admin, upstream, &[("GROQ_SHIELD_LOG_LEVEL", level)]), listen)
    };
    let (quiet, logging) = (started("warn")?, started("info")?);
    let bare = Running::start_role(THEIRS, |listen| ourselves(&["bare", &listen.to_string(), &upstream.to_string()]))?;
    let nginx = beside::nginx(upstream)?;
    let mut proxies = vec![(Proxy::Bare, &bare), (Proxy::Shield, &quiet), (Proxy::Logging, &logging)];
    match &nginx {
        Some((nginx, _)) => proxies.push((Proxy::Nginx, nginx)),
        None => eprintln!("nginx is not installed: no row against it (apt-get install nginx-light)"),
    }
    let mut cells = Cells::default();
    let time = Duration::from_secs(options.seconds);
    for round in 0..=options.reps {
        for (profile, size, stream, connections) in PROFILES {
            eprintln!("round {round} of {}: {profile}", options.reps);
            let make = always(load::request(KEY, &load::call(MODEL, size, stream)));
            for &(proxy, running) in &proxies {
                if proxy == Proxy::Logging && profile != "1k@64" {
                    continue;
                }
                let wires = load::connect(running.address, connections).await?;
                // Round 0 is warm-up.
                let time = if round == 0 { Duration::from_millis(500) } else { time };
                let before = running.cpu()?;
                let (tally, _) = load::closed(wires, time, &make).await?;
                let cpu = (running.cpu()? - before).as_secs_f64() * 1e6 / tally.requests as f64;
                if round > 0 {
                    let (p50, p99) = (tally.quantile(0.5), tally.quantile(0.99));
                    cells.add(profile, proxy, Cell { rate: tally.rate(), cpu, p50, p99, failed: tally.failed });
                }
            }
        }
        for &(proxy, running) in proxies.iter().filter(|(proxy, _)| round > 0 && *proxy != Proxy::Logging) {
            match beside::open_loop(running.address, &load::call(MODEL, 1027, false), options.seconds.max(2))? {
                Some(cell) => cells.add(OPEN, proxy, cell),
                None if round == 1 && proxy == Proxy::Bare => {
                    eprintln!("oha is not on PATH: no open loop (cargo install --locked oha)")
                }
                None => {}
            }
        }
    }
    Ok(cells)
}

/// The memory rows only.
pub(crate) async fn memory(program: &Path) -> io::Result<()> {
    let _settled = settle()?;
    let mut rows = Rows::default();
    memories(program, &mut rows).await?;
    rows.print();
    Ok(())
}

async fn memories(program: &Path, rows: &mut Rows) -> io::Result<()> {
    eprintln!("memory");
    rows.figure("memory idle, MB", start::idle(program)? / 1e6, None, Target::most(10.0, 8.0));
    let stub = Running::start_role(OURS, |listen| ourselves(&["stub", &listen.to_string()]))?;
    let upstream = stub.address;
    let bare = Running::start_role(THEIRS, |listen| ourselves(&["bare", &listen.to_string(), &upstream.to_string()]))?;
    let bare = memory::of_connection(&bare).await?;
    let each = memory::of_connection(&QueueingShield::start(program, upstream)?.running).await?;
    rows.figure("memory of an idle connection, KB", each / 1e3, Some(bare / 1e3), Target::most(16.0, 10.0));
    let waiting = memory::of_waiting(&QueueingShield::start(program, upstream)?).await?;
    rows.figure("memory of a connection with a waiting 1 KB request, KB", waiting / 1e3, None, Target::None);
    // A connection that has just been used still has hyper's buffers, which the waiting request needs as well.
    rows.figure("of it for the waiting request, KB", (waiting - each) / 1e3, None, Target::most(8.0, 4.0));
    Ok(())
}

/// Instructions per request, if valgrind is installed.
async fn counted(program: &Path, rows: &mut Rows) -> io::Result<()> {
    if !instructions::is_possible() {
        eprintln!("valgrind is not installed: no count of instructions (apt-get install valgrind)");
        return Ok(());
    }
    eprintln!("instructions");
    let (shield, bare) = instructions::both(program, &memory::usual()).await?;
    rows.figure("instructions a request, thousands", shield.each / 1e3, Some(bare.each / 1e3), Target::None);
    let ours = 100.0 * (shield.each - bare.each) / shield.each;
    rows.figure("of them more than bare hyper's, %", ours, None, Target::most(f64::INFINITY, 15.0));
    Ok(())
}

#[derive(Clone, Copy)]
enum Target {
    Most { least: f64, aim: f64 },
    Least { least: f64, aim: f64 },
    None,
}

impl Target {
    fn most(least: f64, aim: f64) -> Self {
        Self::Most { least, aim }
    }

    fn least(least: f64, aim: f64) -> Self {
        Self::Least { least, aim }
    }

    fn text(self) -> (String, String) {
        let told = |bound: f64, sign| if bound.is_finite() { format!("{sign} {bound}") } else { "told".to_owned() };
        match self {
            Self::Most { least, aim } => (told(least, "≤"), told(aim, "≤")),
            Self::Least { least, aim } => (told(least, "≥"), told(aim, "≥")),
            Self::None => ("–".into(), "–".into()),
        }
    }

    /// Decided on the rounded value that is shown.
    fn verdict(self, value: f64) -> &'static str {
        let shown = (value * 100.0).round() / 100.0;
        match self {
            _ if shown.is_nan() => "not measured",
            Self::Most { aim, .. } if shown <= aim => "aim",
            Self::Most { least: f64::INFINITY, .. } => "told",
            Self::Most { least, .. } if shown <= least => "reached",
            Self::Least { aim, .. } if shown >= aim => "aim",
            Self::Least { least, .. } if shown >= least => "reached",
            Self::None => "",
            Self::Most { .. } | Self::Least { .. } => "missed",
        }
    }
}

/// The rows of the table.
#[derive(Default)]
struct Rows(Vec<String>);

impl Rows {
    fn line(&mut self, what: &str, values: [Option<f64>; 3], ratio: Option<f64>, target: Target, verdict: &str) {
        let cell = |value: Option<f64>| value.filter(|value| !value.is_nan()).map_or_else(|| "–".into(), digits);
        let [shield, bare, nginx] = values.map(cell);
        let ratio = ratio.map_or_else(|| "–".into(), |ratio| format!("{ratio:.2}"));
        let (least, aim) = target.text();
        self.0.push(format!("| {what} | {shield} | {bare} | {nginx} | {ratio} | {least} | {aim} | {verdict} |"));
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

    /// The cost of the access log, relative to the run without it.
    fn log(&mut self, cells: &Cells) {
        let cpu = |cell: &Cell| cell.cpu;
        let value = cells.median("1k@64", Proxy::Logging, cpu);
        let beside = if cells.of("1k@64", Proxy::BareBesideLogging).is_empty() { Proxy::Bare } else { Proxy::BareBesideLogging };
        let ratio = cells.ratio("1k@64", Proxy::Logging, beside, cpu);
        self.line(
            "CPU a request 1k@64 with the access log, µs",
            [value, cells.median("1k@64", beside, cpu), None],
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

/// Three significant digits.
fn digits(value: f64) -> String {
    match value {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
