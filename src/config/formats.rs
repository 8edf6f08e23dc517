//! Settings that are written as text: times, sizes, addresses, URLs and digests, for serde and for the JSON schema.

use std::{borrow::Cow, fmt::Write as _, marker::PhantomData, net::SocketAddr, time::Duration};

use http::Uri;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::{
    faults::{masked_url, near, quoted},
    units,
};

/// How a value is written in the file.
///
/// Messages consist of what is wrong and, after a line break, what to do about it.
pub(super) trait Format {
    type Value;
    /// What it is, in words.
    const TITLE: &'static str;
    const EXAMPLE: &'static str;
    /// A regular expression for the JSON schema; it may accept more than `parse`.
    const PATTERN: &'static str;
    /// The unit that a bare number was probably meant in.
    const UNIT: Option<&'static str> = None;

    fn parse(text: &str) -> Result<Self::Value, String>;
    fn show(value: &Self::Value) -> String;
}

/// `#[serde(with = "As::<F>")]`: a field that is written in the format `F`.
pub(super) struct As<F>(PhantomData<F>);

impl<F: Format> As<F> {
    pub(super) fn serialize<S: Serializer>(value: &F::Value, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&F::show(value))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<F::Value, D::Error> {
        F::parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
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

impl<F: Format> Maybe<F> {
    pub(super) fn serialize<S: Serializer>(value: &Option<F::Value>, serializer: S) -> Result<S::Ok, S::Error> {
        value.as_ref().map(F::show).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<F::Value>, D::Error> {
        As::<F>::deserialize(deserializer).map(Some)
    }
}

impl<F: Format> JsonSchema for Maybe<F> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        F::TITLE.into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        As::<F>::json_schema(generator)
    }
}

/// Longest time that a key accepts: a longer one is a mistake.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// `"250ms"`, `"30s"`, `"1m30s"`
pub(super) struct Time;

impl Format for Time {
    type Value = Duration;
    const TITLE: &'static str = "a time";
    const EXAMPLE: &'static str = "30s";
    const PATTERN: &'static str = r"^\s*([0-9]+(\.[0-9]+)?\s*(ms|s|m|h)\s*)+$";
    const UNIT: Option<&'static str> = Some("s");

    fn parse(text: &str) -> Result<Duration, String> {
        let time = units::time(text)
            .map_err(|why| format!("the time {} {why}\ntimes are written \"250ms\", \"30s\", \"2m\", \"1h\"", quoted(text)))?;
        if time > LONGEST {
            return Err(format!("{} is too long: at most {}\n", quoted(text), units::show_time(LONGEST)));
        }
        Ok(time)
    }

    fn show(time: &Duration) -> String {
        units::show_time(*time)
    }
}

/// A time, or `"off"`.
pub(super) struct TimeOrOff;

impl Format for TimeOrOff {
    type Value = Option<Duration>;
    const TITLE: &'static str = "a time or \"off\"";
    const EXAMPLE: &'static str = "15s";
    const PATTERN: &'static str = r"^(off|\s*([0-9]+(\.[0-9]+)?\s*(ms|s|m|h)\s*)+)$";
    const UNIT: Option<&'static str> = Time::UNIT;

    fn parse(text: &str) -> Result<Self::Value, String> {
        if text == "off" { Ok(None) } else { Time::parse(text).map(Some) }
    }

    fn show(time: &Self::Value) -> String {
        time.as_ref().map_or_else(|| "off".into(), Time::show)
    }
}

/// `"64KiB"`, `"100MiB"`
pub(super) struct Size;

impl Format for Size {
    type Value = u64;
    const TITLE: &'static str = "a size";
    const EXAMPLE: &'static str = "100MiB";
    const PATTERN: &'static str = r"^\s*[0-9]+(\.[0-9]+)?\s*(B|KiB|MiB|GiB|kB|KB|MB|GB)\s*$";
    const UNIT: Option<&'static str> = Some("B");

    fn parse(text: &str) -> Result<u64, String> {
        match units::size(text) {
            Ok(0) => Err(format!("{} is too small: at least 1B\n", quoted(text))),
            Ok(bytes) => Ok(bytes),
            Err(why) => Err(format!("the size {} {why}\nsizes are written \"64KiB\", \"100MiB\"", quoted(text))),
        }
    }

    fn show(bytes: &u64) -> String {
        units::show_size(*bytes)
    }
}

/// `"127.0.0.1:8787"`, `"localhost:8787"`
pub(super) struct Address;

impl Format for Address {
    type Value = SocketAddr;
    const TITLE: &'static str = "an address with its port";
    const EXAMPLE: &'static str = "127.0.0.1:8787";
    const PATTERN: &'static str = r"^.*:[0-9]+$";

    fn parse(text: &str) -> Result<SocketAddr, String> {
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
            format!("{} is not an address with its port\n{help}", quoted(text))
        })
    }

    fn show(address: &SocketAddr) -> String {
        address.to_string()
    }
}

/// Where requests go: an URL without the part of the path that requests bring themselves.
pub(super) struct BaseUrl;

impl Format for BaseUrl {
    type Value = Uri;
    const TITLE: &'static str = "a URL (http, https)";
    const EXAMPLE: &'static str = "https://api.groq.com";
    const PATTERN: &'static str = "^[hH][tT][tT][pP][sS]?://.+$";

    fn parse(text: &str) -> Result<Uri, String> {
        let uri = url(text, &["https", "http"])?;
        if uri.query().is_some() || uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err("a base URL has neither a user nor a query\n".into());
        }
        if uri.path().trim_end_matches('/').ends_with("/openai/v1") {
            let (base, _) = text.split_once("/openai/v1").unwrap_or((text, ""));
            let text = quoted(text);
            let base = quoted(base);
            return Err(format!("{text} ends in the part of the path that requests bring themselves\nwrite {base}"));
        }
        Ok(uri)
    }

    fn show(uri: &Uri) -> String {
        let text = uri.to_string();
        // An empty path is left out, as people write it.
        if uri.path() == "/" && uri.query().is_none() { text.trim_end_matches('/').to_owned() } else { text }
    }
}

/// An HTTP proxy.
pub(super) struct ProxyUrl;

impl Format for ProxyUrl {
    type Value = Uri;
    const TITLE: &'static str = "a URL (http, https)";
    const EXAMPLE: &'static str = "http://proxy.internal:3128";
    const PATTERN: &'static str = BaseUrl::PATTERN;

    fn parse(text: &str) -> Result<Uri, String> {
        url(text, &["http", "https"])
    }

    fn show(uri: &Uri) -> String {
        masked_url(&BaseUrl::show(uri))
    }
}

/// A URL of one of these schemes, with a host.
pub(super) fn url(text: &str, schemes: &[&str]) -> Result<Uri, String> {
    let shown = quoted(&masked_url(text));
    let uri: Uri = text.parse().map_err(|_| format!("{shown} is not a URL\n"))?;
    let Some(scheme) = uri.scheme_str() else {
        return Err(format!("{shown} has no scheme\nwrite \"{}://{}\"", schemes[0], masked_url(text)));
    };
    if !schemes.contains(&scheme) {
        let help = near(scheme, schemes.iter().copied()).map(|near| format!("did you mean `{near}`?"));
        return Err(format!("{shown}: the scheme must be {}\n{}", schemes.join(" or "), help.unwrap_or_default()));
    }
    if uri.host().unwrap_or_default().is_empty() {
        return Err(format!("{shown} names no host\n"));
    }
    Ok(uri)
}

/// A SHA-256, written as 64 hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

impl Format for Digest {
    type Value = Self;
    const TITLE: &'static str = "a SHA-256 in hex";
    const EXAMPLE: &'static str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const PATTERN: &'static str = "^[0-9a-fA-F]{64}$";

    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || {
            let digits = text.chars().count();
            format!("not a SHA-256: 64 hex digits were expected, not {digits}\nprintf %s \"$KEY\" | sha256sum")
        };
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        let mut digest = [0; 32];
        for (at, byte) in digest.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).map_err(|_| wrong())?;
        }
        Ok(Self(digest))
    }

    /// Its beginning: `check` and logs do not show the digest of a secret.
    fn show(digest: &Self) -> String {
        let mut text = String::new();
        for byte in &digest.0[..4] {
            // Writing to a string does not fail.
            let _ = write!(text, "{byte:02x}");
        }
        text + "…"
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        As::<Self>::deserialize(deserializer)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        As::<Self>::serialize(self, serializer)
    }
}

impl JsonSchema for Digest {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        As::<Self>::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        As::<Self>::json_schema(generator)
    }
}
