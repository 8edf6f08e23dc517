//! What can an operator say? The TOML file as types: what can't be represented can't be configured.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use http::Uri;

mod draft;
mod effective;
pub mod example;
mod fallback;
mod faults;
mod keys;
mod limiter;
mod notes;
mod read;
mod reload;
mod rule;
mod source;
pub mod units;
mod value;

pub use fallback::{Fallback, FallbackReason};
pub use faults::{Fault, Faults, Origin};
pub use reload::{Change, Next, Reload};
pub use source::{Loaded, PLACES, Source};

/// The effective configuration: flags and environment over file over these defaults.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// `[server]`
    pub server: Server,
    /// `[admin]`
    pub admin: Admin,
    /// `[upstream]`
    pub upstream: Upstream,
    /// `[limits]`
    pub limits: Limits,
    /// `[[organisation]]`
    pub organisations: Vec<Organisation>,
    /// `[queue]`
    pub queue: Queue,
    /// `[retry]`
    pub retry: Retry,
    /// `[breaker]`
    pub breaker: Breaker,
    /// `[[app]]`
    pub apps: Vec<App>,
    /// `[[fallback]]`
    pub fallbacks: Vec<Fallback>,
    /// `[store]`
    pub store: Store,
    /// `[log]`
    pub log: Log,
}

/// `[server]`: the listener that apps talk to.
#[derive(Clone, Debug, PartialEq)]
pub struct Server {
    /// Where apps connect.
    pub listen: SocketAddr,
    /// Share both listening addresses with a second process that also sets this.
    pub reuse_port: bool,
    /// Worker threads; `None`: one per core.
    pub threads: Option<usize>,
    /// Connections at once.
    pub max_connections: usize,
    /// Bytes of one request body.
    pub max_body: u64,
    /// Time for a request's head.
    pub header_timeout: Duration,
    /// Time between reads of a body.
    pub body_timeout: Duration,
    /// Time that running requests have to finish after SIGTERM.
    pub drain_timeout: Duration,
    /// Certificate and key files, PEM.
    pub tls: Option<Tls>,
}

/// `server.tls`
#[derive(Clone, Debug, PartialEq)]
pub struct Tls {
    /// Certificate chain, PEM.
    pub cert: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
}

/// `[admin]`: health, metrics, status, the page.
#[derive(Clone, Debug, PartialEq)]
pub struct Admin {
    /// Where operators connect.
    pub listen: SocketAddr,
}

/// `[upstream]`: the way to Groq.
#[derive(Clone, Debug, PartialEq)]
pub struct Upstream {
    /// Scheme and authority (a path is put before every request's).
    pub base_url: Uri,
    /// Name, TCP and TLS together.
    pub connect_timeout: Duration,
    /// To the answer's head.
    pub response_timeout: Duration,
    /// Between frames of a body; never a total limit.
    pub idle_timeout: Duration,
    /// HTTP proxy to go through; `None`: HTTPS_PROXY and NO_PROXY decide.
    pub proxy: Option<Uri>,
    /// More trusted roots, PEM.
    pub ca_file: Option<PathBuf>,
    /// Variable with the key to use when the app sends none.
    pub api_key_env: Option<String>,
}

/// The starting table of limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Plan {
    /// Start from free, follow the headers.
    #[default]
    Auto,
    /// Groq's free plan.
    Free,
    /// Groq's developer plan.
    Developer,
    /// Nothing but what is configured and what refusals teach.
    None,
}

/// `[limits]`
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// The starting table.
    pub plan: Plan,
    /// Share of every limit left to others, 0 to 0.9.
    pub headroom: f64,
    /// Where levels are kept across restarts.
    pub state_file: Option<PathBuf>,
    /// Lower `max_completion_tokens` instead of answering 413.
    pub fit_ceiling: bool,
    /// `[limits.default]`: for models without a table of their own.
    pub default: ModelLimits,
    /// `[limits.model."…"]`
    pub models: BTreeMap<String, ModelLimits>,
}

/// One model's limits; what is `None` comes from the plan's table, the headers or refusals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModelLimits {
    /// RPM
    pub requests_per_minute: Option<u64>,
    /// RPD
    pub requests_per_day: Option<u64>,
    /// TPM
    pub tokens_per_minute: Option<u64>,
    /// TPD
    pub tokens_per_day: Option<u64>,
    /// ITPM
    pub input_tokens_per_minute: Option<u64>,
    /// OTPM
    pub output_tokens_per_minute: Option<u64>,
    /// ASPH
    pub audio_seconds_per_hour: Option<u64>,
    /// ASPD
    pub audio_seconds_per_day: Option<u64>,
    /// What Groq assumes where a request names no ceiling.
    pub assumed_completion_tokens: Option<u64>,
}

/// `[[organisation]]`: keys that share one set of limits.
#[derive(Clone, Debug, PartialEq)]
pub struct Organisation {
    /// Its name in status and metrics.
    pub name: String,
    /// Variables that hold keys.
    pub api_key_env: Vec<String>,
    /// SHA-256 of keys, hex decoded.
    pub api_key_sha256: Vec<[u8; 32]>,
}

/// `[queue]`: the line.
#[derive(Clone, Debug, PartialEq)]
pub struct Queue {
    /// Longest wait.
    pub max_wait: Duration,
    /// Requests waiting at once.
    pub max_waiting: usize,
    /// Bytes of bodies held at once.
    pub max_bytes: u64,
    /// SSE comments while a stream waits.
    pub stream_keepalive: Option<Duration>,
}

/// `[retry]`
#[derive(Clone, Debug, PartialEq)]
pub struct Retry {
    /// Sends at most, the first included.
    pub attempts: u32,
    /// First back-off's upper bound.
    pub base_delay: Duration,
    /// Every back-off's upper bound.
    pub max_delay: Duration,
    /// Retries per request over the last minute.
    pub budget: f64,
}

/// `[breaker]`
#[derive(Clone, Debug, PartialEq)]
pub struct Breaker {
    /// Failures in a row that open it.
    pub failures: u32,
    /// How long it stays open before one probe.
    pub open: Duration,
    /// Longest wait of a request for an open breaker; `None`: as long as `open`.
    pub max_wait: Option<Duration>,
}

impl Breaker {
    /// Longest wait of a request for an open breaker.
    pub fn max_wait(&self) -> Duration {
        self.max_wait.unwrap_or(self.open)
    }
}

/// How urgent an app's requests are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Somebody waits for the answer.
    #[default]
    Interactive,
    /// Nobody does.
    Batch,
}

/// `[[app]]`
#[derive(Clone, Debug, PartialEq)]
pub struct App {
    /// Its name in status and metrics.
    pub name: String,
    /// Variable that holds its token.
    pub token_env: Option<String>,
    /// SHA-256 of its token, hex decoded.
    pub token_sha256: Option<[u8; 32]>,
    /// Its share of a limit relative to the others'.
    pub weight: f64,
    /// Its class where a request does not say.
    pub class: Class,
    /// Whether its requests may be served by another model, as `[[fallback]]` says.
    pub fallback: bool,
}

impl Default for App {
    fn default() -> Self {
        Self { name: String::new(), token_env: None, token_sha256: None, weight: 1.0, class: Class::default(), fallback: true }
    }
}

/// Where levels are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StoreKind {
    /// In this process.
    #[default]
    Local,
    /// In Redis or Valkey, shared by replicas.
    Redis,
}

/// `[store]`
#[derive(Clone, Debug, PartialEq)]
pub struct Store {
    /// Where levels are kept.
    pub kind: StoreKind,
    /// `redis://` or `rediss://`
    pub url: Option<String>,
    /// Trusted roots of its certificate, PEM, in the place of Mozilla's.
    pub ca_file: Option<PathBuf>,
    /// First part of every key.
    pub prefix: String,
    /// No request waits longer on the store.
    pub timeout: Duration,
    /// Replicas to reckon with until it has told how many there are.
    pub replicas: u32,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For machines.
    Json,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    /// A tracing filter: `info`, `groq_shield=debug`, `off`.
    pub level: String,
    /// Text or JSON.
    pub format: LogFormat,
    /// Collector for spans, OTLP over HTTP.
    pub otlp_endpoint: Option<String>,
}

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

impl Default for Server {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8787)),
            reuse_port: false,
            threads: None,
            max_connections: 4096,
            max_body: 100 << 20,
            header_timeout: secs(30),
            body_timeout: secs(30),
            drain_timeout: secs(25),
            tls: None,
        }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 8788)) }
    }
}

impl Default for Upstream {
    fn default() -> Self {
        Self {
            base_url: Uri::from_static("https://api.groq.com"),
            connect_timeout: secs(5),
            response_timeout: secs(300),
            idle_timeout: secs(120),
            proxy: None,
            ca_file: None,
            api_key_env: None,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            plan: Plan::Auto,
            headroom: 0.0,
            state_file: None,
            fit_ceiling: false,
            default: ModelLimits::default(),
            models: BTreeMap::new(),
        }
    }
}

impl Default for Queue {
    fn default() -> Self {
        Self { max_wait: secs(50), max_waiting: 1000, max_bytes: 256 << 20, stream_keepalive: None }
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts: 4, base_delay: Duration::from_millis(250), max_delay: secs(8), budget: 0.2 }
    }
}

impl Default for Breaker {
    fn default() -> Self {
        Self { failures: 5, open: secs(5), max_wait: None }
    }
}

impl Default for Store {
    fn default() -> Self {
        Self {
            kind: StoreKind::Local,
            url: None,
            ca_file: None,
            prefix: "groq-shield".into(),
            timeout: Duration::from_millis(250),
            replicas: 1,
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".into(), format: LogFormat::Text, otlp_endpoint: None }
    }
}
