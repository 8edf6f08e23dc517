//! The servers of the garden. nginx, HAProxy and Apache run in front of Node's echo server, which logs the requests.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};

/// A server that logs the requests that it has parsed.
pub(crate) struct Server {
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    /// The certificate of a server with HTTP/2 over TLS.
    pub(crate) certificate: Option<PathBuf>,
    log: PathBuf,
    children: Vec<Child>,
    folder: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        for child in &mut self.children {
            // The whole process group, because worker processes would outlive their parent.
            let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
            let _ = child.wait();
        }
    }
}

impl Server {
    /// The log, with a line per request in the order of arrival.
    pub(crate) fn log(&self) -> Vec<String> {
        fs::read_to_string(&self.log).unwrap_or_default().lines().map(str::to_owned).collect()
    }
}

fn here(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/garden").join(file)
}

/// Starts an echo server with the command for its port.
async fn start(name: &'static str, command: impl FnOnce(u16) -> Command) -> io::Result<Server> {
    let folder = tempfile::tempdir()?;
    start_in(name, folder, None, command).await
}

async fn start_in(
    name: &'static str,
    folder: TempDir,
    certificate: Option<PathBuf>,
    command: impl FnOnce(u16) -> Command,
) -> io::Result<Server> {
    let log = folder.path().join("log");
    let address = free().await?;
    let child =
        command(address.port()).env("GARDEN_LOG", &log).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0).spawn()?;
    let server = Server { name, address, certificate, log, children: vec![child], folder };
    listens(name, address).await?;
    Ok(server)
}

async fn listens(name: &str, address: SocketAddr) -> io::Result<()> {
    for _ in 0..500 {
        if TcpStream::connect(address).await.is_ok() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Err(io::Error::other(format!("{name} does not listen")))
}

async fn free() -> io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0").await?.local_addr()
}

pub(crate) async fn node() -> io::Result<Server> {
    start("Node's http", |port| {
        let mut command = Command::new("node");
        command.arg(here("echo.mjs")).arg(port.to_string());
        command
    })
    .await
}

/// Starts an echo server with HTTP/2 over TLS, with the command for its port, certificate and key.
async fn start_http2(name: &'static str, command: impl FnOnce(u16, &Path, &Path) -> Command) -> io::Result<Server> {
    let folder = tempfile::tempdir()?;
    let (certificate, key) = (folder.path().join("certificate.pem"), folder.path().join("key.pem"));
    let pair = rcgen::KeyPair::generate().map_err(io::Error::other)?;
    let params = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).map_err(io::Error::other)?;
    fs::write(&certificate, params.self_signed(&pair).map_err(io::Error::other)?.pem())?;
    fs::write(&key, pair.serialize_pem())?;
    start_in(name, folder, Some(certificate.clone()), |port| command(port, &certificate, &key)).await
}

pub(crate) async fn node_http2() -> io::Result<Server> {
    start_http2("Node's http2", |port, certificate, key| {
        let mut command = Command::new("node");
        command.arg(here("echo.mjs")).arg(port.to_string()).args([certificate, key]);
        command
    })
    .await
}

/// Starts a proxy in front of Node's echo server.
async fn before_node(
    name: &'static str,
    configure: impl FnOnce(&Path, u16, SocketAddr) -> String,
    command: impl FnOnce(&Path) -> Command,
) -> io::Result<Server> {
    let mut server = node().await?;
    let address = free().await?;
    let file = server.folder.path().join("proxy.conf");
    fs::write(&file, configure(server.folder.path(), address.port(), server.address))?;
    server.children.push(command(&file).stdout(Stdio::null()).stderr(Stdio::inherit()).process_group(0).spawn()?);
    listens(name, address).await?;
    server.name = name;
    server.address = address;
    Ok(server)
}

async fn nginx() -> io::Result<Server> {
    let configure = |folder: &Path, port, to| {
        let at = folder.display();
        let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|name| format!("{name}_temp_path {at}/{name};\n"))
            .collect();
        format!(
            "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log;\nevents {{}}\nhttp {{ access_log off; {paths}\
             server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://{to}; proxy_http_version 1.1; \
             proxy_set_header Connection \"\"; proxy_set_header Host $http_host; }} }} }}\n"
        )
    };
    before_node("nginx", configure, |file| {
        let mut command = Command::new("nginx");
        command.arg("-c").arg(file);
        command
    })
    .await
}

async fn haproxy() -> io::Result<Server> {
    let configure = |_: &Path, port, to| {
        format!(
            "defaults\n mode http\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n\
             listen l\n bind 127.0.0.1:{port}\n server s {to}\n"
        )
    };
    before_node("HAProxy", configure, |file| {
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(file);
        command
    })
    .await
}

async fn apache() -> io::Result<Server> {
    let configure = |folder: &Path, port, to| {
        let at = folder.display();
        let modules: String = ["mpm_event", "authz_core", "proxy", "proxy_http"]
            .iter()
            .map(|name| format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n"))
            .collect();
        format!(
            "ServerRoot {at}\nDefaultRuntimeDir {at}\nPidFile {at}/pid\nErrorLog {at}/error.log\nServerName garden\n\
             Listen 127.0.0.1:{port}\n{modules}ProxyPass / http://{to}/\n"
        )
    };
    before_node("Apache", configure, |file| {
        let mut command = Command::new("apache2");
        command.arg("-X").arg("-f").arg(file);
        command
    })
    .await
}

/// The virtual environment with all packages installed.
fn installed() -> io::Result<PathBuf> {
    let venv = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/garden");
    let run = |command: &mut Command| match command.status()?.success() {
        true => Ok(()),
        false => Err(io::Error::other(format!("{command:?} failed"))),
    };
    if !venv.join("bin/uvicorn").exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
        run(Command::new(venv.join("bin/pip")).args(["install", "--quiet", "-r"]).arg(here("requirements.txt")))?;
    }
    Ok(venv)
}

pub(crate) async fn all() -> io::Result<Vec<Server>> {
    let venv = installed()?;
    let python = |program: &'static str, arguments: Vec<String>| {
        let venv = venv.clone();
        move |port: u16| {
            let mut command = Command::new(venv.join("bin").join(program));
            command.current_dir(here("")).env("PYTHONDONTWRITEBYTECODE", "1");
            command.args(arguments.iter().map(|argument| argument.replace("PORT", &port.to_string())));
            command
        }
    };
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let uvicorn = |parser: &str| words(&format!("echo:asgi --port PORT --no-access-log --http {parser}"));
    let hypercorn_http2 = |port: u16, certificate: &Path, key: &Path| {
        let mut command = python("hypercorn", words("-c hypercorn.toml echo:asgi -b 127.0.0.1:PORT"))(port);
        command.arg("--certfile").arg(certificate).arg("--keyfile").arg(key);
        command
    };
    Ok(vec![
        node().await?,
        node_http2().await?,
        start_http2("hypercorn, HTTP/2", hypercorn_http2).await?,
        nginx().await?,
        haproxy().await?,
        apache().await?,
        start("gunicorn", python("gunicorn", words("echo:wsgi -b 127.0.0.1:PORT --threads 4 --keep-alive 60"))).await?,
        start("uvicorn, h11", python("uvicorn", uvicorn("h11"))).await?,
        start("uvicorn, httptools", python("uvicorn", uvicorn("httptools"))).await?,
        start("hypercorn", python("hypercorn", words("echo:asgi -b 127.0.0.1:PORT"))).await?,
        start("waitress", python("waitress-serve", words("--listen 127.0.0.1:PORT echo:wsgi"))).await?,
        start("tornado", python("python", words("echo.py tornado PORT"))).await?,
        start("aiohttp", python("python", words("echo.py aiohttp PORT"))).await?,
    ])
}
