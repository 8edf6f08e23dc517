//! Queries a running shield: one GET to its admin listener.

use std::{path::PathBuf, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

use crate::config::Source;

/// Which shield to query.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Whom {
    /// The admin listener of the shield, http://127.0.0.1:8788 by default [env: GROQ_SHIELD_ADMIN]
    #[arg(long, value_name = "URL")]
    admin: Option<String>,
    /// The configuration file, for `admin.listen` [env: GROQ_SHIELD_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Whom {
    /// Host and port. A configuration with faults still names the listener of a shield that runs with the previous one.
    pub(super) fn address(&self) -> String {
        let named = self.admin.clone().or_else(|| std::env::var("GROQ_SHIELD_ADMIN").ok()).filter(|named| !named.is_empty());
        let address = named.unwrap_or_else(|| Source::new(self.config.clone()).load().settings.admin.listen.to_string());
        let address = address.trim_start_matches("http://").split('/').next().unwrap_or_default().to_owned();
        match address.rsplit_once(':') {
            // A listener on every interface is reached over loopback.
            Some(("0.0.0.0", port)) => format!("127.0.0.1:{port}"),
            Some(("[::]", port)) => format!("[::1]:{port}"),
            _ => address,
        }
    }
}

/// Gets a path from `host:port`; returns status and body, or why there are none.
pub(super) fn get(address: &str, path: &str, limit: Duration) -> Result<(StatusCode, Bytes), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|why| why.to_string())?;
    let asked = runtime.block_on(async { timeout(limit, ask(address, path)).await });
    match asked {
        Ok(answer) => answer.map_err(|why| format!("no shield answers at http://{address}: {why}")),
        Err(_) => Err(format!("http://{address} does not answer within {} s", limit.as_secs_f64())),
    }
}

async fn ask(address: &str, path: &str) -> Result<(StatusCode, Bytes), Box<dyn std::error::Error + Send + Sync>> {
    let socket = TcpStream::connect(address).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await?;
    let request = Request::get(path).header(header::HOST, address).body(Empty::<Bytes>::new())?;
    let asked = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        Ok((status, response.into_body().collect().await?.to_bytes()))
    };
    tokio::pin!(asked);
    tokio::select! {
        answer = &mut asked => answer,
        // The result of the connection does not matter once the response has been read.
        ended = connection => { ended?; asked.await }
    }
}
