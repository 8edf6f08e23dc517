//! The cost of a request by the number of connections, waiting requests and limiters.

use std::{cell::Cell, io, path::Path, rc::Rc, time::Duration};

use tokio::task::spawn_local;

use super::{
    beside,
    load::{self, KEY, Make, always},
    memory::{BRISK, MANY, QueueingShield, used, usual},
    process::{OURS, Running, ourselves, segments, settle},
    sides::{Sides, Subject, Who},
    table::median,
    wire::Wire,
};

/// Concurrent requests.
const AT_ONCE: usize = 64;
/// Length of a turn; the rows take turns, so that other load on the machine affects all of them.
const TURN: Duration = Duration::from_millis(1500);
/// Counted turns, after one for warm-up.
const TURNS: usize = 5;
/// A ratio to the first row above which the cost is not flat.
const FLAT: f64 = 1.2;

/// A process with one load.
struct Row {
    load: String,
    subject: Subject,
    wires: Vec<Wire>,
    at_once: usize,
    make: Make,
    /// Connections that are idle, or whose requests wait, during the measurement.
    _others: Vec<Wire>,
    /// CPU per request, µs, by turn.
    cpu: Vec<f64>,
    /// TCP segments per request, of all sides, by turn.
    segments: Vec<f64>,
    /// Bytes.
    memory: f64,
    failed: usize,
}

/// Prints the table.
pub(crate) async fn run(program: &Path) -> io::Result<()> {
    let _settled = settle()?;
    let stub = Running::start_role(OURS, |listen| ourselves(&["stub", &listen.to_string()]))?;
    println!(
        "| load | CPU a request, µs | against the first | more than the first, µs | TCP segments a request | memory, MB | failed |"
    );
    println!("|---|---|---|---|---|---|---|");
    let shield = Sides { program, upstream: stub.address, who: Who::Shield };
    let mut all = vec![Who::Shield, Who::BareHyper, Who::Nginx, Who::OnlyAnswers];
    if beside::program("nginx").is_none() {
        eprintln!("nginx is not on PATH: no rows of it");
        all.retain(|who| *who != Who::Nginx);
    }
    for who in all {
        let sides = Sides { who, ..shield };
        print(&connections(sides, How::Open).await?);
        print(&connections(sides, How::InTurn).await?);
        print(&busy(sides).await?);
    }
    print(&waiting_elsewhere(shield).await?);
    print(&waiting_here(shield).await?);
    print(&limiters(shield).await?);
    Ok(())
}

fn print(rows: &[Row]) {
    for row in rows {
        let Row { load, memory, failed, .. } = row;
        let turns = || row.cpu.iter().zip(&rows[0].cpu);
        let ratio = median(turns().map(|(cpu, first)| cpu / first).collect());
        let more = median(turns().map(|(cpu, first)| cpu - first).collect());
        let (Some(cpu), Some(ratio), Some(more)) = (median(row.cpu.clone()), ratio, more) else { continue };
        let segments = median(row.segments.clone()).map_or("–".to_owned(), |segments| format!("{segments:.2}"));
        let verdict = if ratio > FLAT { ": not flat" } else { "" };
        println!("| {load} | {cpu:.1} | {ratio:.2}{verdict} | {more:.1} | {segments} | {:.1} | {failed} |", memory / 1e6);
    }
}

impl Row {
    fn new(load: String, subject: Subject, wires: Vec<Wire>, at_once: usize, make: Make) -> Self {
        Self {
            load,
            subject,
            wires,
            at_once,
            make,
            _others: Vec::new(),
            cpu: Vec::new(),
            segments: Vec::new(),
            memory: 0.0,
            failed: 0,
        }
    }

    async fn turn(&mut self) -> io::Result<()> {
        let running = self.subject.running();
        let (before, sent) = (running.cpu()?, segments()?);
        let (tally, wires) = load::in_turn(std::mem::take(&mut self.wires), self.at_once, TURN, &self.make).await?;
        self.cpu.push((running.cpu()? - before).as_secs_f64() * 1e6 / tally.requests as f64);
        self.segments.push((segments()? - sent) as f64 / tally.requests as f64);
        (self.wires, self.memory) = (wires, running.memory()?);
        self.failed += tally.failed;
        Ok(())
    }
}

/// All turns; the first one is warm-up.
async fn measured(mut rows: Vec<Row>) -> io::Result<Vec<Row>> {
    for turn in 0..=TURNS {
        for row in &mut rows {
            row.turn().await?;
            if turn == 0 {
                row.cpu.clear();
                row.segments.clear();
            }
        }
    }
    Ok(rows)
}

/// What many connections do.
#[derive(Clone, Copy, PartialEq)]
enum How {
    /// Some of them are busy, the others idle.
    Open,
    /// One after the other: when a connection's turn comes, its state has left the caches, and its client has acknowledged the
    /// last answer in a segment of its own.
    InTurn,
}

/// `count` open connections.
async fn connections(sides: Sides<'_>, how: How) -> io::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for count in [AT_ONCE, 1000, MANY] {
        let subject = sides.start()?;
        let mut wires = used(subject.running(), count).await?;
        let idle = if how == How::Open { wires.split_off(AT_ONCE) } else { Vec::new() };
        let told = match how {
            How::Open => "open, 64 of them busy",
            How::InTurn => "in turn, 64 at once",
        };
        let load = format!("{}: {count} connections {told}", sides.name());
        rows.push(Row { _others: idle, ..Row::new(load, subject, wires, AT_ONCE, usual()) });
    }
    measured(rows).await
}

/// All of them busy.
async fn busy(sides: Sides<'_>) -> io::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for count in [AT_ONCE, 256, 1000, 4000] {
        let subject = sides.start()?;
        let wires = load::connect(subject.running().address, count).await?;
        rows.push(Row::new(format!("{}: {count} at once", sides.name()), subject, wires, count, usual()));
    }
    measured(rows).await
}

async fn waiting_elsewhere(sides: Sides<'_>) -> io::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for count in [0, 1000, MANY] {
        let queueing = QueueingShield::start(sides.program, sides.upstream)?;
        let wires = load::connect(queueing.running.address, AT_ONCE).await?;
        let mut waiting = used(&queueing.running, count).await?;
        queueing.queue_on(&mut waiting).await?;
        let load = format!("shield: {count} waiting in another limiter");
        rows.push(Row { _others: waiting, ..Row::new(load, Subject::Shield(queueing), wires, AT_ONCE, usual()) });
    }
    measured(rows).await
}

/// A limiter of a thousand requests a second with more and more clients. All rows at the same time: the queue of a row that waits
/// for its turn would grow, and a core that mostly sleeps has cold caches.
async fn waiting_here(sides: Sides<'_>) -> io::Result<Vec<Row>> {
    let make = always(load::request(KEY, &load::call(BRISK, 1027, false)));
    let mut lines = Vec::new();
    for count in [100, 1000, MANY] {
        let queueing = QueueingShield::start(sides.program, sides.upstream)?;
        let (make, address) = (make.clone(), queueing.running.address);
        lines.push(spawn_local(async move {
            // The requests that the bucket lets through at once go first.
            let (_, mut wires) = load::closed(load::connect(address, AT_ONCE).await?, 6 * TURN, &make).await?;
            wires.extend(load::connect(address, count - wires.len()).await?);
            let load = format!("shield: {count} waiting in a limiter of 1000 a second");
            io::Result::Ok(Row::new(load, Subject::Shield(queueing), wires, count, make))
        }));
    }
    let mut turns = Vec::new();
    for line in lines {
        turns.push(spawn_local(measured(vec![line.await??])));
    }
    let mut rows = Vec::new();
    for turn in turns {
        rows.extend(turn.await??);
    }
    for row in &mut rows {
        // The machine's counter, not a process's.
        row.segments.clear();
    }
    Ok(rows)
}

/// Many models and organizations, each request for another limiter.
async fn limiters(sides: Sides<'_>) -> io::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (models, organizations) in [(1, 1), (100, 1), (1000, 1), (1000, 10), (1000, 100)] {
        let (next, limiters) = (Cell::new(0usize), models * organizations);
        let make: Make = Rc::new(move |_| {
            // A step without a common divisor visits every limiter.
            let limiter = next.replace(next.get() + 1).wrapping_mul(7919) % limiters;
            let key = format!("gsk_organization{:08}", limiter / models);
            load::request(&key, &load::call(&format!("model-{:04}", limiter % models), 1027, false))
        });
        let subject = sides.start()?;
        let wires = load::connect(subject.running().address, AT_ONCE).await?;
        // Warm-up creates every limiter, so that creation is not measured.
        let (_, warm) = load::rounds(wires, limiters.div_ceil(AT_ONCE), &make).await?;
        rows.push(Row::new(format!("shield: {models} models × {organizations} organizations"), subject, warm, AT_ONCE, make));
    }
    measured(rows).await
}
