//! HTTP/2 with prior knowledge: responses, the log, and faults of one stream or of the connection.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::{task::JoinHandle, time::Instant};

use super::{chat, connection};
use crate::{Action, Fault, Options, Pace, Sim};

type Client = SendRequest<Full<Bytes>>;

async fn connect(sim: &Sim) -> (Client, JoinHandle<hyper::Result<()>>) {
    let (client, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(connection(sim))).await.expect("a handshake");
    (client, tokio::spawn(connection))
}

/// A chat completion request with an absolute URI, as HTTP/2 requires.
fn chat_request(stream: bool) -> http::Request<Full<Bytes>> {
    let mut request = chat("[[sim completion=20]]", json!({"stream": stream}));
    *request.uri_mut() = "http://api.groq.com/openai/v1/chat/completions".parse().expect("a URI");
    request.headers_mut().remove("host");
    request
}

/// The status, the received part of the body, and whether the body is complete.
async fn send(client: &mut Client, stream: bool) -> Result<(u16, String, Result<(), h2::Reason>), h2::Reason> {
    client.ready().await.expect("an open connection");
    let response = client.send_request(chat_request(stream)).await.map_err(|error| reason(&error))?;
    let (status, mut body, mut text) = (response.status().as_u16(), response.into_body(), String::new());
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => text += &String::from_utf8_lossy(&frame.into_data().unwrap_or_default()),
            Err(error) => return Ok((status, text, Err(reason(&error)))),
        }
    }
    Ok((status, text, Ok(())))
}

fn reason(error: &hyper::Error) -> h2::Reason {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<h2::Error>());
    source.and_then(h2::Error::reason).expect("a reset with a reason")
}

#[tokio::test(start_paused = true)]
async fn requests_on_one_connection_are_concurrent() {
    let sim = Sim::new(Options::default());
    let (client, _connection) = connect(&sim).await;
    let requests = (0..50).map(|n| {
        let mut client = client.clone();
        tokio::spawn(async move { send(&mut client, n % 2 == 0).await })
    });
    for request in requests.collect::<Vec<_>>() {
        let (status, text, end) = request.await.expect("no panic").expect("a response");
        assert_eq!((status, end), (200, Ok(())));
        assert!(text.contains("chat.completion"), "{text}");
    }
    let log = sim.log();
    assert_eq!((log.len(), log[0].version.as_str(), log[0].connection, log[49].connection), (50, "HTTP/2.0", 1, 1));
    assert_eq!((log[0].target.as_str(), log[0].header(":authority")), ("/openai/v1/chat/completions", Some("api.groq.com")));
    assert!(log.iter().all(|request| request.ended == Some("complete")));
}

#[tokio::test(start_paused = true)]
async fn broken_responses_reset_only_their_stream() {
    let sim = Sim::new(Options::default());
    let (mut client, _connection) = connect(&sim).await;
    let internal = h2::Reason::INTERNAL_ERROR;
    for (action, reset) in
        [(Action::Close, internal), (Action::CloseInHead, internal), (Action::RefuseStream, h2::Reason::REFUSED_STREAM)]
    {
        sim.set_faults(vec![Fault::nth(1, action)]);
        let mut other = client.clone();
        let (broken, answered) = tokio::join!(send(&mut client, false), send(&mut other, false));
        assert_eq!(broken.expect_err("a reset"), reset);
        assert_eq!(answered.expect("a response").0, 200);
    }

    sim.set_faults(vec![Fault::always(Action::CloseInBody)]);
    let (status, half, end) = send(&mut client, false).await.expect("a head");
    assert_eq!((status, end), (200, Err(internal)));
    assert!(half.starts_with('{') && serde_json::from_str::<Value>(&half).is_err(), "{half}");

    sim.set_faults(vec![Fault::always(Action::Cut { after: 3, half: true })]);
    let (_, events, end) = send(&mut client, true).await.expect("a head");
    assert_eq!((events.matches("data: ").count(), events.ends_with("\n\n"), end), (4, false, Err(internal)));

    sim.set_faults(vec![Fault::always(Action::WrongLength { by: 7 })]);
    let (_, _, end) = send(&mut client, false).await.expect("a head");
    assert_eq!(end, Err(h2::Reason::PROTOCOL_ERROR));

    sim.set_faults(vec![Fault::always(Action::NoDone)]);
    let (_, events, end) = send(&mut client, true).await.expect("a head");
    assert_eq!((events.contains("[DONE]"), end), (false, Ok(())));

    sim.set_faults(vec![Fault::always(Action::SlowHead { ms: 10 })]);
    let started = Instant::now();
    assert_eq!(send(&mut client, false).await.expect("a response").0, 200);
    assert!(started.elapsed().as_secs() >= 3);
    assert_eq!(sim.log().iter().map(|request| request.connection).max(), Some(1), "all requests on one connection");
}

#[tokio::test(start_paused = true)]
async fn garbage_ends_the_connection() {
    let sim = Sim::new(Options::default());
    let (mut client, connection) = connect(&sim).await;
    sim.set_faults(vec![Fault::nth(2, Action::Garbage { bytes: None })]);
    assert_eq!(send(&mut client, false).await.expect("a response").0, 200);
    client.ready().await.expect("an open connection");
    client.send_request(chat_request(false)).await.expect_err("no HTTP");
    connection.await.expect("no panic").expect_err("a connection error");
}

#[tokio::test(start_paused = true)]
async fn go_away_finishes_requests_in_flight() {
    let sim = Sim::new(Options::default());
    let (mut client, connection) = connect(&sim).await;
    sim.set_faults(vec![Fault::nth(2, Action::GoAway)]);
    let mut other = client.clone();
    let (first, second) = tokio::join!(send(&mut client, true), send(&mut other, true));
    assert!(first.is_ok_and(|(status, _, end)| status == 200 && end.is_ok()));
    assert!(second.is_ok_and(|(status, _, end)| status == 200 && end.is_ok()));
    connection.await.expect("no panic").expect("a clean end");
    assert!(client.ready().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_reset_by_the_client_ends_the_request() {
    let pace = Pace { tokens_per_second: 1.0, ..Pace::default() };
    let sim = Sim::new(Options { pace, ..Options::default() });
    let (mut client, _connection) = connect(&sim).await;
    client.ready().await.expect("an open connection");
    let response = client.send_request(chat_request(true)).await.expect("a head");
    drop(response);
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    assert_eq!(sim.log()[0].ended, Some("dropped"));
}
