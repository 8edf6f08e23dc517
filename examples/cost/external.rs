//! Programs that are used if they are installed: nginx as another proxy to measure, oha for open-loop load.

use std::{
    fs, io,
    net::SocketAddr,
    path::PathBuf,
    process::{Command, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

use super::{
    load::{KEY, PATH},
    process::{PROXY_CORE, Running, free_address},
    table::Cell,
};

/// The path of a program on PATH or in `/usr/sbin`, where Debian installs daemons.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin".into()]);
    places.map(|place| place.join(name)).find(|file| file.is_file())
}

/// Starts nginx in front of `upstream` with one worker and without an access log; `None` if it is not installed.
pub(crate) fn nginx(upstream: SocketAddr) -> io::Result<Option<(Running, TempDir)>> {
    let Some(program) = program("nginx") else { return Ok(None) };
    let (listen, home) = (free_address()?, TempDir::new()?);
    let place = home.path().display();
    let configuration = format!(
        "daemon off; master_process off; pid {place}/pid; error_log {place}/error.log warn;
events {{ worker_connections 16384; }}
http {{
  access_log off;
  client_body_temp_path {place}/1; proxy_temp_path {place}/2; fastcgi_temp_path {place}/3; uwsgi_temp_path {place}/4; scgi_temp_path {place}/5;
  client_body_buffer_size 256k; client_max_body_size 20m;
  keepalive_timeout 75s; keepalive_requests 100000000; tcp_nodelay on;
  upstream stub {{ server {upstream}; keepalive 4096; keepalive_requests 100000000; }}
  proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header Host api.groq.com; proxy_buffering off;
  server {{ listen {listen} backlog=4096; location / {{ proxy_pass http://stub; }} }}
}}
"
    );
    let file = home.path().join("nginx.conf");
    fs::write(&file, configuration)?;
    let mut command = Command::new(program);
    command.arg("-c").arg(file).arg("-e").arg(home.path().join("error.log"));
    Ok(Some((Running::start(PROXY_CORE, &command, listen)?, home)))
}

/// Sends 1000 requests a second for `seconds`. Latencies count from the scheduled time of each request. `None` if `oha` is not
/// installed.
pub(crate) fn open_loop(to: SocketAddr, call: &str, seconds: u64) -> io::Result<Option<Cell>> {
    let Some(oha) = program("oha") else { return Ok(None) };
    let mut command = Command::new(oha);
    command.args(["-z", &format!("{seconds}s"), "-q", "1000", "-c", "64", "--latency-correction", "--no-tui"]);
    command.args(["--output-format", "json", "-m", "POST", "-d", call, "-T", "application/json"]);
    command.args(["-H", &format!("authorization: Bearer {KEY}"), &format!("http://{to}{PATH}")]);
    let output = command.stdin(Stdio::null()).output()?;
    let report: Value = serde_json::from_slice(&output.stdout)
        .map_err(|error| io::Error::other(format!("oha: {error}: {}", String::from_utf8_lossy(&output.stderr))))?;
    let quantile = |name| report["latencyPercentiles"][name].as_f64().map(|seconds| seconds * 1e3);
    let (Some(p50), Some(p99)) = (quantile("p50"), quantile("p99")) else {
        return Err(io::Error::other("oha's report has no p50 and p99"));
    };
    let codes = report["statusCodeDistribution"].as_object().into_iter().flatten();
    let failed = codes.filter(|(code, _)| *code != "200").filter_map(|(_, count)| count.as_u64()).sum::<u64>() as usize;
    Ok(Some(Cell { rate: report["summary"]["requestsPerSec"].as_f64().unwrap_or(0.0), cpu: 0.0, p50, p99, failed }))
}
