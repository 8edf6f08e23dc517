//! Error objects with Groq's captured messages, and durations in Go's format.

use http::StatusCode;
use serde_json::{Value, json};

/// Formats a duration in nanoseconds like Go's `Duration.String`: `399ms`, `2m59.56s`, `1h2m3.5s`.
pub(crate) fn go_duration(nanos: u64) -> String {
    let fraction = |value: u64, unit: u64| {
        let digits = unit.ilog10() as usize;
        let text = format!("{}.{:0digits$}", value / unit, value % unit);
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    match nanos {
        0 => "0s".to_owned(),
        1..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => format!("{}µs", fraction(nanos, 1_000)),
        1_000_000..1_000_000_000 => format!("{}ms", fraction(nanos, 1_000_000)),
        _ => {
            let (minutes, rest) = (nanos / 60_000_000_000, nanos % 60_000_000_000);
            let seconds = fraction(rest, 1_000_000_000);
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{seconds}s"),
                (0, minutes) => format!("{minutes}m{seconds}s"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
            }
        }
    }
}

/// Serializes JSON, with the members of an error object in Groq's order.
pub(crate) fn to_text(body: &Value) -> String {
    let Some(Value::Object(members)) = body.get("error") else { return body.to_string() };
    let order = ["message", "type", "param", "code", "failed_generation"];
    let named = order.iter().filter_map(|name| Some((*name, members.get(*name)?)));
    let others = members.iter().map(|(name, value)| (name.as_str(), value)).filter(|(name, _)| !order.contains(name));
    let members: Vec<String> = named.chain(others).map(|(name, value)| format!("{}:{value}", json!(name))).collect();
    format!("{{\"error\":{{{}}}}}", members.join(","))
}

/// An error object.
pub(crate) fn error(message: &str, kind: &str, code: Option<&str>) -> Value {
    match code {
        Some(code) => json!({"error": {"message": message, "type": kind, "code": code}}),
        None => json!({"error": {"message": message, "type": kind}}),
    }
}

/// An `invalid_request_error`.
pub(crate) fn invalid(message: &str, code: Option<&str>) -> Value {
    error(message, "invalid_request_error", code)
}

pub(crate) fn unknown_url(method: &str, path: &str) -> Value {
    let message = format!(
        "Unknown request URL: {method} {path}. Please check the URL for typos, or see the docs at https://console.groq.com/docs/"
    );
    invalid(&message, Some("unknown_url"))
}

pub(crate) fn over_capacity(model: &str) -> Value {
    let message = format!(
        "{model} is currently over capacity. Please try again and back off exponentially. \
         Visit https://groqstatus.com to see if there is an active incident."
    );
    error(&message, "internal_server_error", None)
}

pub(crate) fn no_such_model(model: &str) -> Value {
    invalid(&format!("The model `{model}` does not exist or you do not have access to it."), Some("model_not_found"))
}

pub(crate) fn decommissioned(model: &str) -> Value {
    let message = format!(
        "The model `{model}` has been decommissioned and is no longer supported. \
         Please refer to https://console.groq.com/docs/deprecations for a recommendation on which model to use instead."
    );
    invalid(&message, Some("model_decommissioned"))
}

/// The body of the error that Groq sends with this status.
pub(crate) fn usual(status: u16, model: &str) -> Value {
    match status {
        401 => invalid("Invalid API Key", Some("invalid_api_key")),
        403 => json!({"error": {"message": "Access denied. Please check your network settings."}}),
        404 => json!({"error": {"message": "Not Found"}}),
        498 => error("Flex tier capacity exceeded. Please try again later.", "invalid_request_error", Some("capacity_exceeded")),
        503 => over_capacity(model),
        500.. => error("Internal Server Error", "internal_server_error", None),
        _ => invalid("Invalid request", None),
    }
}

/// Status and body of Groq's error with this code.
pub(crate) fn by_code(code: &str, model: &str) -> (StatusCode, Value) {
    let message = match code {
        "invalid_api_key" => return (StatusCode::UNAUTHORIZED, usual(401, model)),
        "model_not_found" => return (StatusCode::NOT_FOUND, no_such_model(model)),
        "model_decommissioned" => return (StatusCode::BAD_REQUEST, decommissioned(model)),
        "capacity_exceeded" => return (StatusCode::from_u16(498).unwrap_or(StatusCode::BAD_REQUEST), usual(498, model)),
        "organization_restricted" => {
            "Organization has been restricted. Please reach out to support if you believe this was in error."
        }
        "blocked_api_access" => "API access has been blocked: the spend limit of this organization has been reached.",
        code if code.starts_with("spend_") => "The spend limit of this organization has been reached.",
        _ => "Invalid request",
    };
    (StatusCode::BAD_REQUEST, invalid(message, Some(code)))
}

/// Cloudflare's HTML page for an outage of the origin.
pub(crate) fn edge_page(status: u16) -> String {
    let reason = match status {
        502 => "Bad gateway",
        504 => "Gateway time-out",
        520 => "Web server is returning an unknown error",
        521 => "Web server is down",
        522 => "Connection timed out",
        523 => "Origin is unreachable",
        524 => "A timeout occurred",
        _ => "Error",
    };
    format!(
        "<!DOCTYPE html>\n<html lang=\"en-US\"><head><title>api.groq.com | {status}: {reason}</title></head>\n\
         <body><h1>{reason}</h1><span>Error code {status}</span><p>Cloudflare Ray ID: <strong>8e1f0a2b3c4d5e6f</strong></p></body></html>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_the_captured_ones() {
        let body = usual(401, "");
        let text = r#"{"error":{"message":"Invalid API Key","type":"invalid_request_error","code":"invalid_api_key"}}"#;
        assert_eq!(to_text(&body), text);
        let body = usual(503, "qwen/qwen3-32b");
        let text = r#"{"error":{"message":"qwen/qwen3-32b is currently over capacity. Please try again and back off exponentially. Visit https://groqstatus.com to see if there is an active incident.","type":"internal_server_error"}}"#;
        assert_eq!(to_text(&body), text);
        let text = r#"{"error":{"message":"Internal Server Error","type":"internal_server_error"}}"#;
        assert_eq!(to_text(&usual(500, "")), text);
        assert_eq!(to_text(&json!({"a": 1})), r#"{"a":1}"#);
    }

    #[test]
    fn durations_print_as_in_go() {
        let cases = [
            (0, "0s"),
            (15, "15ns"),
            (1_500, "1.5µs"),
            (6_000_000, "6ms"),
            (585_000_000, "585ms"),
            (7_660_000_000, "7.66s"),
            (86_400_000_000, "1m26.4s"),
            (179_560_000_000, "2m59.56s"),
            (187_055_999_999, "3m7.055999999s"),
            (1_188_000_000_000, "19m48s"),
            (3_723_500_000_000, "1h2m3.5s"),
            (3_600_000_000_000, "1h0m0s"),
        ];
        for (nanos, text) in cases {
            assert_eq!(go_duration(nanos), text);
        }
    }
}
