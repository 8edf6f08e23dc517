//! Connecting to one Redis or to a cluster, with TLS by public roots or an operator's own.

use std::{fs, io, time::Duration};

use redis::{
    AsyncConnectionConfig, Client, IntoConnectionInfo, ProtocolVersion, RedisResult, TlsCertificates,
    cluster::ClusterClientBuilder, cmd,
};
use rustls_pki_types::{CertificateDer, pem::PemObject};

use super::task::{Connection, RedisTask};

/// For name, TCP, TLS and greeting together. No request waits for it.
pub(super) const CONNECT: Duration = Duration::from_secs(2);

impl RedisTask {
    pub(super) async fn connect(&self) -> RedisResult<Connection> {
        let info = self.settings.url.as_str().into_connection_info()?;
        let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let info = info.set_redis_settings(settings);
        let certificates = self.certificates()?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT))
            .set_response_timeout(Some(self.settings.timeout))
            .set_push_sender(self.pushes.clone());
        let client = match certificates.clone() {
            Some(certificates) => Client::build_with_tls(info.clone(), certificates)?,
            None => Client::open(info.clone())?,
        };
        let mut one = client.get_multiplexed_async_connection_with_config(&config).await?;
        let about: String = cmd("INFO").arg("cluster").query_async(&mut one).await?;
        if !about.contains("cluster_enabled:1") {
            one.subscribe(self.channel()).await?;
            return Ok(Connection::One(one));
        }
        let mut cluster = ClusterClientBuilder::new([info])
            .use_protocol(ProtocolVersion::RESP3)
            .connection_timeout(CONNECT)
            .response_timeout(self.settings.timeout)
            .retries(1)
            .push_sender(self.pushes.clone());
        if let Some(certificates) = certificates {
            cluster = cluster.certs(certificates);
        }
        let mut all = cluster.build()?.get_async_connection().await?;
        all.subscribe(self.channel()).await?;
        Ok(Connection::Cluster(all))
    }

    /// The roots of a private authority, where there is one.
    fn certificates(&self) -> RedisResult<Option<TlsCertificates>> {
        let Some(file) = self.settings.ca_file.as_ref().filter(|_| self.settings.url.starts_with("rediss:")) else {
            return Ok(None);
        };
        let unusable = |why: String| io::Error::other(format!("store.ca_file {}: {why}", file.display()));
        let root_cert = fs::read(file).map_err(|why| unusable(why.to_string()))?;
        match CertificateDer::pem_slice_iter(&root_cert).next() {
            Some(Ok(_)) => {}
            Some(Err(why)) => return Err(unusable(why.to_string()).into()),
            None => return Err(unusable("no certificate in it".into()).into()),
        }
        Ok(Some(TlsCertificates { client_tls: None, root_cert: Some(root_cert) }))
    }
}
