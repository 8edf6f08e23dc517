//! The upstream behind the proxies, which responds to every request at once with a response in Groq's format. A call with
//! `"stream":true` gets 51 events with one write each, which is the worst case. Also a server that is measured itself and always
//! sends the same response.

use std::{cell::RefCell, io, net::SocketAddr, rc::Rc};

use memchr::memmem;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    task::{spawn_local, yield_now},
};

use super::connection::Connection;

/// Groq's response headers, each with its line end. Their limits are never reached.
pub(crate) const HEADERS: &str = "date: Tue, 12 Nov 2024 14:20:34 GMT\r\nvary: Origin\r\nx-groq-region: us-west-1\r
cache-control: private, max-age=0, no-store, no-cache, must-revalidate\r
x-ratelimit-limit-requests: 4000000000\r\nx-ratelimit-limit-tokens: 4000000000\r
x-ratelimit-remaining-requests: 3999999999\r\nx-ratelimit-remaining-tokens: 3999999947\r
x-ratelimit-reset-requests: 1ms\r\nx-ratelimit-reset-tokens: 1ms\r
x-request-id: req_01jc8x6p2vf1m9h3e9q0v3k7ab\r\nvia: 1.1 google\r\ncf-cache-status: DYNAMIC\r
server: cloudflare\r\ncf-ray: 8e1f2a3b4c5d6e7f-SJC\r\n";

const BODY: &str = r#"{"id":"chatcmpl-0b5d2c1e-7d0c-4a1e-9b6e-6f7f0c9d8e21","object":"chat.completion","created":1731421234,"model":"llama-3.3-70b-versatile","choices":[{"index":0,"message":{"role":"assistant","content":"Low latency matters because people notice delays: a reply that starts at once keeps a conversation flowing, and a script that chains many calls multiplies every saved millisecond."},"logprobs":null,"finish_reason":"stop"}],"usage":{"queue_time":0.018642,"prompt_tokens":242,"prompt_time":0.011237,"completion_tokens":36,"completion_time":0.130909091,"total_tokens":278,"total_time":0.142146091},"system_fingerprint":"fp_4e32347616","x_groq":{"id":"req_01jc8x6p2vf1m9h3e9q0v3k7ab"},"service_tier":"on_demand"}"#;

/// Events of a streamed response.
const EVENTS: usize = 51;

/// Serves until the process is killed.
pub(crate) async fn run(listen: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    let (plain, events) = (plain(), Rc::<[String]>::from(events()));
    loop {
        let (socket, _) = listener.accept().await?;
        let (plain, events) = (plain.clone(), events.clone());
        spawn_local(async move {
            // Proxies may close a connection at any time.
            let _ = respond(Connection::new(socket)?, &plain, &events).await;
            io::Result::Ok(())
        });
    }
}

/// Sends the same response to any input and keeps no state per connection. What a request costs more with many connections is
/// therefore spent in the kernel and, for a fifth of it, in tokio.
pub(crate) async fn response_only(listen: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    let (plain, buffer) = (plain(), Rc::new(RefCell::new(vec![0; 64 << 10])));
    loop {
        let (socket, _) = listener.accept().await?;
        let (plain, buffer) = (plain.clone(), buffer.clone());
        spawn_local(async move {
            // Clients may close a connection at any time.
            let _ = repeat(&socket, &plain, &buffer).await;
        });
    }
}

async fn repeat(socket: &TcpStream, plain: &str, buffer: &RefCell<Vec<u8>>) -> io::Result<()> {
    loop {
        socket.readable().await?;
        match socket.try_read(&mut buffer.borrow_mut()) {
            Ok(0) => return Ok(()),
            // On loopback a request of a few KB arrives in one read.
            Ok(_) => drop(socket.try_write(plain.as_bytes())?),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// The response to a call that does not stream.
fn plain() -> Rc<str> {
    format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{HEADERS}\r\n{BODY}", BODY.len()).into()
}

async fn respond(mut connection: Connection, plain: &str, events: &[String]) -> io::Result<()> {
    let stream = memmem::Finder::new(b"\"stream\":true");
    while let Some(request) = connection.next().await? {
        if stream.find(request).is_none() {
            connection.stream.write_all(plain.as_bytes()).await?;
            continue;
        }
        for event in events {
            connection.stream.write_all(event.as_bytes()).await?;
            yield_now().await;
        }
    }
    Ok(())
}

/// The writes of a streamed response: the head with the role, 48 tokens, the finish reason with the usage, `[DONE]`.
fn events() -> Vec<String> {
    let chunk = |data: &str| format!("{:x}\r\ndata: {data}\n\n\r\n", data.len() + 8);
    let event = |delta: &str, finish: &str, extra: &str| {
        chunk(&format!(
            r#"{{"id":"chatcmpl-0b5d2c1e-7d0c-4a1e-9b6e-6f7f0c9d8e21","object":"chat.completion.chunk","created":1731421234,"model":"llama-3.3-70b-versatile","system_fingerprint":"fp_4e32347616","choices":[{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{finish}}}]{extra}}}"#
        ))
    };
    let role = event(r#"{"role":"assistant","content":""}"#, "null", r#","x_groq":{"id":"req_01jc8x6p2vf1m9h3e9q0v3k7ab"}"#);
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n{HEADERS}\r\n");
    let usage = r#","x_groq":{"id":"req_01jc8x6p2vf1m9h3e9q0v3k7ab","usage":{"queue_time":0.0186,"prompt_tokens":242,"prompt_time":0.0112,"completion_tokens":48,"completion_time":0.1309,"total_tokens":290,"total_time":0.1421}}"#;
    let mut all = vec![head + &role];
    all.extend((0..EVENTS - 3).map(|n| event(&format!(r#"{{"content":" token{n}"}}"#), "null", "")));
    all.push(event("{}", r#""stop""#, usage));
    all.push(chunk("[DONE]") + "0\r\n\r\n");
    all
}
