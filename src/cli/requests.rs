//! `groq-shield status --requests`: the last requests of a running shield as a table.

use std::fmt::Write;

use crate::telemetry::RecentRequest;

use super::table::time;

/// Which of the last requests to show.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct Filter {
    /// With --requests: only those of this app
    #[arg(long, requires = "requests", value_name = "NAME")]
    app: Option<String>,
    /// With --requests: only those served by, or meant for, this model
    #[arg(long, requires = "requests", value_name = "NAME")]
    model: Option<String>,
    /// With --requests: only those with this status, or class of statuses: 429, 5xx
    #[arg(long, requires = "requests", value_name = "STATUS")]
    status: Option<String>,
}

impl Filter {
    fn shows(&self, request: &RecentRequest) -> bool {
        let status = request.status.to_string();
        let of_status = |wanted: &str| match wanted.strip_suffix("xx") {
            Some(class) => status.starts_with(class),
            None => status == wanted,
        };
        let of_model = |wanted: &str| *request.model == *wanted || request.fallback_from.as_deref() == Some(wanted);
        self.app.as_deref().is_none_or(|app| *request.app == *app)
            && self.model.as_deref().is_none_or(of_model)
            && self.status.as_deref().is_none_or(of_status)
    }
}

/// The requests as a table, newest first.
pub(super) fn table(requests: &[RecentRequest], filter: &Filter, now: f64) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_table(requests, filter, now, &mut out);
    out
}

fn write_table(requests: &[RecentRequest], filter: &Filter, now: f64, out: &mut String) -> std::fmt::Result {
    writeln!(
        out,
        "{:>8}  {:>3}  {:<16} {:<28} {:<14} {:>7} {:<5} {:>3} {:>7} {:>8} {:>8}  error",
        "ago", "", "app", "model", "endpoint", "waited", "for", "att", "total", "reserved", "used"
    )?;
    for request in requests.iter().filter(|request| filter.shows(request)) {
        let model = match &request.fallback_from {
            Some(from) => format!("{} (for {from})", request.model),
            None => request.model.to_string(),
        };
        writeln!(
            out,
            "{:>8}  {:>3}  {:<16} {:<28} {:<14} {:>7} {:<5} {:>3} {:>7} {:>8} {:>8}  {}",
            time(now - request.ended_at),
            request.status,
            request.app,
            model,
            request.endpoint,
            time(request.wait_s),
            request.waited_for.as_deref().unwrap_or("-"),
            request.attempts,
            time(request.total_s),
            request.reserved.map_or_else(|| "-".into(), |reserved| reserved.to_string()),
            request.prompt_tokens - request.cached_tokens.min(request.prompt_tokens) + request.completion_tokens,
            remark(request),
        )?;
    }
    if !requests.iter().any(|request| filter.shows(request)) {
        writeln!(out, "{}", if requests.is_empty() { "no request yet" } else { "none of the last requests" })?;
    }
    Ok(())
}

/// What went wrong, or what observe mode would have done.
fn remark(request: &RecentRequest) -> String {
    let observed = match (&request.observed_refusal, &request.observed_fallback, request.observed_wait_s) {
        (Some(reason), ..) => format!("would be refused: {reason}"),
        (None, Some(to), _) => format!("would be served by {to}"),
        (None, None, Some(wait)) if wait > 0.0 => format!("would wait {}", time(wait)),
        _ => String::new(),
    };
    match (&request.error, observed) {
        (Some(error), observed) if observed.is_empty() => error.clone(),
        (Some(error), observed) => format!("{error} ({observed})"),
        (None, observed) => observed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests() -> Vec<RecentRequest> {
        vec![
            RecentRequest {
                ended_at: 95.0,
                app: "chat".into(),
                model: "b".into(),
                fallback_from: Some("m".into()),
                endpoint: "chat".into(),
                status: 200,
                wait_s: 2.5,
                waited_for: Some("TPM".into()),
                attempts: 1,
                total_s: 3.0,
                reserved: Some(900),
                prompt_tokens: 100,
                cached_tokens: 40,
                completion_tokens: 12,
                ..RecentRequest::default()
            },
            RecentRequest {
                ended_at: 10.0,
                app: "batch".into(),
                model: "m".into(),
                endpoint: "chat".into(),
                status: 429,
                error: Some("rate_limit_exceeded".into()),
                ..RecentRequest::default()
            },
        ]
    }

    #[test]
    fn one_line_a_request() {
        assert_eq!(
            table(&requests(), &Filter::default(), 100.0),
            "     ago       app              model                        endpoint        waited for   att   total reserved     used  error
    5.0s  200  chat             b (for m)                    chat              2.5s TPM     1    3.0s      900       72  
   1m30s  429  batch            m                            chat              0.0s -       0    0.0s        -        0  rate_limit_exceeded
"
        );
        assert!(table(&[], &Filter::default(), 0.0).ends_with("no request yet\n"));
    }

    #[test]
    fn what_observe_mode_has_counted_is_a_remark() {
        let refused = RecentRequest { observed_refusal: Some("max_wait".into()), ..RecentRequest::default() };
        assert_eq!(remark(&refused), "would be refused: max_wait");
        assert_eq!(remark(&RecentRequest { error: Some("e".into()), ..refused }), "e (would be refused: max_wait)");
        let waiting = RecentRequest { observed_wait_s: Some(2.0), ..RecentRequest::default() };
        assert_eq!(remark(&waiting), "would wait 2.0s");
        assert_eq!(remark(&RecentRequest { observed_fallback: Some("n".into()), ..waiting }), "would be served by n");
        assert_eq!(remark(&RecentRequest { observed_wait_s: Some(0.0), ..RecentRequest::default() }), "");
    }

    #[test]
    fn filters_by_app_model_and_status() {
        let shown = |app: Option<&str>, model: Option<&str>, status: Option<&str>| {
            let filter = Filter { app: app.map(Into::into), model: model.map(Into::into), status: status.map(Into::into) };
            requests().iter().map(|request| u32::from(filter.shows(request))).collect::<Vec<_>>()
        };
        assert_eq!(shown(Some("chat"), None, None), [1, 0]);
        assert_eq!(shown(None, Some("m"), None), [1, 1]);
        assert_eq!(shown(None, Some("b"), None), [1, 0]);
        assert_eq!(shown(None, None, Some("429")), [0, 1]);
        assert_eq!(shown(None, None, Some("2xx")), [1, 0]);
        assert_eq!(shown(Some("chat"), None, Some("5xx")), [0, 0]);
    }
}
