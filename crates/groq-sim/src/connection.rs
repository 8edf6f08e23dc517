//! Serves one connection over HTTP/1.1 or HTTP/2: each request is read, logged, and responded to, if necessary with a fault.

use std::{pin::pin, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header, request::Parts};
use http_body_util::{BodyExt, Limited};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
    time::sleep,
};

use crate::{
    HeaderTime, Sim,
    action::Action,
    answer::{Answer, AnswerBody},
    call::{Call, Endpoint},
    dimension::Unit,
    error,
    fault::Fault,
    generation::request_id,
    hex,
    log::{self, EntryWriter},
    raw::{RawBytes, SharedIo},
};

/// The effect of a request's fault on its connection.
#[derive(Debug)]
enum Order {
    /// Send these bytes, then close the connection.
    Raw(RawBytes),
    /// Finish the requests in flight, then close the connection.
    GoAway,
}

/// The error that makes hyper reset the HTTP/2 stream.
type Reset = h2::Error;

impl Sim {
    /// Serves one connection until either side closes it. The protocol is HTTP/2 if the connection starts with its preface (with
    /// prior knowledge, or after TLS has negotiated `h2`), otherwise HTTP/1.1.
    pub async fn serve_connection<I>(&self, io: I)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let number = self.next_connection();
        let (sender, mut orders) = mpsc::channel(1);
        let service = {
            let sim = self.clone();
            service_fn(move |request| {
                let (sim, sender) = (sim.clone(), sender.clone());
                async move { sim.respond(number, request, sender).await }
            })
        };
        let mut io = SharedIo::new(io);
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http2().timer(TokioTimer::new());
        let raw = {
            let mut connection = pin!(builder.serve_connection(TokioIo::new(io.clone()), service));
            loop {
                tokio::select! {
                    biased;
                    // An error means that the client disconnected or that a body broke off on purpose. The socket is closed.
                    _ended = connection.as_mut() => return,
                    order = orders.recv() => match order {
                        Some(Order::Raw(raw)) => break raw,
                        Some(Order::GoAway) => connection.as_mut().graceful_shutdown(),
                        None => return,
                    },
                }
            }
        };
        if raw.write(&mut io).await.is_ok() {
            let _closed_by_the_client = io.shutdown().await;
        }
    }

    async fn respond(
        &self,
        connection: u64,
        request: Request<Incoming>,
        orders: mpsc::Sender<Order>,
    ) -> Result<Response<AnswerBody>, Reset> {
        let (head, body) = request.into_parts();
        let body = match Limited::new(body, self.0.options.max_body).collect().await {
            Ok(body) => body.to_bytes(),
            Err(_) => {
                let body = error::invalid("Request Entity Too Large", Some("request_too_large"));
                return Ok(response(Answer::json(StatusCode::PAYLOAD_TOO_LARGE, &body), None));
            }
        };
        if let Some(path) = head.uri.path().strip_prefix("/_sim/") {
            return Ok(response(self.control(path, &head.method, &body), None));
        }
        let call = Call::read(&head, body).await;
        let (entry, fault) = self.log_request(connection, &head, &call);
        let action = fault.unwrap_or_default();
        if action != Action::None {
            entry.fault(action.name());
        }
        self.respond_with(action, call, entry, head.version == Version::HTTP_2, orders).await
    }

    /// Responds to a request, with its fault if it has one.
    async fn respond_with(
        &self,
        action: Action,
        mut call: Call,
        mut entry: EntryWriter,
        http2: bool,
        orders: mpsc::Sender<Order>,
    ) -> Result<Response<AnswerBody>, Reset> {
        if let Some(raw) = action.raw() {
            entry.answered(None, None);
            return send_raw(orders, raw).await;
        }
        match action {
            Action::Stall { ms } => sleep(Duration::from_millis(ms)).await,
            Action::Truncated => call.truncated = true,
            // The connection may have been closed by now.
            Action::GoAway if http2 => _ = orders.send(Order::GoAway).await,
            _ => {}
        }
        if let Some(reason) = action.reset() {
            entry.answered(None, None);
            if http2 {
                entry.complete();
                return Err(reason.into());
            }
            return send_raw(orders, RawBytes { bytes: Bytes::new(), slow: None }).await;
        }
        let mut answer = action.answer(&call.model).unwrap_or_else(|| self.answer(&call, entry.number));
        entry.answered(Some(answer.status.as_u16()), answer.refused);
        sleep(answer.before).await;
        self.add_headers(&call, entry.number, &mut answer);
        if http2 && action == Action::CloseInHead {
            answer.permit = None;
            entry.complete();
            return Err(h2::Reason::INTERNAL_ERROR.into());
        }
        if http2 {
            sleep(action.head_delay(&answer)).await;
            action.break_http2(&mut answer);
        } else if action == Action::GoAway {
            answer.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        } else if let Some(raw) = action.broken_http1(&answer) {
            answer.permit = None;
            entry.complete();
            return send_raw(orders, raw).await;
        }
        action.edit(&mut answer);
        let encodings = call.headers.get(header::ACCEPT_ENCODING).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if encodings.contains("gzip") && !answer.bytes().is_empty() && compresses(&answer.headers) {
            answer.gzip();
        }
        Ok(response(answer, Some(entry)))
    }

    /// Logs a request and selects its fault.
    fn log_request(&self, connection: u64, head: &Parts, call: &Call) -> (EntryWriter, Option<Action>) {
        let at_ms = self.now() as f64 / 1e6;
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let body_sha256 = hex(&Sha256::digest(&call.body));
        let state = &mut *self.state();
        state.requests += 1;
        let authority = head.uri.authority().map(|authority| (":authority".to_owned(), authority.to_string()));
        let (authority, target) = match (head.version, head.uri.path_and_query()) {
            (Version::HTTP_2, Some(path)) => (authority, path.to_string()),
            _ => (None, head.uri.to_string()),
        };
        let headers = head.headers.iter().map(|(name, value)| (name.to_string(), text(value)));
        let request = log::Request {
            number: state.requests,
            connection,
            at_ms,
            version: format!("{:?}", head.version),
            method: head.method.to_string(),
            target,
            headers: authority.into_iter().chain(headers).collect(),
            body_length: call.body.len(),
            body_sha256,
            model: call.model.clone(),
            ..log::Request::default()
        };
        state.log.push(request, &call.body);
        (EntryWriter::new(self, state.requests), state.faults.next(&call.path, &call.model))
    }

    fn answer(&self, call: &Call, id: u64) -> Answer {
        if call.method == Method::OPTIONS {
            return preflight();
        }
        match (&call.endpoint, call.key()) {
            (Endpoint::Unknown, _) => Answer::json(StatusCode::NOT_FOUND, &error::unknown_url(call.method.as_str(), &call.path)),
            (_, None | Some("")) => Answer::json(StatusCode::UNAUTHORIZED, &error::usual(401, "")),
            (_, Some(key)) if key.starts_with("bad") => Answer::json(StatusCode::UNAUTHORIZED, &error::usual(401, "")),
            (Endpoint::Chat, _) => self.chat(call, id),
            (Endpoint::Responses, _) => self.responses(call, id),
            (Endpoint::Embeddings, _) => self.embeddings(call, id),
            (Endpoint::Transcription { translate }, _) => self.transcription(call, id, *translate),
            (Endpoint::Speech, _) => self.speech(call, id),
            _ => self.resources(call, id),
        }
    }

    /// Adds the headers of every response of Groq, and updates the rate-limit headers with `HeaderTime::Finish`.
    fn add_headers(&self, call: &Call, id: u64, answer: &mut Answer) {
        if self.0.options.header_time == HeaderTime::Finish
            && let Some(permit) = &answer.permit
        {
            let unit = match call.endpoint {
                Endpoint::Transcription { .. } => Unit::Seconds,
                _ => Unit::Tokens,
            };
            let (now, exact, scope) = (self.now(), self.0.options.exact_reset, permit.scope.clone());
            if !answer.is_stream() {
                answer.permit = None;
            }
            let fresh = self.state().limiters.get_mut(&scope).map(|limiter| limiter.headers(now, unit, exact));
            answer.headers.extend(fresh.unwrap_or_default());
        }
        let fixed = [
            ("server", "cloudflare"),
            ("vary", "origin"),
            ("via", "1.1 google"),
            ("x-groq-region", "sim"),
            ("cf-cache-status", "DYNAMIC"),
        ];
        for (name, value) in fixed {
            answer.headers.append(name, HeaderValue::from_static(value));
        }
        let made = [
            ("x-request-id", request_id(id)),
            ("cf-ray", format!("{:016x}-SIM", id.wrapping_mul(0x9e37_79b9_7f4a_7c15))),
            ("set-cookie", format!("__cf_bm=sim.{id}; path=/; domain=.groq.com; HttpOnly; Secure; SameSite=None")),
        ];
        for (name, value) in made {
            answer.headers.extend(HeaderValue::from_str(&value).ok().map(|v| (HeaderName::from_static(name), v)));
        }
    }

    /// Responds to a request for a path below `/_sim/`.
    fn control(&self, path: &str, method: &Method, body: &Bytes) -> Answer {
        let json = |value: serde_json::Result<serde_json::Value>| Answer::ok(&value.unwrap_or_default());
        match (path, method) {
            ("log", &Method::GET) => json(serde_json::to_value(self.log())),
            ("stats", &Method::GET) => json(serde_json::to_value(self.stats())),
            ("faults", &Method::POST) => match serde_json::from_slice::<Vec<Fault>>(body) {
                Ok(faults) => {
                    self.set_faults(faults);
                    Answer::ok(&json!({"ok": true}))
                }
                Err(error) => Answer::bad(&error::invalid(&error.to_string(), None)),
            },
            ("reset", &Method::POST) => {
                self.reset();
                Answer::ok(&json!({"ok": true}))
            }
            _ => Answer::json(StatusCode::NOT_FOUND, &error::usual(404, "")),
        }
    }
}

/// Makes the connection send raw bytes and close. The request itself gets no response.
async fn send_raw(orders: mpsc::Sender<Order>, raw: RawBytes) -> Result<Response<AnswerBody>, Reset> {
    let _connection_has_ended = orders.send(Order::Raw(raw)).await;
    std::future::pending().await
}

fn response(answer: Answer, entry: Option<EntryWriter>) -> Response<AnswerBody> {
    let mut response = Response::new(());
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers.clone();
    response.map(|()| AnswerBody::new(answer, entry))
}

fn preflight() -> Answer {
    let mut answer = Answer::new(StatusCode::NO_CONTENT, "text/plain", Bytes::new());
    let fixed = [
        ("access-control-allow-origin", "*"),
        ("access-control-allow-methods", "GET, POST, DELETE, OPTIONS"),
        ("access-control-allow-headers", "*"),
    ];
    answer.headers =
        fixed.into_iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect();
    answer
}

fn compresses(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    kind.contains("json") || kind.starts_with("text/")
}
