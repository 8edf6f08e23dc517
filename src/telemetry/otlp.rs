//! Spans over OTLP: one server span per finished request, a child of the client's own span if it sent one, exported over
//! OTLP/HTTP in the background.

use std::{
    sync::OnceLock,
    time::{Duration, SystemTime},
};

use opentelemetry::{
    Context, KeyValue,
    trace::{
        Span, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState, Tracer, TracerProvider,
    },
};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{SdkTracer, SdkTracerProvider},
};

use super::{Record, Source, access};

/// The tracer; unset if spans are not exported.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();
/// Maximum wait for the collector at exit.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

/// The running export. Dropping it sends the remaining spans.
#[derive(Debug)]
pub(super) struct Export(SdkTracerProvider);

/// Starts the export to a collector. `endpoint` is its base URL, as in OTEL_EXPORTER_OTLP_ENDPOINT, or the full `…/v1/traces`.
///
/// # Errors
///
/// Why the exporter cannot be created.
pub(super) fn start(endpoint: &str) -> Result<Export, String> {
    if !endpoint.starts_with("http://") {
        return Err(format!("log.otlp_endpoint {endpoint:?}: not an http:// URL; send spans to a collector beside the shield"));
    }
    let endpoint = endpoint.trim_end_matches('/');
    let endpoint = if endpoint.ends_with("/v1/traces") { endpoint.to_owned() } else { format!("{endpoint}/v1/traces") };
    let exporter = SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(endpoint)
        .build()
        .map_err(|error| format!("log.otlp_endpoint: {error}"))?;
    let provider = SdkTracerProvider::builder()
        .with_resource(Resource::builder().with_service_name("groq-shield").build())
        .with_batch_exporter(exporter)
        .build();
    TRACER.set(provider.tracer("groq-shield")).map_err(|_| "log.otlp_endpoint: spans are exported already".to_owned())?;
    Ok(Export(provider))
}

impl Drop for Export {
    fn drop(&mut self) {
        if let Err(error) = self.0.shutdown_with_timeout(FLUSH_TIMEOUT) {
            tracing::warn!(%error, "the last spans did not reach the collector");
        }
    }
}

/// Exports a finished request.
pub(super) fn span(record: &Record) {
    let Some(tracer) = TRACER.get() else { return };
    let ended = SystemTime::now();
    let text = |key, value: &str| KeyValue::new(key, access::clean(value, access::NAME).into_owned());
    let mut attributes = vec![
        KeyValue::new("http.response.status_code", i64::from(record.status())),
        text("groq_shield.request_id", &record.id),
        text("groq_shield.app", &record.app),
        KeyValue::new("groq_shield.source", record.source.as_str()),
        KeyValue::new("groq_shield.wait_ms", access::millis(record.wait)),
        KeyValue::new("groq_shield.attempts", i64::from(record.attempts)),
        KeyValue::new("gen_ai.provider.name", "groq"),
    ];
    if !record.model.is_empty() {
        attributes.push(text("gen_ai.request.model", &record.model));
        attributes.push(KeyValue::new("gen_ai.usage.input_tokens", record.usage.prompt as i64));
        attributes.push(KeyValue::new("gen_ai.usage.output_tokens", record.usage.completion.unwrap_or(0) as i64));
    }
    if let Some(bound) = &record.bound {
        attributes.push(text("groq_shield.bound", bound));
    }
    if let Some(id) = &record.upstream_id {
        attributes.push(text("groq_shield.upstream_id", id));
    }
    let parent = record.traceparent.as_deref().and_then(context).unwrap_or_default();
    let mut span = tracer
        .span_builder(record.endpoint)
        .with_kind(SpanKind::Server)
        .with_start_time(ended - record.started.elapsed())
        .with_attributes(attributes)
        .start_with_context(tracer, &parent);
    if record.status() >= 500 || record.source == Source::Client && record.status == 0 {
        let why = record.error.as_deref().unwrap_or("the client left");
        span.set_status(Status::error(access::clean(why, access::REASON).into_owned()));
    }
    span.end_with_timestamp(ended);
}

/// The client's own span, from its `traceparent`.
fn context(traceparent: &str) -> Option<Context> {
    let mut parts = traceparent.split('-');
    let (_version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let parent = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(parent).ok()?,
        TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED,
        true,
        TraceState::default(),
    );
    parent.is_valid().then(|| Context::new().with_remote_span_context(parent))
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpListener,
        sync::Arc,
    };

    use super::*;

    #[test]
    fn only_a_valid_traceparent_is_a_parent() {
        let context = context("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").expect("valid");
        assert!(context.span().span_context().is_sampled());
        for other in ["", "00-0-0-0", "00-00000000000000000000000000000000-0000000000000000-01"] {
            assert!(super::context(other).is_none(), "{other}");
        }
    }

    #[test]
    fn only_plain_http_is_spoken() {
        for other in ["https://collector.example", "collector:4318", ""] {
            assert!(start(other).expect_err("refused").contains("log.otlp_endpoint"), "{other}");
        }
    }

    #[test]
    fn a_finished_request_reaches_the_collector() {
        let collector = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = collector.local_addr().expect("an address");
        let export = start(&format!("http://{address}")).expect("a plain URL");
        let telemetry = Arc::<super::super::Telemetry>::default();
        let mut record = Record::new(&telemetry, "/openai/v1/chat/completions", tokio::time::Instant::now());
        record.model = "openai/gpt-oss-20b".into();
        record.error = Some("gsk_Canary".into());
        drop(record);
        let collected = std::thread::spawn(move || {
            let (mut stream, _) = collector.accept().expect("the exporter");
            let mut seen = Vec::new();
            let mut chunk = [0; 4096];
            while !seen.windows(11).any(|window| window == b"groq-shield")
                || !seen.windows(10).any(|window| window == b"gpt-oss-20")
            {
                let n = stream.read(&mut chunk).expect("a request");
                assert!(n > 0, "the export ended early");
                seen.extend_from_slice(&chunk[..n]);
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").expect("an answer");
            seen
        });
        drop(export);
        let seen = collected.join().expect("collected");
        assert!(seen.starts_with(b"POST /v1/traces "));
        assert!(!seen.windows(6).any(|window| window == b"Canary"));
    }
}
