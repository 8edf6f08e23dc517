//! What a proxy adds to streamed responses: time to the first token, gaps between frames, and how many streams one core sustains.
//! The upstream sends frames at the pace of a model, with a timestamp in each.

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
    connection::Connection,
    external,
    load::{self, KEY, MODEL},
    process::{LOAD_CORE, PROXY_CORE, Running, free_address, pin, shield, this_program},
    stub::HEADERS,
    table::Options,
};

/// Frames of one response.
const FRAMES: u32 = 50;
/// Interval between frames.
const PACE: Duration = Duration::from_millis(20);
/// Numbers of concurrent streams in the table.
const STREAMS: [usize; 3] = [1, 64, 1000];
/// A number of streams is sustained if at least 99 % of the gaps between frames grow by at most this.
const MAX_DELAY: Duration = PACE;
/// Increment of the number of streams when the sustained number is searched.
const STEP: usize = 500;
/// The text before the timestamp in a frame.
const MARK: &[u8] = br#""content":" t"#;
/// Digits of a timestamp.
const DIGITS: usize = 16;

/// Measures the upstream without a proxy and each proxy in alternation, and prints the tables.
pub(crate) async fn run(program: &Path, options: &Options) -> io::Result<()> {
    let _priority = pin()?;
    let upstream = Running::start_role(LOAD_CORE, |listen| this_program(&["paced-stub", &listen.to_string()]))?;
    let address = upstream.address.to_string();
    let listen = free_address()?;
    // Without the access log, as in the other tables.
    let shield = Running::start(PROXY_CORE, &shield(program, listen, free_address()?, upstream.address, &[]), listen)?;
    let bare = Running::start_role(PROXY_CORE, |listen| this_program(&["bare", &listen.to_string(), &address]))?;
    let nginx = external::nginx(upstream.address)?;
    let mut subjects = vec![("no proxy", &upstream), ("shield", &shield), ("bare hyper", &bare)];
    subjects.extend(nginx.iter().map(|(nginx, _)| ("nginx", nginx)));

    println!(
        "| streams at once | through | first token p50, ms | p99 | added p50 | added p99 | gap later than sent p50, ms | p99 | added p50 | added p99 | core busy |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    for count in STREAMS {
        let mut measured: Vec<Measured> = subjects.iter().map(|_| Measured::default()).collect();
        for round in 1..=options.reps {
            for ((name, subject), measured) in subjects.iter().zip(&mut measured) {
                eprintln!("round {round} of {}: {count} streams, {name}", options.reps);
                measured.add(streams(subject, count, Duration::from_secs(options.seconds.max(3))).await?);
            }
        }
        let direct = measured[0].quantiles();
        for ((name, _), measured) in subjects.iter().zip(&mut measured) {
            let own = measured.quantiles();
            let added = |n: usize| if *name == "no proxy" { "–".to_owned() } else { format!("{:.2}", own[n] - direct[n]) };
            let [first50, first99, gap50, gap99] = own;
            println!(
                "| {count} | {name} | {first50:.2} | {first99:.2} | {} | {} | {gap50:.2} | {gap99:.2} | {} | {} | {:.0} % |",
                added(0),
                added(1),
                added(2),
                added(3),
                measured.busy()
            );
        }
    }
    // Without the row of the upstream, which shares a core with the load and is limited by it.
    sustained(&subjects[1..]).await
}

/// Prints the maximum number of concurrent streams that each proxy sustains.
async fn sustained(subjects: &[(&str, &Running)]) -> io::Result<()> {
    println!(
        "\n| streams of {} frames a second on one core | sustained | core busy then |\n|---|---|---|",
        1000 / PACE.as_millis()
    );
    for (name, subject) in subjects {
        let mut best = (0, 0.0);
        for count in (STEP..).step_by(STEP) {
            eprintln!("{name}: {count} streams");
            let mut measured = streams(subject, count, Duration::from_secs(4)).await?;
            let [.., late] = measured.quantiles();
            if late > MAX_DELAY.as_secs_f64() * 1e3 {
                break;
            }
            best = (count, measured.busy());
        }
        println!("| {name} | {} | {:.0} % |", best.0, best.1);
    }
    Ok(())
}

/// Measurements of streams. Times are in µs.
#[derive(Default)]
struct Measured {
    /// Time from the request to the first frame.
    first: Vec<u32>,
    /// How much longer each gap between frames was than at the upstream.
    delays: Vec<u32>,
    /// CPU time of the measured process.
    cpu: Duration,
    /// Duration of the measurement.
    time: Duration,
}

impl Measured {
    fn add(&mut self, other: Self) {
        self.first.extend(other.first);
        self.delays.extend(other.delays);
        self.cpu += other.cpu;
        self.time += other.time;
    }

    /// p50 and p99 of the time to the first frame, then of the delay of a gap, in ms.
    fn quantiles(&mut self) -> [f64; 4] {
        let mut quantile = |of: fn(&mut Self) -> &mut Vec<u32>, q: f64| {
            let values = of(self);
            values.sort_unstable();
            let at = ((values.len() as f64 * q) as usize).min(values.len().saturating_sub(1));
            values.get(at).map_or(f64::NAN, |&micros| f64::from(micros) / 1e3)
        };
        let first: fn(&mut Self) -> &mut Vec<u32> = |measured| &mut measured.first;
        let delays: fn(&mut Self) -> &mut Vec<u32> = |measured| &mut measured.delays;
        [quantile(first, 0.5), quantile(first, 0.99), quantile(delays, 0.5), quantile(delays, 0.99)]
    }

    /// CPU time as a percentage of one core.
    fn busy(&self) -> f64 {
        100.0 * self.cpu.as_secs_f64() / self.time.as_secs_f64()
    }
}

/// Keeps `count` streams open for `time`, each on a connection of its own. Their starts are spread over the duration of one
/// response.
async fn streams(subject: &Running, count: usize, time: Duration) -> io::Result<Measured> {
    let request = load::request(KEY, &load::call(MODEL, 1024, true));
    let mut tasks = JoinSet::new();
    let connections = load::connect(subject.address, count).await?;
    let (cpu, start) = (subject.cpu()?, Instant::now());
    for (n, connection) in connections.into_iter().enumerate() {
        let request = request.clone();
        tasks.spawn_local(async move {
            let mut measured = Measured::default();
            let mut socket = connection.stream;
            sleep(PACE * FRAMES * u32::try_from(n).unwrap_or(0) / u32::try_from(count).unwrap_or(1)).await;
            while start.elapsed() < time {
                measure_stream(&mut socket, &request, &mut measured).await?;
            }
            io::Result::Ok(measured)
        });
    }
    let mut measured = Measured::default();
    while let Some(ended) = tasks.join_next().await {
        measured.add(ended.map_err(io::Error::other)??);
    }
    (measured.cpu, measured.time) = (subject.cpu()? - cpu, start.elapsed());
    Ok(measured)
}

/// Sends a request and measures its streamed response.
async fn measure_stream(socket: &mut TcpStream, request: &[u8], measured: &mut Measured) -> io::Result<()> {
    let sent_at = micros();
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
                None => measured.first.push(micros(now.saturating_sub(sent_at))),
                Some((before, then)) => measured.delays.push(micros((now - then).saturating_sub(sent - before))),
            }
            last = Some((sent, now));
            read = at + DIGITS;
        }
        if buffer.ends_with(b"\r\n0\r\n\r\n") {
            return Ok(());
        }
        // Keeps the end of the buffer, because a mark or timestamp can be split over two reads.
        buffer.drain(..read.max(buffer.len().saturating_sub(MARK.len() + DIGITS)));
    }
}

/// Serves paced streams until it is killed.
pub(crate) async fn paced_stub(listen: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    loop {
        let (socket, _) = listener.accept().await?;
        spawn_local(async move {
            // Clients close the connection during a response when their time is over.
            let _ = serve(Connection::new(socket)?).await;
            io::Result::Ok(())
        });
    }
}

async fn serve(mut connection: Connection) -> io::Result<()> {
    while connection.next().await?.is_some() {
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
            connection.stream.write_all(frame.as_bytes()).await?;
        }
        connection.stream.write_all(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n").await?;
    }
    Ok(())
}

/// Unix time in µs: the upstream and the clients are different processes.
fn micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
