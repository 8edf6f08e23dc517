//! Time until it is ready, size of the binary, memory while idle.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::Duration,
};

use tokio::time::Instant;

use super::process::{Running, THEIRS, free, pause, shield};

/// Number of starts, of which the median is taken.
const STARTS: usize = 15;
/// Interval between polls for readiness.
const LOOK: Duration = Duration::from_micros(200);

/// From spawning the process to its first successful answer to `/readyz`; median, ms.
pub(crate) fn ready(program: &Path) -> io::Result<f64> {
    let mut times = Vec::new();
    for _ in 0..STARTS {
        times.push(once(program)?.as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[STARTS / 2])
}

fn once(program: &Path) -> io::Result<Duration> {
    let (listen, admin, nobody) = (free()?, free()?, free()?);
    let mut command = shield(program, listen, admin, nobody, &[]);
    command.current_dir("/").stdout(Stdio::null()).stderr(Stdio::null());
    let begun = Instant::now();
    let mut child = command.spawn()?;
    let ready = until_ready(&mut child, admin);
    let took = begun.elapsed();
    child.kill()?;
    child.wait()?;
    ready.map(|()| took)
}

fn until_ready(child: &mut Child, admin: SocketAddr) -> io::Result<()> {
    loop {
        if get(admin, "/readyz").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
            return Ok(());
        }
        if let Some(status) = child.try_wait()? {
            return Err(io::Error::other(format!("the shield ended: {status}")));
        }
        pause(LOOK);
    }
}

/// The admin listener's answer to `path`.
pub(crate) fn get(admin: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(admin)?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Memory before the first request, bytes.
pub(crate) fn idle(program: &Path) -> io::Result<f64> {
    let (listen, admin, nobody) = (free()?, free()?, free()?);
    let running = Running::start(THEIRS, &shield(program, listen, admin, nobody, &[]), listen)?;
    pause(Duration::from_secs(1));
    running.memory()
}

/// The size of the binary, and of the one for the image if it was built, bytes.
pub(crate) fn sizes(program: &Path) -> io::Result<(u64, Option<u64>)> {
    let image: Option<PathBuf> = program.parent().and_then(Path::parent).map(|target| target.join("image/groq-shield"));
    let image = image.and_then(|image| image.metadata().ok()).map(|file| file.len());
    Ok((program.metadata()?.len(), image))
}
