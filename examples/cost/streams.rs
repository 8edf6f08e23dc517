//! What a proxy adds to streamed answers: time to the first token, gaps between frames, and how many streams one core
//! carries. The upstream paces its frames as a model does, and writes into each when it was sent.

use std::{
    io,
    net::SocketAddr,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use memchr::memmem;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::{JoinSet, spawn_local},
    time::{Instant, MissedTickBehavior, interval, sleep},
};

use super::{
    beside,
    load::{self, KEY, MODEL},
    process::{OURS, Running, THEIRS, free, ourselves, settle, shield},
    stub::HEADERS,
    table::Options,
    wire::Wire,
};

/// Frames of one answer, and the time between two of them.
const FRAMES: u32 = 50;
const PACE: Duration = Duration::from_millis(20);
/// Concurrent streams in the table.
const AT_A_TIME: [usize; 3] = [1, 64, 1000];
/// A core carries as many streams as have 99 % of their frames less than this late.
const LATE: Duration = PACE;
/// The steps in which the number of streams grows.
const STEP: usize = 500;
/// The text before the time in a frame, and the digits of the time.
const MARK: &[u8] = br#""content":" t"#;
const DIGITS: usize = 16;

/// Measures the upstream alone and each proxy in turns, and prints the tables.
pub(crate) async fn run(program: &Path, options: &Options) -> io::Result<()> {
    let _settled = settle()?;
    let upstream = Running::start_role(OURS, |listen| ourselves(&["paced-stub", &listen.to_string()]))?;
    let address = upstream.address.to_string();
    let listen = free()?;
    // Without the access log, as in the other tables.
    let shield = Running::start(THEIRS, &shield(program, listen, free()?, upstream.address, &[]), listen)?;
    let bare = Running::start_role(THEIRS, |listen| ourselves(&["bare", &listen.to_string(), &address]))?;
    let nginx = beside::nginx(upstream.address)?;
    let mut subjects = vec![("no proxy", &upstream), ("shield", &shield), ("bare hyper", &bare)];
    subjects.extend(nginx.iter().map(|(nginx, _)| ("nginx", nginx)));

    println!(
        "| streams at once | through | first token p50, ms | p99 | added p50 | added p99 | gap later than sent p50, ms | p99 | added p50 | added p99 | core busy |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    for count in AT_A_TIME {
        let mut seen: Vec<Seen> = subjects.iter().map(|_| Seen::default()).collect();
        for round in 1..=options.reps {
            for ((name, subject), seen) in subjects.iter().zip(&mut seen) {
                eprintln!("round {round} of {}: {count} streams, {name}", options.reps);
                seen.add(streams(subject, count, Duration::from_secs(options.seconds.max(3))).await?);
            }
        }
        let direct = seen[0].quantiles();
        for ((name, _), seen) in subjects.iter().zip(&mut seen) {
            let own = seen.quantiles();
            let added = |n: usize| if *name == "no proxy" { "–".to_owned() } else { format!("{:.2}", own[n] - direct[n]) };
            let [first50, first99, gap50, gap99] = own;
            println!(
                "| {count} | {name} | {first50:.2} | {first99:.2} | {} | {} | {gap50:.2} | {gap99:.2} | {} | {} | {:.0} % |",
                added(0),
                added(1),
                added(2),
                added(3),
                seen.busy()
            );
        }
    }
    // Not of the upstream alone: what it sends is bounded by the load's own core.
    sustained(&subjects[1..]).await
}

/// The largest number of concurrent streams whose frames arrive in time.
async fn sustained(subjects: &[(&str, &Running)]) -> io::Result<()> {
    println!(
        "\n| streams of {} frames a second on one core | sustained | core busy then |\n|---|---|---|",
        1000 / PACE.as_millis()
    );
    for (name, subject) in subjects {
        let mut best = (0, 0.0);
        for count in (STEP..).step_by(STEP) {
            eprintln!("{name}: {count} streams");
            let mut seen = streams(subject, count, Duration::from_secs(4)).await?;
            let [.., late] = seen.quantiles();
            if late > LATE.as_secs_f64() * 1e3 {
                break;
            }
            best = (count, seen.busy());
        }
        println!("| {name} | {} | {:.0} % |", best.0, best.1);
    }
    Ok(())
}

/// Measurements of streams, µs.
#[derive(Default)]
struct Seen {
    /// From the request to the first frame.
    first: Vec<u32>,
    /// How much longer a gap between frames was than at the upstream.
    later: Vec<u32>,
    /// CPU of the measured process, and the time of the measurement.
    cpu: Duration,
    time: Duration,
}

impl Seen {
    fn add(&mut self, other: Self) {
        self.first.extend(other.first);
        self.later.extend(other.later);
        self.cpu += other.cpu;
        self.time += other.time;
    }

    /// p50 and p99 of the time to the first frame, p50 and p99 of the delay of a gap; ms.
    fn quantiles(&mut self) -> [f64; 4] {
        let mut quantile = |of: fn(&mut Self) -> &mut Vec<u32>, q: f64| {
            let values = of(self);
            values.sort_unstable();
            let at = ((values.len() as f64 * q) as usize).min(values.len().saturating_sub(1));
            values.get(at).map_or(f64::NAN, |&micros| f64::from(micros) / 1e3)
        };
        let first: fn(&mut Self) -> &mut Vec<u32> = |seen| &mut seen.first;
        let later: fn(&mut Self) -> &mut Vec<u32> = |seen| &mut seen.later;
        [quantile(first, 0.5), quantile(first, 0.99), quantile(later, 0.5), quantile(later, 0.99)]
    }

    /// Share of its core, %.
    fn busy(&self) -> f64 {
        100.0 * self.cpu.as_secs_f64() / self.time.as_secs_f64()
    }
}

/// Keeps `count` streams open for `time`, each on its own connection; starts are spread over one answer's duration.
async fn streams(subject: &Running, count: usize, time: Duration) -> io::Result<Seen> {
    let request = load::request(KEY, &load::call(MODEL, 1024, true));
    let mut tasks = JoinSet::new();
    let wires = load::connect(subject.address, count).await?;
    let (cpu, begun) = (subject.cpu()?, Instant::now());
    for (n, wire) in wires.into_iter().enumerate() {
        let request = request.clone();
        tasks.spawn_local(async move {
            let mut seen = Seen::default();
            let mut socket = wire.stream;
            sleep(PACE * FRAMES * u32::try_from(n).unwrap_or(0) / u32::try_from(count).unwrap_or(1)).await;
            while begun.elapsed() < time {
                one(&mut socket, &request, &mut seen).await?;
            }
            io::Result::Ok(seen)
        });
    }
    let mut seen = Seen::default();
    while let Some(ended) = tasks.join_next().await {
        seen.add(ended.map_err(io::Error::other)??);
    }
    (seen.cpu, seen.time) = (subject.cpu()? - cpu, begun.elapsed());
    Ok(seen)
}

/// One streamed answer.
async fn one(socket: &mut TcpStream, request: &[u8], seen: &mut Seen) -> io::Result<()> {
    let asked = micros();
    socket.write_all(request).await?;
    let mark = memmem::Finder::new(MARK);
    let mut buffer = Vec::with_capacity(4096);
    let mut last: Option<(u64, u64)> = None;
    loop {
        if socket.read_buf(&mut buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let now = micros();
        let mut read = 0;
        while let Some(at) = mark.find(&buffer[read..]).map(|at| read + at + MARK.len()) {
            let Some(digits) = buffer.get(at..at + DIGITS) else { break };
            let sent =
                std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
            let micros = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
            match last {
                None => seen.first.push(micros(now.saturating_sub(asked))),
                Some((before, then)) => seen.later.push(micros((now - then).saturating_sub(sent - before))),
            }
            last = Some((sent, now));
            read = at + DIGITS;
        }
        if buffer.ends_with(b"\r\n0\r\n\r\n") {
            return Ok(());
        }
        // A marker or number that is split over two reads is read again with the second one.
        buffer.drain(..read.max(buffer.len().saturating_sub(MARK.len() + DIGITS)));
    }
}

/// Serves paced streams until it is killed.
pub(crate) async fn paced_stub(listen: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    loop {
        let (socket, _) = listener.accept().await?;
        spawn_local(async move {
            // A client that leaves in the middle of an answer is not an error of this server.
            let _ = serve(Wire::new(socket)?).await;
            io::Result::Ok(())
        });
    }
}

async fn serve(mut wire: Wire) -> io::Result<()> {
    while wire.next().await?.is_some() {
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for n in 0..FRAMES {
            pace.tick().await;
            let data = format!(
                r#"data: {{"id":"chatcmpl-0b5d2c1e-7d0c-4a1e-9b6e-6f7f0c9d8e21","object":"chat.completion.chunk","created":1731421234,"model":"{MODEL}","choices":[{{"index":0,"delta":{{"content":" t{:016}"}},"logprobs":null,"finish_reason":null}}]}}"#,
                micros()
            );
            let mut frame = format!("{:x}\r\n{data}\n\n\r\n", data.len() + 2);
            if n == 0 {
                let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n";
                frame.insert_str(0, &format!("{head}{HEADERS}\r\n"));
            }
            wire.stream.write_all(frame.as_bytes()).await?;
        }
        wire.stream.write_all(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n").await?;
    }
    Ok(())
}

/// The clock that upstream and clients share, µs.
fn micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
