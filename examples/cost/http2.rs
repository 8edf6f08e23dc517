//! CPU per request over HTTP/2, with 64 concurrent streams on one connection, compared with a bare hyper proxy with hyper's
//! default settings. Both proxies use pooled HTTP/1.1 connections to the upstream.

use std::{io, net::SocketAddr, path::Path, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpStream, task::JoinSet, time::Instant};

use super::{
    load::{self, KEY, MODEL, PATH},
    process::{LOAD_CORE, PROXY_CORE, Running, free_address, pin, shield, this_program},
    table::{Options, median},
};

/// Concurrent streams on the connection.
const STREAMS: usize = 64;
/// The name of each profile and the size of its request body in bytes.
const PROFILES: [(&str, usize); 2] = [("1k", 1027), ("16k", 16_389)];
const WARM_UP: Duration = Duration::from_millis(500);

/// Measures the two proxies in alternation and prints the table.
pub(crate) async fn run(program: &Path, options: &Options) -> io::Result<()> {
    let _priority = pin()?;
    let stub = Running::start_role(LOAD_CORE, |listen| this_program(&["stub", &listen.to_string()]))?;
    let upstream = stub.address.to_string();
    let bare = Running::start_role(PROXY_CORE, |listen| this_program(&["bare", "--http2", &listen.to_string(), &upstream]))?;
    let listen = free_address()?;
    let shield = Running::start(PROXY_CORE, &shield(program, listen, free_address()?, stub.address, &[]), listen)?;
    println!("| HTTP/2, {STREAMS} streams on one connection | shield | bare hyper | ratio |\n|---|---|---|---|");
    for (profile, size) in PROFILES {
        let call = Bytes::from(load::call(MODEL, size, false));
        let (mut cpu, mut rate) = ([const { Vec::new() }; 2], [const { Vec::new() }; 2]);
        for round in 0..=options.reps {
            eprintln!("round {round} of {}: {profile} over HTTP/2", options.reps);
            for (index, running) in [&shield, &bare].into_iter().enumerate() {
                let time = if round == 0 { WARM_UP } else { Duration::from_secs(options.seconds) };
                let before = running.cpu()?;
                let (requests, elapsed) = closed_loop(running.address, &call, time).await?;
                if round > 0 {
                    cpu[index].push((running.cpu()? - before).as_secs_f64() * 1e6 / requests as f64);
                    rate[index].push(requests as f64 / elapsed.as_secs_f64());
                }
            }
        }
        for (what, [shield, bare]) in [("CPU a request, µs", cpu), ("requests a second", rate)] {
            let ratio = median(shield.iter().zip(&bare).map(|(shield, bare)| shield / bare).collect());
            let [shield, bare, ratio] = [median(shield), median(bare), ratio].map(|value| value.unwrap_or(f64::NAN));
            println!("| {what} ({profile}) | {shield:.1} | {bare:.1} | {ratio:.2} |");
        }
    }
    Ok(())
}

/// Keeps all streams busy for `time`. Returns the number of responses and the time until the last one.
///
/// # Errors
/// A status other than 200.
async fn closed_loop(to: SocketAddr, call: &Bytes, time: Duration) -> io::Result<(usize, Duration)> {
    let socket = TcpStream::connect(to).await?;
    socket.set_nodelay(true)?;
    let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(socket)).await.map_err(io::Error::other)?;
    let driver = tokio::spawn(connection);
    let start = Instant::now();
    let mut loops = JoinSet::new();
    for _ in 0..STREAMS {
        loops.spawn(requests_in_sequence(sender.clone(), to, call.clone(), start, time));
    }
    drop(sender);
    let mut requests = 0;
    while let Some(ended) = loops.join_next().await {
        requests += ended.map_err(io::Error::other)??;
    }
    let elapsed = start.elapsed();
    driver.abort();
    Ok((requests, elapsed))
}

async fn requests_in_sequence(
    mut sender: SendRequest<Full<Bytes>>,
    to: SocketAddr,
    call: Bytes,
    start: Instant,
    time: Duration,
) -> io::Result<usize> {
    let mut requests = 0;
    while start.elapsed() < time {
        let request = Request::post(format!("http://{to}{PATH}"))
            .header(header::AUTHORIZATION, format!("Bearer {KEY}"))
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, "Groq/Python 1.7.0")
            .body(Full::new(call.clone()))
            .map_err(io::Error::other)?;
        sender.ready().await.map_err(io::Error::other)?;
        let response = sender.send_request(request).await.map_err(io::Error::other)?;
        if response.status() != StatusCode::OK {
            return Err(io::Error::other(format!("status {}", response.status())));
        }
        response.into_body().collect().await.map_err(io::Error::other)?;
        requests += 1;
    }
    Ok(requests)
}
