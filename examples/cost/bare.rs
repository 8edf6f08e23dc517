//! The baseline: a proxy without any policy, hyper's server and hyper-util's pooling client on one thread.

use std::{convert::Infallible, io, net::SocketAddr};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, Uri, Version, header, uri::Authority};
use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use tokio::net::TcpListener;

const HOP_BY_HOP: [&str; 7] = ["connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"];

/// Serves HTTP/1.1, or HTTP/2 with prior knowledge, until the process is killed.
pub(crate) async fn run(http2: bool, listen: SocketAddr, upstream: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    let authority: Authority = upstream.to_string().parse().map_err(io::Error::other)?;
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client: Client<_, Incoming> = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(1024).build(connector);
    loop {
        let (socket, _) = listener.accept().await?;
        socket.set_nodelay(true)?;
        let (client, authority) = (client.clone(), authority.clone());
        let service = service_fn(move |request| forward(request, client.clone(), authority.clone()));
        let socket = TokioIo::new(socket);
        if http2 {
            tokio::spawn(http2::Builder::new(TokioExecutor::new()).serve_connection(socket, service));
        } else {
            tokio::spawn(http1::Builder::new().serve_connection(socket, service));
        }
    }
}

async fn forward(
    mut request: Request<Incoming>,
    client: Client<HttpConnector, Incoming>,
    authority: Authority,
) -> Result<Response<BoxBody<Bytes, hyper::Error>>, Infallible> {
    let mut uri = std::mem::take(request.uri_mut()).into_parts();
    (uri.scheme, uri.authority) = (Some(http::uri::Scheme::HTTP), Some(authority));
    *request.uri_mut() = Uri::from_parts(uri).expect("scheme, authority and path");
    *request.version_mut() = Version::HTTP_11;
    strip(request.headers_mut());
    request.headers_mut().remove(header::HOST);
    Ok(match client.request(request).await {
        Ok(mut response) => {
            strip(response.headers_mut());
            response.map(|body| body.boxed())
        }
        Err(error) => {
            let mut response = Response::new(Full::from(error.to_string()).map_err(|never| match never {}).boxed());
            *response.status_mut() = StatusCode::BAD_GATEWAY;
            response
        }
    })
}

fn strip(headers: &mut HeaderMap) {
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}
