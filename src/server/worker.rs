//! A worker thread, which serves the connections that it is given.

use std::sync::Arc;

use tokio::{
    net::TcpStream,
    runtime::Runtime,
    sync::{OwnedSemaphorePermit, mpsc, oneshot},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::task_tracker::TaskTrackerToken};

use super::{connection, tls::Certificate};
use crate::proxy::Shield;

/// An accepted connection, to be sent to its worker.
pub(super) struct Accepted {
    pub(super) socket: std::net::TcpStream,
    /// Its permit under `max_connections`.
    pub(super) permit: Option<OwnedSemaphorePermit>,
    /// Lets a drain wait for it.
    pub(super) tracked: TaskTrackerToken,
}

/// A worker thread.
pub(super) struct Worker {
    pub(super) shield: Arc<Shield>,
    pub(super) certificate: Option<Arc<Certificate>>,
    pub(super) accepted: mpsc::UnboundedReceiver<Accepted>,
    pub(super) stopped: CancellationToken,
}

impl Worker {
    /// Serves until `stopped`, and runs `task`, if any, meanwhile: one of the workers accepts connections for all.
    pub(super) fn run<F: Future<Output = ()>>(mut self, runtime: Runtime, task: oneshot::Receiver<F>) {
        runtime.block_on(async {
            let stopped = self.stopped.clone();
            let running = async {
                if let Ok(task) = task.await {
                    task.await;
                }
            };
            tokio::select! {
                () = stopped.cancelled() => {}
                () = async { tokio::join!(self.serve(), running); stopped.cancelled().await } => {}
            }
        });
        // A name lookup that hangs must not delay the exit.
        runtime.shutdown_background();
    }

    async fn serve(&mut self) {
        while let Some(Accepted { socket, permit, tracked }) = self.accepted.recv().await {
            let socket = socket.set_nodelay(true).and_then(|()| TcpStream::from_std(socket));
            let socket = match socket {
                Ok(socket) => socket,
                Err(error) => {
                    tracing::warn!(%error, "an accepted connection cannot be served");
                    continue;
                }
            };
            let (shield, held) = (self.shield.clone(), (permit, tracked));
            match self.certificate.clone() {
                None => tokio::spawn(connection::serve(socket, shield, held)),
                Some(certificate) => tokio::spawn(serve_tls(socket, certificate, shield, held)),
            };
        }
    }
}

async fn serve_tls<T>(socket: TcpStream, certificate: Arc<Certificate>, shield: Arc<Shield>, held: T) {
    let header_timeout = shield.settings.load().server.header_timeout;
    // Boxed: the task of a connection is as large as its largest phase.
    match Box::pin(timeout(header_timeout, certificate.accept(socket))).await {
        Ok(Ok(socket)) => connection::serve(socket, shield, held).await,
        Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
        Err(_) => tracing::debug!("a client did not finish its TLS handshake in time"),
    }
}
