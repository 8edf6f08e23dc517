//! One connection: each request is read, logged, perhaps spoilt, answered.

use std::{convert::Infallible, future::poll_fn, pin::pin};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
    time::sleep,
};

use crate::{
    Sim, Stamp,
    answer::{Answer, Reply},
    call::{Call, Endpoint},
    chat::request_id,
    error,
    fault::{Action, Fault, Raw},
    hex,
    limiter::Unit,
    log::{self, Ticket},
};

impl Sim {
    /// Serves one connection until either side closes it.
    pub async fn serve_connection<I>(&self, io: I)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let number = self.next_connection();
        let (order, mut orders) = mpsc::channel(1);
        let service = service_fn(|request| {
            let (sim, order) = (self.clone(), order.clone());
            Box::pin(async move { Ok::<_, Infallible>(sim.respond(number, request, order).await) })
        });
        let mut connection = http1::Builder::new().serve_connection(TokioIo::new(io), service);
        let raw = tokio::select! {
            ended = poll_fn(|cx| connection.poll_without_shutdown(cx)) => match ended {
                Ok(()) => None,
                Err(_) => return, // the client left, or a body was cut on purpose: the socket just closes
            },
            raw = orders.recv() => raw,
        };
        let mut io = connection.into_parts().io.into_inner();
        if let Some(raw) = raw
            && write_raw(&mut io, raw).await.is_err()
        {
            return; // the client did not wait for the end of it
        }
        let _ = io.shutdown().await; // closed by the peer already: just as well
    }

    async fn respond(&self, connection: u64, request: Request<Incoming>, order: mpsc::Sender<Raw>) -> Response<Reply> {
        let (head, body) = request.into_parts();
        let body = match Limited::new(body, self.0.options.max_body).collect().await {
            Ok(body) => body.to_bytes(),
            Err(_) => {
                let body = error::invalid("Request Entity Too Large", Some("request_too_large"));
                return response(Answer::json(StatusCode::PAYLOAD_TOO_LARGE, &body), None);
            }
        };
        if let Some(own) = head.uri.path().strip_prefix("/_sim/") {
            return response(self.own(own, &head.method, &body), None);
        }
        let call = Call::read(&head, body).await;
        let (mut ticket, fault) = self.enter(connection, &head, &call);
        let action = fault.unwrap_or_default();
        if action != Action::None {
            ticket.fault(action.name());
        }
        if let Some(raw) = action.raw() {
            ticket.answered(None, None);
            return handed_over(order, raw).await;
        }
        if let Action::Stall { ms } = action {
            sleep(std::time::Duration::from_millis(ms)).await;
        }
        let mut answer = action.answer(&call.model).unwrap_or_else(|| self.answer(&call, ticket.number));
        ticket.answered(Some(answer.status.as_u16()), answer.refused);
        sleep(answer.before).await;
        self.dress(&call, ticket.number, &mut answer);
        if let Some(raw) = action.spoil(&answer) {
            answer.hold = None;
            ticket.complete();
            return handed_over(order, raw).await;
        }
        action.edit(&mut answer);
        let encodings = call.headers.get(header::ACCEPT_ENCODING).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if encodings.contains("gzip") && !answer.bytes().is_empty() && compresses(&answer.headers) {
            answer.gzip();
        }
        response(answer, Some(ticket))
    }

    /// Logs a request and looks up what becomes of it.
    fn enter(&self, connection: u64, head: &http::request::Parts, call: &Call) -> (Ticket, Option<Action>) {
        let at_ms = self.now() as f64 / 1e6;
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let body_sha256 = hex(&Sha256::digest(&call.body));
        let state = &mut *self.state();
        state.requests += 1;
        let request = log::Request {
            number: state.requests,
            connection,
            at_ms,
            method: head.method.to_string(),
            target: head.uri.to_string(),
            headers: head.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
            body_length: call.body.len(),
            body_sha256,
            model: call.model.clone(),
            ..log::Request::default()
        };
        state.log.push(request, &call.body);
        (Ticket::new(self, state.requests), state.faults.next(&call.path, &call.model))
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
            _ => self.shelf(call, id),
        }
    }

    /// The headers that every answer of Groq's carries, and the limits' as they stand at the end if that is wanted.
    fn dress(&self, call: &Call, id: u64, answer: &mut Answer) {
        if self.0.options.stamp == Stamp::Finish
            && let Some(hold) = &answer.hold
        {
            let unit = match call.endpoint {
                Endpoint::Transcription { .. } => Unit::Seconds,
                _ => Unit::Tokens,
            };
            let (now, exact, scope) = (self.now(), self.0.options.exact_reset, hold.scope.clone());
            if !answer.is_stream() {
                answer.hold = None;
            }
            let fresh = self.state().lanes.get_mut(&scope).map(|lane| lane.headers(now, unit, exact));
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
            answer.headers.extend(HeaderValue::from_str(&value).ok().map(|v| (http::HeaderName::from_static(name), v)));
        }
    }

    /// The simulator's own paths.
    fn own(&self, path: &str, method: &Method, body: &Bytes) -> Answer {
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

/// Leaves the rest to the connection; nothing comes after.
async fn handed_over(order: mpsc::Sender<Raw>, raw: Raw) -> Response<Reply> {
    let _ = order.send(raw).await; // the connection may have ended meanwhile
    std::future::pending().await
}

async fn write_raw<I: AsyncWrite + Unpin>(io: &mut I, raw: Raw) -> std::io::Result<()> {
    let mut rest = raw.bytes.as_ref();
    if let Some((count, pause)) = raw.slow {
        let (slow, after) = rest.split_at(count);
        for byte in slow {
            io.write_all(std::slice::from_ref(byte)).await?;
            io.flush().await?;
            pin!(sleep(pause)).await;
        }
        rest = after;
    }
    io.write_all(rest).await?;
    io.flush().await
}

fn response(answer: Answer, ticket: Option<Ticket>) -> Response<Reply> {
    let mut response = Response::new(());
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers.clone();
    response.map(|()| Reply::new(answer, ticket))
}

fn preflight() -> Answer {
    let mut answer = Answer::new(StatusCode::NO_CONTENT, "text/plain", Bytes::new());
    let fixed = [
        ("access-control-allow-origin", "*"),
        ("access-control-allow-methods", "GET, POST, DELETE, OPTIONS"),
        ("access-control-allow-headers", "*"),
    ];
    answer.headers =
        fixed.into_iter().map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value))).collect();
    answer
}

fn compresses(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    kind.contains("json") || kind.starts_with("text/")
}
