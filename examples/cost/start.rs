//! Time until the shield is ready, size of the binary, memory while idle.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::Duration,
};

use tokio::time::Instant;

use super::process::{PROXY_CORE, Running, free_address, pause, shield};

/// Number of starts; the result is their median.
const STARTS: usize = 15;
/// Interval between polls for readiness.
const POLL: Duration = Duration::from_micros(200);

/// Median time in ms from spawning the process to its first 200 on `/readyz`.
pub(crate) fn ready(program: &Path) -> io::Result<f64> {
    let mut times = Vec::new();
    for _ in 0..STARTS {
        times.push(once(program)?.as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[STARTS / 2])
}

fn once(program: &Path) -> io::Result<Duration> {
    let (listen, admin, upstream) = (free_address()?, free_address()?, free_address()?);
    let mut command = shield(program, listen, admin, upstream, &[]);
    command.current_dir("/").stdout(Stdio::null()).stderr(Stdio::null());
    let start = Instant::now();
    let mut child = command.spawn()?;
    let ready = until_ready(&mut child, admin);
    let elapsed = start.elapsed();
    child.kill()?;
    child.wait()?;
    ready.map(|()| elapsed)
}

fn until_ready(child: &mut Child, admin: SocketAddr) -> io::Result<()> {
    loop {
        if get(admin, "/readyz").is_ok_and(|response| response.starts_with("HTTP/1.1 200")) {
            return Ok(());
        }
        if let Some(status) = child.try_wait()? {
            return Err(io::Error::other(format!("the shield exited: {status}")));
        }
        pause(POLL);
    }
}

/// The admin listener's response to `GET path`, including its head.
pub(crate) fn get(admin: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(admin)?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n")?;
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    Ok(response)
}

/// Memory in bytes before the first request.
pub(crate) fn idle(program: &Path) -> io::Result<f64> {
    let (listen, admin, upstream) = (free_address()?, free_address()?, free_address()?);
    let running = Running::start(PROXY_CORE, &shield(program, listen, admin, upstream, &[]), listen)?;
    pause(Duration::from_secs(1));
    running.memory()
}

/// Size in bytes of `program`, and of the binary of the `image` profile if it was built.
pub(crate) fn sizes(program: &Path) -> io::Result<(u64, Option<u64>)> {
    let image: Option<PathBuf> = program.parent().and_then(Path::parent).map(|target| target.join("image/groq-shield"));
    let image = image.and_then(|image| image.metadata().ok()).map(|file| file.len());
    Ok((program.metadata()?.len(), image))
}
