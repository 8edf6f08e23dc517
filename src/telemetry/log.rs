//! The log: to standard error, as text or JSON, by a filter that a reload can change.

use std::io::{self, IsTerminal};

use tracing_subscriber::{
    EnvFilter, Layer, Registry, fmt, layer::SubscriberExt, registry::LookupSpan, reload, util::SubscriberInitExt,
};

use super::fields::PlainFields;
use crate::config::{Log, LogFormat};

/// The running log. Dropping it exports the remaining spans.
#[must_use = "dropping it ends the export of spans"]
#[derive(Debug)]
pub struct Handle {
    filter: reload::Handle<EnvFilter, Registry>,
    #[cfg(feature = "otlp")]
    _spans: Option<super::otlp::Export>,
}

/// Starts logging for the whole process, once.
///
/// # Errors
///
/// An invalid filter, a collector that this build cannot export to, or a log that is already running.
pub fn init(log: &Log) -> Result<Handle, String> {
    #[cfg(feature = "otlp")]
    let spans = log.otlp_endpoint.as_deref().map(super::otlp::start).transpose()?;
    #[cfg(not(feature = "otlp"))]
    if log.otlp_endpoint.is_some() {
        return Err(
            "log.otlp_endpoint: this build cannot export spans; build with `--features otlp` or use the release image".into()
        );
    }
    let (filter, handle) = reload::Layer::new(filter(&log.level)?);
    let coloured = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let lines = lines(log.format == LogFormat::Json, coloured, io::stderr);
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .try_init()
        .map_err(|error| format!("the log is already running: {error}"))?;
    Ok(Handle {
        filter: handle,
        #[cfg(feature = "otlp")]
        _spans: spans,
    })
}

/// Parses `log.level`: a level, or a list of `target=level`.
///
/// # Errors
///
/// Why it is invalid.
pub fn filter(level: &str) -> Result<EnvFilter, String> {
    EnvFilter::builder()
        .parse(level)
        .map_err(|error| format!("log.level {level:?}: {error}; write e.g. \"info\" or \"groq_shield=debug\""))
}

impl Handle {
    /// Replaces `log.level`.
    ///
    /// # Errors
    ///
    /// The filter is invalid; the old one stays.
    pub fn set_level(&self, level: &str) -> Result<(), String> {
        self.filter.reload(filter(level)?).map_err(|error| error.to_string())
    }
}

/// A layer that formats events. Both formats quote client-chosen text.
pub(super) fn lines<S, W>(json: bool, coloured: bool, to: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> fmt::MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = fmt::layer().with_writer(to);
    if json {
        lines.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed()
    } else if coloured {
        lines.with_ansi(true).boxed()
    } else {
        lines.with_ansi(false).fmt_fields(PlainFields).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_levels_or_lists_of_targets() {
        for good in ["info", "off", "groq_shield=debug", "warn,groq_shield::access=info"] {
            assert!(filter(good).is_ok(), "{good}");
        }
        let fault = filter("groq_shield=loud").expect_err("no such level");
        assert!(fault.contains("log.level"), "{fault}");
    }
}
