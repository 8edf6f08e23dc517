//! The failure table of the contract: status, type, code and message of each failure.

use std::{borrow::Cow, time::Duration};

use groq_limiter::types::Dimension;
use http::StatusCode;

use super::{
    kinds::{INVALID, SERVER},
    rejection::{CompletionLimit, Rejection},
};
use crate::groq;

/// One row of the failure table.
pub(super) struct Row {
    pub(super) status: StatusCode,
    pub(super) kind: Cow<'static, str>,
    pub(super) code: Option<Cow<'static, str>>,
    pub(super) message: Cow<'static, str>,
    pub(super) retry_after: Option<Duration>,
    /// Whether clients are told not to retry, whatever `retry_after` says.
    pub(super) no_retry: bool,
    pub(super) close: bool,
}

impl Rejection {
    /// The failure table of the contract. The match is exhaustive, so a new failure does not compile without its row.
    pub(super) fn row(&self) -> Row {
        let row = |status, kind: &'static str, code: &'static str, message: String| Row {
            status,
            kind: kind.into(),
            code: Some(code.into()),
            message: message.into(),
            retry_after: None,
            no_retry: false,
            close: false,
        };
        let after = |retry_after: Duration, row: Row| Row { retry_after: Some(retry_after), ..row };
        let close = |row: Row| Row { close: true, ..row };
        use StatusCode as S;
        match self {
            Self::Malformed(why) => close(row(
                S::BAD_REQUEST,
                INVALID,
                "malformed_request",
                format!("The request is not valid HTTP: {why}. Send one well-formed request."),
            )),
            Self::RequestTimeout(what) => close(row(
                S::BAD_REQUEST,
                INVALID,
                "request_timeout",
                format!("The request's {what} did not arrive in time. Send it without pauses."),
            )),
            Self::InvalidJson(why) => row(
                S::BAD_REQUEST,
                INVALID,
                "invalid_json",
                format!("The request body is not valid JSON: {why}. Send a JSON object."),
            ),
            Self::BodyTooLarge { limit } => close(row(
                S::PAYLOAD_TOO_LARGE,
                INVALID,
                "request_too_large",
                format!("The request body is larger than {limit} bytes. Send less, or raise server.max_body."),
            )),
            Self::NoKey => row(
                S::UNAUTHORIZED,
                INVALID,
                "invalid_api_key",
                "No API key. Send it as `Authorization: Bearer …`, or let the shield hold it (upstream.api_key_env).".into(),
            ),
            Self::UnknownToken => row(
                S::UNAUTHORIZED,
                INVALID,
                "invalid_api_key",
                "This app token is not known to the shield. Send one that is listed under [[app]].".into(),
            ),
            Self::Destination(what) => close(row(
                S::FORBIDDEN,
                INVALID,
                "destination_not_allowed",
                format!("{what} The shield serves its own upstream only; use it as the base URL."),
            )),
            // 508 would be the exact status, but Groq does not document it, and every shield in the loop would retry a 5xx. No
            // client retries 403.
            Self::Loop => close(row(
                S::FORBIDDEN,
                INVALID,
                "request_loop",
                "This request has come back to the shield that sent it: upstream.base_url leads here. \
                 Set it to https://api.groq.com, or to a server that does not send to this shield."
                    .into(),
            )),
            Self::NeverFits { dimension, limit, asked, parts, lower } => {
                let sum = match (parts, lower) {
                    (Some((prompt, completion)), CompletionLimit::Stated(name) | CompletionLimit::Unstated(name)) => {
                        format!(" (about {prompt} of prompt + {completion} of {name})")
                    }
                    _ => String::new(),
                };
                let shorten = parts.is_some_and(|(prompt, completion)| prompt > *limit || completion == 0);
                let remedy = match lower {
                    CompletionLimit::Stated(_) | CompletionLimit::Unstated(_) if shorten => "Shorten the prompt".into(),
                    CompletionLimit::Stated(name) => format!("Lower {name} or shorten the prompt"),
                    CompletionLimit::Unstated(name) => format!("Set {name}, or shorten the prompt"),
                    CompletionLimit::None => "Send less at once".into(),
                };
                row(
                    S::PAYLOAD_TOO_LARGE,
                    groq::error_type(dimension.unit),
                    // Not `rate_limit_exceeded`, because clients would retry a request that can never be sent.
                    "request_too_large_for_limit",
                    format!("Request too large for {}: Limit {limit}, Requested {asked}{sum}. {remedy}.", dimension.words()),
                )
            }
            Self::NotInTime { dimension, wait, fits, retry_after, by_client } => {
                let (later, longer) = if *by_client {
                    ("its client waits", "or let the client wait longer (its timeout, x-shield-max-wait-ms)")
                } else {
                    ("queue.max_wait allows", "or raise queue.max_wait")
                };
                // The same request may then wait for the rest of that time.
                let rest = if retry_after < wait { " and wait for the rest" } else { "" };
                let (words, wait, again) = (dimension.words(), seconds(*wait), seconds(*retry_after));
                let message = match fits {
                    Some((fits, name)) => format!(
                        "Groq expects an answer as large as the largest of the last minutes, which the limit of {words} cannot hold: \
                         this request could be sent in {wait}, later than {later}. Set {name} to {fits} or less, or try again in {again}{rest}."
                    ),
                    None => format!(
                        "The limit of {words} is used up: this request could be sent in {wait}, later than {later}. \
                         Try again in {again}{rest}, {longer}."
                    ),
                };
                after(
                    *retry_after,
                    row(S::TOO_MANY_REQUESTS, groq::error_type(dimension.unit), "rate_limit_exceeded", message),
                )
            }
            Self::Refused { dimension, retry_after } => {
                let words = dimension.as_ref().map_or_else(|| "requests".into(), Dimension::words);
                after(
                    *retry_after,
                    row(
                        S::TOO_MANY_REQUESTS,
                        dimension.as_ref().map_or("requests", |d| groq::error_type(d.unit)),
                        "rate_limit_exceeded",
                        format!("Groq refused this request on {words}. Try again in {}.", seconds(*retry_after)),
                    ),
                )
            }
            Self::BudgetSpent(exceeded) => Row {
                // Clients that honour it would wait for hours.
                no_retry: true,
                ..after(
                    exceeded.resets_in,
                    row(
                        S::TOO_MANY_REQUESTS,
                        exceeded.budget.unit.as_str(),
                        "app_budget_exceeded",
                        format!("{exceeded}. Raise {} of its [[app]].", exceeded.budget.key()),
                    ),
                )
            },
            Self::Overloaded { retry_after } => after(
                *retry_after,
                row(
                    S::SERVICE_UNAVAILABLE,
                    SERVER,
                    "shield_overloaded",
                    "The shield's queue is full. Send fewer requests at once, or raise queue.max_waiting and queue.max_bytes.".into(),
                ),
            ),
            Self::ShuttingDown => after(
                Duration::from_secs(1),
                close(row(
                    S::SERVICE_UNAVAILABLE,
                    SERVER,
                    "shutting_down",
                    "The shield is shutting down. Send the request again in a moment.".into(),
                )),
            ),
            Self::BreakerOpen { retry_after } => Row {
                // The request has already waited up to `breaker.max_wait`; retries would multiply that.
                no_retry: true,
                ..after(
                    *retry_after,
                    row(
                        S::SERVICE_UNAVAILABLE,
                        SERVER,
                        "upstream_unavailable",
                        format!("Groq has failed several times in a row for this model. Try again in {}.", seconds(*retry_after)),
                    ),
                )
            },
            Self::Unreachable(why) => row(
                S::BAD_GATEWAY,
                SERVER,
                "upstream_unreachable",
                format!("Groq cannot be reached: {why}. Check the network and upstream.base_url."),
            ),
            Self::UpstreamTls(why) => row(
                S::BAD_GATEWAY,
                SERVER,
                "upstream_tls",
                format!("No trusted TLS connection to Groq: {why}. Check upstream.base_url and upstream.ca_file."),
            ),
            Self::UpstreamClosed => row(
                S::BAD_GATEWAY,
                SERVER,
                "upstream_closed",
                "Groq closed the connection before its answer was complete. Send the request again.".into(),
            ),
            Self::UpstreamTimeout => row(
                S::BAD_GATEWAY,
                SERVER,
                "upstream_timeout",
                "Groq did not answer in time. Send the request again, or raise upstream.response_timeout or upstream.idle_timeout.".into(),
            ),
            Self::UpstreamInvalid(why) => row(
                S::BAD_GATEWAY,
                SERVER,
                "upstream_invalid",
                format!("Groq's answer cannot be used: {why}. Send the request again."),
            ),
            Self::Upstream(error) => Row {
                status: error.status,
                kind: error.kind.clone(),
                code: error.code.clone(),
                message: error.message.clone(),
                retry_after: error.retry_after,
                no_retry: false,
                close: false,
            },
            Self::Internal => row(
                S::INTERNAL_SERVER_ERROR,
                SERVER,
                "shield_internal",
                "The shield failed on this request; others are not affected. Please report it with the shield's log.".into(),
            ),
        }
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
