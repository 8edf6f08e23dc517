//! Does a request cost the same when there is more of everything? Connections, requests that wait, lanes.

use std::{cell::Cell, io, net::SocketAddr, path::Path, rc::Rc, time::Duration};

use tokio::signal::unix::{SignalKind, signal};

use super::{
    load::{self, KEY, Make, always},
    memory::{BRISK, MANY, Patient, used, usual},
    process::{OURS, Received, Running, THEIRS, ourselves, settle},
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
    /// Bytes.
    memory: f64,
    failed: usize,
}

/// The shield with room for ten thousand connections, or bare hyper.
enum Subject {
    Shield(Patient),
    Bare(Running),
}

/// What is measured, and what answers it.
#[derive(Clone, Copy)]
struct Sides<'p> {
    program: &'p Path,
    upstream: SocketAddr,
    bare: bool,
}

/// Prints the table.
pub(crate) async fn run(program: &Path) -> io::Result<()> {
    let _settled = settle()?;
    let stub = Running::start_role(OURS, |listen| ourselves(&["stub", &listen.to_string()]))?;
    println!("| load | CPU a request, µs | against the first | memory, MB | failed |\n|---|---|---|---|---|");
    let shield = Sides { program, upstream: stub.address, bare: false };
    for sides in [shield, Sides { bare: true, ..shield }] {
        print(&connections(sides, How::Open).await?);
        print(&connections(sides, How::InTurn).await?);
        match Received::apart() {
            // Whoever ends the run gets the machine back as it was.
            Ok(_received) => tokio::select! {
                rows = connections(sides, How::Apart) => print(&rows?),
                end = ended() => return end,
            },
            Err(why) => eprintln!("no rows without what receivers do: {why}"),
        }
        print(&busy(sides).await?);
    }
    print(&waiting_elsewhere(shield).await?);
    print(&waiting_here(shield).await?);
    print(&lanes(shield).await?);
    Ok(())
}

/// A signal to end.
async fn ended() -> io::Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Err(io::Error::other("ended by a signal"))
}

fn print(rows: &[Row]) {
    for row in rows {
        let Row { load, memory, failed, cpu, .. } = row;
        let ratios = cpu.iter().zip(&rows[0].cpu).map(|(cpu, first)| cpu / first).collect();
        let (Some(cpu), Some(ratio)) = (median(cpu.clone()), median(ratios)) else { continue };
        let verdict = if ratio > FLAT { ": not flat" } else { "" };
        println!("| {load} | {cpu:.1} | {ratio:.2}{verdict} | {:.1} | {failed} |", memory / 1e6);
    }
}

impl Sides<'_> {
    fn start(self) -> io::Result<Subject> {
        if !self.bare {
            return Patient::start(self.program, self.upstream).map(Subject::Shield);
        }
        let role = |listen: SocketAddr| ourselves(&["bare", &listen.to_string(), &self.upstream.to_string()]);
        Running::start_role(THEIRS, role).map(Subject::Bare)
    }

    fn name(self) -> &'static str {
        if self.bare { "bare hyper" } else { "shield" }
    }
}

impl Subject {
    fn running(&self) -> &Running {
        match self {
            Self::Shield(patient) => &patient.running,
            Self::Bare(running) => running,
        }
    }
}

impl Row {
    fn new(load: String, subject: Subject, wires: Vec<Wire>, at_once: usize, make: Make) -> Self {
        Self { load, subject, wires, at_once, make, _others: Vec::new(), cpu: Vec::new(), memory: 0.0, failed: 0 }
    }

    async fn turn(&mut self) -> io::Result<()> {
        let running = self.subject.running();
        let before = running.cpu()?;
        let (tally, wires) = load::in_turn(std::mem::take(&mut self.wires), self.at_once, TURN, &self.make).await?;
        self.cpu.push((running.cpu()? - before).as_secs_f64() * 1e6 / tally.requests as f64);
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
    /// One after the other.
    InTurn,
    /// The same, but what a packet's receiver does for it is not booked to who sends it: on loopback the kernel does it
    /// within `send`.
    Apart,
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
            How::Apart => "in turn, received on the other core",
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

/// A lane that lets go a thousand a second, with ever more who want it. One after the other: the lane of a row that has no turn would fill.
async fn waiting_here(sides: Sides<'_>) -> io::Result<Vec<Row>> {
    let make = always(load::request(KEY, &load::call(BRISK, 1027, false)));
    let mut rows = Vec::new();
    for count in [100, 1000, MANY] {
        let patient = Patient::start(sides.program, sides.upstream)?;
        let wires = load::connect(patient.running.address, AT_ONCE).await?;
        // What its bucket holds goes first.
        let (_, mut wires) = load::closed(wires, 6 * TURN, &make).await?;
        wires.extend(load::connect(patient.running.address, count - wires.len()).await?);
        let load = format!("shield: {count} waiting in a lane of 1000 a second");
        rows.extend(measured(vec![Row::new(load, Subject::Shield(patient), wires, count, make.clone())]).await?);
    }
    Ok(rows)
}

/// Models by organisations, each request of another one.
async fn lanes(sides: Sides<'_>) -> io::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (models, organisations) in [(1, 1), (100, 1), (1000, 1), (1000, 10), (1000, 100)] {
        let (next, lanes) = (Cell::new(0usize), models * organisations);
        let make: Make = Rc::new(move |_| {
            // A step without a common divisor visits every lane.
            let lane = next.replace(next.get() + 1).wrapping_mul(7919) % lanes;
            let key = format!("gsk_organisation{:08}", lane / models);
            load::request(&key, &load::call(&format!("model-{:04}", lane % models), 1027, false))
        });
        let subject = sides.start()?;
        let wires = load::connect(subject.running().address, AT_ONCE).await?;
        // Each lane once: what is found in it is not what it costs to make one.
        let (_, warm) = load::rounds(wires, lanes.div_ceil(AT_ONCE), &make).await?;
        rows.push(Row::new(format!("shield: {models} models × {organisations} organisations"), subject, warm, AT_ONCE, make));
    }
    measured(rows).await
}
