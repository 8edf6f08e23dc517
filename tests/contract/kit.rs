//! A shield in this process in front of an upstream that plays a script for each request.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use groq_shield::{
    config::{Plan, Settings},
    proxy::Shield,
    server::{self, Listeners, Running},
};
use rustls::{ServerConfig, crypto::aws_lc_rs};
use rustls_pki_types::PrivateKeyDer;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    time::sleep,
};
use tokio_rustls::TlsAcceptor;

/// One step of the upstream's script; after the last one it closes the connection.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Write(String),
    Pause(Duration),
    /// Closes without `close_notify`.
    Reset,
    /// Sends nothing until the client gives up.
    Hold,
}

/// The kind of upstream.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    /// A host name that does not resolve.
    NoName,
    /// A port on which nobody listens.
    NoPort,
    /// Plain HTTP: reads a request, then plays the n-th script; the last script repeats.
    Plain(Vec<Vec<Step>>),
    /// Plays the script before it has read anything.
    Early(Vec<Step>),
    /// HTTP over TLS, by this certificate.
    Tls(Certificate, Vec<Step>),
    /// The shield speaks TLS to it, and it answers in plain text.
    PlainOnTls(Vec<Step>),
    /// The shield speaks plain text to a TLS server.
    TlsOnPlain,
}

/// A page of the CDN in front of Groq.
pub(crate) const PAGE: &str = "<!DOCTYPE html>\n<html><head><title>api.groq.com | 502: Bad gateway</title></head></html>";

/// TLS's fatal alert `internal_error`.
pub(crate) const ALERT: &str = "\x15\x03\x03\0\x02\x02\x50";

/// The certificate that an upstream presents.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Certificate {
    Good,
    WrongName,
    Expired,
    /// Signed by an authority that the shield does not trust.
    Untrusted,
}

/// The requests that reached the upstream.
pub(crate) type Log = Arc<Mutex<Vec<String>>>;

/// A running upstream, and the settings that lead the shield to it.
pub(crate) struct Upstream {
    pub(crate) url: String,
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) log: Log,
    _folder: Option<tempfile::TempDir>,
}

impl Upstream {
    pub(crate) async fn start(kind: &Kind) -> Self {
        let log = Log::default();
        // Port 1 is never an ephemeral port; a port that was free a moment ago may be taken again.
        let nowhere = match kind {
            Kind::NoName => Some("http://groq-shield-test.invalid"),
            Kind::NoPort => Some("http://127.0.0.1:1"),
            _ => None,
        };
        if let Some(url) = nowhere {
            return Self { url: url.into(), ca_file: None, log, _folder: None };
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let scheme = if matches!(kind, Kind::Tls(..) | Kind::PlainOnTls(_)) { "https" } else { "http" };
        let url = format!("{scheme}://{address}");
        let mut upstream = Self { url, ca_file: None, log: log.clone(), _folder: None };
        let acceptor = match kind {
            Kind::Tls(certificate, _) => Some(upstream.certify(*certificate)),
            Kind::TlsOnPlain => Some(upstream.certify(Certificate::Good)),
            _ => None,
        };
        match kind.clone() {
            Kind::NoName | Kind::NoPort => unreachable!("returned above"),
            Kind::Plain(scripts) => {
                accept(listener, move |socket, n| plain(socket, scripts[n.min(scripts.len() - 1)].clone(), log.clone()))
            }
            Kind::PlainOnTls(script) | Kind::Early(script) => {
                accept(listener, move |socket, _| early(socket, script.clone()));
            }
            Kind::Tls(_, script) => {
                let acceptor = acceptor.expect("made above");
                accept(listener, move |socket, _| over_tls(acceptor.clone(), socket, script.clone(), log.clone()));
            }
            Kind::TlsOnPlain => {
                let acceptor = acceptor.expect("made above");
                accept(listener, move |socket, _| over_tls(acceptor.clone(), socket, Vec::new(), log.clone()));
            }
        }
        upstream
    }

    /// Creates a certificate, and the CA file by which the shield trusts it.
    fn certify(&mut self, kind: Certificate) -> TlsAcceptor {
        let name = if kind == Certificate::WrongName { "elsewhere.example" } else { "127.0.0.1" };
        let mut params = rcgen::CertificateParams::new([name.to_owned()]).expect("a name");
        if kind == Certificate::Expired {
            params.not_before = rcgen::date_time_ymd(2001, 1, 1);
            params.not_after = rcgen::date_time_ymd(2002, 1, 1);
        }
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        if kind != Certificate::Untrusted {
            let folder = tempfile::tempdir().expect("a folder");
            let file = folder.path().join("ca.pem");
            std::fs::write(&file, certificate.pem()).expect("it is written");
            self.ca_file = Some(file);
            self._folder = Some(folder);
        }
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider's own")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .expect("they belong together");
        TlsAcceptor::from(Arc::new(config))
    }

    /// The number of requests that it has received.
    pub(crate) fn seen(&self) -> usize {
        self.log.lock().expect("no panic with it").len()
    }

    /// Settings for a shield in front of it: free ports, short retry delays, no limits, a breaker that stays closed.
    pub(crate) fn settings(&self) -> Settings {
        let mut settings = Settings::default();
        settings.server.listen = SocketAddr::from(([127, 0, 0, 1], 0));
        settings.admin.listen = settings.server.listen;
        settings.server.threads = Some(1);
        settings.server.drain_timeout = Duration::from_millis(300);
        settings.upstream.base_url = self.url.parse().expect("a URL");
        settings.upstream.ca_file = self.ca_file.clone();
        settings.limits.plan = Plan::None;
        settings.retry.attempts = 2;
        settings.retry.base_delay = Duration::from_millis(2);
        settings.retry.max_delay = Duration::from_millis(4);
        settings.breaker.failures = 1000;
        settings
    }
}

/// Starts a shield with these settings.
pub(crate) fn start(settings: Settings) -> Running {
    let listeners = Listeners::open(&settings).expect("free ports");
    server::start(Shield::new(settings).expect("nothing to fail on"), listeners).expect("it starts")
}

fn accept<F>(listener: TcpListener, serve: impl Fn(TcpStream, usize) -> F + Send + 'static)
where
    F: Future<Output = std::io::Result<()>> + Send + 'static,
{
    tokio::spawn(async move {
        let mut count = 0;
        while let Ok((socket, _)) = listener.accept().await {
            let serving = serve(socket, count);
            // Fails when the shield closes the connection, which some scripts provoke.
            tokio::spawn(async { drop(serving.await) });
            count += 1;
        }
    });
}

async fn plain(socket: TcpStream, script: Vec<Step>, log: Log) -> std::io::Result<()> {
    let mut socket = BufReader::new(socket);
    let request = read_request(&mut socket).await?;
    log.lock().expect("no panic with it").push(request);
    early(socket.into_inner(), script).await
}

async fn early(mut socket: TcpStream, script: Vec<Step>) -> std::io::Result<()> {
    for step in script {
        if let Step::Reset = step {
            return socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO));
        }
        play(&mut socket, step).await?;
    }
    socket.shutdown().await
}

async fn over_tls(acceptor: TlsAcceptor, socket: TcpStream, script: Vec<Step>, log: Log) -> std::io::Result<()> {
    let mut socket = BufReader::new(acceptor.accept(socket).await?);
    let request = read_request(&mut socket).await?;
    log.lock().expect("no panic with it").push(request);
    for step in script {
        play(&mut socket, step).await?;
    }
    socket.shutdown().await
}

async fn play(io: &mut (impl AsyncRead + AsyncWrite + Unpin), step: Step) -> std::io::Result<()> {
    match step {
        Step::Write(text) => {
            io.write_all(text.as_bytes()).await?;
            io.flush().await
        }
        Step::Pause(time) => {
            sleep(time).await;
            Ok(())
        }
        Step::Hold | Step::Reset => io.read_to_end(&mut Vec::new()).await.map(drop),
    }
}

/// Reads one request's head and body.
async fn read_request(io: &mut (impl tokio::io::AsyncBufRead + Unpin)) -> std::io::Result<String> {
    use tokio::io::AsyncBufReadExt;
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if io.read_line(&mut head).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    io.read_exact(&mut body).await?;
    Ok(head + &String::from_utf8_lossy(&body))
}

/// Headers that must not reach an app: hop-by-hop ones, and one that only the shield may set.
const PRIVATE: &str = "connection: close, x-hop\r\nx-hop: 1\r\nkeep-alive: timeout=5\r\nx-shield-error: a-lie\r\n";

/// A complete answer, then the end of the connection.
pub(crate) fn answer(status: &str, headers: &str, body: &str) -> Vec<Step> {
    let length = body.len();
    vec![Step::Write(format!("HTTP/1.1 {status}\r\n{PRIVATE}content-length: {length}\r\n{headers}\r\n{body}"))]
}

/// The same in chunks, as Groq's CDN sends its pages.
pub(crate) fn in_chunks(status: &str, headers: &str, body: &str) -> Vec<Step> {
    let chunks = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    vec![Step::Write(format!("HTTP/1.1 {status}\r\n{PRIVATE}transfer-encoding: chunked\r\n{headers}\r\n{chunks}"))]
}

/// A JSON answer.
pub(crate) fn json(status: &str, body: &str) -> Vec<Step> {
    answer(status, "content-type: application/json\r\n", body)
}

/// A successful answer to a chat call.
pub(crate) fn good() -> Vec<Step> {
    json("200 OK", r#"{"id":"x","choices":[],"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15}}"#)
}
