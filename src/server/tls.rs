//! TLS for apps: one certificate, read from files, that can be reloaded, and the negotiation of HTTP/2.

use std::{io, sync::Arc};

use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::config::Tls;

/// The certificate, and the acceptor that uses it.
pub(super) struct Certificate {
    files: Tls,
    current: Arc<Current>,
    acceptor: TlsAcceptor,
}

#[derive(Debug)]
struct Current(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl Certificate {
    /// Reads the files.
    pub(super) fn load(files: &Tls) -> io::Result<Self> {
        let current = Arc::new(Current(ArcSwap::from_pointee(read(files)?)));
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_no_client_auth()
            .with_cert_resolver(current.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { files: files.clone(), current, acceptor: Arc::new(config).into() })
    }

    /// Reads the files again for new connections.
    pub(super) fn reload(&self) -> io::Result<()> {
        self.current.0.store(Arc::new(read(&self.files)?));
        tracing::info!(cert = %self.files.cert.display(), "certificate reloaded");
        Ok(())
    }

    /// Performs the handshake.
    pub(super) async fn accept(&self, socket: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        self.acceptor.accept(socket).await
    }
}

fn read(Tls { cert, key }: &Tls) -> io::Result<CertifiedKey> {
    let fault = |key_name: &str, path: &std::path::Path, why: String| {
        io::Error::new(io::ErrorKind::InvalidData, format!("server.tls.{key_name}: {}: {why}", path.display()))
    };
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| fault("cert", cert, error.to_string()))?;
    if chain.is_empty() {
        return Err(fault("cert", cert, "no certificate in PEM form".into()));
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| fault("key", key, error.to_string()))?;
    CertifiedKey::from_der(chain, private, &aws_lc_rs::default_provider())
        .map_err(|error| fault("key", key, format!("it does not belong to {}: {error}", cert.display())))
}
