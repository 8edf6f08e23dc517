//! Values that are written as text: times, sizes, addresses, URLs, digests and names, for serde and for the JSON schema.

use std::{borrow::Cow, marker::PhantomData, net::SocketAddr, time::Duration};

use http::Uri;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// How a value is written in the file.
pub(super) trait Format {
    type Value;
    /// What it is, in words.
    const TITLE: &'static str;
    const EXAMPLE: &'static str;
    /// A regular expression for the JSON schema; it may accept more than `parse`.
    const PATTERN: &'static str;

    fn parse(text: &str) -> Option<Self::Value>;
    /// The value as text; `None`: it is not set.
    fn show(value: &Self::Value) -> Option<String>;
}

/// Whether a text is valid for the format that a schema's title names. Without a known title, it must only not be empty.
pub(super) fn accepts(schema: &serde_json::Value, text: &str) -> bool {
    fn of<F: Format>() -> (&'static str, fn(&str) -> bool) {
        (F::TITLE, |text| F::parse(text).is_some())
    }
    let formats = [
        of::<Time>(),
        of::<Time<1>>(),
        of::<TimeOrOff>(),
        of::<Size>(),
        of::<Address>(),
        of::<BaseUrl>(),
        of::<ProxyUrl>(),
        of::<Digest>(),
        ("a redis or rediss URL", |text| url(text, &["redis", "rediss"]).is_some()),
        ("a log level or filter", is_log_filter),
        ("a name of 1 to 128 printable bytes", |text| {
            text.len() <= 128 && !text.contains(char::is_control) && !text.trim().is_empty()
        }),
        ("the name of an environment variable", is_variable),
    ];
    let format = formats.into_iter().find(|(title, _)| schema["title"] == *title);
    format.map_or_else(|| !text.trim().is_empty(), |(_, accepts)| accepts(text))
}

/// The name of an environment variable, and not the key that it should hold.
fn is_variable(text: &str) -> bool {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let is_key = text.starts_with("gsk_") || text.starts_with("sk-");
    !text.is_empty() && !is_key && text.chars().all(is_name) && !text.starts_with(|c: char| c.is_ascii_digit())
}

/// A tracing filter. tracing takes a word that is not a level for a target, which would log nothing.
fn is_log_filter(text: &str) -> bool {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let is_level = |part: &str| LEVELS.contains(&part.to_ascii_lowercase().as_str());
    let mut parts = text.split(',').map(str::trim);
    parts.all(|part| part.contains(['=', ':', '[']) || part == "groq_shield" || is_level(part))
        && tracing_subscriber::EnvFilter::builder().parse(text).is_ok()
}

/// `#[serde(with = "As::<F>")]`: a field that is written in the format `F`.
pub(super) struct As<F>(PhantomData<F>);

impl<F: Format> As<F> {
    pub(super) fn serialize<S: Serializer>(value: &F::Value, serializer: S) -> Result<S::Ok, S::Error> {
        F::show(value).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<F::Value, D::Error> {
        F::parse(&String::deserialize(deserializer)?).ok_or_else(|| D::Error::custom(format_args!("expected {}", F::TITLE)))
    }
}

impl<F: Format> JsonSchema for As<F> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        F::TITLE.into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "title": F::TITLE, "examples": [F::EXAMPLE], "pattern": F::PATTERN })
    }
}

/// A value that need not be set.
impl<F: Format> Format for Option<F> {
    type Value = Option<F::Value>;
    const TITLE: &'static str = F::TITLE;
    const EXAMPLE: &'static str = F::EXAMPLE;
    const PATTERN: &'static str = F::PATTERN;

    fn parse(text: &str) -> Option<Self::Value> {
        F::parse(text).map(Some)
    }

    fn show(value: &Self::Value) -> Option<String> {
        value.as_ref().and_then(F::show)
    }
}

/// `"250ms"`, `"30s"`, `"1m 30s"`: at least so many milliseconds, and at most a day, since a longer one is a mistake.
pub(super) struct Time<const LEAST_MS: u64 = 0>;

impl<const LEAST_MS: u64> Format for Time<LEAST_MS> {
    type Value = Duration;
    const TITLE: &'static str =
        if LEAST_MS == 0 { "a time with its unit, 0s to 24h" } else { "a time with its unit, 1ms to 24h" };
    const EXAMPLE: &'static str = "30s";
    const PATTERN: &'static str = r"^\s*[0-9][^-]*[a-zA-Zµ]\s*$";

    fn parse(text: &str) -> Option<Duration> {
        let range = Duration::from_millis(LEAST_MS)..=Duration::from_secs(24 * 3600);
        humantime::parse_duration(text).ok().filter(|time| range.contains(time))
    }

    fn show(time: &Duration) -> Option<String> {
        Some(humantime::format_duration(*time).to_string())
    }
}

/// A time of at least 100 ms, or `"off"`.
pub(super) struct TimeOrOff;

impl Format for TimeOrOff {
    type Value = Option<Duration>;
    const TITLE: &'static str = "a time with its unit, 100ms to 24h, or \"off\"";
    const EXAMPLE: &'static str = "15s";
    const PATTERN: &'static str = r"^(off|\s*[0-9][^-]*[a-zA-Zµ]\s*)$";

    fn parse(text: &str) -> Option<Self::Value> {
        if text == "off" { Some(None) } else { Time::<100>::parse(text).map(Some) }
    }

    fn show(time: &Self::Value) -> Option<String> {
        time.as_ref().map_or_else(|| Some("off".into()), Time::<100>::show)
    }
}

/// `"64KiB"`, `"100MiB"`, `"1.5 GB"`
pub(super) struct Size;

impl Format for Size {
    type Value = u64;
    const TITLE: &'static str = "a size over 0, with its unit";
    const EXAMPLE: &'static str = "100MiB";
    const PATTERN: &'static str = r"^\s*[0-9]+(\.[0-9]+)?\s*([kKmMgG][iI]?)?[bB]\s*$";

    fn parse(text: &str) -> Option<u64> {
        let (number, unit) = text.split_at(text.find(char::is_alphabetic)?);
        let unit = unit.trim().to_ascii_lowercase();
        let prefix = unit.strip_suffix('b')?;
        let (base, prefix) = prefix.strip_suffix('i').map_or((1000_f64, prefix), |prefix| (1024.0, prefix));
        let power = ["", "k", "m", "g"].iter().position(|known| *known == prefix)?;
        let bytes = number.trim().parse::<f64>().ok()? * base.powi(power as i32);
        // Up to 2^53 a number of bytes is exact.
        (unit != "ib" && (1.0..=9e15).contains(&bytes)).then_some(bytes as u64)
    }

    fn show(bytes: &u64) -> Option<String> {
        let power = (bytes.trailing_zeros() / 10).min(3);
        Some(format!("{}{}", bytes >> (10 * power), ["B", "KiB", "MiB", "GiB"][power as usize]))
    }
}

/// `"127.0.0.1:8787"`, `"localhost:8787"`
pub(super) struct Address;

impl Format for Address {
    type Value = SocketAddr;
    const TITLE: &'static str = "an IP address with its port";
    const EXAMPLE: &'static str = "127.0.0.1:8787";
    const PATTERN: &'static str = r"^.*:[0-9]+$";

    fn parse(text: &str) -> Option<SocketAddr> {
        // Not resolved: it is loopback's by definition (RFC 6761).
        match text.to_ascii_lowercase().strip_prefix("localhost:") {
            Some(port) => Some(SocketAddr::from(([127, 0, 0, 1], port.parse().ok()?))),
            None => text.parse().ok(),
        }
    }

    fn show(address: &SocketAddr) -> Option<String> {
        Some(address.to_string())
    }
}

/// The upstream: a URL without `/openai/v1`, which is part of each request's path.
pub(super) type BaseUrl = HttpUrl<true>;

/// An HTTP proxy, whose URL may hold a user and a password.
pub(super) type ProxyUrl = HttpUrl<false>;

pub(super) struct HttpUrl<const IS_BASE: bool>;

impl<const IS_BASE: bool> Format for HttpUrl<IS_BASE> {
    type Value = Uri;
    const TITLE: &'static str =
        if IS_BASE { "an http or https URL without user, query and /openai/v1" } else { "an http or https URL" };
    const EXAMPLE: &'static str = if IS_BASE { "https://api.groq.com" } else { "http://proxy.internal:3128" };
    const PATTERN: &'static str = "^[hH][tT][tT][pP][sS]?://.+$";

    fn parse(text: &str) -> Option<Uri> {
        let uri = url(text, &["http", "https"])?;
        let has_user = uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
        let is_base = !has_user && uri.query().is_none() && !uri.path().trim_end_matches('/').ends_with("/openai/v1");
        (is_base || !IS_BASE).then_some(uri)
    }

    fn show(uri: &Uri) -> Option<String> {
        let text = uri.to_string();
        // An empty path is left out, as people write it.
        Some(if uri.path() == "/" && uri.query().is_none() { text.trim_end_matches('/').to_owned() } else { text })
    }
}

/// A URL of one of these schemes, with a host.
fn url(text: &str, schemes: &[&str]) -> Option<Uri> {
    let uri: Uri = text.parse().ok()?;
    let has_host = uri.host().is_some_and(|host| !host.is_empty());
    (has_host && schemes.contains(&uri.scheme_str()?)).then_some(uri)
}

/// A SHA-256, written as 64 hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct Digest(#[serde(with = "As::<Digest>")] pub [u8; 32]);

impl Format for Digest {
    type Value = [u8; 32];
    const TITLE: &'static str = "a SHA-256 in hex, as sha256sum prints it";
    const EXAMPLE: &'static str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const PATTERN: &'static str = "^[0-9a-fA-F]{64}$";

    fn parse(text: &str) -> Option<[u8; 32]> {
        let mut digest = [0; 32];
        hex::decode_to_slice(text, &mut digest).ok().map(|()| digest)
    }

    /// Its beginning: `check` and logs do not show the digest of a secret.
    fn show(digest: &[u8; 32]) -> Option<String> {
        Some(format!("{}…", hex::encode(&digest[..4])))
    }
}
