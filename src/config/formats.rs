//! Settings that are written as text: times, sizes, addresses, URLs, digests and names, for serde and for the JSON schema.

use std::{borrow::Cow, marker::PhantomData, net::SocketAddr, time::Duration};

use http::Uri;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::{faults::Wrong, names, text::quoted};

/// How a value is written in the file.
pub(super) trait Format {
    type Value;
    /// What it is, in words.
    const TITLE: &'static str;
    const EXAMPLE: &'static str;
    /// A regular expression for the JSON schema; it may accept more than `parse`.
    const PATTERN: &'static str;

    fn parse(text: &str) -> Result<Self::Value, Wrong>;
    /// The value as text; `None`: it is not set.
    fn show(value: &Self::Value) -> Option<String>;
}

/// Checks a text by the title that the schema gives it. Text without one may be anything but empty.
pub(super) fn check(title: Option<&str>, text: &str) -> Result<(), Wrong> {
    type Check = fn(&str) -> Result<(), Wrong>;
    fn of<F: Format>() -> (&'static str, Check) {
        (F::TITLE, |text| F::parse(text).map(drop))
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
        ("a URL (redis, rediss)", |text| url(text, &["redis", "rediss"]).map(drop)),
        ("a log filter", names::log_filter),
        ("a name of at most 128 bytes", names::label),
        ("the name of an environment variable", names::variable),
    ];
    match formats.into_iter().find(|(known, _)| Some(*known) == title) {
        Some((_, check)) => check(text),
        None if text.trim().is_empty() => Err(("is empty".into(), String::new())),
        None => Ok(()),
    }
}

/// `#[serde(with = "As::<F>")]`: a field that is written in the format `F`.
pub(super) struct As<F>(PhantomData<F>);

impl<F: Format> As<F> {
    pub(super) fn serialize<S: Serializer>(value: &F::Value, serializer: S) -> Result<S::Ok, S::Error> {
        F::show(value).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<F::Value, D::Error> {
        F::parse(&String::deserialize(deserializer)?).map_err(|(message, _)| D::Error::custom(message))
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

    fn parse(text: &str) -> Result<Self::Value, Wrong> {
        F::parse(text).map(Some)
    }

    fn show(value: &Self::Value) -> Option<String> {
        value.as_ref().and_then(F::show)
    }
}

/// Longest time that a key accepts: a longer one is a mistake.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// `"250ms"`, `"30s"`, `"1m 30s"`: at least so many milliseconds.
pub(super) struct Time<const LEAST_MS: u64 = 0>;

impl<const LEAST_MS: u64> Format for Time<LEAST_MS> {
    type Value = Duration;
    const TITLE: &'static str = if LEAST_MS == 0 { "a time with its unit" } else { "a time over 0, with its unit" };
    const EXAMPLE: &'static str = "30s";
    const PATTERN: &'static str = r"^\s*[0-9][^-]*[a-zA-Zµ]\s*$";

    fn parse(text: &str) -> Result<Duration, Wrong> {
        let (why, help) = match humantime::parse_duration(text) {
            Ok(time) if time > LONGEST => ("too long".to_owned(), "at most \"24h\"".to_owned()),
            Ok(time) if time < Duration::from_millis(LEAST_MS) => ("too short".to_owned(), format!("at least \"{LEAST_MS}ms\"")),
            Ok(time) => return Ok(time),
            Err(why) => (why.to_string(), "times are written \"250ms\", \"30s\", \"2m\", \"1h\"".to_owned()),
        };
        Err((format!("the time {}: {why}", quoted(text)), help))
    }

    fn show(time: &Duration) -> Option<String> {
        Some(humantime::format_duration(*time).to_string())
    }
}

/// A time of at least 100 ms, or `"off"`.
pub(super) struct TimeOrOff;

impl Format for TimeOrOff {
    type Value = Option<Duration>;
    const TITLE: &'static str = "a time with its unit, or \"off\"";
    const EXAMPLE: &'static str = "15s";
    const PATTERN: &'static str = r"^(off|\s*[0-9][^-]*[a-zA-Zµ]\s*)$";

    fn parse(text: &str) -> Result<Self::Value, Wrong> {
        if text == "off" { Ok(None) } else { Time::<100>::parse(text).map(Some) }
    }

    fn show(time: &Self::Value) -> Option<String> {
        time.as_ref().map_or_else(|| Some("off".into()), Time::<100>::show)
    }
}

/// The units of sizes, larger ones first.
const UNITS: [(&str, f64); 8] = [
    ("GiB", (1_u64 << 30) as f64),
    ("MiB", (1_u64 << 20) as f64),
    ("KiB", 1024.0),
    ("GB", 1e9),
    ("MB", 1e6),
    ("kB", 1e3),
    ("KB", 1e3),
    ("B", 1.0),
];

/// `"64KiB"`, `"100MiB"`
pub(super) struct Size;

impl Format for Size {
    type Value = u64;
    const TITLE: &'static str = "a size with its unit";
    const EXAMPLE: &'static str = "100MiB";
    const PATTERN: &'static str = r"^\s*[0-9]+(\.[0-9]+)?\s*([KMG]i|[kKMG])?B\s*$";

    fn parse(text: &str) -> Result<u64, Wrong> {
        let (number, unit) = text.split_at(text.find(|c: char| c.is_alphabetic()).unwrap_or(text.len()));
        let unit = UNITS.iter().find(|(name, _)| *name == unit.trim());
        let bytes = unit.zip(number.trim().parse::<f64>().ok()).map(|((_, size), number)| number * size);
        // Up to 2^53 a number of bytes is exact.
        let bytes = bytes.filter(|bytes| (1.0..=9e15).contains(bytes)).map(|bytes| bytes as u64);
        bytes.ok_or_else(|| {
            (format!("{} is not a size over 0 with its unit", quoted(text)), "sizes are written \"64KiB\", \"100MiB\"".into())
        })
    }

    fn show(bytes: &u64) -> Option<String> {
        let (name, size) = UNITS.into_iter().find(|(name, size)| name.len() != 2 && *bytes as f64 % size == 0.0)?;
        Some(format!("{}{name}", *bytes as f64 / size))
    }
}

/// `"127.0.0.1:8787"`, `"localhost:8787"`
pub(super) struct Address;

impl Format for Address {
    type Value = SocketAddr;
    const TITLE: &'static str = "an address with its port";
    const EXAMPLE: &'static str = "127.0.0.1:8787";
    const PATTERN: &'static str = r"^.*:[0-9]+$";

    fn parse(text: &str) -> Result<SocketAddr, Wrong> {
        // Not resolved: it is loopback's by definition (RFC 6761).
        let port = text.to_ascii_lowercase().strip_prefix("localhost:").and_then(|port| port.parse::<u16>().ok());
        port.map_or_else(|| text.parse(), |port| Ok(SocketAddr::from(([127, 0, 0, 1], port)))).map_err(|_| {
            let port = text.rsplit(':').next().filter(|port| port.parse::<u16>().is_ok()).unwrap_or("8787");
            let help = format!("write \"127.0.0.1:{port}\", or \"0.0.0.0:{port}\" for every interface; ports go from 0 to 65535");
            (format!("{} is not an IP address and a port", quoted(text)), help)
        })
    }

    fn show(address: &SocketAddr) -> Option<String> {
        Some(address.to_string())
    }
}

/// Where requests go: a URL without the part of the path that requests bring themselves.
pub(super) type BaseUrl = HttpUrl<true>;

/// An HTTP proxy, whose URL may hold a user and a password.
pub(super) type ProxyUrl = HttpUrl<false>;

pub(super) struct HttpUrl<const IS_BASE: bool>;

impl<const IS_BASE: bool> Format for HttpUrl<IS_BASE> {
    type Value = Uri;
    const TITLE: &'static str = if IS_BASE { "a base URL (http, https)" } else { "a URL (http, https)" };
    const EXAMPLE: &'static str = if IS_BASE { "https://api.groq.com" } else { "http://proxy.internal:3128" };
    const PATTERN: &'static str = "^[hH][tT][tT][pP][sS]?://.+$";

    fn parse(text: &str) -> Result<Uri, Wrong> {
        let uri = url(text, if IS_BASE { &["https", "http"] } else { &["http", "https"] })?;
        let has_user = uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
        if IS_BASE && (has_user || uri.query().is_some()) {
            return Err(("a base URL has neither a user nor a query".into(), String::new()));
        }
        match text.trim_end_matches('/').strip_suffix("/openai/v1").filter(|_| IS_BASE) {
            Some(base) => {
                Err(("ends in the part of the path that requests bring themselves".into(), format!("write {}", quoted(base))))
            }
            None => Ok(uri),
        }
    }

    fn show(uri: &Uri) -> Option<String> {
        let text = uri.to_string();
        // An empty path is left out, as people write it.
        Some(if uri.path() == "/" && uri.query().is_none() { text.trim_end_matches('/').to_owned() } else { text })
    }
}

/// A URL of one of these schemes, with a host.
fn url(text: &str, schemes: &[&str]) -> Result<Uri, Wrong> {
    let is_whole = |uri: &Uri| {
        uri.scheme_str().is_some_and(|scheme| schemes.contains(&scheme)) && uri.host().is_some_and(|host| !host.is_empty())
    };
    text.parse().ok().filter(is_whole).ok_or_else(|| {
        let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
        let message = format!("{} is not a URL with {}:// and a host", quoted(text), schemes.join(":// or "));
        (message, format!("write {}", quoted(&format!("{}://{}", schemes[0], if rest.is_empty() { "HOST" } else { rest }))))
    })
}

/// A SHA-256, written as 64 hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "As<Self>", inline)]
pub struct Digest(pub [u8; 32]);

impl Format for Digest {
    type Value = Self;
    const TITLE: &'static str = "a SHA-256 in hex";
    const EXAMPLE: &'static str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const PATTERN: &'static str = "^[0-9a-fA-F]{64}$";

    fn parse(text: &str) -> Result<Self, Wrong> {
        let mut digest = [0; 32];
        hex::decode_to_slice(text, &mut digest).map_err(|_| {
            let message = format!("not a SHA-256: expected 64 hex digits, found {} characters", text.chars().count());
            (message, "printf %s \"$KEY\" | sha256sum".into())
        })?;
        Ok(Self(digest))
    }

    /// Its beginning: `check` and logs do not show the digest of a secret.
    fn show(Self(digest): &Self) -> Option<String> {
        Some(format!("{}…", hex::encode(&digest[..4])))
    }
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text).map_err(|(message, _)| message)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        Digest::show(&digest).unwrap_or_default()
    }
}
