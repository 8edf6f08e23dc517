//! Settings that are written as text: times, sizes, addresses, URLs, digests and names, for serde and for the JSON schema.

use std::{borrow::Cow, marker::PhantomData, net::SocketAddr, time::Duration};

use http::Uri;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::{
    faults::Wrong,
    names::{env_name, label, log_filter, not_empty},
    text::{masked_url, near, quoted},
    units,
};

/// How a value is written in the file.
pub(super) trait Format {
    type Value;
    /// What it is, in words.
    const TITLE: &'static str;
    const EXAMPLE: &'static str;
    /// A regular expression for the JSON schema; it may accept more than `parse`.
    const PATTERN: &'static str;
    /// The unit that a bare number was probably meant in.
    const UNIT: Option<&'static str> = None;

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
        ("a log filter", log_filter),
        ("a name of at most 128 bytes", label),
        ("the name of an environment variable", env_name),
    ];
    match formats.into_iter().find(|(known, _)| Some(*known) == title) {
        Some((_, check)) => check(text),
        None => not_empty(text),
    }
}

/// `#[serde(with = "As::<F>")]`: a field that is written in the format `F`.
pub(super) struct As<F>(PhantomData<F>);

impl<F: Format> As<F> {
    pub(super) fn serialize<S: Serializer>(value: &F::Value, serializer: S) -> Result<S::Ok, S::Error> {
        F::show(value).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<F::Value, D::Error> {
        F::parse(&String::deserialize(deserializer)?).map_err(|wrong| D::Error::custom(wrong.message))
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
        let mut schema = json_schema!({ "type": "string", "title": F::TITLE, "examples": [F::EXAMPLE], "pattern": F::PATTERN });
        if let Some(unit) = F::UNIT {
            schema.insert("x-unit".into(), unit.into());
        }
        schema
    }
}

/// The same for a field that need not be set.
pub(super) struct Maybe<F>(PhantomData<F>);

impl<F: Format> Format for Maybe<F> {
    type Value = Option<F::Value>;
    const TITLE: &'static str = F::TITLE;
    const EXAMPLE: &'static str = F::EXAMPLE;
    const PATTERN: &'static str = F::PATTERN;
    const UNIT: Option<&'static str> = F::UNIT;

    fn parse(text: &str) -> Result<Self::Value, Wrong> {
        F::parse(text).map(Some)
    }

    fn show(value: &Self::Value) -> Option<String> {
        value.as_ref().and_then(F::show)
    }
}

/// Longest time that a key accepts: a longer one is a mistake.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// `"250ms"`, `"30s"`, `"1m30s"`: at least so many milliseconds.
pub(super) struct Time<const LEAST_MS: u64 = 0>;

impl<const LEAST_MS: u64> Format for Time<LEAST_MS> {
    type Value = Duration;
    const TITLE: &'static str = if LEAST_MS == 0 { "a time" } else { "a time over 0" };
    const EXAMPLE: &'static str = "30s";
    const PATTERN: &'static str = r"^\s*([0-9]+(\.[0-9]+)?\s*(ms|s|m|h)\s*)+$";
    const UNIT: Option<&'static str> = Some("s");

    fn parse(text: &str) -> Result<Duration, Wrong> {
        let time = units::time(text).map_err(|why| {
            (format!("the time {} {why}", quoted(text)), "times are written \"250ms\", \"30s\", \"2m\", \"1h\"")
        })?;
        let least = Duration::from_millis(LEAST_MS);
        if time < least {
            let [time, least] = [time, least].map(units::show_time);
            return Err(format!("{} is too short: at least {least}", quoted(&time)).into());
        }
        if time > LONGEST {
            return Err(format!("{} is too long: at most {}", quoted(text), units::show_time(LONGEST)).into());
        }
        Ok(time)
    }

    fn show(time: &Duration) -> Option<String> {
        Some(units::show_time(*time))
    }
}

/// A time of at least 100 ms, or `"off"`.
pub(super) struct TimeOrOff;

impl Format for TimeOrOff {
    type Value = Option<Duration>;
    const TITLE: &'static str = "a time or \"off\"";
    const EXAMPLE: &'static str = "15s";
    const PATTERN: &'static str = r"^(off|\s*([0-9]+(\.[0-9]+)?\s*(ms|s|m|h)\s*)+)$";
    const UNIT: Option<&'static str> = Some("s");

    fn parse(text: &str) -> Result<Self::Value, Wrong> {
        if text == "off" { Ok(None) } else { Time::<100>::parse(text).map(Some) }
    }

    fn show(time: &Self::Value) -> Option<String> {
        time.as_ref().map_or_else(|| Some("off".into()), Time::<100>::show)
    }
}

/// `"64KiB"`, `"100MiB"`
pub(super) struct Size;

impl Format for Size {
    type Value = u64;
    const TITLE: &'static str = "a size";
    const EXAMPLE: &'static str = "100MiB";
    const PATTERN: &'static str = r"^\s*([0-9]+(\.[0-9]+)?\s*(B|KiB|MiB|GiB|kB|KB|MB|GB)\s*)+$";
    const UNIT: Option<&'static str> = Some("B");

    fn parse(text: &str) -> Result<u64, Wrong> {
        match units::size(text) {
            Ok(0) => Err(format!("{} is too small: at least 1B", quoted(text)).into()),
            Ok(bytes) => Ok(bytes),
            Err(why) => Err((format!("the size {} {why}", quoted(text)), "sizes are written \"64KiB\", \"100MiB\"").into()),
        }
    }

    fn show(bytes: &u64) -> Option<String> {
        Some(units::show_size(*bytes))
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
        let port = |port: &str| port.parse::<u16>().is_ok();
        let ip = |host: &str| host.parse::<std::net::IpAddr>().is_ok();
        // Not resolved: it is loopback's by definition (RFC 6761).
        let localhost = text.rsplit_once(':').filter(|(host, _)| host.eq_ignore_ascii_case("localhost"));
        if let Some(port) = localhost.and_then(|(_, port)| port.parse().ok()) {
            return Ok(SocketAddr::from(([127, 0, 0, 1], port)));
        }
        text.parse().map_err(|_| {
            let help = match text.rsplit_once(':') {
                Some(("" | "*", n)) if port(n) => format!("write \"0.0.0.0:{n}\" for every interface"),
                Some((host, n)) if ip(host) && !port(n) => "ports go from 0 (any free one) to 65535".into(),
                _ if port(text) => format!("write \"127.0.0.1:{text}\""),
                _ if ip(text) => "the port is missing".into(),
                _ => "an IP address and a port, such as \"127.0.0.1:8787\" or \"[::1]:8787\"".into(),
            };
            (format!("{} is not an address with its port", quoted(text)), help).into()
        })
    }

    fn show(address: &SocketAddr) -> Option<String> {
        Some(address.to_string())
    }
}

/// Where requests go: an URL without the part of the path that requests bring themselves.
pub(super) struct BaseUrl;

impl Format for BaseUrl {
    type Value = Uri;
    const TITLE: &'static str = "a base URL (http, https)";
    const EXAMPLE: &'static str = "https://api.groq.com";
    const PATTERN: &'static str = "^[hH][tT][tT][pP][sS]?://.+$";

    fn parse(text: &str) -> Result<Uri, Wrong> {
        let uri = url(text, &["https", "http"])?;
        if uri.query().is_some() || uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err("a base URL has neither a user nor a query".into());
        }
        if uri.path().trim_end_matches('/').ends_with("/openai/v1") {
            let (base, _) = text.split_once("/openai/v1").unwrap_or((text, ""));
            let message = format!("{} ends in the part of the path that requests bring themselves", quoted(text));
            return Err((message, format!("write {}", quoted(base))).into());
        }
        Ok(uri)
    }

    fn show(uri: &Uri) -> Option<String> {
        let text = uri.to_string();
        // An empty path is left out, as people write it.
        Some(if uri.path() == "/" && uri.query().is_none() { text.trim_end_matches('/').to_owned() } else { text })
    }
}

/// An HTTP proxy.
pub(super) struct ProxyUrl;

impl Format for ProxyUrl {
    type Value = Uri;
    const TITLE: &'static str = "a URL (http, https)";
    const EXAMPLE: &'static str = "http://proxy.internal:3128";
    const PATTERN: &'static str = BaseUrl::PATTERN;

    fn parse(text: &str) -> Result<Uri, Wrong> {
        url(text, &["http", "https"])
    }

    fn show(uri: &Uri) -> Option<String> {
        BaseUrl::show(uri).map(|text| masked_url(&text))
    }
}

/// A URL of one of these schemes, with a host.
fn url(text: &str, schemes: &[&str]) -> Result<Uri, Wrong> {
    let shown = quoted(&masked_url(text));
    let uri: Uri = text.parse().map_err(|_| format!("{shown} is not a URL"))?;
    let Some(scheme) = uri.scheme_str() else {
        return Err((format!("{shown} has no scheme"), format!("write \"{}://{}\"", schemes[0], masked_url(text))).into());
    };
    if !schemes.contains(&scheme) {
        let help = near(scheme, schemes.iter().copied()).map(|near| format!("did you mean `{near}`?"));
        return Err(Wrong { message: format!("{shown}: the scheme must be {}", schemes.join(" or ")), help });
    }
    if uri.host().unwrap_or_default().is_empty() {
        return Err(format!("{shown} names no host").into());
    }
    Ok(uri)
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
        let is_hex = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        for (at, byte) in digest.iter_mut().enumerate().filter(|_| is_hex) {
            *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap_or_default();
        }
        let message = || format!("not a SHA-256: 64 hex digits were expected, not {}", text.chars().count());
        if is_hex { Ok(Self(digest)) } else { Err((message(), "printf %s \"$KEY\" | sha256sum").into()) }
    }

    /// Its beginning: `check` and logs do not show the digest of a secret.
    fn show(Self(digest): &Self) -> Option<String> {
        let [a, b, c, d, ..] = digest;
        Some(format!("{a:02x}{b:02x}{c:02x}{d:02x}…"))
    }
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text).map_err(|wrong| wrong.message)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        Digest::show(&digest).unwrap_or_default()
    }
}
