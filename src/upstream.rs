//! How does one attempt reach Groq? One request out, an [`Answer`] or a [`Failure`] back.
//!
//! A connection is driven by the request that uses it and by nobody else: no task of its own, so a client that
//! leaves takes its upstream request with it at once, and a failure knows whether the request ever left.

use std::{fmt, io, sync::Arc, time::Duration};

use http::{Uri, response::Parts};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use tokio::time::{Instant, sleep};

use crate::config;

mod connection;
mod connector;
mod head;
mod pool;
mod request;
mod response;

use connection::{Connection, NoHead};
use connector::Connector;
pub use connector::Io;
use head::Head;
use pool::Pool;
use request::Address;
pub use request::UpstreamRequest;
pub use response::ResponseBody;

/// Idle connections are looked at this often.
const SWEEP: Duration = Duration::from_secs(15);

/// What was wrong with an attempt that got no whole answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExchangeError {
    /// Name, TCP, connect timeout, the HTTP proxy.
    Unreachable(String),
    /// Certificate or handshake.
    Tls(String),
    /// Closed or reset before the answer was complete.
    Closed,
    /// No head, or no next frame, in time.
    Timeout,
    /// Not HTTP, or not what the endpoint answers.
    Invalid(&'static str),
}

/// An attempt without a whole answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What was wrong.
    pub error: ExchangeError,
    /// Whether the request may have reached Groq.
    pub sent: bool,
}

impl Failure {
    /// A failure after the request went out.
    pub fn after_sending(error: ExchangeError) -> Self {
        Self { error, sent: true }
    }

    fn before_sending(error: ExchangeError) -> Self {
        Self { error, sent: false }
    }
}

/// An answer whose head has come.
#[derive(Debug)]
pub struct Answer {
    /// Status and headers.
    pub head: Parts,
    /// What is still to come.
    pub body: ResponseBody,
}

/// The way to Groq: connector, time limits, idle connections.
pub struct Upstream {
    connector: Connector,
    pool: Arc<Pool>,
    host: String,
    address: Address,
    response_timeout: Duration,
    idle_timeout: Duration,
}

fn is_loopback(url: &Uri) -> bool {
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").field("host", &self.host).finish_non_exhaustive()
    }
}

impl Upstream {
    /// The upstream of these settings. Fails on a `ca_file` that cannot be used.
    pub fn new(settings: &config::Upstream) -> io::Result<Self> {
        let proxy = match &settings.proxy {
            Some(proxy) => Matcher::builder().all(proxy.to_string()).build(),
            // A proxy elsewhere cannot reach this machine's own loopback.
            None if is_loopback(&settings.base_url) => Matcher::builder().build(),
            None => Matcher::from_env(),
        }
        .intercept(&settings.base_url);
        let connector = Connector::new(settings, proxy.clone())?;
        // A plain upstream is asked for in absolute form; to the other one the proxy makes a tunnel.
        let forward_proxy = proxy.filter(|_| !connector.is_tls());
        Ok(Self::to(connector, forward_proxy.as_ref(), settings))
    }

    /// An upstream at the other end of connections made by `connect`: tests in virtual time.
    pub fn over(settings: &config::Upstream, connect: impl Fn() -> io::Result<Io> + Send + Sync + 'static) -> Self {
        Self::to(Connector::made_by(Box::new(connect), settings.connect_timeout), None, settings)
    }

    fn to(connector: Connector, forward_proxy: Option<&Intercept>, settings: &config::Upstream) -> Self {
        let host = settings.base_url.authority().map_or("localhost", |authority| authority.as_str());
        let prefix = settings.base_url.path().trim_end_matches('/');
        let through_proxy = forward_proxy.map(Intercept::basic_auth);
        Self {
            pool: Arc::default(),
            host: host.to_owned(),
            address: Address::new(host, prefix, connector.is_tls(), through_proxy),
            connector,
            response_timeout: settings.response_timeout,
            idle_timeout: settings.idle_timeout,
        }
    }

    /// The upstream's authority: the only one that a request in absolute form may name.
    pub fn authority(&self) -> &str {
        &self.host
    }

    /// Sends one request and waits for the answer's head. `sending` is called right before the first byte may go out; it says when
    /// that is.
    pub async fn send(&self, request: &UpstreamRequest, mut sending: impl FnMut() -> Instant) -> Result<Answer, Failure> {
        let mut encoded = request.encode(&self.address);
        loop {
            let (mut connection, used_before) = self.connect().await?;
            let due = sending() + self.response_timeout;
            match connection.exchange(encoded, request.is_head(), due).await {
                Ok(Head { message, rest, stays }) => {
                    let body = ResponseBody::new(rest, stays, connection, self.pool.clone(), self.idle_timeout);
                    return Ok(Answer { head: message, body });
                }
                // An idle connection that had closed: nothing went out, a new one takes it.
                Err(NoHead::Unsent(unsent)) if used_before => encoded = unsent,
                Err(NoHead::Unsent(_)) => return Err(Failure::before_sending(ExchangeError::Closed)),
                Err(NoHead::Failed(error)) => return Err(Failure::after_sending(error)),
            }
        }
    }

    /// Closes idle connections in time, for as long as it is polled: without it a quiet shield would keep dead ones.
    pub async fn reap_idle(&self) {
        loop {
            sleep(SWEEP).await;
            self.pool.sweep();
        }
    }

    /// A connection, and whether it was used before.
    async fn connect(&self) -> Result<(Box<Connection>, bool), Failure> {
        if let Some(connection) = self.pool.take() {
            return Ok((connection, true));
        }
        // Seldom, and large: every request would carry room for it.
        let io = Box::pin(self.connector.connect()).await.map_err(Failure::before_sending)?;
        Ok((Connection::new(io), false))
    }
}

#[cfg(test)]
mod tests;
