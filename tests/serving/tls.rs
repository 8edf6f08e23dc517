//! TLS for apps: certificate files and their reload.

use std::{fs, net::SocketAddr, path::Path, sync::Arc};

use groq_shield::config::Tls;
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::{io::AsyncWriteExt, net::TcpStream};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::kit::{exchange, one, request, settings, start, upstream};

/// Writes a new certificate for localhost and its key.
fn issue(files: &Tls) -> CertificateDer<'static> {
    let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    fs::write(&files.cert, issued.cert.pem()).expect("the file is written");
    fs::write(&files.key, issued.signing_key.serialize_pem()).expect("the file is written");
    issued.cert.der().clone()
}

fn files(folder: &Path) -> Tls {
    Tls { cert: folder.join("cert.pem"), key: folder.join("key.pem") }
}

async fn connect(address: SocketAddr, trusted: &CertificateDer<'static>) -> std::io::Result<TlsStream<TcpStream>> {
    connect_with(address, trusted, &[b"http/1.1"]).await
}

/// Connects a client that offers `protocols` in ALPN.
async fn connect_with(
    address: SocketAddr,
    trusted: &CertificateDer<'static>,
    protocols: &[&[u8]],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).expect("a certificate");
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider's own")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let socket = TcpStream::connect(address).await.expect("the listener accepts");
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").expect("a name"), socket).await
}

#[tokio::test]
async fn apps_are_served_over_tls_and_a_reload_takes_the_next_certificate() {
    let folder = tempfile::tempdir().expect("a folder");
    let files = files(folder.path());
    let first = issue(&files);
    let (address, _) = upstream().await;
    let mut settings = settings(address);
    settings.server.tls = Some(files.clone());
    let shield = start(settings);

    let mut old = connect(shield.app, &first).await.expect("a trusted certificate");
    assert_eq!(old.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    old.write_all(request("a").as_bytes()).await.expect("the request is written");
    assert!(one(&mut old).await.expect("a response").starts_with("HTTP/1.1 200 OK"));

    let second = issue(&files);
    shield.reload_certificate().expect("the new files are good");
    let mut new = connect(shield.app, &second).await.expect("a trusted certificate");
    assert!(connect(shield.app, &first).await.is_err(), "the old certificate is not used any more");
    for socket in [&mut old, &mut new] {
        socket.write_all(request("b").as_bytes()).await.expect("the request is written");
        assert!(one(socket).await.expect("a response").starts_with("HTTP/1.1 200 OK"));
    }

    fs::write(&files.key, "nonsense").expect("the file is written");
    let fault = shield.reload_certificate().expect_err("a bad key").to_string();
    assert!(fault.contains("server.tls.key") && fault.contains("key.pem"), "{fault}");
    connect(shield.app, &second).await.expect("what was good stays");
}

/// HTTP/2 for clients that offer it, HTTP/1.1 for others.
#[tokio::test]
async fn the_protocol_is_negotiated() {
    let folder = tempfile::tempdir().expect("a folder");
    let files = files(folder.path());
    let trusted = issue(&files);
    let (address, log) = upstream().await;
    let mut settings = settings(address);
    settings.server.tls = Some(files);
    let shield = start(settings);
    let offers: [&[&[u8]]; 3] = [&[b"http/1.1", b"h2"], &[b"http/1.1"], &[]];
    let negotiated: [Option<&[u8]>; 3] = [Some(b"h2"), Some(b"http/1.1"), None];
    for (offered, negotiated) in offers.into_iter().zip(negotiated) {
        let mut socket = connect_with(shield.app, &trusted, offered).await.expect("a trusted certificate");
        assert_eq!(socket.get_ref().1.alpn_protocol(), negotiated);
        if negotiated != Some(b"h2") {
            socket.write_all(request("a").as_bytes()).await.expect("the request is written");
            assert!(one(&mut socket).await.expect("a response").starts_with("HTTP/1.1 200 OK"));
            continue;
        }
        let (mut client, connection) = h2::client::handshake(socket).await.expect("HTTP/2");
        tokio::spawn(connection);
        let request = http::Request::get("https://localhost/openai/v1/models/a").header("authorization", "Bearer k");
        let (response, _) = client.send_request(request.body(()).expect("a request"), true).expect("an open connection");
        assert_eq!(response.await.expect("a response").status(), 200);
    }
    assert_eq!(log.lock().expect("no panic").len(), 3);
}

#[tokio::test]
async fn plain_http_on_the_tls_port_is_closed() {
    let folder = tempfile::tempdir().expect("a folder");
    let files = files(folder.path());
    issue(&files);
    let (address, log) = upstream().await;
    let mut settings = settings(address);
    settings.server.tls = Some(files);
    let shield = start(settings);
    let answer = exchange(shield.app, request("a").as_bytes()).await;
    assert!(!answer.contains("HTTP/"), "{answer}");
    assert!(log.lock().expect("no panic").is_empty());
}
