//! The client side: sends one request to Groq, and returns its response or a [`Failure`].
//!
//! The pool is ours, on `hyper::client::conn`, because hyper-util's pools do not report whether a request was sent, which decides
//! whether it may be sent again and what it costs under the limits; and because they use a single HTTP/2 connection, on which
//! hyper queues requests beyond the peer's limit. It also lets a request poll its own HTTP/1.1 connection, without a task and a
//! channel between them, and dropping a request closes its connection at once.

use std::{fmt, io, sync::Arc, time::Duration};

use http::{
    HeaderValue, Response, Uri,
    uri::{Authority, Scheme},
};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use tokio::time::{Instant, sleep};

use crate::config;

mod connection;
mod connector;
mod error;
mod http1;
mod http2;
mod limits;
mod pool;
mod request;
mod response;
mod shared;
mod timer;
mod write_errors;

use connector::{Connect, Connector};
pub use connector::{Io, Stream};
use error::Unanswered;
pub use error::{ExchangeError, Failure};
use pool::Pool;
pub use request::UpstreamRequest;
use request::{ForwardProxy, Origin};
pub use response::ResponseBody;

/// How often idle connections are checked.
const REAP_INTERVAL: Duration = Duration::from_secs(15);
/// Maximum number of times that an unsent request moves to another connection at once, because the peer had closed the connection
/// or refused the stream. After that the retry policy decides, with its delays.
const MAX_RESENDS: usize = 3;

/// The client for one upstream: its address, timeouts and connections.
pub struct Upstream {
    origin: Origin,
    pool: Arc<Pool>,
    response_timeout: Duration,
    idle_timeout: Duration,
}

fn is_loopback(url: &Uri) -> bool {
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").field("origin", &self.origin).finish_non_exhaustive()
    }
}

impl Upstream {
    /// The upstream of these settings. Fails if `ca_file` cannot be used.
    pub fn new(settings: &config::Upstream) -> io::Result<Self> {
        let proxy = match &settings.proxy {
            Some(proxy) => Matcher::builder().all(proxy.to_string()).build(),
            // A remote proxy cannot reach this machine's loopback.
            None if is_loopback(&settings.base_url) => Matcher::builder().build(),
            None => Matcher::from_env(),
        }
        .intercept(&settings.base_url);
        let connector = Connector::new(settings, proxy.clone())?;
        // To an upstream with TLS the proxy opens a tunnel instead.
        let forward_proxy = proxy.filter(|_| !connector.is_tls());
        Ok(Self::with_connector(connector, forward_proxy.as_ref(), settings))
    }

    /// An upstream whose connections are made by `connect`: for tests in virtual time.
    pub fn over(settings: &config::Upstream, connect: impl Fn() -> io::Result<Io> + Send + Sync + 'static) -> Self {
        Self::connected_by(settings, false, move || std::future::ready(connect()))
    }

    /// Like [`Self::over`], but connecting takes time, and with `http2` connections may speak HTTP/2.
    pub fn connected_by<F>(settings: &config::Upstream, http2: bool, connect: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = io::Result<Io>> + Send + 'static,
    {
        let connect: Connect = Box::new(move || Box::pin(connect()));
        Self::with_connector(Connector::made_by(connect, http2, settings.connect_timeout), None, settings)
    }

    fn with_connector(connector: Connector, forward_proxy: Option<&Intercept>, settings: &config::Upstream) -> Self {
        let url = &settings.base_url;
        let authority = url.authority().cloned().unwrap_or(Authority::from_static("localhost"));
        let origin = Origin {
            scheme: url.scheme().cloned().unwrap_or(Scheme::HTTPS),
            host: HeaderValue::from_str(authority.as_str()).expect("an authority is a valid header"),
            authority,
            prefix: url.path().trim_end_matches('/').to_owned(),
            forward_proxy: forward_proxy.map(|proxy| ForwardProxy { authorization: proxy.basic_auth().cloned() }),
        };
        Self {
            origin,
            pool: Arc::new(Pool::new(connector)),
            response_timeout: settings.response_timeout,
            idle_timeout: settings.idle_timeout,
        }
    }

    /// The upstream's authority, the only one that a request in absolute form may name.
    pub fn authority(&self) -> &str {
        self.origin.authority.as_str()
    }

    /// Sends one request and waits for the head of the response. `sending` is called right before the first byte may be sent,
    /// and returns the time.
    ///
    /// # Errors
    /// There is no such head within `response_timeout`.
    pub async fn send(
        &self,
        request: &mut UpstreamRequest,
        mut sending: impl FnMut() -> Instant,
    ) -> Result<Response<ResponseBody>, Failure> {
        let mut resends = 0;
        loop {
            let mut connection = self.pool.acquire().await.map_err(Failure::before_sending)?;
            let deadline = sending() + self.response_timeout;
            match connection.exchange(request, &self.origin, deadline).await {
                Ok(response) => {
                    let body = |incoming| ResponseBody::new(incoming, connection, self.pool.clone(), self.idle_timeout);
                    return Ok(response.map(body));
                }
                Err(Unanswered::Unsent(_)) if connection.was_open() && resends < MAX_RESENDS => resends += 1,
                Err(Unanswered::Unsent(error)) => return Err(Failure::before_sending(error)),
                Err(Unanswered::Failed(error)) => return Err(Failure::after_sending(error)),
            }
        }
    }

    /// Closes idle connections for as long as it is polled: without requests nothing else checks them.
    pub async fn reap_idle(&self) {
        loop {
            sleep(REAP_INTERVAL).await;
            self.pool.reap();
        }
    }
}

#[cfg(test)]
mod tests;
