//! A connection to a single Redis or to a cluster. TLS uses the public root certificates, or the operator's own.

use std::{fs, io, time::Duration};

use redis::{
    AsyncConnectionConfig, Client, FromRedisValue, IntoConnectionInfo, ProtocolVersion, PushInfo, RedisResult, ScriptInvocation,
    TlsCertificates, aio::MultiplexedConnection, cluster::ClusterClientBuilder, cluster_async::ClusterConnection, cmd,
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use tokio::sync::mpsc::UnboundedSender;

use crate::settings::RedisSettings;

/// Time limit for name resolution, TCP, TLS and the handshake together. No request waits for it.
pub(super) const CONNECT: Duration = Duration::from_secs(2);

/// A connection to the store.
///
/// `ConnectionManager` of the redis crate is not used: it keeps a connection on which a reply was late, and whose next
/// replies may belong to earlier commands.
pub(super) enum Connection {
    One(MultiplexedConnection),
    /// Reconnects to its nodes by itself.
    Cluster(ClusterConnection),
}

impl Connection {
    /// Connects, and subscribes to the channel. Its messages and the end of the connection are sent to `pushes`.
    pub(super) async fn open(settings: &RedisSettings, channel: &str, pushes: UnboundedSender<PushInfo>) -> RedisResult<Self> {
        let info = settings.url.as_str().into_connection_info()?;
        let resp3 = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let info = info.set_redis_settings(resp3);
        let certificates = certificates(settings)?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT))
            .set_response_timeout(Some(settings.timeout))
            .set_push_sender(pushes.clone());
        let client = match certificates.clone() {
            Some(certificates) => Client::build_with_tls(info.clone(), certificates)?,
            None => Client::open(info.clone())?,
        };
        let mut one = client.get_multiplexed_async_connection_with_config(&config).await?;
        let about: String = cmd("INFO").arg("cluster").query_async(&mut one).await?;
        if !about.contains("cluster_enabled:1") {
            one.subscribe(channel).await?;
            return Ok(Self::One(one));
        }
        let mut cluster = ClusterClientBuilder::new([info])
            .use_protocol(ProtocolVersion::RESP3)
            .connection_timeout(CONNECT)
            .response_timeout(settings.timeout)
            .retries(1)
            .push_sender(pushes);
        if let Some(certificates) = certificates {
            cluster = cluster.certs(certificates);
        }
        let mut all = cluster.build()?.get_async_connection().await?;
        all.subscribe(channel).await?;
        Ok(Self::Cluster(all))
    }

    pub(super) async fn run<T: FromRedisValue>(&self, script: &ScriptInvocation<'_>) -> RedisResult<T> {
        match self {
            Self::One(one) => script.invoke_async(&mut one.clone()).await,
            Self::Cluster(all) => script.invoke_async(&mut all.clone()).await,
        }
    }
}

/// The root certificates of a private authority; `None` without `ca_file` or without TLS.
fn certificates(settings: &RedisSettings) -> RedisResult<Option<TlsCertificates>> {
    let Some(file) = settings.ca_file.as_ref().filter(|_| settings.url.starts_with("rediss:")) else { return Ok(None) };
    let unusable = |why: String| io::Error::other(format!("store.ca_file {}: {why}", file.display()));
    let root_cert = fs::read(file).map_err(|why| unusable(why.to_string()))?;
    match CertificateDer::pem_slice_iter(&root_cert).next() {
        Some(Ok(_)) => {}
        Some(Err(why)) => return Err(unusable(why.to_string()).into()),
        None => return Err(unusable("no certificate in it".into()).into()),
    }
    Ok(Some(TlsCertificates { client_tls: None, root_cert: Some(root_cert) }))
}
