//! New connections to the upstream: name lookup, TCP, an HTTP proxy's tunnel and TLS, within one timeout.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Uri, header};
use http_body_util::Empty;
use hyper::{client::conn::http1, upgrade::Upgraded};
use hyper_util::{client::proxy::matcher::Intercept, rt::TokioIo};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::error::ExchangeError;
use crate::config;

/// A connection's byte stream.
pub enum Io {
    /// Plain TCP.
    Tcp(TcpStream),
    /// TLS.
    Tls(Box<TlsStream<TcpStream>>),
    /// TLS through an HTTP proxy's tunnel.
    Tunnel(Box<TlsStream<TokioIo<Upgraded>>>),
    /// In memory, for tests.
    Memory(DuplexStream),
    /// Any stream, with the protocol that TLS would have negotiated, for simulated networks.
    Simulated {
        /// The byte stream.
        stream: Box<dyn Stream>,
        /// Whether it speaks HTTP/2.
        http2: bool,
    },
}

/// An asynchronous byte stream.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Io {
    /// Whether TLS negotiated HTTP/2.
    pub(super) fn is_http2(&self) -> bool {
        let protocol = match self {
            Self::Tls(stream) => stream.get_ref().1.alpn_protocol(),
            Self::Tunnel(stream) => stream.get_ref().1.alpn_protocol(),
            Self::Simulated { http2: true, .. } => Some(HTTP2),
            Self::Tcp(_) | Self::Memory(_) | Self::Simulated { .. } => None,
        };
        protocol == Some(HTTP2)
    }
}

/// The protocols' names in ALPN.
const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// Makes connections.
pub(super) struct Connector {
    route: Route,
    timeout: Duration,
    http2: bool,
}

/// Where connections go.
enum Route {
    Net { host: String, port: u16, tls: Option<(TlsConnector, ServerName<'static>)>, proxy: Option<Intercept> },
    Made(Connect),
}

/// Makes a connection; `connect_timeout` does not apply.
pub(super) type Connect = Box<dyn Fn() -> Pin<Box<dyn Future<Output = io::Result<Io>> + Send>> + Send + Sync>;

impl Connector {
    pub(super) fn new(settings: &config::Upstream, proxy: Option<Intercept>) -> io::Result<Self> {
        let url = &settings.base_url;
        let host = url.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let is_tls = url.scheme() != Some(&http::uri::Scheme::HTTP);
        let tls = if is_tls {
            let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
            Some((TlsConnector::from(Arc::new(tls_config(settings)?)), name))
        } else {
            None
        };
        let port = url.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let route = Route::Net { host, port, tls, proxy };
        // Without TLS there is no negotiation of HTTP/2.
        Ok(Self { route, timeout: settings.connect_timeout, http2: is_tls && settings.http2 })
    }

    pub(super) fn made_by(connect: Connect, http2: bool, timeout: Duration) -> Self {
        Self { route: Route::Made(connect), timeout, http2 }
    }

    pub(super) fn is_tls(&self) -> bool {
        matches!(self.route, Route::Net { tls: Some(_), .. })
    }

    /// Whether a connection may turn out to speak HTTP/2.
    pub(super) fn offers_http2(&self) -> bool {
        self.http2
    }

    /// A new connection.
    pub(super) async fn connect(&self) -> Result<Io, ExchangeError> {
        let late = |_| ExchangeError::Unreachable(format!("no connection within {} s", self.timeout.as_secs_f64()));
        timeout(self.timeout, self.route.connect()).await.map_err(late)?
    }
}

impl Route {
    async fn connect(&self) -> Result<Io, ExchangeError> {
        match self {
            Self::Made(connect) => connect().await.map_err(|e| unreachable(&e)),
            Self::Net { host, port, tls, proxy: None } => {
                let tcp = tcp(host, *port).await?;
                match tls {
                    None => Ok(Io::Tcp(tcp)),
                    Some((connector, name)) => {
                        let stream = connector.connect(name.clone(), tcp).await.map_err(|e| handshake(&e))?;
                        Ok(Io::Tls(Box::new(stream)))
                    }
                }
            }
            Self::Net { host, port, tls, proxy: Some(proxy) } => {
                let via = proxy.uri();
                let tcp = tcp(via.host().unwrap_or_default(), via.port_u16().unwrap_or(80)).await?;
                match tls {
                    None => Ok(Io::Tcp(tcp)),
                    Some((connector, name)) => {
                        let tunnel = tunnel(tcp, &format!("{host}:{port}"), proxy).await?;
                        let stream = connector.connect(name.clone(), TokioIo::new(tunnel)).await.map_err(|e| handshake(&e))?;
                        Ok(Io::Tunnel(Box::new(stream)))
                    }
                }
            }
        }
    }
}

async fn tcp(host: &str, port: u16) -> Result<TcpStream, ExchangeError> {
    let stream = TcpStream::connect((host, port)).await.map_err(|e| unreachable(&e))?;
    stream.set_nodelay(true).map_err(|e| unreachable(&e))?;
    Ok(stream)
}

/// CONNECT through an HTTP proxy.
async fn tunnel(tcp: TcpStream, authority: &str, proxy: &Intercept) -> Result<Upgraded, ExchangeError> {
    let refused = |why: String| ExchangeError::Unreachable(format!("the HTTP proxy did not open a tunnel: {why}"));
    let (mut send, driver) = http1::handshake(TokioIo::new(tcp)).await.map_err(|e| refused(e.to_string()))?;
    let driver = tokio::spawn(driver.with_upgrades());
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = authority.parse::<Uri>().map_err(|e| refused(e.to_string()))?;
    request.headers_mut().insert(header::HOST, authority.parse().map_err(|_| refused("bad authority".into()))?);
    if let Some(auth) = proxy.basic_auth() {
        request.headers_mut().insert(header::PROXY_AUTHORIZATION, auth.clone());
    }
    let answer = send.send_request(request).await.map_err(|e| refused(e.to_string()))?;
    if !answer.status().is_success() {
        driver.abort();
        return Err(refused(answer.status().to_string()));
    }
    hyper::upgrade::on(answer).await.map_err(|e| refused(e.to_string()))
}

/// Groq's certificate must be signed by a public root or one of `ca_file`.
fn tls_config(settings: &config::Upstream) -> io::Result<ClientConfig> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    if let Some(file) = &settings.ca_file {
        let unusable = |why: String| io::Error::other(format!("upstream.ca_file {}: {why}", file.display()));
        for cert in CertificateDer::pem_file_iter(file).map_err(|e| unusable(e.to_string()))? {
            let cert = cert.map_err(|e| unusable(e.to_string()))?;
            roots.add(cert).map_err(|e| unusable(e.to_string()))?;
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config = versions.map_err(io::Error::other)?.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = if settings.http2 { vec![HTTP2.to_vec(), HTTP1.to_vec()] } else { vec![HTTP1.to_vec()] };
    Ok(config)
}

/// A readable error without addresses.
fn unreachable(error: &io::Error) -> ExchangeError {
    ExchangeError::Unreachable(match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".into(),
        io::ErrorKind::ConnectionReset => "connection reset".into(),
        io::ErrorKind::TimedOut => "connection timed out".into(),
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => "no route".into(),
        _ => error.to_string(),
    })
}

fn handshake(error: &io::Error) -> ExchangeError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(alert @ rustls::Error::AlertReceived(_)) => ExchangeError::TlsAlert(alert.to_string()),
        Some(error) => ExchangeError::Tls(error.to_string()),
        // Not caused by a certificate: another attempt may succeed.
        None => ExchangeError::Unreachable("the TLS handshake was cut off".into()),
    }
}

macro_rules! each {
    ($self:expr, $io:ident => $call:expr) => {
        match $self.get_mut() {
            Io::Tcp($io) => $call,
            Io::Tls($io) => $call,
            Io::Tunnel($io) => $call,
            Io::Memory($io) => $call,
            Io::Simulated { stream: $io, .. } => $call,
        }
    };
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, io => Pin::new(io).poll_read(cx, buf))
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, io => Pin::new(io).poll_write(cx, buf))
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        each!(self, io => Pin::new(io).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        matches!(self, Self::Tcp(_) | Self::Memory(_))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => Pin::new(io).poll_shutdown(cx))
    }
}
