//! What does a key accept? One rule per kind of value: reads it, says what is wrong with it, shows it again.

use std::{net::SocketAddr, ops::Range, time::Duration};

use http::Uri;

use super::{
    faults::{near, quoted},
    units,
    value::{self, Value},
};

/// What a file or the environment gave for a key.
#[derive(Clone, Debug)]
pub(super) enum Given {
    Flag(bool),
    Integer(i128),
    Number(f64),
    Text(String),
    List(Vec<(Given, Range<usize>)>),
    Other(&'static str),
}

/// Why a value is not acceptable, and what to do.
#[derive(Debug, PartialEq)]
pub(super) struct Wrong {
    pub(super) message: String,
    pub(super) help: Option<String>,
    /// Where inside a list.
    pub(super) span: Option<Range<usize>>,
}

/// What a key accepts.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rule {
    /// `true` or `false`
    Flag,
    /// A whole number between both, and what to do instead of one under the least.
    Count(u64, u64, &'static str),
    /// A number between both.
    Number(f64, f64),
    /// A number over 0.
    Positive,
    /// Bytes, at least so many.
    Size(u64),
    /// Milliseconds at least.
    Time(u64),
    /// The same, or `off`.
    TimeOrOff(u64),
    /// `host:port`
    Address,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A URL of one of these schemes, with a host.
    Url(&'static [&'static str]),
    /// Where requests go: `http` or `https`, without the part of the path that requests bring.
    Upstream,
    /// A path of a file.
    Path,
    /// Any text but an empty one.
    Name,
    /// The name of an environment variable.
    Variable,
    /// 64 hex digits.
    Sha256,
    /// A tracing filter.
    Filter,
    /// A list of these.
    Many(&'static Rule),
}

/// Longest time a key accepts: anything longer is a mistake, and clocks overflow.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

impl Rule {
    /// Checks and converts what was given.
    pub(super) fn read(&self, given: &Given) -> Result<Value, Vec<Wrong>> {
        let Rule::Many(rule) = self else { return self.read_one(given).map_err(|wrong| vec![wrong]) };
        let Given::List(items) = given else { return Err(vec![self.mismatch(given)]) };
        let (mut values, mut wrongs) = (Vec::new(), Vec::new());
        for (item, span) in items {
            match rule.read_one(item) {
                Ok(value) if values.contains(&value) => {
                    wrongs.push(Wrong { span: Some(span.clone()), ..wrong("listed twice", None) })
                }
                Ok(value) => values.push(value),
                Err(wrong) => wrongs.push(Wrong { span: Some(span.clone()), ..wrong }),
            }
        }
        if wrongs.is_empty() { Ok(Value::Many(values)) } else { Err(wrongs) }
    }

    fn read_one(&self, given: &Given) -> Result<Value, Wrong> {
        match (self, given) {
            (Rule::Flag, Given::Flag(flag)) => Ok(Value::Flag(*flag)),
            (Rule::Count(least, most, remedy), Given::Integer(n)) => count(*n, *least, *most, remedy),
            (Rule::Number(least, most), Given::Number(n)) => number(*n, *least, *most),
            (Rule::Number(least, most), Given::Integer(n)) => number(*n as f64, *least, *most),
            (Rule::Positive, Given::Number(n)) => positive(*n),
            (Rule::Positive, Given::Integer(n)) => positive(*n as f64),
            (Rule::Size(least), Given::Text(text)) => size(text, *least),
            (Rule::TimeOrOff(_), Given::Text(text)) if text == "off" => Ok(Value::Off),
            (Rule::TimeOrOff(_), Given::Flag(false)) => Err(wrong("a time was expected", Some("write \"off\"".into()))),
            (Rule::Time(least) | Rule::TimeOrOff(least), Given::Text(text)) => time(text, *least),
            (Rule::Size(_), Given::Integer(n)) => Err(wrong(
                format!("a size with its unit was expected, not {n}"),
                Some(format!("write \"{n}B\", or KiB, MiB, GiB")),
            )),
            (Rule::Time(_) | Rule::TimeOrOff(_), Given::Integer(n)) => {
                Err(wrong(format!("a time with its unit was expected, not {n}"), Some(format!("write \"{n}s\", or ms, m, h"))))
            }
            (Rule::Address, Given::Text(text)) => address(text),
            (Rule::Choice(words), Given::Text(text)) => choice(text, words),
            (Rule::Url(schemes), Given::Text(text)) => url(text, schemes),
            (Rule::Upstream, Given::Text(text)) => upstream(text),
            (Rule::Sha256, Given::Text(text)) => value::digest(text).map(Value::Digest).ok_or_else(|| {
                wrong(
                    format!("not a SHA-256: 64 hex digits were expected, not {}", text.chars().count()),
                    Some("printf %s \"$KEY\" | sha256sum".into()),
                )
            }),
            (Rule::Variable, Given::Text(text)) => variable(text),
            (Rule::Filter, Given::Text(text)) => filter(text),
            (Rule::Path | Rule::Name, Given::Text(text)) if text.trim().is_empty() => Err(wrong("is empty", None)),
            (Rule::Path | Rule::Name, Given::Text(text)) => Ok(Value::Text(text.clone())),
            _ => Err(self.mismatch(given)),
        }
    }

    fn mismatch(&self, given: &Given) -> Wrong {
        let found = match given {
            Given::Flag(_) => "true or false",
            Given::Integer(_) => "an integer",
            Given::Number(_) => "a number",
            Given::Text(_) => "text",
            Given::List(_) => "a list",
            Given::Other(name) => name,
        };
        wrong(format!("{} was expected, not {found}", self.expected()), Some(format!("for example {}", self.example())))
    }

    /// What it accepts, in words, with units.
    pub(super) fn expected(&self) -> String {
        match self {
            Rule::Flag => "true or false".into(),
            Rule::Count(..) => "a whole number".into(),
            Rule::Number(least, most) => format!("a number from {least} to {most}"),
            Rule::Positive => "a number over 0".into(),
            Rule::Size(_) => "a size".into(),
            Rule::Time(_) => "a time".into(),
            Rule::TimeOrOff(_) => "a time or \"off\"".into(),
            Rule::Address => "an address with its port".into(),
            Rule::Choice(words) => one_of(words),
            Rule::Url(schemes) => format!("a URL ({})", schemes.join(", ")),
            Rule::Upstream => "a URL (http, https)".into(),
            Rule::Path => "a path".into(),
            Rule::Name => "text".into(),
            Rule::Variable => "the name of an environment variable".into(),
            Rule::Sha256 => "a SHA-256 in hex".into(),
            Rule::Filter => "a log filter".into(),
            Rule::Many(rule) => format!("a list, each {}", rule.expected()),
        }
    }

    /// A value that it accepts, as TOML.
    fn example(&self) -> String {
        match self {
            Rule::Flag => "true".into(),
            Rule::Count(least, ..) => (*least).max(1).to_string(),
            Rule::Number(..) => "0.1".into(),
            Rule::Positive => "1".into(),
            Rule::Size(_) => "\"100MiB\"".into(),
            Rule::Time(_) | Rule::TimeOrOff(_) => "\"30s\"".into(),
            Rule::Address => "\"127.0.0.1:8787\"".into(),
            Rule::Choice(words) => quoted(words[0]),
            Rule::Url(schemes) => format!("\"{}://localhost:8080\"", schemes[0]),
            Rule::Upstream => "\"https://api.groq.com\"".into(),
            Rule::Path => "\"/etc/groq-shield/file\"".into(),
            Rule::Name => "\"name\"".into(),
            Rule::Variable => "\"GROQ_API_KEY\"".into(),
            Rule::Sha256 => format!("{:?}", "0".repeat(64)),
            Rule::Filter => "\"info\"".into(),
            Rule::Many(rule) => format!("[{}]", rule.example()),
        }
    }

    /// The value as TOML, secrets masked.
    pub(super) fn show(&self, value: &Value) -> String {
        match (self, value) {
            (Rule::Size(_), Value::Count(bytes)) => quoted(&units::show_size(*bytes)),
            (Rule::Url(_) | Rule::Upstream, Value::Text(text)) => quoted(&masked(text)),
            (Rule::Many(rule), Value::Many(values)) => {
                format!("[{}]", values.iter().map(|value| rule.show(value)).collect::<Vec<_>>().join(", "))
            }
            (_, Value::Flag(flag)) => flag.to_string(),
            (_, Value::Count(count)) => count.to_string(),
            (_, Value::Number(number)) => format!("{number:?}"),
            (_, Value::Time(time)) => quoted(&units::show_time(*time)),
            (_, Value::Off) => "\"off\"".into(),
            (_, Value::Text(text)) => quoted(text),
            (_, Value::Address(address)) => quoted(&address.to_string()),
            (_, Value::Digest(digest)) => format!("\"{}…\"", value::hex(&digest[..4])),
            (_, Value::Many(_)) => unreachable!("only a list's rule yields a list"),
        }
    }
}

fn wrong(message: impl Into<String>, help: Option<String>) -> Wrong {
    Wrong { message: message.into(), help, span: None }
}

fn one_of(words: &[&str]) -> String {
    let words: Vec<_> = words.iter().map(|word| quoted(word)).collect();
    match words.as_slice() {
        [head @ .., last] if !head.is_empty() => format!("{} or {last}", head.join(", ")),
        _ => words.concat(),
    }
}

fn count(n: i128, least: u64, most: u64, remedy: &str) -> Result<Value, Wrong> {
    match u64::try_from(n) {
        Ok(n) if (least..=most).contains(&n) => Ok(Value::Count(n)),
        _ if n < i128::from(least) => {
            Err(wrong(format!("{n} is too small: at least {least}"), (!remedy.is_empty()).then(|| remedy.to_owned())))
        }
        _ => Err(wrong(format!("{n} is too large: at most {most}"), None)),
    }
}

fn number(n: f64, least: f64, most: f64) -> Result<Value, Wrong> {
    if (least..=most).contains(&n) {
        return Ok(Value::Number(n));
    }
    let share = n > 1.0 && n <= 100.0 && most <= 1.0;
    Err(wrong(format!("{n} is out of range: {least} to {most}"), share.then(|| format!("a share: {n} % is {}", n / 100.0))))
}

fn positive(n: f64) -> Result<Value, Wrong> {
    if n.is_finite() && n > 0.0 { Ok(Value::Number(n)) } else { Err(wrong(format!("{n} is out of range: more than 0"), None)) }
}

fn size(text: &str, least: u64) -> Result<Value, Wrong> {
    let bytes = units::size(text).map_err(|why| {
        wrong(format!("the size {} {why}", quoted(text)), Some("sizes are written \"64KiB\", \"100MiB\"".into()))
    })?;
    if bytes < least {
        return Err(wrong(format!("{} is too small: at least {}", quoted(text), units::show_size(least)), None));
    }
    Ok(Value::Count(bytes))
}

fn time(text: &str, least: u64) -> Result<Value, Wrong> {
    let time = units::time(text).map_err(|why| {
        wrong(format!("the time {} {why}", quoted(text)), Some("times are written \"250ms\", \"30s\", \"2m\", \"1h\"".into()))
    })?;
    let least = Duration::from_millis(least);
    if time < least {
        return Err(wrong(format!("{} is too short: at least {}", quoted(text), units::show_time(least)), None));
    }
    if time > LONGEST {
        return Err(wrong(format!("{} is too long: at most {}", quoted(text), units::show_time(LONGEST)), None));
    }
    Ok(Value::Time(time))
}

fn address(text: &str) -> Result<Value, Wrong> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(Value::Address(address));
    }
    let help = match text.rsplit_once(':') {
        Some(("localhost", port)) if port.parse::<u16>().is_ok() => format!("write \"127.0.0.1:{port}\""),
        Some(("" | "*", port)) if port.parse::<u16>().is_ok() => format!("write \"0.0.0.0:{port}\" for every interface"),
        Some((host, port)) if host.parse::<std::net::IpAddr>().is_ok() && port.parse::<u16>().is_err() => {
            "ports go from 0 (any free one) to 65535".into()
        }
        _ if text.parse::<u16>().is_ok() => format!("write \"127.0.0.1:{text}\""),
        _ if text.parse::<std::net::IpAddr>().is_ok() => "the port is missing".into(),
        _ => "an IP address and a port, such as \"127.0.0.1:8787\" or \"[::1]:8787\"".into(),
    };
    Err(wrong(format!("{} is not an address with its port", quoted(text)), Some(help)))
}

fn choice(text: &str, words: &[&str]) -> Result<Value, Wrong> {
    if words.contains(&text) {
        return Ok(Value::Text(text.to_owned()));
    }
    let help = match near(text, words.iter().copied()) {
        Some(word) => format!("did you mean {}?", quoted(word)),
        None => format!("one of {}", one_of(words)),
    };
    Err(wrong(format!("{} is not known here", quoted(text)), Some(help)))
}

fn url(text: &str, schemes: &[&str]) -> Result<Value, Wrong> {
    parse_url(text, schemes).map(|_| Value::Text(text.to_owned()))
}

fn parse_url(text: &str, schemes: &[&str]) -> Result<Uri, Wrong> {
    let shown = quoted(&masked(text));
    let uri: Uri = text.parse().map_err(|_| wrong(format!("{shown} is not a URL"), None))?;
    let Some(scheme) = uri.scheme_str() else {
        return Err(wrong(format!("{shown} has no scheme"), Some(format!("write \"{}://{}\"", schemes[0], masked(text)))));
    };
    if !schemes.contains(&scheme) {
        let help = near(scheme, schemes.iter().copied()).map(|near| format!("did you mean `{near}`?"));
        return Err(wrong(format!("{shown}: the scheme must be {}", schemes.join(" or ")), help));
    }
    if uri.host().unwrap_or_default().is_empty() {
        return Err(wrong(format!("{shown} names no host"), None));
    }
    Ok(uri)
}

fn upstream(text: &str) -> Result<Value, Wrong> {
    let uri = parse_url(text, &["https", "http"])?;
    if uri.query().is_some() || uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err(wrong("a base URL has neither a user nor a query", None));
    }
    if uri.path().trim_end_matches('/').ends_with("/openai/v1") {
        let (base, _) = text.split_once("/openai/v1").unwrap_or((text, ""));
        return Err(wrong(
            format!("{} ends in the part of the path that requests bring themselves", quoted(text)),
            Some(format!("write {}", quoted(base))),
        ));
    }
    Ok(Value::Text(text.to_owned()))
}

fn variable(text: &str) -> Result<Value, Wrong> {
    if text.starts_with("gsk_") || text.starts_with("sk-") {
        return Err(wrong(
            "this is a key, not the name of a variable that holds it",
            Some("keys never stand in the file".into()),
        ));
    }
    let first = text.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    if !first || text.chars().any(|c| !c.is_ascii_alphanumeric() && c != '_') {
        return Err(wrong(
            format!("{} is not the name of an environment variable", quoted(text)),
            Some("its name alone, without `$`, such as \"GROQ_API_KEY\"".into()),
        ));
    }
    Ok(Value::Text(text.to_owned()))
}

fn filter(text: &str) -> Result<Value, Wrong> {
    for part in text.split(',').map(str::trim) {
        let bare = !part.contains(['=', ':', '[']) && part != "groq_shield";
        if bare && !LEVELS.contains(&part.to_ascii_lowercase().as_str()) {
            let help = match near(part, LEVELS) {
                Some(level) => format!("did you mean \"{level}\"?"),
                None => "a level (off, error, warn, info, debug, trace), or \"groq_shield=debug,warn\"".into(),
            };
            return Err(wrong(format!("{} is not a log level", quoted(part)), Some(help)));
        }
    }
    match tracing_subscriber::EnvFilter::builder().parse(text) {
        Ok(_) => Ok(Value::Text(text.to_owned())),
        Err(why) => {
            Err(wrong(format!("{} is not a log filter: {why}", quoted(text)), Some("such as \"groq_shield=debug,warn\"".into())))
        }
    }
}

/// A URL with its password, if it has one, masked.
fn masked(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    match rest[..end].rsplit_once('@') {
        Some((user, host)) => {
            let user = user.split_once(':').map_or("***".into(), |(name, _)| format!("{name}:***"));
            format!("{scheme}://{user}@{host}{}", &rest[end..])
        }
        None => text.to_owned(),
    }
}
