//! The cost of a request as connections, waiting requests and limiters grow in number.

use std::{cell::Cell, io, path::Path, rc::Rc, time::Duration};

use tokio::task::spawn_local;

use super::{
    beside,
    load::{self, KEY, Make, always},
    memory::{BRISK, MANY, Patient, used, usual},
    process::{OURS, Running, ourselves, segments, settle},
    sides::{Sides, Subject, Who},
    table::median,
    wire::Wire,
};

/// Requests at once.
const AT_ONCE: usize = 64;
/// How long one turn of a row is; its rows take turns, so that what else the machine does falls on all of them.
const TURN: Duration = Duration::from_millis(1500);
/// Turns that count, after one that does not.
const TURNS: usize = 5;
/// More than this, against the first of its rows, is not flat.
const FLAT: f64 = 1.2;

/// A process of its own with one load.
struct Row {
    load: String,
    subject: Subject,
    wires: Vec<Wire>,
    at_once: usize,
    make: Make,
    /// Connections that are idle, or whose requests wait, all the while.
    _others: Vec<Wire>,
    /// CPU a request, µs, turn by turn.
    cpu: Vec<f64>,
    /// TCP segments a request, of all sides, turn by turn.
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
    print(&lanes(shield).await?);
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

/// Turn by turn. The first is to warm up.
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

/// What is asked of many connections.
#[derive(Clone, Copy, PartialEq)]
enum How {
    /// Some of them are busy, the others idle.
    Open,
    /// One after the other: when its turn comes, what the kernel and the process hold of it has left the caches, and its
    /// client has acknowledged the last answer in a segment of its own.
    InTurn,
}

/// So many are open.
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

/// All at once.
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
        let patient = Patient::start(sides.program, sides.upstream)?;
        let wires = load::connect(patient.running.address, AT_ONCE).await?;
        let mut waiting = used(&patient.running, count).await?;
        patient.line_up(&mut waiting).await?;
        let load = format!("shield: {count} waiting in another lane");
        rows.push(Row { _others: waiting, ..Row::new(load, Subject::Shield(patient), wires, AT_ONCE, usual()) });
    }
    measured(rows).await
}

/// A lane that lets go a thousand a second, with ever more who want it. All at the same time: the lane of a row that waits
/// for its turn would fill, and a core that mostly sleeps finds its caches as others have left them.
async fn waiting_here(sides: Sides<'_>) -> io::Result<Vec<Row>> {
    let make = always(load::request(KEY, &load::call(BRISK, 1027, false)));
    let mut lines = Vec::new();
    for count in [100, 1000, MANY] {
        let patient = Patient::start(sides.program, sides.upstream)?;
        let (make, address) = (make.clone(), patient.running.address);
        lines.push(spawn_local(async move {
            // What its bucket holds goes first.
            let (_, mut wires) = load::closed(load::connect(address, AT_ONCE).await?, 6 * TURN, &make).await?;
            wires.extend(load::connect(address, count - wires.len()).await?);
            let load = format!("shield: {count} waiting in a lane of 1000 a second");
            io::Result::Ok(Row::new(load, Subject::Shield(patient), wires, count, make))
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
        // Nobody's own: the machine counts all.
        row.segments.clear();
    }
    Ok(rows)
}

/// Models by organizations, each request of another one.
async fn lanes(sides: Sides<'_>) -> io::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (models, organizations) in [(1, 1), (100, 1), (1000, 1), (1000, 10), (1000, 100)] {
        let (next, lanes) = (Cell::new(0usize), models * organizations);
        let make: Make = Rc::new(move |_| {
            // A step without a common divisor visits every lane.
            let lane = next.replace(next.get() + 1).wrapping_mul(7919) % lanes;
            let key = format!("gsk_organization{:08}", lane / models);
            load::request(&key, &load::call(&format!("model-{:04}", lane % models), 1027, false))
        });
        let subject = sides.start()?;
        let wires = load::connect(subject.running().address, AT_ONCE).await?;
        // Each lane once: what is found in it is not what it costs to make one.
        let (_, warm) = load::rounds(wires, lanes.div_ceil(AT_ONCE), &make).await?;
        rows.push(Row::new(format!("shield: {models} models × {organizations} organizations"), subject, warm, AT_ONCE, make));
    }
    measured(rows).await
}
