//! Does a request cost the same when there is more of everything? Connections, requests that wait, lanes.

use std::{io, net::SocketAddr, path::Path, rc::Rc, time::Duration};

use super::{
    load::{self, KEY, Make, always},
    memory::{BRISK, MANY, Patient, used, usual},
    process::{OURS, Running, THEIRS, ourselves, settle},
    wire::Wire,
};

/// Requests at once.
const AT_ONCE: usize = 64;
/// How long one figure is measured.
const TIME: Duration = Duration::from_secs(3);
/// Before that, to warm up.
const BEFORE: Duration = Duration::from_secs(1);
/// More than this, against the first of its rows, is not flat.
const FLAT: f64 = 1.2;

struct Row {
    load: String,
    /// CPU a request, µs.
    cpu: f64,
    /// Bytes.
    memory: f64,
    failed: usize,
}

/// Prints the table.
pub(crate) async fn run(program: &Path) -> io::Result<()> {
    let _settled = settle()?;
    let stub = Running::start_role(OURS, |listen| ourselves(&["stub", &listen.to_string()]))?;
    println!("| load | CPU a request, µs | against the first | memory, MB | failed |\n|---|---|---|---|---|");
    for (name, bare) in [("shield", false), ("bare hyper", true)] {
        let start = || Subject::start(program, stub.address, bare);
        print(&connections(&start()?, name).await?);
        print(&busy(&start()?, name).await?);
    }
    print(&waiting_elsewhere(&Patient::start(program, stub.address)?).await?);
    print(&waiting_here(&Patient::start(program, stub.address)?).await?);
    print(&lanes(&Patient::start(program, stub.address)?).await?);
    Ok(())
}

fn print(rows: &[Row]) {
    for Row { load, cpu, memory, failed } in rows {
        let ratio = cpu / rows[0].cpu;
        let verdict = if ratio > FLAT { ": not flat" } else { "" };
        println!("| {load} | {cpu:.1} | {ratio:.2}{verdict} | {:.1} | {failed} |", memory / 1e6);
    }
}

/// The shield with room for ten thousand connections, or bare hyper.
enum Subject {
    Shield(Patient),
    Bare(Running),
}

impl Subject {
    fn start(program: &Path, upstream: SocketAddr, bare: bool) -> io::Result<Self> {
        if !bare {
            return Patient::start(program, upstream).map(Self::Shield);
        }
        let role = |listen: SocketAddr| ourselves(&["bare", &listen.to_string(), &upstream.to_string()]);
        Running::start_role(THEIRS, role).map(Self::Bare)
    }

    fn running(&self) -> &Running {
        match self {
            Self::Shield(patient) => &patient.running,
            Self::Bare(running) => running,
        }
    }
}

/// One row: `at_once` of these connections busy, all in turn.
async fn row(running: &Running, load: String, wires: Vec<Wire>, at_once: usize, make: &Make) -> io::Result<(Row, Vec<Wire>)> {
    let (_, wires) = load::in_turn(wires, at_once, BEFORE, make).await?;
    let before = running.cpu()?;
    let (tally, wires) = load::in_turn(wires, at_once, TIME, make).await?;
    let cpu = (running.cpu()? - before).as_secs_f64() * 1e6 / tally.requests as f64;
    Ok((Row { load, cpu, memory: running.memory()?, failed: tally.failed }, wires))
}

/// All in turn, so many at once.
async fn connections(subject: &Subject, name: &str) -> io::Result<Vec<Row>> {
    let (mut rows, mut wires) = (Vec::new(), Vec::new());
    for count in [AT_ONCE, 1000, MANY] {
        wires.extend(used(subject.running(), count - wires.len()).await?);
        let load = format!("{name}: {count} connections in turn, {AT_ONCE} at once");
        let (row, back) = row(subject.running(), load, wires, AT_ONCE, &usual()).await?;
        (wires, _) = (back, rows.push(row));
    }
    Ok(rows)
}

/// All at once.
async fn busy(subject: &Subject, name: &str) -> io::Result<Vec<Row>> {
    let (mut rows, mut wires) = (Vec::new(), Vec::new());
    for count in [AT_ONCE, 256, 1000, 4000] {
        wires.extend(load::connect(subject.running().address, count - wires.len()).await?);
        let (row, back) = row(subject.running(), format!("{name}: {count} at once"), wires, count, &usual()).await?;
        (wires, _) = (back, rows.push(row));
    }
    Ok(rows)
}

async fn waiting_elsewhere(patient: &Patient) -> io::Result<Vec<Row>> {
    let mut rows = Vec::new();
    let mut busy = load::connect(patient.running.address, AT_ONCE).await?;
    let mut line = Vec::new();
    for count in [0, 1000, MANY] {
        let mut more = used(&patient.running, count - line.len()).await?;
        patient.line_up(&mut more).await?;
        line.extend(more);
        let (row, back) =
            row(&patient.running, format!("shield: {count} waiting in another lane"), busy, AT_ONCE, &usual()).await?;
        (busy, _) = (back, rows.push(row));
    }
    Ok(rows)
}

/// A lane that lets go a thousand a second, with ever more who want it.
async fn waiting_here(patient: &Patient) -> io::Result<Vec<Row>> {
    let make = always(load::request(KEY, &load::call(BRISK, 1027, false)));
    let mut wires = load::connect(patient.running.address, AT_ONCE).await?;
    // What its bucket holds goes first.
    (_, wires) = load::closed(wires, 3 * TIME, &make).await?;
    let mut rows = Vec::new();
    for count in [100, 1000, MANY] {
        wires.extend(load::connect(patient.running.address, count - wires.len()).await?);
        let load = format!("shield: {count} waiting in a lane of 1000 a second");
        let (row, back) = row(&patient.running, load, wires, count, &make).await?;
        (wires, _) = (back, rows.push(row));
    }
    Ok(rows)
}

/// Models by organisations, each request of another one.
async fn lanes(patient: &Patient) -> io::Result<Vec<Row>> {
    let mut rows = Vec::new();
    let mut wires = load::connect(patient.running.address, AT_ONCE).await?;
    for (models, organisations) in [(1, 1), (100, 1), (1000, 1), (1000, 10), (1000, 100)] {
        let make: Make = Rc::new(move |n| {
            // A step without a common divisor visits every lane.
            let lane = n.wrapping_mul(7919) % (models * organisations);
            let key = format!("gsk_organisation{:08}", lane / models);
            load::request(&key, &load::call(&format!("model-{:04}", lane % models), 1027, false))
        });
        // Each lane once: what is found in it is not what it costs to make one.
        let (_, warm) = load::in_turn(wires, AT_ONCE, TIME, &make).await?;
        let load = format!("shield: {models} models × {organisations} organisations");
        let (row, back) = row(&patient.running, load, warm, AT_ONCE, &make).await?;
        (wires, _) = (back, rows.push(row));
    }
    Ok(rows)
}
