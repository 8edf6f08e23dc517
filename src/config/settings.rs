//! The tables of the configuration file and their keys.
//!
//! Doc comments go into the JSON schema, the example file and the table of keys: one line each. Ranges are in the schema, which the
//! file is checked against; `x-help` is what a fault advises for a number out of range.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use http::Uri;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smart_default::SmartDefault;

mod apps;
mod limits;

pub use apps::{App, ModelPrice};
pub use limits::{Limits, Mode};

use super::{
    fallback::Fallback,
    formats::{Address, As, BaseUrl, Digest, ProxyUrl, Size, Time, TimeOrOff},
};
use crate::accounts::{Price, TokenPrice};

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// What a fault advises where the name of an environment variable is expected: it may be a key.
const VARIABLE_HELP: &str = "keys do not belong in the file: name the variable that holds it, for example \"GROQ_API_KEY\"";

/// The whole file. Flags and environment variables win over it, it wins over these defaults.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(title = "groq-shield's configuration")]
pub struct Settings {
    /// The listener for apps.
    pub server: Server,
    /// The listener for health, metrics, status and the page; keep it on loopback.
    pub admin: Admin,
    /// The connection to Groq.
    pub upstream: Upstream,
    /// Keys that share one set of limits; an unlisted key is an organization of its own. Live.
    pub organization: Vec<Organization>,
    /// Groq's limits; corrected by its headers and refusals. Live.
    pub limits: Limits,
    /// Requests that wait for their limits. Live.
    pub queue: Queue,
    /// Retries of transient failures, with full jitter. Live.
    pub retry: Retry,
    /// Stops sending to a model that keeps failing. Live.
    pub breaker: Breaker,
    /// An app with a share of its own. If any app has a token, a request without a known one gets 401. Live.
    pub app: Vec<App>,
    /// Prices of models, for costs and budgets. No defaults, since prices change. Live.
    pub price: BTreeMap<String, ModelPrice>,
    /// Other models for requests that the requested model cannot serve. Live.
    pub fallback: Vec<Fallback>,
    /// Where limiter state is kept; redis shares it between replicas.
    pub store: Store,
    /// Log lines and spans.
    pub log: Log,
}

impl Settings {
    /// The names of the apps that have entries of their own.
    pub fn named_apps(&self) -> impl Iterator<Item = &str> {
        self.app.iter().map(|app| app.name.as_str()).filter(|name| *name != App::EVERYONE_ELSE)
    }

    /// Whether requests need the token of an app.
    pub fn needs_tokens(&self) -> bool {
        self.app.iter().any(|app| app.token_env.is_some() || app.token_sha256.is_some())
    }

    /// The price of a model, where one is given.
    pub fn price_of(&self, model: &str) -> Option<Price> {
        self.price.get(model).map(|price| {
            // Neither is set without the other: see `prices`.
            let tokens = price.input.zip(price.output).map(|(input, output)| TokenPrice {
                input,
                cached_input: price.cached_input.unwrap_or(input),
                output,
            });
            Price { tokens, audio_hour: price.audio_hour }
        })
    }
}

/// `[server]`
#[derive(Clone, Debug, PartialEq, SmartDefault, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// Address and port that apps connect to, with HTTP/1.1 or HTTP/2; port 0 takes a free one.
    #[serde(with = "As::<Address>")]
    #[schemars(extend("x-help" = "for example \"127.0.0.1:8787\", or \"0.0.0.0:8787\" for every interface"))]
    #[default(SocketAddr::from(([127, 0, 0, 1], 8787)))]
    pub listen: SocketAddr,
    /// Share the port with another shield that sets it too, also on admin.listen, for a replacement without a gap.
    pub reuse_port: bool,
    /// Worker threads; unset: one per core.
    #[schemars(range(min = 1, max = 1024), example = 2, extend("x-help" = "leave it out for one per core"))]
    pub threads: Option<usize>,
    /// Concurrent connections; over HTTP/2 each has up to 256 concurrent requests.
    #[schemars(range(min = 1, max = 1_000_000))]
    #[default(4096)]
    pub max_connections: usize,
    /// Largest request body; a larger one gets 413.
    #[serde(with = "As::<Size>")]
    #[default(100 << 20)]
    pub max_body: u64,
    /// Time for the TLS handshake, for a connection's first request, and for the rest of a request head. An idle connection is kept for 330 s.
    #[serde(with = "As::<Time<1>>")]
    #[default(secs(30))]
    pub header_timeout: Duration,
    /// Time between two reads of a request body.
    #[serde(with = "As::<Time<1>>")]
    #[default(secs(30))]
    pub body_timeout: Duration,
    /// Time for running requests to finish after SIGTERM.
    #[serde(with = "As::<Time>")]
    #[default(secs(25))]
    pub drain_timeout: Duration,
    /// TLS for apps, with HTTP/2 for clients that offer it; unset: plain HTTP, and HTTP/2 by prior knowledge.
    pub tls: Option<Tls>,
}

/// `[server.tls]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["cert", "key"]))]
pub struct Tls {
    /// Certificate chain, PEM; read again on SIGHUP.
    #[schemars(title = "a path", example = &"/etc/groq-shield/tls.crt")]
    pub cert: PathBuf,
    /// Its private key, PEM.
    #[schemars(title = "a path", example = &"/etc/groq-shield/tls.key")]
    pub key: PathBuf,
}

/// `[admin]`
#[derive(Clone, Debug, PartialEq, SmartDefault, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// Address and port that operators connect to; port 0 takes a free one.
    #[serde(with = "As::<Address>")]
    #[default(SocketAddr::from(([127, 0, 0, 1], 8788)))]
    pub listen: SocketAddr,
}

/// `[upstream]`
#[derive(Clone, Debug, PartialEq, SmartDefault, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Upstream {
    /// Where requests are sent; a path in it is prepended to each request's path.
    #[serde(with = "As::<BaseUrl>")]
    #[default(Uri::from_static("https://api.groq.com"))]
    pub base_url: Uri,
    /// Time to connect: DNS, TCP and TLS together.
    #[serde(with = "As::<Time<1>>")]
    #[default(secs(5))]
    pub connect_timeout: Duration,
    /// Time until the head of a response.
    #[serde(with = "As::<Time<1>>")]
    #[default(secs(300))]
    pub response_timeout: Duration,
    /// Time between two reads of a response body; the whole body may take longer.
    #[serde(with = "As::<Time<1>>")]
    #[default(secs(120))]
    pub idle_timeout: Duration,
    /// Offer HTTP/2 in TLS handshakes; without TLS, HTTP/1.1 is spoken.
    #[default(true)]
    pub http2: bool,
    /// HTTP proxy to connect through; unset: HTTPS_PROXY and NO_PROXY apply.
    #[serde(with = "As::<Option<ProxyUrl>>")]
    pub proxy: Option<Uri>,
    /// Additional trusted root certificates, PEM; unset: Mozilla's only.
    #[schemars(title = "a path", example = &"/etc/ssl/internal-ca.pem")]
    pub ca_file: Option<PathBuf>,
    /// Environment variable with the key for requests that have none; unset: apps send their own.
    #[schemars(title = "the name of an environment variable", example = &"GROQ_API_KEY")]
    #[schemars(extend("x-help" = VARIABLE_HELP))]
    pub api_key_env: Option<String>,
}

/// `[[organization]]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["name"]))]
pub struct Organization {
    /// Its name in status and metrics.
    #[schemars(title = "a name of 1 to 128 printable bytes", example = &"acme")]
    pub name: String,
    /// Environment variables with its keys.
    #[schemars(
        extend("items" = {"type": "string", "title": "the name of an environment variable", "examples": ["GROQ_API_KEY"], "x-help": VARIABLE_HELP}, "uniqueItems" = true),
        example = ["GROQ_API_KEY", "GROQ_API_KEY_2"]
    )]
    pub api_key_env: Vec<String>,
    /// SHA-256 of its keys, hex.
    #[schemars(extend("uniqueItems" = true), example = ["e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"])]
    pub api_key_sha256: Vec<Digest>,
}

/// `[queue]`
#[derive(Clone, Debug, PartialEq, SmartDefault, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Queue {
    /// Longest wait in the queue; a client's own deadline may be earlier.
    #[serde(with = "As::<Time>")]
    #[default(secs(50))]
    pub max_wait: Duration,
    /// Requests that wait at once.
    #[schemars(range(min = 1, max = 10_000_000), extend("x-help" = "to let nobody wait, queue.max_wait = \"0s\""))]
    #[default(1000)]
    pub max_waiting: usize,
    /// Bytes of request bodies held at once.
    #[serde(with = "As::<Size>")]
    #[default(256 << 20)]
    pub max_bytes: u64,
    /// Time between comments sent to a stream that waits, or off.
    #[serde(with = "As::<TimeOrOff>")]
    pub stream_keepalive: Option<Duration>,
}

/// `[retry]`
#[derive(Clone, Debug, PartialEq, SmartDefault, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Retry {
    /// Attempts at most, the first included.
    #[schemars(range(min = 1, max = 100), extend("x-help" = "1 sends once and never again"))]
    #[default(4)]
    pub attempts: u32,
    /// Upper bound of the first back-off; it doubles with each retry.
    #[serde(with = "As::<Time>")]
    #[default(Duration::from_millis(250))]
    pub base_delay: Duration,
    /// Upper bound of every back-off.
    #[serde(with = "As::<Time>")]
    #[default(secs(8))]
    pub max_delay: Duration,
    /// Retries allowed per request of the last minute, plus 10 a second.
    #[schemars(range(min = 0.0, max = 10.0))]
    #[default(0.2)]
    pub budget: f64,
}

/// `[breaker]`
#[derive(Clone, Debug, PartialEq, SmartDefault, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Breaker {
    /// Consecutive failures that open it.
    #[schemars(range(min = 1, max = 1_000_000), extend("x-help" = "to keep it closed, a large number"))]
    #[default(5)]
    pub failures: u32,
    /// Time until one request probes.
    #[serde(with = "As::<Time<1>>")]
    #[default(secs(5))]
    pub open: Duration,
    /// Longest wait for an open breaker, before the answer is 503; unset: one breaker.open.
    #[serde(with = "As::<Option<Time>>")]
    #[schemars(example = &"5s")]
    pub max_wait: Option<Duration>,
}

impl Breaker {
    /// Longest wait of a request for an open breaker.
    pub fn max_wait(&self) -> Duration {
        self.max_wait.unwrap_or(self.open)
    }
}

/// Where limiter state is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    /// In this process.
    #[default]
    Local,
    /// In Redis or Valkey, shared by replicas.
    Redis,
}

/// `[store]`
#[derive(Clone, Debug, PartialEq, SmartDefault, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Store {
    /// local or redis; unset: redis where url is set, else local.
    pub kind: StoreKind,
    /// redis:// or rediss:// (TLS), with user:password@ before the host where it needs them; required for redis.
    #[schemars(title = "a redis or rediss URL", example = &"redis://localhost:6379")]
    pub url: Option<String>,
    /// Trusted root certificates for a rediss:// URL with a private authority, PEM; unset: Mozilla's.
    #[schemars(title = "a path", example = &"/etc/ssl/internal-ca.pem")]
    pub ca_file: Option<PathBuf>,
    /// Prefix of every key in the store.
    #[default("groq-shield".into())]
    pub prefix: String,
    /// Longest wait of a request for the store.
    #[serde(with = "As::<Time<1>>")]
    #[default(Duration::from_millis(250))]
    pub timeout: Duration,
    /// Number of replicas to assume until the store has reported it.
    #[schemars(range(min = 1, max = 1000))]
    #[default(1)]
    pub replicas: u32,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For machines.
    Json,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, SmartDefault, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// off, error, warn, info, debug, trace, or a filter such as groq_shield=debug,warn. Live.
    #[schemars(title = "a log level or filter", extend("x-help" = "off, error, warn, info, debug, trace, or a filter"))]
    #[default("info".into())]
    pub level: String,
    /// text or json.
    pub format: LogFormat,
    /// Collector for spans, OTLP over HTTP; unset: none.
    #[schemars(title = "an http or https URL", example = &"http://localhost:4318")]
    pub otlp_endpoint: Option<String>,
}
