//! The servers under test: a shield, and for comparison nginx, HAProxy and bare hyper, each with upstreams of its own.

use std::{
    fmt::Write as _,
    io,
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use groq_shield::{
    config::{Plan, Settings},
    proxy::Shield,
    server::{self, Listeners, Running},
};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};

use crate::{cases::RESPONSES, upstream};

/// Cases that run concurrently against one server, each with an upstream and a counter of its own.
pub(crate) const INSTANCES: usize = 8;

/// One listener of a server, with an upstream of its own.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) address: SocketAddr,
    /// Requests that have reached the upstream behind it.
    pub(crate) seen: Option<Arc<AtomicUsize>>,
}

/// A server under test.
pub(crate) struct Server {
    pub(crate) name: String,
    pub(crate) instances: Vec<Instance>,
    /// The address that leads to the scripted upstream.
    pub(crate) responses: Option<SocketAddr>,
    /// The address for HTTP/2 without TLS.
    pub(crate) http2: Option<SocketAddr>,
    _running: Vec<Running>,
    _process: Option<Process>,
}

struct Process {
    child: Child,
    _folder: TempDir,
}

impl Drop for Process {
    fn drop(&mut self) {
        // Its workers exit with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A shield of this build. It holds the key, so that probes need none.
pub(crate) async fn shield() -> io::Result<Server> {
    let mut instances = Vec::new();
    let mut running = Vec::new();
    for _ in 0..INSTANCES {
        let (upstream, seen) = upstream::echo().await?;
        let shield = start(upstream)?;
        instances.push(Instance { address: shield.app, seen: Some(seen) });
        running.push(shield);
    }
    let scripted = start(upstream::scripted(RESPONSES).await?)?;
    let responses = Some(scripted.app);
    running.push(scripted);
    let name = format!("groq-shield {}", env!("CARGO_PKG_VERSION"));
    let http2 = Some(instances[0].address);
    Ok(Server { name, instances, responses, http2, _running: running, _process: None })
}

/// A shield that holds no key.
pub(crate) async fn keyless() -> io::Result<(SocketAddr, Running)> {
    let mut settings = settings(upstream::echo().await?.0);
    settings.upstream.api_key_env = None;
    let shield = run(settings)?;
    Ok((shield.app, shield))
}

fn start(upstream: SocketAddr) -> io::Result<Running> {
    run(settings(upstream))
}

fn settings(upstream: SocketAddr) -> Settings {
    let mut settings = Settings::default();
    settings.server.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    settings.admin.listen = settings.server.listen;
    settings.server.threads = Some(1);
    settings.upstream.base_url = format!("http://{upstream}").parse().expect("a URL");
    // A variable that cargo always sets.
    settings.upstream.api_key_env = Some("CARGO_PKG_NAME".into());
    settings.limits.plan = Plan::None;
    settings.retry.attempts = 1;
    settings.breaker.failures = 1_000_000;
    settings
}

fn run(settings: Settings) -> io::Result<Running> {
    let listeners = Listeners::open(&settings).expect("free ports");
    server::start(Shield::new(settings).expect("nothing to fail on"), listeners)
}

/// A server that is running already.
pub(crate) fn at(address: SocketAddr) -> Server {
    let instances = (0..INSTANCES).map(|_| Instance { address, seen: None }).collect();
    Server { name: address.to_string(), instances, responses: None, http2: Some(address), _running: Vec::new(), _process: None }
}

/// hyper's own server without a proxy.
pub(crate) async fn hyper() -> io::Result<Server> {
    let mut instances = Vec::new();
    for _ in 0..INSTANCES {
        let (address, _) = upstream::echo().await?;
        instances.push(Instance { address, seen: None });
    }
    let http2 = Some(upstream::echo_http2().await?);
    Ok(Server { name: "hyper 1 (server)".into(), instances, responses: None, http2, _running: Vec::new(), _process: None })
}

/// nginx as a reverse proxy, as Debian configures it.
pub(crate) async fn nginx() -> io::Result<Server> {
    let version = version(Command::new("nginx").arg("-v"))?;
    let configure = |folder: &Path, ports: &[Port]| {
        let mut text = format!(
            "daemon off; master_process off; pid {0}/pid; error_log {0}/error.log;\nevents {{}}\nhttp {{\naccess_log off;\n",
            folder.display()
        );
        for name in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
            let _ = writeln!(text, "{name}_temp_path {}/{name};", folder.display());
        }
        for Port { listen, upstream, http2 } in ports {
            let protocol = if *http2 { " http2" } else { "" };
            let _ = writeln!(
                text,
                "server {{ listen {listen}{protocol}; location / {{ proxy_pass http://{upstream}; proxy_http_version 1.1; \
                 proxy_set_header Connection \"\"; proxy_set_header Host $http_host; }} }}"
            );
        }
        text + "}\n"
    };
    let command = |file: &Path| {
        let mut command = Command::new("nginx");
        command.arg("-c").arg(file);
        command
    };
    proxy(version, configure, command).await
}

/// HAProxy as a reverse proxy, with its defaults.
pub(crate) async fn haproxy() -> io::Result<Server> {
    let version = version(Command::new("haproxy").arg("-v"))?;
    let configure = |_: &Path, ports: &[Port]| {
        let mut text = "defaults\n  mode http\n  timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n".to_owned();
        for (n, Port { listen, upstream, http2 }) in ports.iter().enumerate() {
            let protocol = if *http2 { " proto h2" } else { "" };
            let _ = writeln!(text, "listen l{n}\n  bind {listen}{protocol}\n  server s {upstream}");
        }
        text
    };
    let command = |file: &Path| {
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(file);
        command
    };
    proxy(version, configure, command).await
}

fn version(command: &mut Command) -> io::Result<String> {
    let output = command.output()?;
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let line = text.lines().next().unwrap_or_default().replace("nginx version: nginx/", "nginx ").replace(" version", "");
    Ok(line.split([' ']).take(2).collect::<Vec<_>>().join(" "))
}

/// A port of a proxy.
struct Port {
    listen: SocketAddr,
    upstream: SocketAddr,
    http2: bool,
}

/// Starts a proxy on free ports, each with an upstream of its own.
async fn proxy(
    name: String,
    configure: impl Fn(&Path, &[Port]) -> String,
    command: impl Fn(&Path) -> Command,
) -> io::Result<Server> {
    let mut instances = Vec::new();
    let mut ports = Vec::new();
    for _ in 0..INSTANCES {
        let (upstream, seen) = upstream::echo().await?;
        let address = free().await?;
        ports.push(Port { listen: address, upstream, http2: false });
        instances.push(Instance { address, seen: Some(seen) });
    }
    let responses = free().await?;
    ports.push(Port { listen: responses, upstream: upstream::scripted(RESPONSES).await?, http2: false });
    let http2 = free().await?;
    ports.push(Port { listen: http2, upstream: upstream::echo().await?.0, http2: true });
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("proxy.conf");
    std::fs::write(&file, configure(folder.path(), &ports))?;
    let child = command(&file).stdout(Stdio::null()).stderr(Stdio::inherit()).spawn()?;
    let process = Process { child, _folder: folder };
    for _ in 0..500 {
        if TcpStream::connect(responses).await.is_ok() {
            let (responses, http2) = (Some(responses), Some(http2));
            return Ok(Server { name, instances, responses, http2, _running: Vec::new(), _process: Some(process) });
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Err(io::Error::other(format!("{name} does not listen")))
}

/// An address that nobody listens on, for a program that cannot be given a socket.
async fn free() -> io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0").await?.local_addr()
}
