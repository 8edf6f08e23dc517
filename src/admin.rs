//! The admin listener: health, metrics, status, the last requests and the page. It answers GET and HEAD and changes nothing.

use std::{
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::{JoinError, spawn_blocking},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

use crate::{
    proxy::Shield,
    telemetry::{Format, Gauges, Trend},
};

mod apps;
mod guard;
mod numbers;
mod page;
pub mod schema;
mod status;
#[cfg(test)]
mod tests;

/// Concurrent connections; further ones wait to be accepted.
const CONNECTIONS: usize = 64;
/// Time for a request's head, and for the next request on a connection.
const HEAD: Duration = Duration::from_secs(10);
/// Maximum age of a connection; a page that polls reconnects.
const MAX_AGE: Duration = Duration::from_secs(120);
/// Time to finish the current response after that.
const FINISH: Duration = Duration::from_secs(5);
/// How long accepting pauses when it fails, for example because no file descriptor is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves the admin listener for as long as it is polled.
pub async fn serve(listener: TcpListener, shield: Arc<Shield>) {
    let server = Arc::new(AdminServer::new(shield));
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let accepting = async {
        loop {
            let place = places.clone().acquire_owned().await.expect("never closed");
            match listener.accept().await {
                Ok((socket, _)) => {
                    let server = server.clone();
                    tokio::spawn(async move {
                        server.connection(socket).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accept failed on the admin listener");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    tokio::join!(accepting, server.watch());
}

/// The admin server's state.
struct AdminServer {
    shield: Arc<Shield>,
    started: Instant,
    trend: Mutex<Trend>,
}

impl AdminServer {
    fn new(shield: Arc<Shield>) -> Self {
        Self { shield, started: Instant::now(), trend: Mutex::default() }
    }

    /// Records the history of the last minutes.
    async fn watch(&self) {
        let mut clock = interval(Trend::SLICE);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        clock.tick().await;
        loop {
            clock.tick().await;
            self.trend.lock().unwrap_or_else(PoisonError::into_inner).advance(&self.shield.telemetry);
        }
    }

    async fn connection(self: &Arc<Self>, socket: TcpStream) {
        let service = service_fn(|request: Request<Incoming>| {
            let server = self.clone();
            async move {
                // A response about a hundred thousand limiters takes half a second, which must not delay apps.
                let is_long = matches!(request.uri().path(), "/metrics" | "/status");
                let answer = move || server.answer(&request);
                if is_long { spawn_blocking(answer).await } else { Ok::<_, JoinError>(answer()) }
            }
        });
        let mut http = pin!(
            http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD)
                .max_buf_size(16 << 10)
                .serve_connection(TokioIo::new(socket), service)
        );
        // Errors concern this connection only, and no data is lost.
        let ended = tokio::select! {
            ended = &mut http => ended,
            () = sleep(MAX_AGE) => {
                http.as_mut().graceful_shutdown();
                timeout(FINISH, &mut http).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "admin connection");
        }
    }

    /// The response to a request, including errors.
    fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        let mut response = self.respond(request);
        let headers = response.headers_mut();
        for (name, value) in [
            ("cache-control", "no-store"),
            ("cross-origin-opener-policy", "same-origin"),
            ("cross-origin-resource-policy", "same-origin"),
            ("referrer-policy", "no-referrer"),
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        headers
            .entry(header::CONTENT_SECURITY_POLICY)
            .or_insert(HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"));
        response
    }

    fn respond<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        if let Err(why) = guard::admit(request) {
            return refusal(StatusCode::FORBIDDEN, "origin_not_allowed", why);
        }
        let path = request.uri().path();
        if !matches!(path, "/" | "/livez" | "/readyz" | "/metrics" | "/status" | "/requests") {
            let known =
                "The admin listener serves /livez, /readyz, /metrics, /status, /requests and /. Apps use the other address.";
            return refusal(StatusCode::NOT_FOUND, "unknown_url", known);
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let use_get = "Use GET: the admin listener is read-only.";
            let mut refusal = refusal(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", use_get);
            refusal.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refusal;
        }
        match path {
            "/livez" => text("text/plain; charset=utf-8", "ok\n"),
            "/readyz" if self.shield.shutdown.draining.is_cancelled() => {
                let draining = "The shield is draining and accepts no new connections.";
                refusal(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", draining)
            }
            "/readyz" => text("text/plain; charset=utf-8", "ready\n"),
            "/metrics" => self.metrics(request.headers()),
            "/status" => json(&self.status()),
            "/requests" => json(&self.shield.telemetry.recent_requests()),
            _ => page::response(),
        }
    }

    fn metrics(&self, headers: &HeaderMap) -> Response<Full<Bytes>> {
        let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let format = Format::of(accept);
        let gauges = Gauges {
            limiters: self.shield.limits.snapshot(),
            open_breakers: self.shield.breakers.open(Instant::now()).into_iter().map(|(_, model, _)| model).collect(),
            budgets: apps::budgets(&self.shield)
                .into_iter()
                .map(|(app, budget, usage)| (app, budget, usage.used(budget.period).of(budget.unit)))
                .collect(),
            connections: self.shield.connections.len(),
            store_degraded: self.shield.limits.store().is_some_and(|store| store.is_degraded()),
        };
        text(format.content_type(), self.shield.telemetry.metrics(gauges, format))
    }
}

fn text(content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn json(value: &impl Serialize) -> Response<Full<Bytes>> {
    text("application/json", serde_json::to_vec(value).expect("numbers and texts are JSON"))
}

/// A failure as the documented error object.
fn refusal(status: StatusCode, code: &str, message: &str) -> Response<Full<Bytes>> {
    let kind = if status.is_server_error() { "internal_server_error" } else { "invalid_request_error" };
    let object = serde_json::json!({ "error": { "message": message, "type": kind, "code": code } });
    let mut response = text("application/json", object.to_string());
    *response.status_mut() = status;
    response
}
