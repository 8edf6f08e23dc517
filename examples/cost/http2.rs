//! CPU per request over HTTP/2: 64 concurrent streams on one connection from the app, compared with a bare hyper proxy with
//! hyper's default settings. Both use pooled HTTP/1.1 connections to the upstream.

use std::{io, net::SocketAddr, path::Path, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpStream, task::JoinSet, time::Instant};

use super::{
    load::{self, KEY, MODEL, PATH},
    process::{OURS, Running, THEIRS, free, ourselves, settle, shield},
    table::{Options, median},
};

/// Concurrent streams.
const STREAMS: usize = 64;
/// The profile's name and the bytes of its request body.
const PROFILES: [(&str, usize); 2] = [("1k", 1027), ("16k", 16_389)];
const WARM_UP: Duration = Duration::from_millis(500);

/// Measures both in turns and prints the table.
pub(crate) async fn run(program: &Path, options: &Options) -> io::Result<()> {
    let _settled = settle()?;
    let stub = Running::start_role(OURS, |listen| ourselves(&["stub", &listen.to_string()]))?;
    let upstream = stub.address.to_string();
    let bare = Running::start_role(THEIRS, |listen| ourselves(&["bare", "--http2", &listen.to_string(), &upstream]))?;
    let listen = free()?;
    let shield = Running::start(THEIRS, &shield(program, listen, free()?, stub.address, &[]), listen)?;
    println!("| HTTP/2, {STREAMS} streams on one connection | shield | bare hyper | ratio |\n|---|---|---|---|");
    for (profile, size) in PROFILES {
        let call = Bytes::from(load::call(MODEL, size, false));
        let (mut cpu, mut rate) = ([const { Vec::new() }; 2], [const { Vec::new() }; 2]);
        for round in 0..=options.reps {
            eprintln!("round {round} of {}: {profile} over HTTP/2", options.reps);
            for (who, running) in [&shield, &bare].into_iter().enumerate() {
                let time = if round == 0 { WARM_UP } else { Duration::from_secs(options.seconds) };
                let before = running.cpu()?;
                let (requests, took) = closed_loop(running.address, &call, time).await?;
                if round > 0 {
                    cpu[who].push((running.cpu()? - before).as_secs_f64() * 1e6 / requests as f64);
                    rate[who].push(requests as f64 / took.as_secs_f64());
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

/// The number of requests answered, and the time taken. An answer other than 200 is an error.
async fn closed_loop(to: SocketAddr, call: &Bytes, time: Duration) -> io::Result<(usize, Duration)> {
    let socket = TcpStream::connect(to).await?;
    socket.set_nodelay(true)?;
    let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(socket)).await.map_err(io::Error::other)?;
    let driver = tokio::spawn(connection);
    let begun = Instant::now();
    let mut loops = JoinSet::new();
    for _ in 0..STREAMS {
        loops.spawn(one_stream_at_a_time(sender.clone(), to, call.clone(), begun, time));
    }
    drop(sender);
    let mut requests = 0;
    while let Some(ended) = loops.join_next().await {
        requests += ended.map_err(io::Error::other)??;
    }
    let took = begun.elapsed();
    driver.abort();
    Ok((requests, took))
}

async fn one_stream_at_a_time(
    mut sender: SendRequest<Full<Bytes>>,
    to: SocketAddr,
    call: Bytes,
    begun: Instant,
    time: Duration,
) -> io::Result<usize> {
    let mut requests = 0;
    while begun.elapsed() < time {
        let request = Request::post(format!("http://{to}{PATH}"))
            .header(header::AUTHORIZATION, format!("Bearer {KEY}"))
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, "Groq/Python 1.7.0")
            .body(Full::new(call.clone()))
            .map_err(io::Error::other)?;
        sender.ready().await.map_err(io::Error::other)?;
        let answer = sender.send_request(request).await.map_err(io::Error::other)?;
        if answer.status() != StatusCode::OK {
            return Err(io::Error::other(format!("answered with {}", answer.status())));
        }
        answer.into_body().collect().await.map_err(io::Error::other)?;
        requests += 1;
    }
    Ok(requests)
}
