//! CPU per request and memory by the number of connections, waiting requests and limiters.

use std::{cell::Cell, io, path::Path, rc::Rc, time::Duration};

use tokio::task::spawn_local;

use super::{
    connection::Connection,
    external,
    load::{self, KEY, MakeRequest, always},
    memory::{BRISK, MANY, QueueingShield, standard_request, used},
    process::{LOAD_CORE, Running, pin, segments, this_program},
    subject::{Kind, Setup, Subject},
    table::median,
};

/// Concurrent requests, unless a row says otherwise.
const CONCURRENCY: usize = 64;
/// Length of a turn. The rows of a group take turns, so that other load on the machine affects all of them.
const TURN: Duration = Duration::from_millis(1500);
/// Turns that are counted, after one for warm-up.
const TURNS: usize = 5;
/// Ratio to the group's first row above which the cost is reported as not flat.
const FLAT: f64 = 1.2;

/// A row of the table: a process and its load.
struct Row {
    load: String,
    subject: Subject,
    connections: Vec<Connection>,
    concurrency: usize,
    make_request: MakeRequest,
    /// Connections that stay idle, or whose requests stay queued, during the measurement.
    _others: Vec<Connection>,
    /// CPU per request in µs, by turn.
    cpu: Vec<f64>,
    /// TCP segments per request that the machine sent, by turn.
    segments: Vec<f64>,
    /// Proportional set size in bytes after the last turn.
    memory: f64,
    failed: usize,
}

/// Measures all groups and prints the table.
pub(crate) async fn run(program: &Path) -> io::Result<()> {
    let _priority = pin()?;
    let stub = Running::start_role(LOAD_CORE, |listen| this_program(&["stub", &listen.to_string()]))?;
    println!(
        "| load | CPU a request, µs | against the first | more than the first, µs | TCP segments a request | memory, MB | failed |"
    );
    println!("|---|---|---|---|---|---|---|");
    let shield = Setup { program, upstream: stub.address, kind: Kind::Shield };
    let mut all = vec![Kind::Shield, Kind::BareHyper, Kind::Nginx, Kind::ResponseOnly];
    if external::program("nginx").is_none() {
        eprintln!("nginx is not installed: its rows are omitted");
        all.retain(|kind| *kind != Kind::Nginx);
    }
    for kind in all {
        let setup = Setup { kind, ..shield };
        print(&connections(setup, How::Idle).await?);
        print(&connections(setup, How::Rotating).await?);
        print(&busy(setup).await?);
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
    fn new(load: String, subject: Subject, connections: Vec<Connection>, concurrency: usize, make_request: MakeRequest) -> Self {
        Self {
            load,
            subject,
            connections,
            concurrency,
            make_request,
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
        let (tally, connections) =
            load::round_robin(std::mem::take(&mut self.connections), self.concurrency, TURN, &self.make_request).await?;
        self.cpu.push((running.cpu()? - before).as_secs_f64() * 1e6 / tally.requests as f64);
        self.segments.push((segments()? - sent) as f64 / tally.requests as f64);
        (self.connections, self.memory) = (connections, running.memory()?);
        self.failed += tally.failed;
        Ok(())
    }
}

/// Runs all turns of a group; the first one is warm-up.
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

/// How requests are spread over many connections.
#[derive(Clone, Copy, PartialEq)]
enum How {
    /// [`CONCURRENCY`] of them are busy, the others idle.
    Idle,
    /// Over all connections in rotation. By the next request on a connection, its state has been evicted from the CPU caches, and
    /// its client has acknowledged the last response in a segment of its own.
    Rotating,
}

/// The cost by the number of open connections.
async fn connections(setup: Setup<'_>, how: How) -> io::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for count in [CONCURRENCY, 1000, MANY] {
        let subject = setup.start()?;
        let mut connections = used(subject.running(), count).await?;
        let idle = if how == How::Idle { connections.split_off(CONCURRENCY) } else { Vec::new() };
        let spread = match how {
            How::Idle => "open, 64 of them busy",
            How::Rotating => "in turn, 64 at once",
        };
        let load = format!("{}: {count} connections {spread}", setup.name());
        rows.push(Row { _others: idle, ..Row::new(load, subject, connections, CONCURRENCY, standard_request()) });
    }
    measured(rows).await
}

/// The cost by the number of connections that are all busy.
async fn busy(setup: Setup<'_>) -> io::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for count in [CONCURRENCY, 256, 1000, 4000] {
        let subject = setup.start()?;
        let connections = load::connect(subject.running().address, count).await?;
        rows.push(Row::new(format!("{}: {count} at once", setup.name()), subject, connections, count, standard_request()));
    }
    measured(rows).await
}

/// The cost by the number of requests that wait in another limiter.
async fn waiting_elsewhere(setup: Setup<'_>) -> io::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for count in [0, 1000, MANY] {
        let queueing = QueueingShield::start(setup.program, setup.upstream)?;
        let connections = load::connect(queueing.running.address, CONCURRENCY).await?;
        let mut waiting = used(&queueing.running, count).await?;
        queueing.queue_on(&mut waiting).await?;
        let load = format!("shield: {count} waiting in another limiter");
        rows.push(Row {
            _others: waiting,
            ..Row::new(load, Subject::Shield(queueing), connections, CONCURRENCY, standard_request())
        });
    }
    measured(rows).await
}

/// The cost by the number of requests that wait in the same limiter, which admits 1000 a second. The rows are measured at the same
/// time: a pause between turns would change the queue, and a core that is mostly idle has cold caches.
async fn waiting_here(setup: Setup<'_>) -> io::Result<Vec<Row>> {
    let make_request = always(load::request(KEY, &load::call(BRISK, 1027, false)));
    let mut tasks = Vec::new();
    for count in [100, 1000, MANY] {
        let queueing = QueueingShield::start(setup.program, setup.upstream)?;
        let (make_request, address) = (make_request.clone(), queueing.running.address);
        tasks.push(spawn_local(async move {
            // Takes what the quota admits at once, so that only its rate is left.
            let (_, mut connections) =
                load::closed_loop(load::connect(address, CONCURRENCY).await?, 6 * TURN, &make_request).await?;
            connections.extend(load::connect(address, count - connections.len()).await?);
            let load = format!("shield: {count} waiting in a limiter of 1000 a second");
            io::Result::Ok(Row::new(load, Subject::Shield(queueing), connections, count, make_request))
        }));
    }
    let mut turns = Vec::new();
    for task in tasks {
        turns.push(spawn_local(measured(vec![task.await??])));
    }
    let mut rows = Vec::new();
    for turn in turns {
        rows.extend(turn.await??);
    }
    for row in &mut rows {
        // The counter is the machine's, so it cannot be attributed to one of the rows.
        row.segments.clear();
    }
    Ok(rows)
}

/// The cost by the number of limiters, where consecutive requests use different ones.
async fn limiters(setup: Setup<'_>) -> io::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (models, organizations) in [(1, 1), (100, 1), (1000, 1), (1000, 10), (1000, 100)] {
        let (next, limiters) = (Cell::new(0usize), models * organizations);
        let make_request: MakeRequest = Rc::new(move |_| {
            // 7919 is a prime that does not divide the number of limiters, so every limiter is used equally often.
            let limiter = next.replace(next.get() + 1).wrapping_mul(7919) % limiters;
            let key = format!("gsk_organization{:08}", limiter / models);
            load::request(&key, &load::call(&format!("model-{:04}", limiter % models), 1027, false))
        });
        let subject = setup.start()?;
        let connections = load::connect(subject.running().address, CONCURRENCY).await?;
        // Creates every limiter before the measurement.
        let (_, warm) = load::rounds(connections, limiters.div_ceil(CONCURRENCY), &make_request).await?;
        rows.push(Row::new(
            format!("shield: {models} models × {organizations} organizations"),
            subject,
            warm,
            CONCURRENCY,
            make_request,
        ));
    }
    measured(rows).await
}
