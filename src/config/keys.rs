//! Which keys are there? The one list that reading, `check`, the example file and the README's table follow.

use super::{App, Class, LogFormat, ModelLimits, Organisation, Plan, StoreKind, draft::Draft, rule::Rule, value::Setting};

/// One key of a `T`.
pub(super) struct Key<T> {
    /// Its name inside its table; `tls.cert` is `cert` of a table inside.
    pub(super) name: &'static str,
    /// What it accepts.
    pub(super) rule: Rule,
    /// Where it is kept.
    pub(super) place: fn(&mut T) -> &mut dyn Setting,
    /// What it does, one line.
    pub(super) doc: &'static str,
    /// A value for the example file, as TOML, where there is no default.
    pub(super) example: &'static str,
}

/// One table of keys.
pub(super) struct Table {
    /// Its name.
    pub(super) name: &'static str,
    /// What it is about, one line.
    pub(super) doc: &'static str,
    /// Whether a reload changes it in a running shield (`log.level` alone of `[log]`).
    pub(super) live: bool,
    /// Its keys.
    pub(super) keys: &'static [Key<Draft>],
}

const fn key<T>(
    name: &'static str,
    rule: Rule,
    place: fn(&mut T) -> &mut dyn Setting,
    doc: &'static str,
    example: &'static str,
) -> Key<T> {
    Key { name, rule, place, doc, example }
}

/// A limit of Groq's. None at all is an absent key.
const LIMIT: Rule = Rule::Count(1, i64::MAX as u64, "leave the key out where there is no such limit");

/// The tables that stand once.
pub(super) const TABLES: &[Table] = &[
    Table { name: "server", doc: "The listener that apps talk to.", live: false, keys: SERVER },
    Table { name: "admin", doc: "Health, metrics, status and the page; keep it on loopback.", live: false, keys: ADMIN },
    Table { name: "upstream", doc: "The way to Groq.", live: false, keys: UPSTREAM },
    Table { name: "limits", doc: "Groq's limits; headers and refusals correct them.", live: true, keys: LIMITS },
    Table { name: "queue", doc: "The line of requests that wait for room.", live: true, keys: QUEUE },
    Table { name: "retry", doc: "What is transient is sent again, with full jitter.", live: true, keys: RETRY },
    Table { name: "breaker", doc: "Stops sending to a model that only fails.", live: true, keys: BREAKER },
    Table { name: "store", doc: "Where levels are kept; redis shares them between replicas.", live: false, keys: STORE },
    Table { name: "log", doc: "Log lines and spans.", live: false, keys: LOG },
];

const SERVER: &[Key<Draft>] = &[
    key(
        "listen",
        Rule::Address,
        |d| &mut d.settings.server.listen,
        "Address and port that apps connect to; port 0 takes a free one.",
        "",
    ),
    key(
        "reuse_port",
        Rule::Flag,
        |d| &mut d.settings.server.reuse_port,
        "Listen beside another shield that sets it too, here and on admin.listen, so that one replaces the other without a gap.",
        "",
    ),
    key(
        "threads",
        Rule::Count(1, 1024, "leave it out for one per core"),
        |d| &mut d.settings.server.threads,
        "Worker threads; unset: one per core.",
        "2",
    ),
    key("max_connections", Rule::Count(1, 1_000_000, ""), |d| &mut d.settings.server.max_connections, "Connections at once.", ""),
    key("max_body", Rule::Size(1), |d| &mut d.settings.server.max_body, "Largest request body; a larger one gets a 413.", ""),
    key(
        "header_timeout",
        Rule::Time(1),
        |d| &mut d.settings.server.header_timeout,
        "Time for a request's head to arrive, idle connections included.",
        "",
    ),
    key(
        "body_timeout",
        Rule::Time(1),
        |d| &mut d.settings.server.body_timeout,
        "Time between two reads of a request's body.",
        "",
    ),
    key(
        "drain_timeout",
        Rule::Time(0),
        |d| &mut d.settings.server.drain_timeout,
        "Time that running requests have to finish after SIGTERM.",
        "",
    ),
    key(
        "tls.cert",
        Rule::Path,
        |d| &mut d.cert,
        "Certificate chain for apps that speak TLS, PEM; read again on SIGHUP. Unset: plain HTTP.",
        "\"/etc/groq-shield/tls.crt\"",
    ),
    key("tls.key", Rule::Path, |d| &mut d.key, "Its private key, PEM.", "\"/etc/groq-shield/tls.key\""),
];

const ADMIN: &[Key<Draft>] = &[key(
    "listen",
    Rule::Address,
    |d| &mut d.settings.admin.listen,
    "Address and port that operators connect to; port 0 takes a free one.",
    "",
)];

const UPSTREAM: &[Key<Draft>] = &[
    key(
        "base_url",
        Rule::Upstream,
        |d| &mut d.settings.upstream.base_url,
        "Where requests go; a path here is put before every request's.",
        "",
    ),
    key(
        "connect_timeout",
        Rule::Time(1),
        |d| &mut d.settings.upstream.connect_timeout,
        "Time to connect: name, TCP and TLS together.",
        "",
    ),
    key("response_timeout", Rule::Time(1), |d| &mut d.settings.upstream.response_timeout, "Time to the head of an answer.", ""),
    key(
        "idle_timeout",
        Rule::Time(1),
        |d| &mut d.settings.upstream.idle_timeout,
        "Time between two pieces of an answer; never a limit on the whole.",
        "",
    ),
    key(
        "proxy",
        Rule::Url(&["http", "https"]),
        |d| &mut d.settings.upstream.proxy,
        "HTTP proxy to go through; unset: HTTPS_PROXY and NO_PROXY decide.",
        "\"http://proxy.internal:3128\"",
    ),
    key(
        "ca_file",
        Rule::Path,
        |d| &mut d.settings.upstream.ca_file,
        "More trusted root certificates, PEM; unset: Mozilla's alone.",
        "\"/etc/ssl/internal-ca.pem\"",
    ),
    key(
        "api_key_env",
        Rule::Variable,
        |d| &mut d.settings.upstream.api_key_env,
        "Variable that holds the key to use when an app sends none; unset: apps bring theirs.",
        "\"GROQ_API_KEY\"",
    ),
];

const LIMITS: &[Key<Draft>] = &[
    key(
        "plan",
        Rule::Choice(Plan::WORDS),
        |d| &mut d.settings.limits.plan,
        "The starting table: auto, free, developer or none. auto starts from free and follows the headers.",
        "",
    ),
    key(
        "headroom",
        Rule::Number(0.0, 0.9),
        |d| &mut d.settings.limits.headroom,
        "Share of every limit left to others, 0 to 0.9.",
        "",
    ),
    key(
        "state_file",
        Rule::Path,
        |d| &mut d.settings.limits.state_file,
        "File that keeps levels across restarts; unset: they are not kept.",
        "\"/var/lib/groq-shield/levels.json\"",
    ),
    key(
        "fit_ceiling",
        Rule::Flag,
        |d| &mut d.settings.limits.fit_ceiling,
        "Instead of a 413, lower max_completion_tokens to what the limit can hold, and say so in x-shield-fitted.",
        "",
    ),
];

/// Keys of `[limits.default]` and of every `[limits.model."…"]`.
pub(super) const MODEL: &[Key<ModelLimits>] = &[
    key("requests_per_minute", LIMIT, |m| &mut m.requests_per_minute, "RPM", "30"),
    key("requests_per_day", LIMIT, |m| &mut m.requests_per_day, "RPD", "1000"),
    key("tokens_per_minute", LIMIT, |m| &mut m.tokens_per_minute, "TPM: prompt and ceiling together.", "8000"),
    key("tokens_per_day", LIMIT, |m| &mut m.tokens_per_day, "TPD", "200000"),
    key("input_tokens_per_minute", LIMIT, |m| &mut m.input_tokens_per_minute, "ITPM: prompts alone.", "7000"),
    key("output_tokens_per_minute", LIMIT, |m| &mut m.output_tokens_per_minute, "OTPM: ceilings alone.", "1000"),
    key("audio_seconds_per_hour", LIMIT, |m| &mut m.audio_seconds_per_hour, "ASPH: seconds of audio.", "7200"),
    key("audio_seconds_per_day", LIMIT, |m| &mut m.audio_seconds_per_day, "ASPD: seconds of audio.", "28800"),
    key(
        "assumed_completion_tokens",
        Rule::Count(0, i64::MAX as u64, ""),
        |m| &mut m.assumed_completion_tokens,
        "Completion tokens that Groq reserves for a request without `max_completion_tokens`. Unset: learnt from its answers.",
        "2048",
    ),
];

/// Keys of every `[[organisation]]`.
pub(super) const ORGANISATION: &[Key<Organisation>] = &[
    key("name", Rule::Name, |o| &mut o.name, "Its name in status and metrics.", "\"acme\""),
    key(
        "api_key_env",
        Rule::Many(&Rule::Variable),
        |o| &mut o.api_key_env,
        "Variables that hold its keys.",
        "[\"GROQ_API_KEY\", \"GROQ_API_KEY_2\"]",
    ),
    key(
        "api_key_sha256",
        Rule::Many(&Rule::Sha256),
        |o| &mut o.api_key_sha256,
        "SHA-256 of its keys, hex.",
        "[\"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\"]",
    ),
];

const QUEUE: &[Key<Draft>] = &[
    key(
        "max_wait",
        Rule::Time(0),
        |d| &mut d.settings.queue.max_wait,
        "Longest wait in line; a client's own patience may be less.",
        "",
    ),
    key(
        "max_waiting",
        Rule::Count(1, 10_000_000, "to let nobody wait, queue.max_wait = \"0s\""),
        |d| &mut d.settings.queue.max_waiting,
        "Requests waiting at once.",
        "",
    ),
    key("max_bytes", Rule::Size(1), |d| &mut d.settings.queue.max_bytes, "Bytes of request bodies held at once.", ""),
    key(
        "stream_keepalive",
        Rule::TimeOrOff(100),
        |d| &mut d.settings.queue.stream_keepalive,
        "Time between comments sent to a stream that waits, or off.",
        "",
    ),
];

const RETRY: &[Key<Draft>] = &[
    key(
        "attempts",
        Rule::Count(1, 100, "1 sends once and never again"),
        |d| &mut d.settings.retry.attempts,
        "Sends at most, the first included.",
        "",
    ),
    key(
        "base_delay",
        Rule::Time(0),
        |d| &mut d.settings.retry.base_delay,
        "Upper bound of the first back-off; doubled each time.",
        "",
    ),
    key("max_delay", Rule::Time(0), |d| &mut d.settings.retry.max_delay, "Upper bound of every back-off.", ""),
    key(
        "budget",
        Rule::Number(0.0, 10.0),
        |d| &mut d.settings.retry.budget,
        "Retries per request of the last minute, and 10 a second always.",
        "",
    ),
];

const BREAKER: &[Key<Draft>] = &[
    key(
        "failures",
        Rule::Count(1, 1_000_000, "to keep it shut, a large number"),
        |d| &mut d.settings.breaker.failures,
        "Failures in a row that open it.",
        "",
    ),
    key("open", Rule::Time(1), |d| &mut d.settings.breaker.open, "Time until one request may probe.", ""),
    key(
        "max_wait",
        Rule::Time(0),
        |d| &mut d.settings.breaker.max_wait,
        "Longest wait for an open breaker, before the answer is 503; unset: one breaker.open.",
        "\"5s\"",
    ),
];

/// Keys of every `[[app]]`.
pub(super) const APP: &[Key<App>] = &[
    key("name", Rule::Name, |a| &mut a.name, "Its name in status and metrics.", "\"chat\""),
    key(
        "token_env",
        Rule::Variable,
        |a| &mut a.token_env,
        "Variable that holds its token, sent as the Bearer token.",
        "\"CHAT_TOKEN\"",
    ),
    key(
        "token_sha256",
        Rule::Sha256,
        |a| &mut a.token_sha256,
        "SHA-256 of its token, hex.",
        "\"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\"",
    ),
    key("weight", Rule::Positive, |a| &mut a.weight, "Its share relative to the others'.", ""),
    key("class", Rule::Choice(Class::WORDS), |a| &mut a.class, "interactive or batch, where a request does not say.", ""),
];

const STORE: &[Key<Draft>] = &[
    key("kind", Rule::Choice(StoreKind::WORDS), |d| &mut d.settings.store.kind, "local or redis.", ""),
    key(
        "url",
        Rule::Url(&["redis", "rediss"]),
        |d| &mut d.settings.store.url,
        "redis:// or rediss:// (TLS), with user:password@ before the host where it asks for them; needed for redis.",
        "\"redis://localhost:6379\"",
    ),
    key(
        "ca_file",
        Rule::Path,
        |d| &mut d.settings.store.ca_file,
        "Trusted root certificates of a rediss:// with a private authority, PEM; unset: Mozilla's.",
        "\"/etc/ssl/internal-ca.pem\"",
    ),
    key("prefix", Rule::Name, |d| &mut d.settings.store.prefix, "First part of every key in it.", ""),
    key("timeout", Rule::Time(1), |d| &mut d.settings.store.timeout, "No request waits longer on it.", ""),
    key(
        "replicas",
        Rule::Count(1, 1000, ""),
        |d| &mut d.settings.store.replicas,
        "How many replicas to reckon with until it has told how many there are.",
        "",
    ),
];

const LOG: &[Key<Draft>] = &[
    key(
        "level",
        Rule::Filter,
        |d| &mut d.settings.log.level,
        "off, error, warn, info, debug, trace, or a filter such as groq_shield=debug,warn.",
        "",
    ),
    key("format", Rule::Choice(LogFormat::WORDS), |d| &mut d.settings.log.format, "text or json.", ""),
    key(
        "otlp_endpoint",
        Rule::Url(&["http", "https"]),
        |d| &mut d.settings.log.otlp_endpoint,
        "Collector that gets spans, OTLP over HTTP; unset: none.",
        "\"http://localhost:4318\"",
    ),
];

/// The environment variable of a key of a table that stands once: `GROQ_SHIELD_QUEUE_MAX_WAIT`.
pub(super) fn variable(table: &str, key: &str) -> String {
    format!("GROQ_SHIELD_{table}_{key}").replace('.', "_").to_uppercase()
}

/// The tables where a key of this name belongs, as they are written.
pub(super) fn homes(name: &str) -> Vec<String> {
    fn has<T>(keys: &[Key<T>], name: &str) -> bool {
        keys.iter().any(|key| key.name == name)
    }
    let single = TABLES.iter().filter(|table| has(table.keys, name)).map(|table| format!("[{}]", table.name));
    let others = [
        (has(MODEL, name), "[limits.default] or [limits.model.\"…\"]"),
        (has(ORGANISATION, name), "[[organisation]]"),
        (has(APP, name), "[[app]]"),
    ];
    single.chain(others.into_iter().filter(|(here, _)| *here).map(|(_, table)| table.to_owned())).collect()
}
